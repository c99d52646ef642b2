"""What is a training step's fastest format on this device: float32 or bf16, contiguous or channels_last, plain or
compiled; on a CPU, with `Im2Col` or without?

    python -m tests.bench.formats [--arch xresnet18] [--size 64] [--bs 64] [--rounds 5] [--steps 3] [--device
        cpu] [--json FILE]

A bare loop on one batch in memory (fused AdamW, cross entropy), nothing of trickbag's but the model and what
`Backends` sets (on a CPU the kept heap). The variants take turns; the table shows the fastest step and the median
one. On a machine with other work the fastest says more: two threads that wait for each other are slowed tenfold by
a third. `first` is the first step, in which a compiled model is compiled for training; validation is compiled once
more."""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import sys
import time
import warnings

import torch
from torch import nn

from trickbag import all as bag
from trickbag.speed.fast import has_compiler, keep_heap
from trickbag.speed.im2col import use_im2col


def loop(half, last, im2col, compiled, a):
    torch.manual_seed(0)
    fmt = torch.channels_last if last else torch.contiguous_format
    m = getattr(bag, a.arch)(n_out=10).to(a.device, memory_format=fmt)
    if im2col:
        use_im2col(m)
    x = torch.randn(a.bs, 3, a.size, a.size, device=a.device).contiguous(memory_format=fmt)
    y = torch.randint(0, 10, (a.bs,), device=a.device)
    opt = bag.adamw(m.parameters())
    ce = nn.CrossEntropyLoss()
    f = torch.compile(m) if compiled else m

    def step():
        t = time.perf_counter()
        with torch.autocast(a.device, torch.bfloat16) if half else contextlib.nullcontext():
            loss = ce(f(x).float(), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        if a.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter() - t

    return step


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for n, v in (('size', 64), ('bs', 64), ('rounds', 5), ('steps', 3)):
        ap.add_argument(f'--{n}', type=int, default=v)
    ap.add_argument('--arch', default='xresnet18')
    ap.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    ap.add_argument('--json')
    ap.add_argument('--compile', action=argparse.BooleanOptionalAction, default=True)
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    d = torch.device(a.device)
    if a.device == 'cpu':
        keep_heap(True)
    else:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision('high')  # as in a fit
    comp = a.compile and has_compiler(d)
    if a.compile and not comp:
        print('compiled: there is no compiler', file=sys.stderr)
    runs = {}
    first = {}
    res = {}
    for compiled, half, (last, im2col) in itertools.product(
        (False, True) if comp else (False,),
        (False, True),
        ((False, False), (True, False), *([(True, True)] if a.device == 'cpu' else [])),
    ):
        if compiled and im2col:
            continue  # compiled layers are torch's own
        n = (
            ('bf16' if half else 'float32')
            + (', channels_last' if last else '')
            + (', im2col' if im2col else '')
            + (', compiled' if compiled else '')
        )
        runs[n] = loop(half, last, im2col, compiled, a)
        first[n] = runs[n]()
        runs[n]()
    for _ in range(a.rounds):
        for n, step in runs.items():
            step()
            # the first after another variant finds cold caches
            res.setdefault(n, []).extend(step() for _ in range(a.steps))
    print(f'{"":40} {"fastest ms":>10} {"images/s":>9} {"median ms":>10} {"first s":>8}')
    for n, v in res.items():
        print(f'{n:40} {min(v) * 1e3:10.1f} {a.bs / min(v):9,.0f} {statistics.median(v) * 1e3:10.1f} {first[n]:8.1f}')
    where = (
        torch.cuda.get_device_name()
        if a.device == 'cuda'
        else f'{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads'
    )
    print(f'{a.arch}, {a.size} px, batch {a.bs}, {where}, torch {torch.__version__}')
    if a.json:
        with open(a.json, 'w') as f:
            json.dump(
                dict(
                    seconds=res,
                    first=first,
                    args={k: v for k, v in vars(a).items() if k != 'json'},
                    where=where,
                    torch=torch.__version__,
                    python=platform.python_version(),
                ),
                f,
                indent=1,
            )


if __name__ == '__main__':
    main()
