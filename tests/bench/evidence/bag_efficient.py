"""Bag of Tricks (He et al. 2019), table 4 in small: larger batches, and what makes up for what they lose.

    python -m tests.bench.evidence.bag_efficient --data FOLDER --json tests/bench/results/evidence_bag_efficient.jsonl

Imagenette, 410 images a class, 64 px; a ResNet-18 with the 7x7 stem and a quarter of the width, 8 epochs, so 1,024
steps at a batch of 32 and 32 steps at one of 1024 (the paper: ImageNet, ResNet-50, 224 px, 120 epochs). Rate .1 a
batch of 256, scaled linearly, divided by 10 after 60 and 85 % of the run. Batches of 256 and of 1024 get the
paper's rungs. The score is of all 3,925 validation images; images a second are of the training alone, on one core."""

from dataclasses import replace

from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import Recipe

from .common import Pictures, asked, measure_rows

PICTURES = Pictures('imagenette2-160', per_class=410)
BATCHES = (32, 64, 128, 256, 512, 1024)
RATE = 0.1  # for a batch of 256
# The paper divides at 30, 60 and 90 of 120 epochs. A batch of 1024 would then have eight steps here before its rate is
# a tenth, and learn next to nothing (15.8 % of ten classes, one run).
STEPS = "['60%', '85%']"


def at_batch(bs: int) -> Recipe:
    "Efficient training's first row: only the rate is scaled"
    return Recipe(
        f'batch {bs}',
        source='He et al. 2019, arXiv 1812.01187, in small',
        arch='xresnet18',
        arch_args=dict(widen=0.25, stem='7x7', shortcut='B', zero_gamma=False),
        size=64,
        scale=(0.35, 1.0),
        n_images=4100,
        bs=bs,
        epochs=8,
        lr=RATE * bs / 256,
        opt='SGD(momentum=0.9, nesterov=True, weight_decay=0.0005)',
        tricks=(f'StepDecay({STEPS})', 'ChannelsLast()'),
    )


def warmed(recipe):
    return recipe - 'StepDecay' + f'StepDecay({STEPS}, warmup=1, warmup_start=0.0)'


RUNGS = {
    'warm-up': warmed,
    'zero gamma': lambda recipe: recipe + 'ZeroGamma()',
    'no bias decay': lambda recipe: recipe + 'NoBiasDecay()',
    'bf16': lambda recipe: recipe + "MixedPrecision(dtype='bf16')",
}


def all_rows() -> list:
    base = at_batch(256)
    rows = [Row('base', base.name, base)]
    rows += [Row('alone', f'batch {bs}', at_batch(bs), base, f'batch {bs}') for bs in BATCHES if bs != 256]
    for bs in (32, 1024):
        same_rate = replace(at_batch(bs), lr=RATE)
        rows.append(Row('other', f'batch {bs}, rate {RATE}', same_rate, at_batch(bs), 'rate not scaled'))
    for bs in (1024, 256):
        recipe = at_batch(bs)
        for name, change in RUNGS.items():
            recipe, before = change(recipe), recipe
            rows.append(Row('ladder', f'batch {bs}: + {name}', recipe, before, name))
    return rows


if __name__ == '__main__':
    measure_rows(all_rows(), PICTURES, asked(__doc__))
