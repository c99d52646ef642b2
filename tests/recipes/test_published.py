"Published recipes: each value against a table of what the papers and scripts say, and each whole recipe at work."

from dataclasses import replace

import pytest
import torch

from trickbag.all import *
from trickbag.callback import arguments_of
from trickbag.recipes.calls import callback_names, from_text, optimizer_names, to_text
from trickbag.recipes.published import RECIPES
from trickbag.recipes.recipe import curves, from_toml, get_recipe, recipe_hash
from trickbag.testing.pairs import SmallImages

# as read in the sources: batch of all devices, epochs, highest rate, momentum, decay, sizes in training and test
TABLE = {
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
    'fgvc': (128, 600, 0.4, 0.9, 0, 224, 224),
    'giantpanda': (1024, 300, 0.4, 0.9, 1e-4, 224, 224),
}
# arguments of tricks, by the sources
ARGUMENTS = [
    ('bag_of_tricks_baseline', 'StepDecay', 'milestones', [30, 60, 90]),
    ('bag_of_tricks_baseline', 'PCALighting', 'noise', 0.1),
    ('bag_of_tricks', 'Cosine', 'warmup', 5),
    ('bag_of_tricks', 'Cosine', 'warmup_start', 0),
    ('bag_of_tricks', 'LabelSmoothing', 'eps', 0.1),
    ('bag_of_tricks', 'MixUp', 'alpha', 0.2),
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
    ('assembled', 'DropBlock', 'keep_prob', 0.9),
    ('assembled', 'Distillation', 'T', 1.0),
    ('ffcv_rn50_88', 'Linear', 'warmup', 2),
    ('ffcv_rn50_88', 'LabelSmoothing', 'eps', 0.1),
    ('mosaic_mild', 'LabelSmoothing', 'eps', 0.08),
    ('mosaic_mild', 'Cosine', 'warmup', 8),
    ('mosaic_mild', 'ProgressiveResize', 'initial', 0.5),
    ('mosaic_mild', 'ProgressiveResize', 'start', 0.4),
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
]


def trick(recipe, name):
    names = callback_names() | dict(teacher=torch.nn.Identity())
    made = [cb for call in recipe.tricks for cb in from_text(call, names, recipe.name)]
    (found,) = [cb for cb in made if type(cb).__name__ == name]
    return found


def test_every_recipe_is_in_the_table():
    assert RECIPES.keys() == TABLE.keys()


@pytest.mark.parametrize('name', TABLE)
def test_numbers_are_those_of_the_sources(name):
    recipe = RECIPES[name]
    bs, epochs, lr, momentum, decay, size, valid_size = TABLE[name]
    model = torch.nn.Linear(2, 2)
    (group,) = from_text(recipe.opt, optimizer_names(), name)[0](model.parameters(), lr=lr).param_groups
    assert (recipe.bs, recipe.epochs, recipe.lr) == (bs, epochs, lr)
    assert group.get('momentum') == momentum and group['weight_decay'] == decay
    assert (recipe.size, recipe.valid_size or recipe.size) == (size, valid_size)


@pytest.mark.parametrize('name, kind, argument, value', ARGUMENTS, ids=str)
def test_arguments_of_tricks_are_those_of_the_sources(name, kind, argument, value):
    assert getattr(trick(RECIPES[name], kind), argument) == value


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
    tricks = [call for call in recipe.tricks if not call.startswith('MixedPrecision')]
    sizes = [call for call in tricks if call.startswith('ProgressiveResize')]
    tricks = [call for call in tricks if call not in sizes] + ['ProgressiveResize(step=8)'] * len(sizes)
    phases = [replace(phase, tricks=("FixRes(40, boxes='center')", *phase.tricks[1:])) for phase in recipe.phases]
    return replace(
        recipe, arch='xresnet18', pretrained=False, size=32, valid_size=None, bs=8, tricks=tricks, phases=phases
    )


def small_data():
    return DataLoaders(
        SmallImages(26, size=48),
        SmallImages(9, size=48, shuffle=False, seed=1),
        cbs=[Crop(32), Flip(), Normalize()],
        vocab=list('abcd'),
    )


@pytest.mark.parametrize('name', [name for name in RECIPES if not name.startswith('ffcv_rn50') or name.endswith('_16')])
def test_trains_two_steps_in_each_phase(name):
    recipe = small(RECIPES[name])
    given = dict(teacher=xresnet18(n_out=4)) if recipe.needs else {}
    learn = recipe.learner(small_data(), cbs=TwoSteps(), device='cpu', **given)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, Progress)]
    before = [parameter.clone() for parameter in learn.model.parameters()]
    recipe.fit(learn, **given)
    assert len(learn.fits) == 1 + len(recipe.phases)
    assert any(not torch.equal(now, then) for now, then in zip(learn.model.parameters(), before, strict=False))


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
