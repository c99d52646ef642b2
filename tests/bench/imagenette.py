"""Imagenette from scratch, by the leaderboard's rules: no pretraining, no TTA in the figure, validation at the
training size.

    python -m tests.bench.imagenette --arch xresnet18 --size 64 --epochs 5                       # two CPU cores
    python -m tests.bench.imagenette --arch xresnet50 --size 128 --epochs 5 --seeds 42 43 44     # one GPU

Needs Imagenette (160 px) in $TRICKBAG_DATA, or the network. Prints a row a seed, then mean and standard deviation
over seeds."""

import argparse
import json
import platform
import statistics
import time

import torch

from trickbag.all import *
from trickbag.speed.fast import fast_bf16

# fastai/imagenette, % correct
LEADERBOARD = {(128, 5): 87.43, (128, 20): 91.57, (192, 5): 86.76, (192, 20): 92.50, (256, 5): 86.85, (256, 20): 93.53}


def run(a, seed):
    dls = DataLoaders.from_folder(untar_data(URLs.IMAGENETTE_160), valid='val', size=a.size, bs=a.bs)
    cbs = [LabelSmoothing(), NoBiasDecay(), ChannelsLast(), *([MixedPrecision()] if fast_bf16() else [])]
    torch.manual_seed(seed)
    model = globals()[a.arch](n_out=dls.c, act=getattr(torch.nn, a.act))
    learn = Learner(dls, model, metrics=[accuracy, top_5], cbs=cbs, seed=seed)
    t = time.perf_counter()
    learn.fit_flat_cos(a.epochs, a.lr)
    t = time.perf_counter() - t
    r = learn.history[-1]
    return dict(
        seed=seed,
        accuracy=r['accuracy'],
        top_5=r['top_5'],
        tta=learn.validate(cbs=[TTA()])['accuracy'],
        seconds=t,
        images_per_s=sum(learn.cb(Recorder).ns) / t,
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--arch', default='xresnet50')
    ap.add_argument('--act', default='ReLU')
    ap.add_argument('--size', type=int, default=128)
    ap.add_argument('--epochs', type=int, default=5)
    ap.add_argument('--bs', type=int, default=64)
    ap.add_argument('--lr', type=float, default=4e-3)
    ap.add_argument('--seeds', type=int, nargs='+', default=[42])
    ap.add_argument('--json')
    a = ap.parse_args()
    rows = []
    dev = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'
    for s in a.seeds:  # each is told and kept as it comes
        rows.append(r := run(a, s))
        print(
            'seed {seed}: accuracy {accuracy:.4f}, top-5 {top_5:.4f}, with TTA {tta:.4f}, {seconds:.0f} s, '
            '{images_per_s:.0f} images/s with validation'.format(**r),
            flush=True,
        )
        if a.json:
            json.dump(dict(args=vars(a), rows=rows, torch=torch.__version__, device=dev), open(a.json, 'w'))
    if len(rows) > 1:
        for k in ('accuracy', 'tta', 'seconds'):
            print(
                f'{k}: {statistics.mean(r[k] for r in rows):.4f} ± {statistics.stdev(r[k] for r in rows):.4f} '
                f'over {len(rows)} seeds'
            )
    if (a.size, a.epochs) in LEADERBOARD:
        print(f'public leaderboard, {a.size} px, {a.epochs} epochs: {LEADERBOARD[a.size, a.epochs]} % (mean of 5 runs)')
    print(
        f'{a.arch}, {a.size} px, {a.epochs} epochs, torch {torch.__version__}, Python '
        f'{platform.python_version()}, {dev}'
    )


if __name__ == '__main__':
    main()
