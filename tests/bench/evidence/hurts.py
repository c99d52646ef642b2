"""When a trick helps and when it hurts, on the toy set: each of seven tricks alone on a base, in a center condition and
in twelve that differ from it in one thing.

    python -m tests.bench.evidence.hurts --data FOLDER --json FILE [--seeds 3]

FOLDER is where the toy sets are drawn. Killed at any time, the same command goes on. A run is a network of four
convolutions (80,000 weights) on images of 32 pixels, one thread; the center is 400 images of 8 species, 20 epochs,
labels right, classes balanced, beetles on .7 to .95 of the side. A seed moves the first weights, the order, the draws
and also the individuals of both halves of the set; of one seed all tricks share all of it. With more or fewer images
the steps stay as many, so the epochs change. Each trick has its own defaults; TrivialAugment's greatest translation,
32 pixels of 224, is 5 of 32."""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from .lines import Lines

CENTER = dict(epochs=20, images=400, label_noise=0.0, long_tail=1.0, objects=(0.7, 0.95))
# what is changed, and to what; of `images` the epochs, too
AXES = dict(
    epochs=[dict(epochs=5), dict(epochs=10), dict(epochs=40), dict(epochs=80)],
    images=[dict(images=100, epochs=80), dict(images=1600, epochs=5)],
    label_noise=[dict(label_noise=0.2), dict(label_noise=0.4)],
    long_tail=[dict(long_tail=10.0), dict(long_tail=50.0)],
    objects=[dict(objects=(0.35, 0.5)), dict(objects=(0.35, 0.95))],
)
# the row -> the call of its trick
TRICKS = dict(
    base='',
    smoothing='LabelSmoothing()',
    mixup='MixUp()',
    cutmix='CutMix()',
    EMA='EMA()',
    erasing='RandomErasing()',
    TrivialAugment='TrivialAugment(translate=5)',
    SAM='SAM()',
)
CLASSES = 8
NUISANCE = 0.6
VALID = 1000
SIZE = 32
BATCH = 25
LR = 1e-2


def conditions() -> list:  # of dicts: axis, value (as text) and the settings
    "The center and all that differ from it"
    found = [dict(axis='center', value='', **CENTER)]
    for axis, changes in AXES.items():
        found += [dict(axis=axis, value=str(change[axis]), **(CENTER | change)) for change in changes]
    return found


def plan(seeds: int) -> list:
    "All runs: whole tables of a seed, one after the other"
    runs = []
    for seed in range(seeds):
        for condition in conditions():
            runs += [dict(row=row, seed=seed, **condition) for row in TRICKS]
    return runs


def network() -> nn.Module:
    from trickbag.models.layers import conv_layer

    return nn.Sequential(
        conv_layer(3, 16, stride=2),
        conv_layer(16, 32, stride=2),
        conv_layer(32, 64),
        conv_layer(64, 96, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


class Sets:
    "Loaders of the last toy set: the runs of a condition come one after the other"

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = ''
        self.dls = None

    def loaders(self, run: dict):
        from trickbag.all import DataLoaders, toy_set

        low, high = run['objects']
        knobs = dict(n_train=run['images'], label_noise=run['label_noise'], long_tail=run['long_tail'])
        name = f'toy_{run["images"]}_{run["label_noise"]:g}_{run["long_tail"]:g}_{low:g}_{high:g}_{run["seed"]}'
        if name != self.name:
            same = dict(n_classes=CLASSES, n_valid=VALID, nuisance=NUISANCE, size=64, scale=run['objects'])
            path = toy_set(self.folder / name, seed=run['seed'], **same, **knobs)
            self.dls = DataLoaders.from_folder(path, size=SIZE, presize=48, bs=BATCH)
            self.name = name
        return self.dls


def train(run: dict, sets: Sets) -> dict:
    "The run with what was measured"
    import trickbag.all as tb
    from trickbag.callback import CancelValidate

    class ValidateLast(tb.Callback):
        "A validation an epoch would cost more than the training"

        stage = 'monitor'
        monitor = True

        def before_validate(self, learn):
            if learn.epoch < learn.n_epoch - 1:
                raise CancelValidate

    trick = TRICKS[run['row']]
    dls = sets.loaders(run)
    torch.manual_seed(run['seed'])
    cbs = [eval(trick, dict(vars(tb)))] if trick else []
    learn = tb.Learner(dls, network(), opt_func=torch.optim.AdamW, metrics=tb.accuracy, seed=run['seed'], cbs=cbs)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, tb.Progress)]
    start = time.perf_counter()
    cpu_start = time.process_time()
    learn.fit_one_cycle(run['epochs'], LR, cbs=ValidateLast())
    last = learn.history[-1]
    seconds = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu_start)
    times = {name: round(value, 1) for name, value in seconds.items()}
    return run | dict(trick=trick, accuracy=round(last['accuracy'], 5), loss=round(last['valid_loss'], 5), **times)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--json', type=Path, required=True)
    ap.add_argument('--seeds', type=int, default=3)
    ap.add_argument('--minutes', type=float, default=float('inf'), help='begin no run later than that')
    a = ap.parse_args()
    end = time.monotonic() + 60 * a.minutes
    torch.set_num_threads(1)
    lines = Lines(a.json, ('row', 'axis', 'value', 'seed'))
    sets = Sets(a.data)
    for run in lines.missing(plan(a.seeds)):
        if time.monotonic() > end:
            break
        lines.add(train(run, sets))


if __name__ == '__main__':
    main()
