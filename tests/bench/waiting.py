"""How should torch's CPU threads wait for one another: spinning, or asleep?

    python -m tests.bench.waiting [--rounds 3] [--busy 0 1 2] [--json FILE]

Trains the README's small set (toy images, xresnet18, 48 px, batch 16; one epoch after a short warm-up) in new
processes that differ in their environment only: nothing set (libgomp's threads spin), OMP_WAIT_POLICY=passive (they
sleep at once), GOMP_SPINCOUNT=10000 (they spin for some 30 us), and one thread. --busy k runs k other processes
beside them that only compute. The ways take turns; printed are medians, and their ratio to `spin` of the same
round."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = dict(
    spin={}, sleep=dict(OMP_WAIT_POLICY='passive'), short=dict(GOMP_SPINCOUNT='10000'), one=dict(OMP_NUM_THREADS='1')
)
NAMES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS')
ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'waiting.json'


def train(folder):
    "Seconds of one epoch"
    import torch

    from trickbag.all import EMA, DataLoaders, LabelSmoothing, Learner, accuracy, xresnet18

    torch.manual_seed(0)
    dls = DataLoaders.from_folder(folder, size=48, bs=16, keep='memory')
    learn = Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy, cbs=[LabelSmoothing(), EMA()])
    learn.fit(1, 1e-3)  # decodes, and warms up
    start = time.perf_counter()
    learn.fit(1, 1e-3)
    print(time.perf_counter() - start)


def seconds(way, folder):
    env = (
        {k: v for k, v in os.environ.items() if k not in NAMES}
        | WAYS[way]
        | dict(TRICKBAG_PROGRESS='0', PYTHONPATH=str(ROOT))
    )
    cmd = [sys.executable, '-W', 'ignore', '-m', 'tests.bench.waiting', '--train', folder]
    r = subprocess.run(cmd, env=env, cwd=ROOT, capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-2000:])
    return float(r.stdout.split()[-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=3)
    ap.add_argument('--busy', type=int, nargs='+', default=[0, 2])
    ap.add_argument('--ways', nargs='+', default=list(WAYS))
    ap.add_argument('--json', type=Path, default=RESULTS)
    ap.add_argument('--train', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.train:
        return train(a.train)
    import torch

    from trickbag.data.toy import toy_set

    rows = []
    with tempfile.TemporaryDirectory() as d:
        folder = str(toy_set(d, n_classes=4, n_train=320, n_valid=80))
        for busy in a.busy:
            for r in range(a.rounds):
                others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
                try:
                    rows += [dict(busy=busy, round=r, way=w, seconds=seconds(w, folder)) for w in a.ways]
                finally:
                    for p in others:
                        p.kill()
                print(
                    {w: round(x['seconds'], 1) for w, x in zip(a.ways, rows[-len(a.ways) :])},
                    f'beside {busy} busy processes',
                    flush=True,
                )
    with open(a.json, 'w') as f:
        json.dump(
            dict(rows=rows, torch=torch.__version__, machine=f'{platform.machine()}, {os.cpu_count()} cores'),
            f,
            indent=1,
        )
    for busy in a.busy:
        of = {w: [r['seconds'] for r in rows if (r['busy'], r['way']) == (busy, w)] for w in a.ways}
        base = of['spin'] if 'spin' in of else next(iter(of.values()))
        for w, v in of.items():
            ratio = statistics.median(x / b for x, b in zip(v, base))
            print(f'beside {busy}: {w:6} {statistics.median(v):6.1f} s, {ratio:.2f} of spin')


if __name__ == '__main__':
    main()
