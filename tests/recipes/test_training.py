"A recipe at work: with any learner, resumed, from the shell; and what changes with its length, batch and size."

import io
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.recipes.test_published import small_data
from trickbag.all import *
from trickbag.cli import main
from trickbag.commands import _RunFile, completed, make_data, recipe_of
from trickbag.data.toy import toy_set
from trickbag.recipes.published import RECIPES
from trickbag.recipes.recipe import Phase, Recipe, from_toml, get_recipe, to_toml
from trickbag.testing.proofs import weights

TWO_PHASES = Recipe(
    'two phases',
    arch='timm/test_resnet',
    size=32,
    bs=8,
    epochs=2,
    lr=0.02,
    n_images=26,
    opt='SGD(momentum=0.8)',
    loss='CrossEntropyLoss()',
    tricks=('Cosine(warmup=1)', 'BlurPool(min_channels=8)', 'MixUp()', 'EMA(0.9)'),
    phases=(Phase('more', 2, 0.01, ('CutMix()',)),),
)


def network():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=4)


def plain_learner(cbs=(), **kw):
    learn = Learner(small_data(), network(), cbs=cbs, device='cpu', **kw)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, Progress)]
    return learn


def test_any_learner_trains_as_the_recipes_own_does():
    torch.manual_seed(0)
    own = TWO_PHASES.learner(small_data(), cbs=NoOrder(), device='cpu')
    own.model.load_state_dict(network().state_dict())
    TWO_PHASES.fit(own)
    other = plain_learner()
    optimizer, loss = other.opt_func, other.loss_func
    assert other.fit(recipe=TWO_PHASES) is other
    assert torch.equal(weights(own), weights(other))
    # optimizer and loss are the learner's again, the layers stay
    assert other.opt_func is optimizer and other.loss_func is loss
    assert [cb.name for cb in other.cbs] == ['BlurPool', 'Crop']
    assert {row['recipe'] for row in other.history} == {TWO_PHASES.hash}
    assert len(other.history) == 4


class NoOrder(Callback):
    "A callback that does nothing"

    monitor = True


def test_a_refused_recipe_leaves_the_learner_as_it_was():
    learn = plain_learner()
    with pytest.raises(ValueError, match='Cosine'):
        learn.fit(recipe=TWO_PHASES + 'OneCycle()')
    assert not learn.cbs and not learn.history
    with pytest.raises(ValueError, match=r'its rate is for 16 images a step, the data give 8; .*with_\(bs=8\)'):
        learn.fit(recipe=replace(TWO_PHASES, bs=16))
    with pytest.raises(ValueError, match='a recipe has its own epochs'):
        learn.fit(3, recipe=TWO_PHASES)
    with pytest.raises(TypeError, match="recipe is 'rsb_a3'; give a Recipe"):
        learn.fit(recipe='rsb_a3')
    with pytest.raises(ValueError, match=r"'n_epoch' is missing, a whole number >= 0: fit\(5\), or fit\(recipe=...\)"):
        learn.fit()


class StopAt(Callback):
    "Ctrl-C after so many steps of all fits together"

    stage = 'stop'
    monitor = True

    def __init__(self, step: int):
        self.step = step

    def after_step(self, learn):
        if learn.step == self.step:
            raise KeyboardInterrupt


def test_a_recipe_broken_off_leaves_the_layers_that_it_made():
    learn = plain_learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(recipe=TWO_PHASES, cbs=StopAt(2))
    # its weights are made for blurred images, in predictions and in a later fit, too
    assert [cb.name for cb in learn.cbs] == ['BlurPool', 'Crop']


@pytest.fixture(scope='module')
def whole():
    "A learner that nothing stopped"
    return plain_learner().fit(recipe=TWO_PHASES)


@pytest.mark.parametrize('step', [2, 6, 9, 14])
def test_resumed_in_each_phase_to_the_bit(whole, tmp_path, step):
    saved = dict(cbs=[Checkpoint(every_batches=1, file='last.pt')], path=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        plain_learner(**saved).fit(recipe=TWO_PHASES, cbs=StopAt(step))
    assert (tmp_path / "last.pt").exists()
    resumed = plain_learner(**saved).fit(recipe=TWO_PHASES, resume='last.pt')
    assert torch.equal(weights(whole), weights(resumed)) and len(resumed.history) == 4


def test_another_length_batch_and_size(capsys):
    fixres = RECIPES['fixres'].with_(epochs=30, bs=256, size=112)
    (phase,) = fixres.phases
    assert fixres.tricks == ('StepDecay(milestones=8)',)
    assert (fixres.lr, fixres.devices) == (0.1, 1)
    assert phase == Phase('fixres', 14, 0.004, ('FixRes(size=192)', 'StepDecay(milestones=8)'))
    ffcv = RECIPES['ffcv_rn50_16'].with_(size=96)
    assert ffcv.valid_size == 128
    assert 'ProgressiveResize(initial=80, start=0.74, end=0.805, step=16)' in ffcv.tricks
    # what a callback declares as epochs or pixels
    tricks = ('Cooldown(20, warmup=10)', 'SWA(lr=0.05, anneal_epochs=10)', 'PadCrop(4)', 'CutOut(16)', 'CutOut(0.5)')
    for trick, shorter in zip(
        tricks,
        (
            'Cooldown(cooldown=10, warmup=5)',
            'SWA(lr=0.05, anneal_epochs=5)',
            'PadCrop(pad=2)',
            'CutOut(length=8)',
            'CutOut()',
        ),
        strict=True,
    ):
        recipe = replace(TWO_PHASES, tricks=(trick,), epochs=100, size=64)
        assert recipe.with_(epochs=50, size=32).tricks == (shorter,)
    # whoever names a field has it as he gave it
    assert RECIPES['ffcv_rn50_16'].with_(size=96, valid_size=100).valid_size == 100
    said = capsys.readouterr().out
    assert 'fixres: lr 0.2 -> 0.1' in said and 'ffcv_rn50_16: valid_size 256 -> 128' in said
    # what was published is not of these
    assert fixres.accuracy is None and (RECIPES['fixres'] + 'EMA()').accuracy is None


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp('recipes')
    toy_set(place / 'toy', n_classes=3, n_train=60, n_valid=12)
    recipe = Recipe(
        'mine',
        arch='timm/test_resnet',
        size=32,
        bs=8,
        epochs=2,
        n_images=60,
        lr=4e-3,
        tricks=('Cosine(warmup=1)', 'MixUp()', 'LabelSmoothing()'),
    )
    to_toml(recipe, place / 'mine.toml')
    return place


def shell(place, monkeypatch, capsys, *argv):
    monkeypatch.chdir(place)
    monkeypatch.setenv('TRICKBAG_CACHE', str(place / 'cache'))
    main(list(argv))
    return capsys.readouterr().out


def test_from_the_shell(place, monkeypatch, capsys):
    train = ('train', 'toy', '--recipe', 'mine.toml', '--without', 'MixUp', '--tricks', 'EMA(.9)')
    out = shell(place, monkeypatch, capsys, *train, '--out', 'whole')
    trained = from_toml(place / 'whole' / 'recipe.toml')
    assert trained.tricks == ('Cosine(warmup=1)', 'LabelSmoothing()', 'EMA(decay=0.9)')
    assert trained.hash in out and trained.hash in (place / 'whole' / 'run.json').read_text()
    assert trained.hash in (place / 'whole' / 'history.csv').read_text()

    def stop(self, learn):
        if learn.epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_RunFile, 'before_epoch', stop, raising=False)
        with pytest.raises(SystemExit) as e:
            shell(place, monkeypatch, capsys, *train, '--out', 'stopped')
    assert e.value.code == 130
    # resume reads the recipe where the run is
    (place / 'mine.toml').rename(place / 'moved.toml')
    shell(place, monkeypatch, capsys, 'resume', 'stopped')
    (place / 'moved.toml').rename(place / 'mine.toml')
    whole, resumed = (load_file(place / run / 'classifier' / 'model.safetensors') for run in ('whole', 'stopped'))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_images_that_are_no_squares(place, capsys):
    "All of a padded or squashed image is seen, unless a recipe says otherwise; runs and recipes say it alike"
    recipe = from_toml(place / 'mine.toml')
    padded = recipe.with_(image_fit='pad')
    assert f'crop_pct {recipe.crop_pct:g} -> 1 (with image_fit)' in capsys.readouterr().out.replace('1.0', '1')
    assert padded.with_(image_fit='crop').crop_pct == recipe.crop_pct == 0.875
    assert recipe.with_(image_fit='squash', crop_pct=0.9).crop_pct == 0.9
    assert padded.hash != recipe.hash and get_recipe(to_toml(padded, place / 'padded.toml') and place / 'padded.toml')
    assert 'of the padded image' in str(padded)
    given = {name: None for name in ('recipe', 'arch', 'epochs', 'size', 'bs', 'lr', 'valid_pct', 'tricks')}
    given |= dict(data='toy', seed=1, pretrained=False, image_fit='pad')
    loaders = (make_data(completed(given)), padded.data(toy_set()))
    for dls in loaders:
        (crop,) = [cb for cb in dls.cbs if isinstance(cb, Crop)]
        assert (crop.fit, crop.crop_pct) == ('pad', 1)
    assert recipe_of(given | dict(recipe=place / 'mine.toml')) == padded
    # a run of a version that had no such argument
    del given['image_fit']
    assert next(cb for cb in make_data(completed(given)).cbs if isinstance(cb, Crop)).fit == 'crop'


def test_recipes_in_the_shell(place, monkeypatch, capsys):
    listed = shell(place, monkeypatch, capsys, 'recipes')
    assert all(name in listed for name in RECIPES)
    out = shell(place, monkeypatch, capsys, 'recipes', 'rsb_a3', '--toml', 'rsb.toml')
    assert out.startswith('what') and get_recipe(place / 'rsb.toml') == RECIPES['rsb_a3']
    assert 'MixUp' in shell(place, monkeypatch, capsys, 'explain', 'toy', '--recipe', 'mine.toml')


def test_weights_of_a_recipe_in_the_shell(place, monkeypatch, capsys):
    asked = ('explain', 'toy', '--recipe', 'fgvc', '--arch', 'xresnet18', '--size', '32', '--bs', '8')
    assert 'EarlyStopping' in shell(place, monkeypatch, capsys, *asked, '--no-pretrained')
    shown = shell(place, monkeypatch, capsys, 'recipes', 'fgvc')
    assert 'resnet50, pretrained' in shown and '1 of the area, mirrored' in shown
    book = shell(place, monkeypatch, capsys, 'recipes', 'fastbook')
    assert 'crops of 0.75 to 1 of the area, square, of images kept at 460 px, mirrored' in book
    assert ', bicubic, mirrored' in shell(place, monkeypatch, capsys, 'recipes', 'deit3_small')


@pytest.mark.parametrize('name', ['toy', 'airbench94'])
def test_a_recipe_as_toml_on_the_screen_is_a_file(place, monkeypatch, name):
    "`trickbag recipes NAME --toml > FILE`, also where the shell's encoding lacks letters that the recipe has"
    shown = io.TextIOWrapper(io.BytesIO(), encoding='latin-1', newline='')
    with monkeypatch.context() as patch:
        patch.setattr('sys.stdout', shown)
        main(['recipes', name, '--toml'])
        shown.flush()
    file = place / f'{name}_printed.toml'
    file.write_bytes(shown.buffer.getvalue())
    assert from_toml(file) == RECIPES[name] and file.read_text(encoding='utf-8') == to_toml(RECIPES[name])


@pytest.mark.parametrize(
    'argv, message',
    [
        (['recipes', 'rsb_a4'], 'did you mean rsb_a'),
        (['recipes', '--toml', 'x.toml'], 'which one'),
        (['recipes', '--toml'], 'which one'),
        (['train', 'toy', '--recipe', 'fgvc', '--arch', 'xresnet18', '--size', '32', '--bs', '8'], '--no-pretrained'),
        (['explain', 'toy', '--no-pretrained', '--weights', 'a.safetensors'], 'which of the two'),
        (['recipes', 'mosaic'], 'there are mosaic_mild, mosaic_medium, mosaic_hot, or'),
        (['train', 'toy', '--without', 'EMA'], 'there is no --recipe'),
        (['train', 'toy', '--recipe', 'mine.toml', '--lr', 'auto'], 'a recipe has its rate'),
        (['train', 'toy', '--recipe', 'mine.toml', '--without', 'EMA'], 'has no EMA; its tricks: Cosine, MixUp'),
        (['train', 'toy', '--recipe', 'bag_of_tricks', '--size', '32', '--bs', '8'], '--without Distillation'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, list) else 'message',
)
def test_a_mistake_is_said_in_a_line(place, monkeypatch, capsys, argv, message):
    with pytest.raises(SystemExit) as e:
        shell(place, monkeypatch, capsys, *argv)
    assert e.value.code == 1
    assert message in capsys.readouterr().err
