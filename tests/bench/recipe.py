"""Does the device wait? The full recipe from real JPEGs, beside the same model on one batch that lies on the device.

    python -m tests.bench.recipe --data FOLDER [--arch xresnet50] [--size 224] [--bs 128] [--epochs 4] [--limit
        N] [--images 20000] [--json FILE]     # one GPU
    python -m tests.bench.recipe --data FOLDER --arch xresnet18 --size 32 --bs 16 --limit 256 --epochs 2
        # to try it on a CPU

FOLDER holds JPEGs at any depth; `--images` takes them over and over up to that number, as an epoch of few batches
says little. `possible` is a bare loop on one batch: the same model, optimizer, 16 bits and memory layout, no data
and no tricks. `recipe` is trickbag with crop, flip, TrivialAugment, RandomErasing, MixUp, LabelSmoothing and EMA;
`first` is its first epoch, in which images are decoded. The memory of `possible` is that of a loop with soft
targets and a copy of the weights, as those tricks need them. `fastai` has crop and flip in its workers, and MixUp
and label smoothing on the device. Images a second, fraction of `possible`, and the largest memory that tensors took
on the GPU (trickbag's without the store's copy there, if it keeps one). Needs the extra [bench] for fastai. The
seconds to an accuracy are in tests/bench/imagenette.py."""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F


def device():
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def wait():
    torch.cuda.synchronize() if torch.cuda.is_available() else None


def sgd(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=5e-5)


def half():
    from trickbag.speed.fast import fast_bf16

    return fast_bf16(device())


def model(a, n_out=10):
    import trickbag.all as tb

    torch.manual_seed(0)
    return getattr(tb, a.arch)(n_out=n_out).to(device())


def peak(f):
    "What `f` gives, and the largest memory meanwhile, in MB; NaN on a CPU"
    if not torch.cuda.is_available():
        return f(), float('nan')
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return f(), torch.cuda.max_memory_allocated() / 2**20


def possible(files, a, soft=False):
    "The bare loop on one batch"
    torch.backends.cudnn.benchmark = True
    m = model(a).to(memory_format=torch.channels_last)
    opt = sgd(m.parameters())
    x = torch.randn(a.bs, 3, a.size, a.size, device=device()).contiguous(memory_format=torch.channels_last)
    y = torch.rand(a.bs, 10, device=device()).softmax(1) if soft else torch.randint(10, (a.bs,), device=device())
    avg = [t.clone() for t in m.state_dict().values()] if soft else None  # noqa: F841: it only takes memory

    def steps(n):
        for _ in range(n):
            with torch.autocast(device().type, torch.bfloat16, enabled=half()):
                loss = F.cross_entropy(m(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
        wait()

    steps(5)
    n = max(min(len(files) // a.bs, 100), 3)
    t = time.perf_counter()
    steps(n)
    return n * a.bs / (time.perf_counter() - t)


def trickbag(files, a):
    "Images a second of the first epoch, and of the best later one; bytes of the store on the GPU"
    from trickbag.all import (
        EMA,
        ChannelsLast,
        DataLoaders,
        LabelSmoothing,
        Learner,
        MixedPrecision,
        MixUp,
        OneCycle,
        RandomErasing,
        Recorder,
        TrivialAugment,
    )

    dls = DataLoaders.from_lists(
        files, [i % 10 for i in range(len(files))], is_valid=[False] * len(files), size=a.size, bs=a.bs, verify=False
    )
    cbs = [
        TrivialAugment(),
        RandomErasing(),
        MixUp(),
        LabelSmoothing(),
        EMA(),
        OneCycle(),
        ChannelsLast(),
        *([MixedPrecision()] if half() else []),
    ]
    learn = Learner(dls, model(a), opt_func=sgd, lr=0.1, cbs=cbs, device=device()).fit(a.epochs)
    n = sum(learn.cb(Recorder).ns) / a.epochs
    speeds = [n / r['time'] for r in learn.history]
    return (
        speeds[0],
        max(speeds[1:]),
        sum(s.need / 2**20 for s in (dls.train.store,) if s.gpu and s.gpu.copy is not None),
    )


def fastai(files, a):
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        FlipItem,
        ImageBlock,
        LabelSmoothingCrossEntropy,
        Learner,
        MixUp,
        Normalize,
        OptimWrapper,
        RandomResizedCrop,
        imagenet_stats,
    )

    label = {f: str(i % 10) for i, f in enumerate(files)}
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda _: files,
        get_y=label.get,
        splitter=lambda o: (list(range(len(o))), []),
        item_tfms=[RandomResizedCrop(a.size, min_scale=0.35), FlipItem()],
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    dls = block.dataloaders('.', bs=a.bs, num_workers=os.cpu_count(), device=device())
    learn = Learner(
        dls,
        model(a),
        loss_func=LabelSmoothingCrossEntropy(),
        cbs=MixUp(),
        opt_func=lambda ps, lr, **_: OptimWrapper(ps, partial(torch.optim.SGD, momentum=0.9), lr=lr),
    )
    if device().type == 'cuda':
        learn = learn.to_bf16() if hasattr(learn, 'to_bf16') and half() else learn.to_fp16()
    times = []
    with learn.no_bar(), learn.no_logging():
        for _ in range(2):
            wait()
            t = time.perf_counter()
            learn.fit(1, 0.1)
            wait()
            times.append(time.perf_counter() - t)
    return len(files) // a.bs * a.bs / min(times)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--arch', default='xresnet50')
    ap.add_argument('--json')
    for n, v in (('size', 224), ('bs', 128), ('epochs', 4), ('limit', 0), ('images', 0)):
        ap.add_argument(f'--{n}', type=int, default=v)
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    if a.epochs < 2:
        ap.error('--epochs must be 2 or more: the first decodes')
    files = sorted(str(f) for f in a.data.rglob('*.[jJ][pP]*[gG]'))
    if a.limit:
        files = files[:: max(len(files) // a.limit, 1)][: a.limit]
    if a.images:
        files = (files * -(-a.images // len(files)))[: a.images]
    if len(files) < a.bs:
        sys.exit(f'{a.data}: {len(files)} JPEGs, fewer than a batch')
    (top, _), (_, bare_mb) = peak(lambda: possible(files, a)), peak(lambda: possible(files, a, soft=True))
    (first, later, kept), mb = peak(lambda: trickbag(files, a))
    rows = dict(possible=(top, bare_mb), first=(first, mb - kept), recipe=(later, mb - kept))
    dev = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'

    def keep():
        if a.json:
            json.dump(
                dict(
                    rows={n: dict(images_per_s=v, peak_mb=b) for n, (v, b) in rows.items()},
                    n=len(files),
                    args={k: v for k, v in vars(a).items() if k not in ('json', 'data')},
                    torch=torch.__version__,
                    python=platform.python_version(),
                    device=dev,
                ),
                open(a.json, 'w'),
            )

    print(f'{"":10} {"images/s":>9} {"fraction":>7} {"peak MB":>8}')
    for n, (v, b) in rows.items():
        print(f'{n:10} {v:9,.0f} {v / top:7.1%} {b:8,.0f}', flush=True)
    keep()
    try:
        rows['fastai'] = peak(lambda: fastai(files, a))
    except Exception as e:
        print(f'fastai: not measured ({type(e).__name__}: {e})', file=sys.stderr)  # what was measured is not lost
    else:
        print(f"{'fastai':10} {rows['fastai'][0]:9,.0f} {rows['fastai'][0] / top:7.1%} {rows['fastai'][1]:8,.0f}")
        keep()
    if 'fastai' in rows:
        print(f"recipe to fastai: {later / rows['fastai'][0]:.2f}")
    print(
        f'{a.arch}, {a.size} px, batch {a.bs}, {len(files)} JPEGs, {"bf16" if half() else "fp32"}, torch '
        f'{torch.__version__}, {dev}'
    )


if __name__ == '__main__':
    main()
