"""How many images a second come out of the loader: real JPEGs to augmented, normalized batches?

    python -m tests.bench.pipeline FOLDER [--size 128] [--bs 64] [--limit 4096] [--rounds 3] [--only NAME ...]
        [--json FILE]

FOLDER holds JPEGs at any depth. Every contender crops at random (scale .35 to 1, torchvision's RandomResizedCrop),
mirrors, normalizes and yields float32 batches; nothing is trained. Contenders: torchvision (ImageFolder-like
dataset, v2 transforms, DataLoader with a worker a core), fastai (its loader and aug_transforms' equivalents on the
batch), timm (its loader with the same transforms and its collate), and trickbag: `first` decodes and keeps,
`second` has all decoded, `run2` is the first epoch of a second process, `memory` keeps in memory, `none` decodes
every time. Rounds interleave the contenders. Ratios are to torchvision in the same round. Needs the extra [bench]
for fastai and timm."""

import argparse
import atexit
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

mean = (0.485, 0.456, 0.406)
std = (0.229, 0.224, 0.225)


class Files(torch.utils.data.Dataset):
    def __init__(self, files, t):
        self.files = files
        self.t = t

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from PIL import Image

        return self.t(Image.open(self.files[i]).convert('RGB')), i % 10


def count(it, limit_time=None):
    n = 0
    t = time.perf_counter()
    for b in it:
        n += len(b[0])
    return n / (time.perf_counter() - t)


def torchvision(files, a):
    from torchvision.transforms import v2

    t = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(a.size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    dl = torch.utils.data.DataLoader(
        Files(files, t), a.bs, shuffle=True, num_workers=a.workers, drop_last=True, persistent_workers=True
    )
    return dict(torchvision=lambda: count(dl))


def fastai(files, a):
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        FlipItem,
        ImageBlock,
        Normalize,
        RandomResizedCrop,
        imagenet_stats,
    )

    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda _: files,
        get_y=lambda f: str(hash(f) % 10),
        splitter=lambda o: (list(range(len(o))), []),
        item_tfms=[RandomResizedCrop(a.size, min_scale=0.35), FlipItem()],
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    dls = block.dataloaders('.', bs=a.bs, num_workers=a.workers, device=torch.device('cpu'))
    return dict(fastai=lambda: count(dls.train))


def timm(files, a):
    from timm.data import create_loader, create_transform

    t = create_transform(
        a.size,
        is_training=True,
        scale=(0.35, 1.0),
        color_jitter=None,
        auto_augment=None,
        re_prob=0.0,
        interpolation='bilinear',
        use_prefetcher=False,
    )
    dl = create_loader(
        Files(files, t),
        (3, a.size, a.size),
        a.bs,
        is_training=True,
        num_workers=a.workers,
        use_prefetcher=False,
        persistent_workers=True,
        scale=(0.35, 1.0),
        interpolation='bilinear',
        auto_augment=None,
        color_jitter=None,
    )
    dl.dataset.transform = None
    dl.dataset.t = t
    return dict(timm=lambda: count(dl))


def trickbag(files, a):
    from trickbag.all import Callback, CancelBatch, DataLoaders, Learner

    class Out(Callback):
        "The batch is ready: take the next"

        stage = 'model'
        n = 0

        def before_batch(self, learn):
            self.n += len(learn.xb)
            raise CancelBatch

    def epoch(keep, cache=None):
        if cache:
            os.environ['TRICKBAG_CACHE'] = cache
        dls = DataLoaders.from_lists(
            files,
            [i % 10 for i in range(len(files))],
            is_valid=[False] * len(files),
            size=a.size,
            bs=a.bs,
            keep=keep,
            verify=False,
        )

        def run():
            out = Out()
            learn = Learner(dls, torch.nn.Linear(1, 1), cbs=out, device='cpu')
            learn.default_cbs = [cb for cb in learn.default_cbs if cb.name in ('Backends', 'ToDevice')]
            t = time.perf_counter()
            learn.fit(1)
            return out.n / (time.perf_counter() - t)

        return run

    def first():
        with tempfile.TemporaryDirectory() as d:
            return epoch('disk', d)()

    cache = tempfile.TemporaryDirectory()
    atexit.register(cache.cleanup)
    second = epoch('disk', cache.name)
    second()
    return dict(
        first=first,
        second=second,
        run2=lambda: epoch('disk', cache.name)(),
        memory=(lambda f: (f(), f)[1])(epoch('memory')),
        none=epoch('none'),
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('folder', type=Path)
    for n, v in (('size', 128), ('bs', 64), ('limit', 4096), ('rounds', 3), ('workers', os.cpu_count())):
        ap.add_argument(f'--{n}', type=int, default=v)
    ap.add_argument('--only', nargs='*', default=['torchvision', 'fastai', 'timm', 'trickbag'])
    ap.add_argument('--json')
    a = ap.parse_args()
    files = sorted(str(f) for f in a.folder.rglob('*.jp*g'))[: a.limit]
    if not files:
        sys.exit(f'{a.folder}: no JPEGs')
    warnings.simplefilter('ignore')
    runs = {}
    res = {}
    for n in a.only:
        try:
            runs |= globals()[n](files, a)
        except ImportError as e:
            print(f'{n}: not installed ({e})', file=sys.stderr)
    for r in range(a.rounds + 1):  # the first round warms up: workers start, files come into memory
        for n, f in runs.items():
            v = f()
            if r:
                res.setdefault(n, []).append(v)
    base = res.get('torchvision')
    print(
        f'{len(files)} JPEGs to {a.size} px, batch {a.bs}, {os.cpu_count()} cores, {a.workers} workers, torch '
        f'{torch.__version__}, {a.rounds} rounds\n\n{"":12} {"images/s":>9} {"ratio":>6}'
    )
    for n, v in res.items():
        print(
            f'{n:12} {statistics.median(v):9,.0f} '
            f'{statistics.median(x / b for x, b in zip(v, base)) if base else float("nan"):6.2f}'
        )
    if a.json:
        json.dump(
            dict(
                images_per_s=res,
                n=len(files),
                size=a.size,
                bs=a.bs,
                torch=torch.__version__,
                python=platform.python_version(),
                cores=os.cpu_count(),
                argv=sys.argv[1:],
            ),
            open(a.json, 'w'),
        )


if __name__ == '__main__':
    main()
