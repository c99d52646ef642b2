"""Which decoder, threads or processes? JPEGs to P x P uint8, images a second.

    python -m tests.bench.decode FOLDER [--presize 160] [--limit 512] [--rounds 5] [--json FILE]

`pillow` opens, drafts and resizes with Pillow; `turbo` is torchvision's decoder and torch's uint8 resize; `ours` is
trickbag's `decode`, which chooses per file. Each alone, then in threads and in processes, one a core. Rounds
interleave; the table shows the best round, as what disturbs can only slow down."""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

P = 160


def pillow(f):
    from PIL import Image

    im = Image.open(f)
    im.draft('RGB', (P, P))
    return torch.frombuffer(
        bytearray(im.convert('RGB').resize((P, P), Image.BILINEAR, reducing_gap=3.0).tobytes()), dtype=torch.uint8
    ).view(P, P, 3)


def turbo(f):
    from torchvision.io import ImageReadMode, decode_jpeg

    with open(f, 'rb') as s:
        x = decode_jpeg(torch.frombuffer(bytearray(s.read()), dtype=torch.uint8), ImageReadMode.RGB)
    return (
        torch.nn.functional.interpolate(x[None], (P, P), mode='bilinear', antialias=True)[0]
        .permute(1, 2, 0)
        .contiguous()
    )


def ours(f):
    from trickbag.data.decode import decode

    return decode(f, P)[0]


def start(p):
    global P
    P = p
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')


def many(name, fs):
    for f in fs:
        globals()[name](f)


def main():
    global P
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('folder', type=Path)
    ap.add_argument('--json')
    for n, v in (('presize', 160), ('limit', 512), ('rounds', 5)):
        ap.add_argument(f'--{n}', type=int, default=v)
    a = ap.parse_args()
    P = a.presize
    k = os.cpu_count()
    start(P)
    fs = sorted(map(str, a.folder.rglob('*.jp*g')))[: a.limit]
    cut = [fs[i :: 2 * k] for i in range(2 * k)]
    from trickbag.core.threads import lone_threads

    threads = lone_threads('bench', k)
    procs = ProcessPoolExecutor(k, initializer=start, initargs=(P,))
    ways = {
        'alone': lambda n: many(n, fs),
        f'{k} threads': lambda n: list(threads.map(many, [n] * len(cut), cut)),
        f'{k} processes': lambda n: list(procs.map(many, [n] * len(cut), cut)),
    }
    res = {}
    for r in range(a.rounds + 1):
        for n in ('pillow', 'turbo', 'ours'):
            for w, f in ways.items():
                t = time.perf_counter()
                f(n)
                t = len(fs) / (time.perf_counter() - t)
                if r:
                    res.setdefault(n, {}).setdefault(w, []).append(t)
    print(
        f'{len(fs)} JPEGs to {P} x {P}, images/s, torch {torch.__version__}, {k} cores, best of {a.rounds}\n\n{"":8}'
        + ''.join(f'{w:>13}' for w in ways)
    )
    for n, o in res.items():
        print(f'{n:8}' + ''.join(f'{max(v):13,.0f}' for v in o.values()))
    if a.json:
        json.dump(
            dict(
                images_per_s=res,
                n=len(fs),
                presize=P,
                torch=torch.__version__,
                python=platform.python_version(),
                cores=k,
                argv=sys.argv[1:],
            ),
            open(a.json, 'w'),
        )


if __name__ == '__main__':
    main()
