"What would have been a wrong answer without a word: of a second recipe, a clash of schedules, nan, another score."

import math
from dataclasses import replace
from functools import partial

import pytest

from tests.recipes.test_published import small_data
from trickbag.all import *
from trickbag.commands import ARGUMENTS, ablate, recipe_of
from trickbag.data.toy import toy_set
from trickbag.recipes.ablation import Ablation
from trickbag.recipes.ladder import rows_of, techniques
from trickbag.recipes.paired import holm, paired_p
from trickbag.recipes.recipe import Phase, Recipe, from_toml, made_trick, to_toml
from trickbag.recipes.runs import _Bench, is_right
from trickbag.recipes.tune import tune

RECIPE = Recipe(
    'r',
    arch='timm/test_resnet',
    size=32,
    bs=8,
    n_images=26,
    epochs=1,
    lr=1e-3,
    opt='SGD()',
    tricks=('OneCycle()',),
)


class Sizes(Callback):
    monitor = True
    stage = 'stop'

    def before_fit(self, learn):
        self.seen = set()

    def after_pred(self, learn):
        if learn.training:
            self.seen.add(learn.xb.shape[-1])


def plain_learner(**kw):
    learn = vision_learner(small_data(), 'timm/test_resnet', pretrained=False, device='cpu', **kw)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, Progress)]
    return learn


def test_a_second_recipe_trains_at_its_own_size():
    learn = plain_learner()
    for size in (32, 24):
        sizes = Sizes()
        replace(RECIPE, size=size).fit(learn, cbs=sizes)
        assert sizes.seen == {size}
    assert len([cb for cb in learn.cbs if isinstance(cb, Crop)]) == 1


def test_layers_that_are_made_are_not_made_again():
    learn = plain_learner()
    (RECIPE + 'BlurPool(min_channels=8)').fit(learn)
    with pytest.raises(ValueError, match='layers are made once'):
        (RECIPE + 'BlurPool(min_channels=16)').fit(learn)


def test_the_learners_own_tricks_are_said(capsys):
    plain_learner(cbs=[LabelSmoothing()]).fit(recipe=RECIPE)
    assert 'LabelSmoothing of the learner also work' in capsys.readouterr().out


def test_one_schedule_for_another_is_one_technique():
    cosine = replace(RECIPE, tricks=('Cosine()', 'MixUp()'))
    assert [technique.name for technique in techniques(RECIPE, cosine)] == ['Cosine', 'MixUp']
    rows = {row.name: row.recipe.tricks for row in rows_of(RECIPE, cosine)}
    assert rows['Cosine()'] == ('Cosine()',) and set(rows['all - Cosine()']) == {'OneCycle()', 'MixUp()'}
    network = replace(RECIPE, arch='xresnet18', arch_args=dict(widen=0.25), n_images=99, devices=2)
    assert [str(technique) for technique in techniques(RECIPE, network)] == [
        "arch xresnet18, arch_args {'widen': 0.25}"
    ]


def test_nan_is_no_gain():
    assert paired_p([math.nan, 0.1, 0.2]) is None
    assert holm([None, 0.01]) == [None, 0.01]


def score_of_some(probs, targets):
    "nan for one seed in two"
    return is_right(probs, targets) * (math.nan if probs[0, 0] > probs[1, 0] else 1.0)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    return toy_set(tmp_path_factory.mktemp('wrong'), n_classes=3, n_train=24, n_valid=21)


def make(photographs, log, **kw):
    recipe = replace(RECIPE, n_images=24, size=24, tricks=('OneCycle()', 'MixUp()', 'EMA(0.9)'))
    kw = dict(seeds=1, rows=['alone'], threads=1, confirm=False) | kw
    return Ablation(recipe, 'OneCycle', partial(folder_data, path=photographs), log=log, **kw)


def test_another_score_or_other_images_are_not_mixed_into_a_log(photographs, tmp_path):
    make(photographs, tmp_path / 'log.jsonl').run()
    with pytest.raises(ValueError, match='another score'):
        make(photographs, tmp_path / 'log.jsonl', score=score_of_some)
    others = toy_set(tmp_path / 'others', n_classes=2, n_train=24, n_valid=21)
    with pytest.raises(ValueError, match='validated on other images'):
        ablation = make(others, tmp_path / 'log.jsonl')
        # what a run of the first data lacks
        ablation.log.runs.pop(next(iter(ablation.log.runs)))
        ablation.run()


def test_a_score_that_is_nan_is_never_the_best(photographs, tmp_path):
    ablation = make(photographs, tmp_path / 'log.jsonl')
    ablation.run()
    best = ablation.findings.best()
    for run in ablation.findings.runs(best.recipe).values():
        run['choose'] = math.nan
    assert ablation.findings.best().name != best.name
    assert ablation.findings.adjusted()[ablation.findings.rows.index(best)] is None


def test_half_of_many_dropped_and_each_of_the_rest_left_out(photographs, tmp_path):
    recipe = replace(
        RECIPE, n_images=24, size=24, tricks=('OneCycle()', 'MixUp()', 'EMA(0.9)', 'Flip()', 'CutOut()', 'Grayscale()')
    )
    recipe = replace(recipe, flip=False)
    data = partial(folder_data, path=photographs)
    ablation = Ablation(recipe, 'OneCycle', data, 2, tmp_path / 'l', ['without'], False, True, threads=1)
    ablation.run()
    without = [row for row in ablation.findings.rows if row.kind == 'without']
    assert len(without) == 3 and all(len(ablation.findings.gains(row)) == 2 for row in without)


def test_a_search_ends_with_its_space(photographs, tmp_path):
    recipe = replace(RECIPE, n_images=24, size=24)
    found = tune(
        recipe, {'lr': [1e-3, 1e-2]}, partial(folder_data, path=photographs), 5, seeds=1, log=tmp_path / 'l', threads=1
    )
    assert {setting['lr'] for setting, _ in found.tried} == {1e-3, 1e-2} and len(found.gains) == 1


def test_given_tricks_keep_their_numbers_in_the_shell():
    a = dict.fromkeys([*ARGUMENTS, 'without']) | dict(recipe='rsb_a3', epochs=2, tricks='EMA(0.99)', pretrained=False)
    assert recipe_of(a, n_images=48).tricks[-1] == 'EMA(decay=0.99)'
    # of one epoch a warm-up is a part
    one = recipe_of(a | dict(epochs=1), n_images=48)
    assert any(trick.startswith('Cosine(warmup=0.05,') for trick in one.tricks)


def test_an_ablation_is_no_class_of_the_next_run(tmp_path):
    photographs = toy_set(tmp_path / 'p', n_classes=3, n_train=24, n_valid=12) / 'train'
    a = dict.fromkeys([*ARGUMENTS, 'without']) | dict(data=str(photographs), recipe='toy', seed=1)
    with pytest.raises(ValueError, match='lies inside the photographs'):
        ablate(a, photographs / 'found')


def test_hashes_of_recipes_that_train_the_same():
    for one, other in (
        (dict(crop_pct=1), dict(crop_pct=1.0)),
        (dict(opt='AdamW'), dict(opt='AdamW()')),
        (dict(loss='CrossEntropyLoss'), dict(loss='CrossEntropyLoss()')),
        (dict(valid_size=None), dict(valid_size=32)),
        (dict(n_images=9), dict(devices=8)),
        (dict(tricks=('MixUp(1)',)), dict(tricks=('MixUp(1.0)',))),
        (dict(tricks=('StepDecay([1, 2.])',)), dict(tricks=('StepDecay([1.0, 2])',))),
        (dict(tricks=('MixUp()', 'EMA()')), dict(tricks=('EMA()', 'MixUp()'))),
        (dict(tricks=('During(MixUp(), 0, 1)',)), dict(tricks=('MixUp()',))),
        (dict(opt='SGD(momentum=.9, weight_decay=0)'), dict(opt='SGD(weight_decay=0.0, momentum=0.90)')),
        (dict(loss='Poly1Loss(1)'), dict(loss='Poly1Loss(epsilon=1.0)')),
        (dict(arch_args=dict(widths=(8, 16))), dict(arch_args=dict(widths=[8, 16]))),
        # what a phase is called, and the order of its tricks
        (
            dict(phases=(Phase('a', 1, 1, ('Cosine()', 'MixUp(1)')),)),
            dict(phases=(Phase('b', 1, 1.0, ('MixUp(1.)', 'Cosine()')),)),
        ),
    ):
        assert replace(RECIPE, **one).hash == replace(RECIPE, **other).hash
    assert replace(RECIPE, size=40).hash != RECIPE.hash != (RECIPE + 'EMA()').hash
    # one channel, and all of them
    one, all_of_them = (RECIPE + f'SqueezeExcite(latent={n})' for n in ('1', '1.0'))
    assert one.hash != all_of_them.hash
    phased = [replace(RECIPE, phases=(Phase('a', 1, lr, ('MixUp()',)),)).hash for lr in (0.1, 0.2)]
    assert phased[0] != phased[1]


@pytest.mark.parametrize(
    'changes',
    [
        dict(name='none', hardware='none'),
        dict(arch_args=dict(layers=(2, (3, 4)), widen=0.5, block_args=dict(sizes=(1, 2), kind='a'))),
        dict(scale=None, valid_size=48, presize=40),
        dict(tricks=('During(MixUp(1.0), stop=.5)', "TTA(sizes=(1.0, 1.25), agg='max')", 'StepDecay([1, 2.0])')),
        dict(phases=[dict(name='a', epochs=2, lr=1, tricks=['MixUp(1)'])], deviations=['none']),
    ],
)
def test_toml_gives_back_the_same(changes):
    recipe = replace(RECIPE, **changes)
    assert from_toml(to_toml(recipe)) == recipe
    assert from_toml(to_toml(recipe)).hash == recipe.hash
    assert to_toml(from_toml(to_toml(recipe))) == to_toml(recipe)


def test_rates_of_another_batch():
    phased = replace(RECIPE, tricks=('LinearScaling(8)',), phases=(Phase('a', 1, 0.1, ()),)).with_(bs=16)
    assert phased.lr == 1e-3 and phased.phases[0].lr == 0.2
    adam = replace(RECIPE, opt='AdamW()', loss="CrossEntropyLoss(reduction='sum')").with_(bs=32)
    assert adam.lr == pytest.approx(2e-3)
    last = (replace(RECIPE, epochs=100) + 'During(EMA(), start=-5, epochs=True)').with_(epochs=5)
    assert last.tricks[-1].endswith(', start=-1, epochs=True)')
    assert replace(RECIPE, presize=48).with_(size=64).presize == 96


def test_rates_and_batches_of_tricks_themselves():
    # SWA's rate is its own: neither the recipe's nor LinearScaling's
    swa = RECIPE + 'SWA(lr=0.05)'
    assert swa.with_(bs=16).tricks[-1] == 'SWA(lr=0.1)'
    assert (swa + 'LinearScaling(8)').with_(bs=16).tricks[-2:] == ('SWA(lr=0.1)', 'LinearScaling(base_bs=8)')
    assert (swa + "LinearScaling(8, rule='sqrt')").with_(bs=32).tricks[-2] == 'SWA(lr=0.1)'
    assert replace(swa, opt='AdamW()').with_(bs=32).tricks[-1] == 'SWA(lr=0.1)'
    assert (RECIPE + 'SWA()').with_(bs=16).tricks[-1] == 'SWA()'
    # a phase goes by its own tricks: LAMB's root is not that of the SGD after it
    phase = Phase('a', 1, 0.1, ('SWA(lr=0.05)',))
    (after,) = replace(RECIPE, tricks=('LAMB()',), phases=(phase,)).with_(bs=32).phases
    assert (after.lr, after.tricks) == (0.4, ('SWA(lr=0.2)',))
    # the batch of one process
    own = RECIPE + 'LinearScaling(8, bs=8)'
    assert own.with_(bs=16).tricks[-1] == 'LinearScaling(base_bs=8, bs=16)' and own.with_(bs=16).lr == RECIPE.lr
    spread = replace(RECIPE, bs=32, devices=4, tricks=('LinearScaling(8, bs=8)',))
    assert spread.with_(bs=16).tricks[-1] == 'LinearScaling(base_bs=8, bs=16)'
    # with 16 images a step it is twice the rate, as with any other recipe
    scaling = made_trick(own.with_(bs=16).tricks[-1])
    plain_learner(cbs=scaling).fit(1, own.lr)
    assert scaling.factor == 2


def test_an_average_in_a_shorter_run(capsys):
    recipe = replace(RECIPE, n_images=800, epochs=8, tricks=('EMA(0.9, interval=20)',))
    # 800 steps, 40 updates: of 100 steps, 40 again
    short = made_trick(recipe.with_(epochs=1).tricks[0])
    assert (short.interval, short.decay) == (2, pytest.approx(0.9**0.8))
    # a longer one has more
    longer = made_trick(recipe.with_(epochs=16).tricks[0])
    assert (longer.interval, longer.decay) == (20, pytest.approx(0.9**0.5))
    # as many epochs of half the batch are twice the steps
    halved = made_trick(recipe.with_(bs=4).tricks[0])
    assert (halved.interval, halved.decay) == (20, pytest.approx(0.9**0.5))
    capsys.readouterr()
    recipe.with_(epochs=1, n_images=24)
    assert 'EMA averages next to nothing in so short a run' in capsys.readouterr().out
    with pytest.raises(ValueError, match='interval=32 is longer than the run of 4 steps'):
        plain_learner(cbs=EMA(interval=32)).fit(1)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: replace(RECIPE, opt=''), 'opt: .* is not one call'),
        (lambda: replace(RECIPE, tricks=('During(MixUp(), stop=0.5)', 'MixUp(0.9)')), 'MixUp is listed twice'),
        (lambda: replace(RECIPE, phases=(Phase('a', 0, 0.1),)), "phase 'a': epochs must be a whole number"),
        (lambda: RECIPE + MixUp, 'a trick is a callback or its call'),
        (lambda: RECIPE - ['MixUp'], 'give the name of a trick'),
        (lambda: RECIPE.with_(epoch=3), 'did you mean epochs'),
        (lambda: replace(RECIPE, opt='SGD(0.9)'), 'name the arguments'),
        (lambda: replace(RECIPE, opt='SGD(momentums=0.9)'), 'momentums'),
        (lambda: replace(RECIPE, loss='bce_sum(2)'), 'stands by its name'),
        (lambda: replace(RECIPE, arch_args=dict(act=None)), 'leave it out'),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_loaders_are_shared_only_by_recipes_with_the_same_data():
    made = []

    def loaders(recipe):
        made.append(recipe)
        return DataLoaders([], [])

    bench = _Bench(loaders, is_right)
    others = dict(size=40, presize=64, valid_size=48, crop_pct=0.9, scale=None, ratio=(1, 1), flip=False, bs=4)
    for change in (dict(lr=0.5), *({name: value} for name, value in others.items()), dict(interpolation='bicubic')):
        bench.data(replace(RECIPE, **change))
        bench.data(replace(RECIPE, **change, tricks=()))
    assert len(made) == 1 + len(others) + 1


@pytest.mark.parametrize(
    'line, said',
    [
        ("epochs = '3'", 'write 3, without quotes'),
        ('epoch = 3', 'did you mean epochs?'),
        ("tricks = [1]", 'a trick is a callback or its call'),
        ("tricks = ['MixUpp(0.2)']", 'did you mean MixUp?'),
        ("tricks = ['MixUp(alfa=0.2)']", 'did you mean alpha=?'),
        ("tricks = ['MixUp', ' MixUp(0.4)']", 'MixUp is listed twice'),
        ("flip = 'yes'", 'flip must be True or False'),
        ("interpolation = 'cubic'", "one of ('bilinear', 'bicubic')"),
        ('scale = [1.0, 0.5]', 'scale is a pair, least and most'),
        ('scale = [0.5]', 'scale is a pair, least and most'),
        ('scale = [0.5, 1.5]', 'scale[1] <= 1'),
        ("ratio = ['a', 'b']", 'ratio must be a finite number > 0'),
        ('crop_pct = 87.5', 'crop_pct is a fraction'),
        ("valid_size = 'big'", 'valid_size must be a whole number'),
        ('valid_size = 0', 'valid_size must be a whole number >= 1'),
        ('presize = 1.5', 'presize must be a whole number'),
        ('arch = 5', 'arch must be a text'),
        ('arch_args = 5', 'arch_args are names and values'),
        ('pretrained = 3', 'pretrained must be True or False or a text'),
        ('accuracy = 80.9', 'accuracy must be a finite number >= 0 and <= 1'),
        ("hours = 'long'", 'hours must be a number'),
        ("deviations = 'some'", 'deviations must be a tuple'),
        ('phases = 3', 'phases must be a tuple'),
        ("phases = [{name = 'x', epochs = 1}]", 'a phase needs lr'),
        ("phases = [{name = 'x', epochs = 1, lr = -0.1}]", "phase 'x': lr must be a finite number > 0"),
        ("phases = [{name = 'x', epochs = 1, lr = 0.1, trick = []}]", 'a phase has no trick; did you mean tricks?'),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, line, said):
    "Before there are data, in one line, with the file"
    (tmp_path / 'mine.toml').write_text(f"name = 'a'\n{line}\n")
    with pytest.raises(ValueError) as e:
        from_toml(tmp_path / 'mine.toml')
    message = str(e.value)
    assert said in message and message.startswith(str(tmp_path / 'mine.toml')) and '\n' not in message


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match='nowhere.toml: there is no such file'):
        get_recipe('nowhere.toml')


def test_callbacks_may_stand_for_their_calls():
    assert replace(RECIPE, tricks=[OneCycle(), MixUp(0.2)]) == replace(RECIPE, tricks=['OneCycle()', 'MixUp(0.2)'])


def test_what_with_changes_is_said_with_the_reason(capsys):
    changes = dict(epochs=20, bs=64)
    shorter = get_recipe('mosaic_medium').with_(**changes)
    # of every batch there are 32 times as many, so a step of the decay is a 32nd
    assert 'DecoupledDecay(wd=1.5625e-05)' in shorter.tricks
    said = capsys.readouterr().out.splitlines()
    assert 'mosaic_medium: lr 2.048 -> 0.064 (with bs)' in said
    assert 'mosaic_medium: devices 8 -> 1 (another bs)' in said
    cosine = 'Cosine(warmup=8, warmup_start=0) -> Cosine(warmup=1, warmup_start=0)'
    assert f'mosaic_medium: {cosine} (with epochs)' in said
    (average,) = [line for line in said if 'EMA' in line]
    assert average.endswith('(with epochs, bs)')
    get_recipe('rsb_a2').with_(bs=512)
    assert 'rsb_a2: lr 0.005 -> 0.0025 (with the square root of bs)' in capsys.readouterr().out


def test_ablation_refuses_what_is_no_question(tmp_path):
    data = partial(folder_data, path='nowhere')
    with pytest.raises(TypeError, match=r"recipe is 'toy'; give a Recipe, such as get_recipe\('toy'\)"):
        Ablation('toy', 'OneCycle', data)
    with pytest.raises(TypeError, match='dls_fn is a function of a recipe, such as partial'):
        Ablation(RECIPE, [], 'photographs')
    for wrong in (dict(seeds=0), dict(processes=0)):
        with pytest.raises(ValueError, match='must be a whole number >= 1'):
            Ablation(RECIPE + 'MixUp()', 'OneCycle', data, **wrong)
    ask = partial(Ablation, RECIPE + 'MixUp()', log=tmp_path / 'log.jsonl')
    with pytest.raises(TypeError, match='base is a recipe, or names of the tricks that it keeps, .*, got 3'):
        ask(3, data)
    with pytest.raises(TypeError, match='score is a function, .*, got 3'):
        ask('OneCycle', data, score=3)
    with pytest.raises(ValueError, match='threads must be a whole number >= 1'):
        ask('OneCycle', data, threads=0)
    with pytest.raises(ValueError, match="first_seed must be a whole number"):
        ask('OneCycle', data, first_seed='a')
    with pytest.raises(ValueError, match='budget, in minutes, must be'):
        ask('OneCycle', data).run(budget=-1)
    with pytest.raises(ValueError, match='Ablation: .*: dls_fn gave None; it returns the DataLoaders'):
        ask('OneCycle', lambda recipe: None).run()
    with pytest.raises(ValueError, match='tune: budget, in minutes, must be'):
        tune(RECIPE, dict(lr=(1e-3, 1e-2)), data, budget=-1)
    with pytest.raises(TypeError, match='tune: space is a dict'):
        tune(RECIPE, [('lr', 1)], data, trials=1)
    with pytest.raises(TypeError, match="recipe is 'toy'"):
        tune('toy', {}, data, trials=1)
    with pytest.raises(ValueError, match='trials must be a whole number >= 1'):
        tune(RECIPE, dict(lr=(1e-3, 1e-2)), data, trials=0)
    with pytest.raises(ValueError, match='seeds must be a whole number >= 1'):
        tune(RECIPE, dict(lr=(1e-3, 1e-2)), data, trials=1, seeds=0)


@pytest.mark.parametrize(
    'space, said',
    [
        ({}, 'the space is empty'),
        (dict(lr=(1e-2, 1e-3)), 'from low to high'),
        (dict(lr=(0, 1e-3, 'log')), "with 'log' from above 0"),
        (dict(lr=('a', 'b')), 'lr must be a finite number'),
        (dict(arch=['xresnet18', 'resnet1']), "arch='resnet1': .*did you mean"),
        (dict(epochs=(0, 4)), 'epochs=0: .*whole number >= 1'),
        ({'OneCycle.pct_start': (0.3, 2.0)}, 'OneCycle.pct_start=2.0: .*pct_start'),
    ],
)
def test_a_space_that_is_none(space, said, tmp_path):
    with pytest.raises(ValueError, match='tune: .*' + said):
        tune(RECIPE, space, partial(folder_data, path='nowhere'), trials=1, log=tmp_path / 'log.jsonl')


def test_fewer_images_than_a_batch_takes(photographs):
    "The rate is for a batch that never comes"
    recipe = replace(RECIPE, bs=1000, size=16)
    with pytest.raises(ValueError, match=r'its rate is for 1000 images a step, and only \d+ train; take .*--bs'):
        recipe.learner(recipe.data(photographs))


def test_a_file_without_its_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RECIPE.to_toml('mine.toml')
    with pytest.raises(ValueError, match='there is no recipe mine; did you mean the file mine.toml'):
        get_recipe('mine')
