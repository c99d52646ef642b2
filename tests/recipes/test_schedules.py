"""Learning rate, momentum, size and decay of the average over each published recipe's run, against the schedules of the
sources, each written out as a formula"""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from trickbag.loop.phase import During, in_phase
from trickbag.recipes.published import RECIPES
from trickbag.recipes.recipe import Phase, Recipe, curves
from trickbag.tricks.mixup import MixUp


def short(recipe: Recipe) -> Recipe:
    "The recipe for so few images that a run has some 6,000 steps; what counts epochs or fractions stays as it is"
    n_iter = max(10, 6000 // recipe.epochs)
    return replace(recipe, n_images=n_iter * recipe.bs)


def every_step(recipe: Recipe) -> dict:
    "What `curves` says of each step of the shortened run"
    recipe = short(recipe)
    return {name: np.array(values) for name, values in curves(recipe, n=n_steps(recipe)).items()}


def n_steps(recipe) -> int:
    return recipe.epochs * round(recipe.n_images / recipe.bs)


def some_steps(recipe) -> np.ndarray:
    "200 steps of the shortened run, the first and the last among them"
    return np.linspace(0, n_steps(short(recipe)) - 1, 200).round().astype(int)


def epoch_starts(recipe) -> np.ndarray:
    "The first step of each epoch of the shortened run"
    n = n_steps(short(recipe))
    return np.arange(0, n, n // recipe.epochs)


# the sources' factors on the rate; `t` is a time in epochs, `total` the epochs of the run


def cosine(x):
    return 0.5 * (1 + math.cos(math.pi * x))


def steps_down(t, total):
    "gluon-cv and the paper: a tenth after 30, 60 and 90 epochs"
    return 0.1 ** sum(t >= milestone for milestone in (30, 60, 90))


def gluon_steps(t, total):
    return t / 5 if t < 5 else steps_down(t, total)


def gluon_cosine(t, total):
    "gluon-cv's `LRSequential` of linear and cosine; Assembled-CNN's `tf.train.cosine_decay` is the same"
    return t / 5 if t < 5 else cosine((t - 5) / (total - 5))


def torchvision(t, total):
    "`LinearLR(.01, total_iters=5)`, then `CosineAnnealingLR(epochs - 5)`, each stepped once an epoch"
    return 0.01 + 0.99 * t / 5 if t < 5 else cosine((t - 5) / (total - 5))


def timm(first, end=0.0):
    "`CosineLRScheduler(epochs, lr_min=, warmup_t=5)` with `warmup_prefix=False`, stepped once an epoch"
    return lambda t, total: first + t * (1 - first) / 5 if t < 5 else end + (1 - end) * cosine(t / total)


def step_lr(t, total):
    "`StepLR(30)`"
    return 0.1 ** (t // 30)


def ffcv(t, total):
    "`get_cyclic_lr`, between whole epochs by `np.interp`"
    at = [np.interp(epoch, [0, 2, total], [1e-4, 1, 0]) for epoch in (math.floor(t), math.floor(t) + 1)]
    return np.interp(t % 1, [0, 1], at)


def composer(t, total):
    "`CosineAnnealingWithWarmupScheduler('8ep')`"
    return t / 8 if t < 8 else cosine((t - 8) / (total - 8))


def between(start, end, x):
    "fastai's `SchedCos`"
    return start + (1 + math.cos(math.pi * (1 - x))) * (end - start) / 2


def one_cycle(pct_start=0.25, div=25.0):
    "fastai's `fit_one_cycle`"

    def factor(t, total):
        p = t / total
        rises = p < pct_start
        return between(1 / div, 1, p / pct_start) if rises else between(1, 1e-5, (p - pct_start) / (1 - pct_start))

    return factor


def flat_cos(t, total):
    "fastai's `fit_flat_cos`"
    return 1.0 if t / total < 0.75 else between(1, 1e-5, (t / total - 0.75) / 0.25)


def airbench94(t, total):
    return 1 - t / total


def triangle(peak, end):
    "airbench's `get_lr`"

    def factor(t, total):
        p = t / total
        return 0.2 + 0.8 * p / peak if p < peak else 1 + (end - 1) * (p - peak) / (1 - peak)

    return factor


# recipes whose sources change the rate at every step, and those that do once an epoch
EACH_STEP = {
    'bag_of_tricks_baseline': steps_down,
    'bag_of_tricks_efficient': gluon_steps,
    'bag_of_tricks_cosine': gluon_cosine,
    'bag_of_tricks_smoothing': gluon_cosine,
    'bag_of_tricks_distilled': gluon_cosine,
    'bag_of_tricks_mixup': gluon_cosine,
    'bag_of_tricks': gluon_cosine,
    'assembled': gluon_cosine,
    'assembled_fine_tune': gluon_cosine,
    # of these no code is published: the usual formulas
    'fgvc': gluon_cosine,
    'giantpanda': torchvision,
    'giantpanda_small_batch': torchvision,
    **{name: ffcv for name in RECIPES if name.startswith('ffcv')},
    **{name: composer for name in RECIPES if name.startswith('mosaic')},
    **{name: one_cycle() for name in RECIPES if name.startswith('fastbook')},
    **{name: flat_cos for name in RECIPES if name.startswith('imagenette')},
    'toy': one_cycle(),
    'airbench94': airbench94,
    'airbench94_legacy': triangle(0.23, 0.07),
    'airbench96': triangle(0.1, 0),
}
EACH_EPOCH = {
    'torchvision_v2': torchvision,
    'rsb_a1': timm(1e-4 / 5e-3),
    'rsb_a2': timm(1e-4 / 5e-3),
    'rsb_a3': timm(1e-4 / 8e-3),
    'deit3_small': timm(1e-6 / 4e-3, end=1e-5 / 4e-3),
    'deit3_base': timm(1e-6 / 3e-3, end=1e-5 / 3e-3),
    # --lr 1e-5 is the script's --min-lr, too
    'deit3_base_224': timm(1e-6 / 1e-5, end=1e-5 / 1e-5),
    'fixres': step_lr,
    'fgvc_base': step_lr,
    'fgvc_large_batch': step_lr,
}
# the rest of these recipes, a training each
PHASES = {
    ('fixres', 0): step_lr,
    ('fastbook_progressive', 0): one_cycle(pct_start=0.99),
    ('fastbook_progressive', 1): one_cycle(pct_start=0.3, div=5),
}


def test_each_recipe_has_its_schedule():
    assert RECIPES.keys() == EACH_STEP.keys() | EACH_EPOCH.keys()
    assert not EACH_STEP.keys() & EACH_EPOCH.keys()


def check_steps(recipe, factor):
    """At 200 steps the rate is one that the source has within a step before or after: a run's last step has position 1
    here, in most sources the step after it"""
    rates = every_step(recipe)['learning rate']
    n_iter = len(rates) / recipe.epochs
    for step in some_steps(recipe):
        near = np.clip(np.linspace(step - 1.01, step + 1.01, 11), 0, len(rates)) / n_iter
        of_source = [recipe.lr * factor(t, recipe.epochs) for t in near]
        slack = 1e-6 * recipe.lr
        assert min(of_source) - slack <= rates[step] <= max(of_source) + slack, (step, rates[step], of_source)


@pytest.mark.parametrize('name', EACH_STEP)
def test_rates_at_200_steps(name):
    check_steps(RECIPES[name], EACH_STEP[name])


@pytest.mark.parametrize('name', EACH_EPOCH)
def test_rates_at_the_start_of_each_epoch(name):
    "The source's rate is the same for an epoch, here it changes with each step: they meet where an epoch starts"
    recipe = RECIPES[name]
    rates = every_step(recipe)['learning rate'][epoch_starts(recipe)]
    of_source = [recipe.lr * EACH_EPOCH[name](epoch, recipe.epochs) for epoch in range(recipe.epochs)]
    assert len(rates) == recipe.epochs
    np.testing.assert_allclose(rates, of_source, atol=1e-3 * recipe.lr)


@pytest.mark.parametrize('name, number', PHASES)
def test_rates_of_phases(name, number):
    recipe = RECIPES[name]
    phase = recipe.phases[number]
    alone = replace(recipe, epochs=phase.epochs, lr=phase.lr, tricks=phase.tricks, phases=())
    check_steps(alone, PHASES[name, number])


@pytest.mark.parametrize('name', [name for name in RECIPES if name.startswith('fastbook')])
def test_momentum_of_one_cycle(name):
    recipe = RECIPES[name]
    momenta = every_step(recipe)['momentum']
    n = len(momenta)

    def of_fastai(step):
        p = step / n
        return between(0.95, 0.85, p / 0.25) if p < 0.25 else between(0.85, 0.95, (p - 0.25) / 0.75)

    for step in some_steps(recipe):
        assert momenta[step] == pytest.approx(of_fastai(step), abs=1e-4)


# start and end of the ramps in FFCV's configurations
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


@pytest.mark.parametrize('epochs', RAMPS)
def test_sizes_of_ffcv(epochs):
    "`get_resolution` once an epoch; in one epoch at most the jump is elsewhere"
    recipe = RECIPES[f'ffcv_rn50_{epochs}']
    sizes = every_step(recipe)['size'][epoch_starts(recipe)]
    of_source = [np.round(np.interp(epoch, RAMPS[epochs], [160, 192]) / 32) * 32 for epoch in range(epochs)]
    assert np.sum(sizes != of_source) <= 1


@pytest.mark.parametrize('name, initial, delay', [('mild', 0.5, 0.4), ('medium', 0.5, 0.4), ('hot', 0.6, 0.2)])
def test_sizes_of_composer(name, initial, delay):
    """Composer takes the multiple of 4 that is next to a line, here the sizes change at equal distances: never by more
    than one multiple apart, and the same before and after the line"""
    recipe = RECIPES[f'mosaic_{name}']
    sizes = every_step(recipe)['size']
    for step in some_steps(recipe):
        p = step / len(sizes)
        line = initial + (1 - initial) * min(max((p - delay) / (0.8 - delay), 0), 1)
        of_source = round(recipe.size * line / 4) * 4
        if p < delay - 1e-3 or p > 0.8 + 1e-3:
            assert sizes[step] == of_source
        assert abs(sizes[step] - of_source) <= 4


def test_decay_of_the_average_in_torchvision():
    "`ExponentialMovingAverage` every 32 steps, a copy of the weights through the warm-up"
    recipe = RECIPES['torchvision_v2']
    world, bs, steps, decay = 8, 128, 32, 0.99998
    alpha = min(1.0, (1 - decay) * (world * bs * steps / recipe.epochs))
    decays = every_step(recipe)['decay of the average']
    warm = 5 * len(decays) // recipe.epochs
    assert not decays[:warm].any()
    np.testing.assert_allclose(decays[warm + steps :], 1 - alpha, rtol=1e-12)


def test_decay_of_the_average_in_timm_and_composer():
    "timm's `get_decay` with its warm-up, whose defaults `fgvc` takes; Composer's half-life of 100 steps"
    decays = every_step(RECIPES['fgvc'])['decay of the average']
    t = np.arange(len(decays))
    np.testing.assert_allclose(decays[1:], np.minimum(0.9998, 1 - (1.0 + t[1:]) ** (-2 / 3)))
    for name in ('mild', 'medium', 'hot'):
        decays = every_step(RECIPES[f'mosaic_{name}'])['decay of the average']
        # of an update, each 20 steps
        np.testing.assert_allclose(decays[20:] ** 5, 0.5)


def test_what_lookahead_keeps_is_airbenchs():
    "`decay = .95**5 * (step / steps)**3` of the slow weights stay"
    for name in ('airbench94_legacy', 'airbench96'):
        (call,) = [call for call in RECIPES[name].tricks if call.startswith('Lookahead')]
        alpha_end = float(call.partition('alpha_end=')[2].rstrip(')'))
        assert 'k=5, alpha=1, ' in call and 1 - alpha_end == pytest.approx(0.95**5)


def test_a_drawing_goes_through_all_phases():
    "Touvron et al.: 120 epochs at 224 px, then 56 of the head at 384, each with a tenth of the rate every 30 epochs"
    figure = RECIPES['fixres'].plot()
    rates, sizes = [ax.lines[-1].get_xydata().T for ax in figure.axes]
    begins = [0] * 200 + [120] * 200
    for (epochs, rate), begin in zip(rates.T, begins, strict=True):
        highest = 8e-3 if begin else 0.2
        # a mark of the axis lies on the first batch after a step
        assert rate in [pytest.approx(highest * 0.1 ** ((epochs - begin + near) // 30)) for near in (-1e-3, 0)]
    np.testing.assert_array_equal(sizes[1], [224] * 200 + [384] * 200)
    assert (rates[0][0], rates[0][-1], rates[0][200]) == (0, 176, 120)
    assert [(text.get_text(), text.xy[0]) for text in figure.axes[0].texts] == [('fixres', 120)]
    plt.close(figure)


@pytest.mark.parametrize('phase', [dict(stop=0.9), dict(stop=90, epochs=True), dict(start=-40, stop=-10, epochs=True)])
def test_mixing_is_drawn_where_it_works(phase):
    mixup = During(MixUp(), **phase)
    recipe = Recipe('mixed', n_images=1000, bs=100, epochs=100, lr=1.0, tricks=[mixup])
    works = [in_phase(0, i, 100, 10, *mixup.phase) for i in range(1000)]
    assert curves(recipe, n=1000)['mixing'] == works and not all(works)
    figure = recipe.plot()
    ends = [text.xy[0] for text in figure.axes[0].texts if text.get_text() == 'MixUp ends']
    assert ends == [pytest.approx(90, abs=0.2)]
    plt.close(figure)


def test_what_a_training_leaves_alone_is_drawn_at_its_value():
    "The momentum of an optimizer without a schedule of it, no size but the recipe's, no average"
    later = [Phase('cycle', 1, 0.1, ['OneCycle()', 'AtSize(48)', 'EMA()'])]
    for opt, momentum in (('SGD(momentum=0.8)', 0.8), ('AdamW(betas=(0.7, 0.99))', 0.7), ('AdamW()', 0.9)):
        figure = Recipe('plain', size=32, epochs=1, opt=opt, phases=later).plot()
        found = {ax.get_ylabel(): ax.lines[-1].get_ydata() for ax in figure.axes}
        assert set(found['momentum'][:200]) == {momentum} and min(found['momentum'][200:]) == pytest.approx(
            0.85, abs=1e-3
        )
        assert set(found['size'][:200]) == {32} and set(found['size'][200:]) == {48}
        assert np.isnan(found['decay of the average'][:200]).all()
        plt.close(figure)
    # `OneCycle` leaves an optimizer without momentum alone
    assert 'momentum' not in curves(Recipe('plain', opt='SGD()', tricks=['OneCycle()']))
