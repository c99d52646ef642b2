"""FixRes in small: a network trained at 96 pixels, tested at seven sizes, before and after a fit of its head.

    python -m tests.bench.evidence.fix_res --data FOLDER --work FOLDER --json FILE [--seeds 3]

FOLDER of `--data` has imagenette2-160; in that of `--work` the trained networks are kept, and half-trained ones, so
that the same command goes on after a kill. From scratch, one thread: an xresnet18 of a quarter of the width, the
first 250 training images of each of Imagenette's ten classes, 12 epochs at 96 pixels with torchvision's random boxes,
.08 to 1 of the area, as at the source; tested on the first 100 validation images of each class. The copies are of 160
pixels: a test image of more than 140, the central .875 of them, is enlarged and shows no more detail.

Lines of a seed: `trained`; `before`, loss and accuracy by test size; `activations`, by test size, zeros before and
after the average pooling and their quantiles; `fixed`, a fit of head and last BatchNorm at one size with one kind of
crops ('center': as the test, 'shift': shifted, 'train': random boxes), tested at that size, and after 'center' at
128 pixels at all."""

import argparse
import time
from pathlib import Path

import torch

from .lines import Lines

TRAIN_SIZE = 96
SIZES = (64, 80, 96, 112, 128, 144, 160)
FIX_SIZES = (128, 160, 96)
BOXES = ('center', 'shift', 'train')
PER_CLASS = dict(train=250, val=100)
EPOCHS = 12
LR = 1e-2
BATCH = 32
FIX: dict = dict(n_epoch=2, lr=1e-2)
QUANTILES = 101


def plan(seeds: int) -> list:
    "All runs: whole seeds, one after the other"
    runs = []
    for seed in range(seeds):
        runs += [dict(row=row, boxes='', size=TRAIN_SIZE, seed=seed) for row in ('trained', 'before', 'activations')]
        runs += [dict(row='fixed', boxes=boxes, size=size, seed=seed) for size in FIX_SIZES for boxes in BOXES]
    return runs


def loaders(data: Path):
    "The first images of each class"
    from trickbag.all import DataLoaders

    files = []
    for part, n in PER_CLASS.items():
        for folder in sorted((data / 'imagenette2-160' / part).iterdir()):
            files += sorted(folder.iterdir())[:n]
    labels = [file.parent.name for file in files]
    is_valid = [file.parent.parent.name == 'val' for file in files]
    settings: dict = dict(size=TRAIN_SIZE, presize=160, scale=(0.08, 1.0), bs=BATCH)
    return DataLoaders.from_lists(files, labels, is_valid, **settings)


def learner(dls, seed: int):
    import trickbag.all as tb

    torch.manual_seed(seed)
    model = tb.xresnet18(n_out=dls.c, widen=0.25)
    learn = tb.Learner(dls, model, opt_func=torch.optim.AdamW, metrics=tb.accuracy, cbs=tb.ChannelsLast(), seed=seed)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, tb.Progress)]
    return learn


def train(learn, file: Path) -> dict:
    "Once an epoch all that is needed to go on is kept, so that a kill costs an epoch"
    from trickbag.all import Checkpoint

    point = file.with_suffix('.point')
    resume = point if point.exists() else False
    learn.fit_one_cycle(EPOCHS, LR, cbs=Checkpoint(file=point), resume=resume)
    torch.save(learn.model.state_dict(), file)
    point.unlink(missing_ok=True)
    last = learn.history[-1]
    curve = [round(row['accuracy'], 4) for row in learn.history]
    return dict(accuracy=last['accuracy'], loss=last['valid_loss'], curve=curve, epochs=EPOCHS)


def by_size(learn, sizes) -> dict:
    "Accuracy and loss; JSON's names are texts"
    sweep = learn.size_sweep(list(sizes))
    return {str(size): {name: round(value, 5) for name, value in found.items()} for size, found in sweep.items()}


def activations(learn) -> dict:
    "What the average pooling gets and gives: how much of it is 0, and how it is distributed"
    pool = next(m for m in learn.model.modules() if isinstance(m, torch.nn.AdaptiveAvgPool2d))
    found = {}
    for size in SIZES:
        before = []
        after = []

        def keep(module, args, out, before=before, after=after):
            before.append((args[0] == 0).float().mean().item())
            after.append(out.flatten(1))

        handle = pool.register_forward_hook(keep)
        learn.size_sweep([size])
        handle.remove()
        values = torch.cat(after).flatten().double()
        # torch's quantile takes 16 million values at most
        points = torch.quantile(values, torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
        found[str(size)] = dict(
            zeros_before=round(sum(before) / len(before), 5),
            zeros_after=round((values == 0).double().mean().item(), 5),
            mean=round(values.mean().item(), 5),
            std=round(values.std().item(), 5),
            quantiles=[round(point, 4) for point in points.tolist()],
        )
    return dict(sizes=found)


def measure(run: dict, dls, work: Path) -> dict:
    "The run with what was measured"
    file = work / f'fix_res_{run["seed"]}.pt'
    learn = learner(dls, run['seed'])
    start = time.perf_counter()
    cpu_start = time.process_time()
    if run['row'] == 'trained':
        found = train(learn, file)
    else:
        learn.model.load_state_dict(torch.load(file, weights_only=True))
        if run['row'] == 'before':
            found = dict(sizes=by_size(learn, SIZES))
        elif run['row'] == 'activations':
            found = activations(learn)
        else:
            learn.fix_res(run['size'], FIX['n_epoch'], FIX['lr'], run['boxes'])
            everywhere = run['boxes'] == 'center' and run['size'] == FIX_SIZES[0]
            found = dict(sizes=by_size(learn, SIZES if everywhere else [run['size']]), **FIX)
    times = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu_start)
    return run | found | {name: round(value, 1) for name, value in times.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--work', type=Path, required=True)
    ap.add_argument('--json', type=Path, required=True)
    ap.add_argument('--seeds', type=int, default=3)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    lines = Lines(a.json, ('row', 'boxes', 'size', 'seed'))
    todo = lines.missing(plan(a.seeds))
    dls = loaders(a.data) if todo else None
    for run in todo:
        lines.add(measure(run, dls, a.work))


if __name__ == '__main__':
    main()
