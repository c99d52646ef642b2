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
from trickbag.recipes.recipe import Phase, Recipe, from_toml, to_toml
from trickbag.recipes.runs import is_right
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
    ):
        assert replace(RECIPE, **one).hash == replace(RECIPE, **other).hash
    assert replace(RECIPE, size=40).hash != RECIPE.hash != (RECIPE + 'EMA()').hash
    named = replace(RECIPE, name='none', hardware='none')
    assert from_toml(to_toml(named)) == named


def test_rates_of_another_batch():
    phased = replace(RECIPE, tricks=('LinearScaling(8)',), phases=(Phase('a', 1, 0.1, ()),)).with_(bs=16)
    assert phased.lr == 1e-3 and phased.phases[0].lr == 0.2
    adam = replace(RECIPE, opt='AdamW()', loss="CrossEntropyLoss(reduction='sum')").with_(bs=32)
    assert adam.lr == pytest.approx(2e-3)
    last = (replace(RECIPE, epochs=100) + 'During(EMA(), start=-5, epochs=True)').with_(epochs=5)
    assert last.tricks[-1].endswith(', start=-1, epochs=True)')
    assert replace(RECIPE, presize=48).with_(size=64).presize == 96


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: replace(RECIPE, opt=''), 'opt is one call'),
        (lambda: replace(RECIPE, tricks=('During(MixUp(), stop=0.5)', 'MixUp(0.9)')), 'MixUp is listed twice'),
        (lambda: replace(RECIPE, phases=(Phase('a', 0, 0.1),)), 'epochs of the phase a is a whole number'),
        (lambda: RECIPE + MixUp, 'a trick is a callback or its call'),
        (lambda: RECIPE - ['MixUp'], 'give the name of a trick'),
        (lambda: RECIPE.with_(epoch=3), 'did you mean epochs'),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
