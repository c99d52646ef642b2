"""Does an image cost more in a set of a million than in one of a thousand?

    python -m tests.bench.growth [--sizes 1000 10000 100000 1000000] [--rounds 60] [--dir FOLDER] [--json FILE]

A thousand small JPEGs in a folder, and a thousand links to that folder, make up to a million paths that can all be
opened. For each size a fresh process measures `start`: from a list of paths and one of labels to loaders, with the
look at 50,000 files at most, and `private`: how much its own memory (RssAnon of Linux) then has grown, in the
middle of a shuffled epoch, from a store on disk; `trimmed` is the same once the C library has given its free memory
back (it may keep 64 MB). Then one process has the stores of all sizes open, filled (with zeros), and takes 15
batches of 64 from each in turn, so that a busy moment of the machine hits all of them: `steady` is the rate of
cropped, mirrored and normalized batches, `checked` the same in the first epoch of a run, when every file is asked
whether it has changed, `batch` the time of the loader alone, `epoch` that to draw an epoch's order. Pixels are few
(32 x 32, cropped to 24), so that a million images (3 GB) stay in memory: this measures the index, not the disk.
Medians; ratios are to the smallest size in the same round."""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch


def make(root):
    "1,000 files, and 1,000 links to their folder"
    from PIL import Image

    (root / 'files').mkdir()
    (root / 'train').mkdir()
    for j in range(1000):
        Image.effect_noise((48, 40), 20 + j % 60).convert('RGB').save(root / f'files/{j:03}.jpg')
    for k in range(1000):
        (root / f'train/n{k:08}').symlink_to(root / 'files')


def loaders(root, n, **kw):
    from trickbag.all import DataLoaders

    files = [f'{root}/train/n{i // 1000:08}/{i % 1000:03}.jpg' for i in range(n)]
    labels = [f'class {i % 100}' for i in range(n)]
    t = time.perf_counter()
    c = time.process_time()
    dls = DataLoaders.from_lists(files, labels, [False] * n, size=24, presize=32, bs=64, keep='disk', **kw)
    return dls, time.perf_counter() - t, time.process_time() - c


def private():
    gc.collect()
    with open('/proc/self/status') as f:
        return next(int(l.split()[1]) for l in f if l.startswith('RssAnon')) / 1024


def start(root, n):
    "In a fresh process: the times to start, and growth of memory"

    def go(n):
        dls, t, c = loaders(root, n)
        dls.train.store.source.get(0, 32)  # what decodes is loaded now, if the store has all already
        it = iter(dls.train)
        for _ in range(15):
            next(it)
        return dls, it, t, c

    go(1000)  # imports, threads
    base = private()
    dls, it, t, c = go(n)
    grown = private()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)
    return dict(start_s=t, start_cpu_s=c, private_mb=grown - base, trimmed_mb=private() - base)


def run(dls, seed):
    "Seconds from the first of 15 batches to the last"
    from trickbag.all import Callback, CancelBatch, CancelTrain, Learner

    class Out(Callback):
        "The batch is ready: take the next"

        stage = 'model'

        def before_fit(self, learn):
            self.times = []

        def before_batch(self, learn):
            self.times.append(time.perf_counter())
            raise CancelTrain if len(self.times) == 15 else CancelBatch

    out = Out()
    learn = Learner(dls, torch.nn.Linear(1, 1), cbs=out, device='cpu', seed=seed)
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name in ('Backends', 'ToDevice')]
    learn.fit(1)
    return out.times[-1] - out.times[0]


def bare(dls):
    "Seconds of 14 batches, and of drawing the order"
    t = time.perf_counter()
    it = iter(dls.train)
    drawn = time.perf_counter() - t
    next(it)
    t = time.perf_counter()
    for _ in range(14):
        next(it)
    return time.perf_counter() - t, drawn


def rates(root, sizes, rounds):
    res = {k: {n: [] for n in sizes} for k in ('steady', 'checked', 'batch_us', 'epoch_ms')}
    all_dls = {n: loaders(root, n, verify=False)[0] for n in sizes}
    stamps = None
    for n, dls in all_dls.items():
        s = dls.train.store
        if stamps is None:
            stamps = torch.tensor([s.source.stamp(i) for i in range(1000)])
        s.index[:, 0], s.wh[:] = stamps.repeat(n // 1000), torch.tensor([48, 40])
        s.arrays.pixels.view(-1)[::4096].sum()  # all in memory

    def ready(s, yes):
        s.ready[:], s.left = yes, 0 if yes else len(s)

    for r in range(rounds + 5):  # the first ones warm up
        for n in sizes[r % len(sizes) :] + sizes[: r % len(sizes)]:
            dls = all_dls[n]
            s = dls.train.store
            ready(s, False)
            checked = run(dls, r)
            ready(s, True)
            steady = run(dls, r)
            b, e = bare(dls)
            for k, v in (
                dict(
                    steady=14 * 64 / steady, checked=14 * 64 / checked, batch_us=b / 14 * 1e6, epoch_ms=e * 1e3
                ).items()
                if r >= 5
                else ()
            ):
                res[k][n].append(v)
    return res


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        '--sizes',
        type=int,
        nargs='*',
        default=[1000, 10_000, 100_000, 1_000_000],
        help='multiples of 1,000, the smallest first',
    )
    ap.add_argument('--rounds', type=int, default=60)
    ap.add_argument('--dir', type=Path, help='where the set is made; needs 3 GB a million')
    ap.add_argument('--json')
    ap.add_argument('--start', nargs=2, help=argparse.SUPPRESS)
    a = ap.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    if a.start:
        return print(json.dumps(start(a.start[0], int(a.start[1]))))
    with tempfile.TemporaryDirectory(dir=a.dir) as d:
        os.environ['TRICKBAG_CACHE'] = f'{d}/cache'
        make(Path(d))
        starts = {
            n: json.loads(
                subprocess.run(
                    [sys.executable, '-m', 'tests.bench.growth', '--start', d, str(n)],
                    check=True,
                    stdout=subprocess.PIPE,
                ).stdout
            )
            for n in a.sizes
        }
        res = rates(d, a.sizes, a.rounds)
    med = statistics.median
    base = a.sizes[0]
    print(
        f'{"images":>9} {"start":>8} {"cpu":>8} {"private":>9} {"trimmed":>9} {"steady/s":>9} {"ratio":>6} '
        f'{"checked/s":>9} {"ratio":>6} {"batch":>8} {"epoch":>8}'
    )
    for n, s in starts.items():

        def rate(k):
            return f"{med(res[k][n]):9,.0f} {med(x / b for x, b in zip(res[k][n], res[k][base])):6.3f}"

        print(
            f"{n:9,} {s['start_s']:6.2f} s {s['start_cpu_s']:6.2f} s {s['private_mb']:6.1f} MB "
            f"{s['trimmed_mb']:6.1f} MB {rate('steady')} {rate('checked')} {med(res['batch_us'][n]):5.0f} us "
            f"{med(res['epoch_ms'][n]):5.1f} ms"
        )
    print(
        f'torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, 1 thread, '
        f'{a.rounds} rounds'
    )
    if a.json:
        json.dump(
            dict(
                sizes=a.sizes,
                starts=starts,
                **res,
                torch=torch.__version__,
                python=platform.python_version(),
                cores=os.cpu_count(),
                argv=sys.argv[1:],
            ),
            open(a.json, 'w'),
        )


if __name__ == '__main__':
    main()
