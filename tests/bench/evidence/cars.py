"""The fine-grained ladder of Belgacem 2025 in small: MobileNetV2 with ImageNet's weights, 20 classes of Stanford Cars.

    python -m tests.bench.evidence.cars --data FOLDER --json tests/bench/results/evidence_cars.jsonl

All images of the first 20 classes, 80 px, 8 epochs (the article: ResNet-50, 196 classes, up to 600 epochs); the
score is of the official test images of these classes. The article divides its rate by 10 every 30 epochs: here at
half and at four fifths of the run. Its larger batch is 128 with a rate of .1, and .4 once labels are smoothed: here
64, .02 and .04. Each rung alone on the base, one after the other, and, on the whole, what it found not to help."""

from dataclasses import replace

from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import Recipe

from .common import Pictures, asked, measure_rows

PICTURES = Pictures('stanford-cars-160', test='test', classes=20)
STEPS = "StepDecay(['50%', '80%'])"
BASE = Recipe(
    'base',
    source='Belgacem 2025, Towards Data Science, in small',
    arch='mobilenet_v2',
    pretrained='IMAGENET1K_V1',
    size=80,
    scale=(0.35, 1.0),
    n_images=823,
    bs=32,
    epochs=8,
    lr=0.01,
    opt='SGD(momentum=0.9, nesterov=True)',
    tricks=(STEPS, 'ChannelsLast()'),
)
# The larger batch, its rate, and that which smoothing goes with. The article has 128, .1 and .4 for 600 epochs; with 24
# steps of 128 images a rate of .1 forgets all that the weights knew (4.8 % of 20 classes, one run of four epochs).
LARGE_BATCH = 64
LARGE = 0.02
RAISED = 0.04


def larger_batch(recipe):
    return replace(recipe, bs=LARGE_BATCH, lr=LARGE)


def warmup(recipe):
    return recipe + 'Warmup(1, warmup_start=0.0)'


def trivial_augment(recipe):
    return recipe + 'TrivialAugment(translate=11.0)'


def cosine(recipe):
    has_warmup = any(call.startswith('Warmup') for call in recipe.tricks)
    if has_warmup:
        return recipe - 'StepDecay' - 'Warmup' + 'Cosine(warmup=1, warmup_start=0.0)'
    return recipe - 'StepDecay' + 'Cosine()'


def smoothing(recipe):
    return replace(recipe + 'LabelSmoothing(0.1)', lr=recipe.lr * RAISED / LARGE)


def erasing(recipe):
    return recipe + 'RandomErasing(0.1)'


def ema(recipe):
    return recipe + 'EMA(half_life=0.1)'


RUNGS = {
    'larger batch, rate x 2': larger_batch,
    'warm-up': warmup,
    'TrivialAugment': trivial_augment,
    'cosine': cosine,
    'smoothing, rate x 2': smoothing,
    'erasing': erasing,
    'EMA': ema,
}


def whole() -> Recipe:
    recipe = BASE
    for change in RUNGS.values():
        recipe = change(recipe)
    return recipe


def not_found_to_help(recipe) -> dict:
    "Name -> the whole recipe with it"
    decay = 'SGD(momentum=0.9, nesterov=True, weight_decay=0.0005)'
    return {
        'weight decay 5e-4': replace(recipe, opt=decay),
        'MixUp': recipe + 'MixUp(0.2)',
        'CutMix': recipe + 'CutMix(1.0)',
        'AutoAugment for TrivialAugment': recipe - 'TrivialAugment' + 'AutoAugment()',
        'AdamW, rate .001': replace(recipe, opt='AdamW()', lr=0.001),
        'RMSprop, rate .001': replace(recipe, opt='RMSprop(momentum=0.9)', lr=0.001),
        'one cycle for cosine': recipe - 'Cosine' + 'OneCycle()',
        'a line for cosine': recipe - 'Cosine' + 'Linear(warmup=1, warmup_start=0.0)',
    }


def all_rows() -> list:
    rows = [Row('base', 'base', BASE)]
    rows += [Row('alone', name, change(BASE), BASE, name) for name, change in RUNGS.items()]
    recipe = BASE
    for name, change in RUNGS.items():
        recipe, before = change(recipe), recipe
        rows.append(Row('ladder', f'+ {name}', recipe, before, name))
    return rows + [Row('other', f'all, {name}', r, recipe, name) for name, r in not_found_to_help(recipe).items()]


if __name__ == '__main__':
    measure_rows(all_rows(), PICTURES, asked(__doc__))
