"Published recipes: each value against a table of what the papers and scripts say, and each whole recipe at work."

import warnings
from dataclasses import replace

import pytest
import torch

from trickbag.all import *
from trickbag.callback import arguments_of
from trickbag.recipes.calls import callback_names, from_text, optimizer_names, to_text
from trickbag.recipes.published import RECIPES
from trickbag.recipes.recipe import curves, fit_callbacks, from_toml, get_recipe, recipe_hash, trainings
from trickbag.testing.pairs import SmallImages

# as read in the sources: batch of all devices, epochs, highest rate, momentum, decay, sizes in training and test
TABLE = {
    'toy': (32, 5, 4e-3, None, 0.05, 32, 32),
    'deit3_small': (8 * 256, 800, 4e-3, None, 0.05, 224, 224),
    'deit3_base': (8 * 256, 800, 3e-3, None, 0.05, 192, 224),
    'deit3_base_224': (8 * 64, 20, 1e-5, None, 0.1, 224, 224),
    'bag_of_tricks_baseline': (256, 120, 0.1, 0.9, 1e-4, 224, 224),
    'bag_of_tricks_efficient': (1024, 120, 0.4, 0.9, 1e-4, 224, 224),
    'bag_of_tricks_cosine': (1024, 120, 0.4, 0.9, 1e-4, 224, 224),
    'bag_of_tricks_smoothing': (1024, 120, 0.4, 0.9, 1e-4, 224, 224),
    'bag_of_tricks_distilled': (1024, 120, 0.4, 0.9, 1e-4, 224, 224),
    'bag_of_tricks_mixup': (1024, 200, 0.4, 0.9, 1e-4, 224, 224),
    'bag_of_tricks': (1024, 200, 0.4, 0.9, 1e-4, 224, 224),
    'torchvision_v2': (8 * 128, 600, 0.5, 0.9, 2e-5, 176, 224),
    'rsb_a1': (2048, 600, 5e-3, None, 0.01, 224, 224),
    'rsb_a2': (2048, 300, 5e-3, None, 0.02, 224, 224),
    'rsb_a3': (2048, 100, 8e-3, None, 0.02, 160, 224),
    'fixres': (512, 120, 0.2, 0.9, 1e-4, 224, 224),
    'assembled': (1024, 600, 0.4, 0.9, 1e-4, 224, 256),
    'assembled_fine_tune': (256, 100, 0.01, 0.9, 1e-3, 224, 256),
    'ffcv_rn50_16': (8 * 512, 16, 1.7, 0.9, 1e-4, 192, 256),
    'ffcv_rn50_24': (8 * 512, 24, 1.7, 0.9, 1e-4, 192, 256),
    'ffcv_rn50_32': (8 * 512, 32, 1.7, 0.9, 1e-4, 192, 256),
    'ffcv_rn50_40': (8 * 512, 40, 1.7, 0.9, 1e-4, 192, 256),
    'ffcv_rn50_56': (8 * 512, 56, 1.7, 0.9, 1e-4, 192, 256),
    'ffcv_rn50_88': (8 * 512, 88, 1.7, 0.9, 1e-4, 192, 256),
    'mosaic_mild': (2048, 36, 2.048, 0.875, 5e-4, 176, 224),
    'mosaic_medium': (2048, 135, 2.048, 0.875, 5e-4, 176, 224),
    'mosaic_hot': (2048, 270, 2.048, 0.875, 5e-4, 176, 224),
    'fgvc_base': (32, 600, 0.01, 0.9, 0, 224, 224),
    'fgvc_large_batch': (128, 600, 0.1, 0.9, 0, 224, 224),
    'fgvc': (128, 600, 0.4, 0.9, 0, 224, 224),
    'giantpanda': (1024, 300, 0.4, 0.9, 1e-4, 224, 224),
    'giantpanda_small_batch': (1024 // 4, 300, 0.4, 0.9, 1e-4, 224, 224),
    'fastbook': (64, 5, 3e-3, None, 0.01, 224, 224),
    'fastbook_mixup': (64, 5, 3e-3, None, 0.01, 224, 224),
    'fastbook_smoothing': (64, 5, 3e-3, None, 0.01, 224, 224),
    'fastbook_progressive': (128, 4, 3e-3, None, 0.01, 128, 224),
    'fastbook_tta': (128, 4, 3e-3, None, 0.01, 128, 224),
    'fastbook_tta_max': (128, 4, 3e-3, None, 0.01, 128, 224),
    'imagenette_128_5': (32, 5, 8e-3, None, 1e-4, 128, 128),
    'imagenette_128_20': (64, 20, 8e-3, None, 0.01, 128, 128),
    'imagenette_128_80': (64, 80, 8e-3, None, 0.01, 128, 128),
    'imagenette_128_200': (64, 200, 8e-3, None, 0.01, 128, 128),
    'imagenette_192_5': (64, 5, 8e-3, None, 0.01, 192, 192),
    'imagenette_192_20': (64, 20, 8e-3, None, 0.01, 192, 192),
    'imagenette_192_80': (64, 80, 8e-3, None, 0.01, 192, 192),
    'imagenette_192_200': (64, 200, 8e-3, None, 0.01, 192, 192),
    'imagenette_256_5': (64, 5, 8e-3, None, 0.01, 256, 256),
    'imagenette_256_20': (64, 20, 8e-3, None, 0.01, 256, 256),
    'imagenette_256_80': (64, 80, 8e-3, None, 0.01, 256, 256),
    'imagenette_256_200': (64, 200, 8e-3, None, 0.01, 256, 256),
    # Muon's group
    'airbench94': (2000, 8, 0.24, 0.6, 0, 32, 32),
    'airbench94_legacy': (1024, 10, 11.5 / (1024 * (1 + 1 / 0.15)), 0.85, 0.0153 * 1024 / 11.5, 32, 32),
    'airbench96': (1024, 37, 9.0 / (1024 * (1 + 1 / 0.15)), 0.85, 0.012 * 1024 / 9.0, 32, 32),
}
# published accuracies and what they took, in seconds, of those that are not in the table of ImageNet
SMALL_SETS = {
    'fastbook': (0.824496, 62 + 62 + 64 + 65 + 66),
    'fastbook_progressive': (0.863331, 4 * 30 + 66 + 3 * 67 + 2 * 66),
    'fastbook_tta': (0.873786, None),
    'imagenette_128_5': (0.8743, None),
    'imagenette_128_20': (0.9157, None),
    'imagenette_128_80': (0.9355, None),
    'imagenette_128_200': (0.9424, None),
    'imagenette_192_5': (0.8676, None),
    'imagenette_192_20': (0.925, None),
    'imagenette_192_80': (0.945, None),
    'imagenette_192_200': (0.9503, None),
    'imagenette_256_5': (0.8685, None),
    'imagenette_256_20': (0.9353, None),
    'imagenette_256_80': (0.949, None),
    'imagenette_256_200': (0.9511, None),
    'airbench94': (0.9401, 2.59),
    'airbench94_legacy': (0.9401, 3.83),
    'airbench96': (0.9603, 34.7),
}
# arguments of tricks, by the sources
ARGUMENTS = [
    ('deit3_small', 'MixOrCut', 'mixup_alpha', 0.8),
    ('deit3_small', 'MixOrCut', 'cutmix_alpha', 1.0),
    ('deit3_small', 'RepeatedAugmentation', 'repeats', 3),
    ('deit3_small', 'BinaryTargets', 'threshold', 0.0),
    ('deit3_small', 'ThreeAugment', 'sigma', (0.1, 2.0)),
    ('deit3_base', 'Cosine', 'warmup', 5),
    ('deit3_base_224', 'RandAugment', 'm', 9),
    ('deit3_base_224', 'RandAugment', 'mstd', 0.5),
    ('deit3_base_224', 'LabelSmoothing', 'eps', 0.1),
    ('deit3_base_224', 'MixOrCut', 'mixup_alpha', 0.8),
    ('deit3_base_224', 'MixOrCut', 'cutmix_alpha', 1.0),
    ('torchvision_v2', 'EMA', 'interval', 32),
    ('torchvision_v2', 'EMA', 'start', 5 / 600),
    ('mosaic_mild', 'EMA', 'interval', 20),
    ('bag_of_tricks_baseline', 'StepDecay', 'milestones', [30, 60, 90]),
    ('bag_of_tricks_baseline', 'PCALighting', 'noise', 0.1),
    ('bag_of_tricks', 'Cosine', 'warmup', 5),
    ('bag_of_tricks', 'Cosine', 'warmup_start', 0),
    ('bag_of_tricks', 'LabelSmoothing', 'eps', 0.1),
    ('bag_of_tricks', 'MixUp', 'alpha', 0.2),
    # one factor a batch, as in gluon-cv, Composer, torchvision and timm
    ('bag_of_tricks', 'MixUp', 'mode', 'batch'),
    ('bag_of_tricks_mixup', 'MixUp', 'mode', 'batch'),
    ('mosaic_medium', 'MixUp', 'mode', 'batch'),
    ('mosaic_hot', 'MixUp', 'mode', 'batch'),
    ('torchvision_v2', 'MixOrCut', 'mode', 'batch'),
    ('rsb_a1', 'MixOrCut', 'mode', 'batch'),
    ('rsb_a2', 'MixOrCut', 'mode', 'batch'),
    ('rsb_a3', 'MixOrCut', 'mode', 'batch'),
    ('deit3_small', 'MixOrCut', 'mode', 'batch'),
    ('deit3_base', 'MixOrCut', 'mode', 'batch'),
    ('deit3_base_224', 'MixOrCut', 'mode', 'batch'),
    ('assembled', 'BlurPool', 'maxpools', False),
    ('bag_of_tricks', 'Distillation', 'T', 20),
    ('torchvision_v2', 'Cosine', 'warmup', 5),
    ('torchvision_v2', 'Cosine', 'warmup_start', 0.01),
    ('torchvision_v2', 'MixOrCut', 'mixup_alpha', 0.2),
    ('torchvision_v2', 'MixOrCut', 'cutmix_alpha', 1.0),
    ('torchvision_v2', 'RandomErasing', 'p', 0.1),
    ('torchvision_v2', 'RepeatedAugmentation', 'repeats', 4),
    ('rsb_a1', 'MixOrCut', 'mixup_alpha', 0.2),
    ('rsb_a1', 'RandAugment', 'm', 7),
    ('rsb_a1', 'RandAugment', 'mstd', 0.5),
    ('rsb_a1', 'BinaryTargets', 'threshold', 0.2),
    ('rsb_a1', 'StochasticDepth', 'drop', 0.05),
    ('rsb_a1', 'RepeatedAugmentation', 'repeats', 3),
    ('rsb_a2', 'MixOrCut', 'mixup_alpha', 0.1),
    ('rsb_a3', 'RandAugment', 'm', 6),
    ('rsb_a3', 'MixOrCut', 'mixup_alpha', 0.1),
    ('fixres', 'StepDecay', 'milestones', 30),
    ('assembled', 'Cosine', 'warmup_start', 0),
    ('assembled', 'DropBlock', 'keep_prob', 0.9),
    ('assembled_fine_tune', 'DropBlock', 'keep_prob_start', 0.9),
    ('assembled_fine_tune', 'DropBlock', 'keep_prob', 0.7),
    ('assembled', 'Distillation', 'T', 1.0),
    ('ffcv_rn50_88', 'Linear', 'warmup', 2),
    ('ffcv_rn50_88', 'LabelSmoothing', 'eps', 0.1),
    ('mosaic_mild', 'LabelSmoothing', 'eps', 0.08),
    ('mosaic_mild', 'Cosine', 'warmup', 8),
    ('mosaic_mild', 'ProgressiveResize', 'initial', 0.5),
    ('mosaic_mild', 'ProgressiveResize', 'start', 0.4),
    ('mosaic_mild', 'ProgressiveResize', 'step', 4),
    ('mosaic_medium', 'LabelSmoothing', 'eps', 0.1),
    ('mosaic_medium', 'SAM', 'rho', 0.5),
    ('mosaic_medium', 'SAM', 'interval', 10),
    ('mosaic_medium', 'MixUp', 'alpha', 0.2),
    ('mosaic_hot', 'LabelSmoothing', 'eps', 0.13),
    ('mosaic_hot', 'SAM', 'interval', 5),
    ('mosaic_hot', 'MixUp', 'alpha', 0.25),
    ('mosaic_hot', 'ProgressiveResize', 'initial', 0.6),
    ('mosaic_hot', 'ProgressiveResize', 'start', 0.2),
    ('mosaic_hot', 'StochasticDepth', 'drop', 0.1),
    ('fgvc', 'LabelSmoothing', 'eps', 0.1),
    ('fgvc', 'RandomErasing', 'p', 0.1),
    ('fgvc', 'EarlyStopping', 'patience', 200),
    ('fgvc_base', 'EarlyStopping', 'patience', 200),
    ('fgvc_large_batch', 'StepDecay', 'milestones', 30),
    ('giantpanda', 'LabelSmoothing', 'eps', 0.1),
    ('giantpanda_small_batch', 'GradientAccumulation', 'n_acc', 4),
    ('fastbook', 'OneCycle', 'pct_start', 0.25),
    ('fastbook', 'RandomAffine', 'degrees', 10),
    ('fastbook', 'RandomAffine', 'scale', (1.0, 1.1)),
    ('fastbook', 'RandomAffine', 'p', 0.75),
    ('fastbook', 'ColorJitter', 'brightness', 0.2),
    ('fastbook', 'ColorJitter', 'contrast', 0.2),
    ('fastbook', 'ColorJitter', 'p', 0.75),
    ('fastbook_mixup', 'MixUp', 'alpha', 0.4),
    ('fastbook_smoothing', 'LabelSmoothing', 'eps', 0.1),
    ('fastbook_tta', 'TTA', 'agg', 'mean'),
    ('fastbook_tta_max', 'TTA', 'agg', 'max'),
    ('imagenette_128_5', 'BlurPool', 'convs', False),
    ('imagenette_128_20', 'BlurPool', 'convs', False),
    ('imagenette_128_80', 'FlatCos', 'pct_start', 0.75),
    ('imagenette_128_80', 'Lookahead', 'k', 6),
    ('imagenette_128_80', 'Lookahead', 'alpha', 0.5),
    ('imagenette_128_80', 'LabelSmoothing', 'eps', 0.1),
    ('airbench94', 'PadCrop', 'pad', 2),
    ('airbench94', 'PadCrop', 'mode', 'reflect'),
    ('airbench94', 'LabelSmoothing', 'eps', 0.2),
    ('airbench94', 'Whiten', 'eps', 5e-4),
    ('airbench94', 'TTA', 'on', 'logits'),
    ('airbench94_legacy', 'PadCrop', 'pad', 2),
    ('airbench94_legacy', 'Lookahead', 'k', 5),
    ('airbench96', 'PadCrop', 'pad', 4),
    ('airbench96', 'CutOut', 'length', 12),
]


def trick(recipe, name):
    names = callback_names() | dict(teacher=torch.nn.Identity())
    made = [cb for call in recipe.tricks for cb in from_text(call, names, recipe.name)]
    (found,) = [cb for cb in made if type(cb).__name__ == name]
    return found


def test_calls_may_name_every_callback_of_the_star_import():
    import trickbag.all as tb

    found = {name: getattr(tb, name) for name in tb.__all__}
    of_star = {name for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Callback)}
    assert callback_names().keys() == of_star | {'During'}


def test_every_recipe_is_in_the_table():
    assert RECIPES.keys() == TABLE.keys()


@pytest.mark.parametrize('name', TABLE)
def test_numbers_are_those_of_the_sources(name):
    recipe = RECIPES[name]
    bs, epochs, lr, momentum, decay, size, valid_size = TABLE[name]
    # Muon needs a layer that is neither the first nor the last
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    group, *_ = from_text(recipe.opt, optimizer_names(), name)[0](model.parameters(), lr=lr).param_groups
    assert (recipe.bs, recipe.epochs, recipe.lr) == (bs, epochs, pytest.approx(lr, rel=1e-12))
    assert group.get('momentum') == momentum and group['weight_decay'] == pytest.approx(decay, rel=1e-12)
    assert (recipe.size, recipe.valid_size or recipe.size) == (size, valid_size)


@pytest.mark.parametrize('name, kind, argument, value', ARGUMENTS, ids=str)
def test_arguments_of_tricks_are_those_of_the_sources(name, kind, argument, value):
    assert getattr(trick(RECIPES[name], kind), argument) == value


@pytest.mark.parametrize('name', SMALL_SETS)
def test_figures_of_small_sets(name):
    accuracy, seconds = SMALL_SETS[name]
    recipe = RECIPES[name]
    assert recipe.accuracy == accuracy
    assert recipe.hours == (None if seconds is None else pytest.approx(seconds / 3600))
    assert recipe.n_images == dict(fastbook=13_394 - 13_394 // 5, imagenette=9469).get(name.partition('_')[0], 50_000)


def test_the_rest_of_fastbooks_training():
    "`fine_tune(5, 1e-3)` of a learner with one group of parameters"
    phases = RECIPES['fastbook_progressive'].phases
    assert [(phase.epochs, phase.lr) for phase in phases] == [(1, 1e-3), (5, 1e-3 / 2)]
    assert all('AtSize(size=224)' in phase.tricks for phase in phases)
    assert RECIPES['fastbook_tta'].phases == phases


def test_what_the_optimizers_of_fastai_are():
    model = torch.nn.Linear(2, 2)
    for name in ('fastbook', 'imagenette_128_80'):
        (group,) = from_text(RECIPES[name].opt, optimizer_names(), name)[0](model.parameters(), lr=1.0).param_groups
        # `sqr_mom` of both is .99
        assert (group['betas'], group['eps']) == (((0.9, 0.99), 1e-5) if name == 'fastbook' else ((0.95, 0.99), 1e-6))
    assert group['decoupled_weight_decay']


def test_groups_of_airbench94():
    "As `main` of airbench94_muon.py makes them: all filters but the whitening ones are Muon's"
    recipe = RECIPES['airbench94']
    learn = small(recipe).learner(small_data(flip=False), device='cpu')
    learn.make_opt()
    muon, rest = learn.opt.param_groups
    filters = [p for name, p in learn.model.named_parameters() if p.ndim == 4 and name != 'whiten.weight']
    assert [id(p) for p in muon['params']] == [id(p) for p in filters]
    assert (muon['lr'], muon['momentum'], muon['nesterov'], muon['ns_steps']) == (0.24, 0.6, True, 3)
    assert (rest['lr'], rest['momentum'], rest['nesterov']) == (pytest.approx(0.053), 0.85, True)
    # a step decays by the rate times the decay, 2e-6 an image
    assert rest['lr'] * rest['weight_decay'] == pytest.approx(2e-6 * recipe.bs)


def test_a_sum_of_losses_keeps_its_rate_with_another_batch():
    assert RECIPES['airbench96'].with_(bs=512).lr == RECIPES['airbench96'].lr


def test_early_stopping_waits_as_much_longer_as_the_run_is():
    assert trick(RECIPES['fgvc'].with_(epochs=60), 'EarlyStopping').patience == 20


@pytest.mark.parametrize('name', RECIPES)
def test_on_paper_and_back(name):
    recipe = RECIPES[name]
    again = from_toml(recipe.to_toml())
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe)
    assert recipe.name in str(recipe) and len(curves(recipe)['learning rate']) == 200
    for call in recipe.tricks:
        (cb,) = from_text(call, callback_names() | dict(teacher=torch.nn.Identity()), name)
        assert type(cb).__name__ in call
        if 'teacher' not in call:
            assert to_text(cb) == call


class TwoSteps(Callback):
    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        self.n = 0

    def after_step(self, learn):
        self.n += 1
        if self.n == 2:
            raise CancelFit


def small(recipe):
    "The recipe on small images and a small network, with all its tricks"
    tricks = [call for call in recipe.tricks if not call.startswith(('MixedPrecision', 'Compile'))]
    sizes = [call for call in tricks if call.startswith('ProgressiveResize')]
    tricks = [call for call in tricks if call not in sizes] + ['ProgressiveResize(step=8)'] * len(sizes)
    at_40 = {'FixRes': "FixRes(40, boxes='center')", 'AtSize': 'AtSize(40)'}
    phases = [
        replace(phase, tricks=[at_40.get(call.partition('(')[0], call) for call in phase.tricks])
        for phase in recipe.phases
    ]
    network = dict(arch='xresnet18')
    if recipe.arch.startswith('airbench'):
        network = dict(arch_args=dict(widths=[24, 24, 24]))
    if recipe.arch.startswith('timm/'):
        network = dict(arch='timm/test_vit')
    return replace(recipe, **network, pretrained=False, size=32, valid_size=None, bs=8, tricks=tricks, phases=phases)


def small_data(flip=True):
    return DataLoaders(
        SmallImages(26, size=48),
        SmallImages(9, size=48, shuffle=False, seed=1),
        cbs=[Crop(32), *([Flip()] if flip else []), Normalize()],
        vocab=list('abcd'),
    )


# one of those that differ in size, epochs and rate alone
KINDS = [
    name
    for name in RECIPES
    if not name.startswith(('ffcv_rn50', 'imagenette'))
    or name in ('ffcv_rn50_16', 'imagenette_128_5', 'imagenette_128_20', 'imagenette_128_80')
]


@pytest.mark.filterwarnings('ignore:SyncBatchNorm. this is the only process')
@pytest.mark.parametrize('name', KINDS)
def test_trains_two_steps_in_each_phase(name):
    recipe = small(RECIPES[name])
    given = dict(teacher=xresnet18(n_out=4)) if recipe.needs else {}
    learn = recipe.learner(small_data(recipe.flip), cbs=TwoSteps(), device='cpu', **given)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, Progress)]
    before = [parameter.clone() for parameter in learn.model.parameters()]
    recipe.fit(learn, **given)
    assert len(learn.fits) == 1 + len(recipe.phases)
    assert any(not torch.equal(now, then) for now, then in zip(learn.model.parameters(), before, strict=False))


@pytest.mark.parametrize('name', ['airbench94', 'airbench94_legacy', 'airbench96', 'imagenette_128_20'])
def test_networks_of_the_right_size_are_built(name):
    "Numbers of parameters of airbench's scripts, without the norms' γ, and of fastai's network for 10 classes"
    recipe = RECIPES[name]
    learn = replace(recipe, bs=8, size=32).learner(small_data(recipe.flip), device='cpu')
    counts = dict(airbench94=1_972_792 - 1152, airbench94_legacy=1_972_792 - 1152, airbench96=9_918_776 - 3072)
    # a self-attention of 256 x 256 filters and a factor
    fastais = 25_550_618 + 256 * 256 + 1
    n_params = sum(p.numel() for p in learn.model.parameters())
    features = learn.model.get_submodule(learn.model.head_name).weight.shape[1]
    per_class = features + (not recipe.arch.startswith('airbench'))
    # four classes here
    assert n_params + 6 * per_class == counts.get(name, fastais)


@pytest.mark.parametrize('name', KINDS)
def test_explains_and_plots(name):
    import matplotlib.pyplot as plt

    recipe = small(RECIPES[name])
    given = dict(teacher=xresnet18(n_out=4)) if recipe.needs else {}
    learn = recipe.learner(small_data(recipe.flip), device='cpu', **given)
    cbs = fit_callbacks(recipe, **given)
    with warnings.catch_warnings():
        # of the only process, and of short runs
        warnings.simplefilter('ignore')
        text = str(learn.explain(cbs=cbs))
    assert all(cb.name in text for cb in cbs)
    figure = recipe.plot()
    assert len(figure.axes) == len({name for part in trainings(recipe) for name in curves(part)})
    plt.close(figure)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match='did you mean mosaic_mild'):
        get_recipe('mosaic_mil')
    assert arguments_of(EMA(0.9)) == dict(decay=0.9)


def test_what_acts_on_new_weights_does_not_stand_in_the_way_of_a_later_phase():
    recipe = small(RECIPES['fixres'])
    recipe = recipe + 'ZeroGamma()' + 'StochasticDepth(0.1)' + 'BlurPool()'
    learn = recipe.learner(small_data(), cbs=TwoSteps(), device='cpu')
    recipe.fit(learn)
    assert len(learn.fits) == 2
    # layers that stay are exported
    assert 'blur_pool' in learn.export(None).config.changes
