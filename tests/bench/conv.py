"""When is a convolution on a CPU faster as a matrix product?

    python -m tests.bench.conv [--rounds 9] [--json FILE]

Layers of ResNets, channels last, in float32 and bfloat16: seconds of torch's convolution and of `Im2Col`'s
products, unfolding and folding included, for the forward pass with the gradient of the input, and for the gradient
of the weights. `fraction` is what `Im2Col` chooses by. Times are medians; both ways take turns."""

import argparse
import json
import os
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from trickbag.speed.conv import channel_fraction, col2im, im2col
from trickbag.speed.fast import fast_bf16, keep_heap

LAYERS = [
    (n, *l)
    for n in (16, 64, 256)
    for l in (  # batch; channels in, out, side of the map, kernel, stride
        (64, 64, 16, 3, 1),
        (64, 128, 16, 3, 2),
        (128, 128, 8, 3, 1),
        (128, 256, 8, 3, 2),
        (256, 256, 4, 3, 1),
        (256, 512, 4, 3, 2),
        (256, 512, 2, 1, 1),
        (512, 512, 2, 3, 1),
        (512, 512, 4, 3, 1),
        (512, 512, 7, 3, 1),
        (512, 2048, 2, 1, 1),
        (1024, 256, 4, 1, 1),
    )
]


def ways(n, c, o, size, k, s, dtype):
    "Two pairs of functions: forward and the input's gradient, and the weights' gradient, as convolution and as product"
    p = k // 2
    fmt = torch.channels_last
    x = torch.randn(n, c, size, size).to(dtype).contiguous(memory_format=fmt)
    w = torch.randn(o, c, k, k).to(dtype).contiguous(memory_format=fmt)
    y = F.conv2d(x, w, None, s, p)
    g = torch.randn_like(y)
    rows = g.permute(0, 2, 3, 1).reshape(-1, o)
    mat = w.permute(0, 2, 3, 1).reshape(o, -1)
    kw = (k, k), (s, s), (p, p)

    def conv():
        F.conv2d(x, w, None, s, p)
        torch.nn.grad.conv2d_input(x.shape, w, g, s, p)

    def prod():
        im2col(x, *kw) @ mat.T
        col2im(rows @ mat, x.shape, *kw)

    def conv_w():
        torch.nn.grad.conv2d_weight(x, w.shape, g, s, p)

    def prod_w():
        rows.T @ im2col(x, *kw)

    return channel_fraction(x.shape[1:], w, y.shape[2:]), (conv, prod), (conv_w, prod_w)


def times(fs, rounds):
    ts = [[] for _ in fs]
    for r in range(rounds + 1):
        for f, t in zip(fs, ts):
            a = time.perf_counter()
            f()
            a = time.perf_counter() - a
            if r:
                t.append(a)
    return [statistics.median(t) for t in ts]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=9)
    ap.add_argument('--json')
    a = ap.parse_args()
    keep_heap(True)
    res = []
    print(
        f'{"":9} {"batch":>5} {"in":>4} {"out":>4} {"map":>3} {"k":>2} {"s":>2} {"fraction":>6}  '
        f'{"forward + input":>24}  {"weights":>24}   (ms convolution, ms product, ratio)'
    )
    for dtype in (torch.float32, *([torch.bfloat16] if fast_bf16(torch.device('cpu')) else [])):
        for l in LAYERS:
            fraction, whole, grad = ways(*l, dtype)
            (cx, px), (cw, pw) = times(whole, a.rounds), times(grad, a.rounds)
            res.append(dict(dtype=str(dtype)[6:], layer=l, fraction=fraction, whole=(cx, px), grad=(cw, pw)))
            print(
                f'{str(dtype)[6:]:9} {l[0]:5} {l[1]:4} {l[2]:4} {l[3]:3} {l[4]:2} {l[5]:2} {fraction:6.2f}  '
                f'{cx * 1e3:8.2f} {px * 1e3:8.2f} {cx / px:6.2f}  {cw * 1e3:8.2f} {pw * 1e3:8.2f} {cw / pw:6.2f}',
                flush=True,
            )
    print(f'torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads')
    if a.json:
        json.dump(
            dict(
                rows=res,
                torch=torch.__version__,
                python=platform.python_version(),
                cores=os.cpu_count(),
                threads=torch.get_num_threads(),
            ),
            open(a.json, 'w'),
            indent=1,
        )


if __name__ == '__main__':
    main()
