"""The fast.ai book's chapter 7 in small: normalized, progressively resized, averaged over views, mixed, smoothed.

    python -m tests.bench.evidence.chapter --data FOLDER --json tests/bench/results/evidence_chapter.jsonl

Imagenette, 120 images a class, 64 px (40 px where the chapter has 128), an xresnet18 of a quarter of the width, batch
32 (the chapter: 10,716 images, xresnet50, 224 px, batch 64). Augmentation, optimizer, rates and one-cycle as in the
recipes `fastbook`. The score is of all 3,925 validation images. MixUp and smoothing also in runs of 10 to 40 epochs."""

from dataclasses import replace

from trickbag.loop.metrics import accuracy
from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import get_recipe

from .bag_stack import PICTURES
from .common import asked, measure_rows

LENGTHS = (5, 10, 20, 40)
VIEWS = dict(crops=1, sizes=(1.0, 1.1428571428571428))


def small(recipe, **changes):
    "A published recipe of the chapter for few and small images; what it is tested at is 64 px"
    changed = replace(
        recipe,
        arch='xresnet18',
        arch_args=dict(widen=0.25),
        presize=128,
        size=64,
        n_images=1200,
        bs=32,
        accuracy=None,
        hardware='',
        hours=None,
        **changes,
    )
    return changed + 'ChannelsLast()'


NORMALIZED = replace(small(get_recipe('fastbook')), name='normalized')
BASELINE = replace(NORMALIZED + 'Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))', name='baseline')


def _progressive():
    recipe = small(get_recipe('fastbook_progressive'))
    phases = []
    for phase in recipe.phases:
        tricks = tuple(
            call.replace('AtSize(224)', 'AtSize(64)').replace('AtSize(size=224)', 'AtSize(64)') for call in phase.tricks
        )
        phases.append(replace(phase, tricks=(*tricks, 'ChannelsLast()')))
    return replace(recipe, size=40, valid_size=64, phases=tuple(phases))


PROGRESSIVE = _progressive()


def views(learn) -> dict:
    "Accuracies of the mean and of the largest probability over four views"
    found = {}
    for agg in ('mean', 'max'):
        probs, targets = learn.tta(agg=agg, **VIEWS)
        found[f'views_{agg}'] = accuracy(probs, targets).item()
    return found


def all_rows() -> list:
    rows = [
        Row('base', 'baseline', BASELINE),
        Row('ladder', 'normalized', NORMALIZED, BASELINE, 'normalize'),
        Row('ladder', 'progressive, 10 epochs', PROGRESSIVE, NORMALIZED, 'progressive resizing'),
        Row('other', 'normalized, 10 epochs', replace(NORMALIZED, epochs=10), NORMALIZED, 'longer'),
        Row('other', '10 epochs: progressive', PROGRESSIVE, replace(NORMALIZED, epochs=10), 'progressive resizing'),
    ]
    for n in LENGTHS:
        plain = replace(NORMALIZED, epochs=n)
        if n > 10:
            rows.append(Row('other', f'normalized, {n} epochs', plain, NORMALIZED, 'longer'))
        rows.append(Row('alone', f'MixUp, {n} epochs', plain + 'MixUp(0.4)', plain, 'MixUp'))
    for n in (5, 20):
        plain = replace(NORMALIZED, epochs=n)
        rows.append(Row('alone', f'smoothing, {n} epochs', plain + 'LabelSmoothing(0.1)', plain, 'smoothing'))
    return rows


if __name__ == '__main__':
    measured = {name: views for name in ('normalized', 'normalized, 10 epochs', 'progressive, 10 epochs')}
    measure_rows(all_rows(), PICTURES, asked(__doc__), measure=measured)
