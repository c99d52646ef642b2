"""GiantPanda's list of tricks (FlyEgle, ResNet50vd-pytorch, 2021) in small, on photographs and on drawings.

    python -m tests.bench.evidence.panda --data FOLDER --json tests/bench/results/evidence_panda.jsonl
    python -m tests.bench.evidence.panda_toy --data FOLDER --json tests/bench/results/evidence_panda_toy.jsonl

Imagenette, 120 images a class, 64 px, 10 epochs, tested on all 3,925 validation images; and the toy set of 1,500
beetles of ten species, 32 px, 10 epochs, tested on 500 (the source: ImageNet, ResNet50-vd, 300 epochs). An xresnet18
of a quarter of the width, batch 64, SGD with a cosine. Each trick alone on that base. Small batches: 16 images, with a
quarter of the rate, and with the gradients of four of them added up. SyncBatchNorm needs several processes, and does
nothing in one: it is not measured."""

from dataclasses import replace

from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import Recipe

from .bag_stack import PICTURES
from .common import asked, measure_rows

BASE = Recipe(
    'base',
    source='FlyEgle, ResNet50vd-pytorch (2021), in small',
    arch='xresnet18',
    arch_args=dict(widen=0.25),
    size=64,
    scale=(0.35, 1.0),
    n_images=1200,
    bs=64,
    epochs=10,
    lr=0.1,
    opt='SGD(momentum=0.9, weight_decay=0.0005)',
    tricks=('Cosine(warmup=1)', 'ChannelsLast()'),
)


def rows_on(base: Recipe) -> list:
    small = replace(base, bs=16, lr=base.lr / 4)
    added_up = replace(base, bs=16) + 'GradientAccumulation(4)'
    changed = {
        'RandAugment': base + 'RandAugment(n=2, m=9.0)',
        'MixUp': base + 'MixUp(0.2)',
        'CutMix': base + 'CutMix(1.0)',
        'MixUp or CutMix': base + 'MixOrCut(0.2, 1.0)',
        'smoothing': base + 'LabelSmoothing(0.1)',
        'blur': base + 'GaussianBlur()',
        'gray': base + 'Grayscale(0.1)',
        'batch 16, a quarter of the rate': small,
        'batch 16, four added up': added_up,
    }
    rows = [Row('base', 'base', base)]
    return rows + [Row('alone', name, recipe, base, name) for name, recipe in changed.items()]


if __name__ == '__main__':
    measure_rows(rows_on(BASE), PICTURES, asked(__doc__))
