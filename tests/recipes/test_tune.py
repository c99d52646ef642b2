"A search finds what is better, reports the gain of runs that did not choose it, keeps a budget, goes on after a kill."

import time
from dataclasses import replace

import pytest

from trickbag.data.toy import toy_set
from trickbag.recipes.recipe import Recipe
from trickbag.recipes.runs import Job, run_job
from trickbag.recipes.tune import changed, tune

RECIPE = Recipe(
    'small',
    arch='timm/test_resnet',
    size=24,
    bs=16,
    n_images=48,
    epochs=3,
    lr=1e-7,
    opt='AdamW()',
    tricks=('OneCycle()', 'MixUp(0.2)'),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return RECIPE.data(toy_set(tmp_path_factory.mktemp('tune'), n_classes=2, n_train=48, n_valid=60))


def test_the_better_rate_is_found_and_confirmed_by_other_runs(data, tmp_path):
    def score(probs, targets):
        "Of the right class, so that equal classes do not mean equal scores"
        return probs.gather(1, targets[:, None])[:, 0]

    space = {'lr': [1e-7, 2e-2]}
    found = tune(RECIPE, space, lambda r: data, trials=4, seeds=2, log=tmp_path / 'log.jsonl', score=score, threads=1)
    scores = {setting['lr']: value for setting, value in found.tried}
    assert found.tried[0][0] == {'lr': 1e-7} and found.recipe.lr == max(scores, key=scores.__getitem__)
    # the gain is of seeds that chose nothing, on the half that chose nothing
    best = replace(RECIPE, lr=found.recipe.lr)
    expected = []
    for seed in (43, 44):
        ours, theirs = (run_job(Job(r, seed), lambda r: data, score)['confirm'] for r in (best, RECIPE))
        expected.append(ours - theirs)
    assert found.gains == expected
    assert 'with 2 fresh seeds on 30 other images' in repr(found)


def test_it_keeps_a_budget_with_the_confirmation(data, tmp_path):
    log = tmp_path / 'log.jsonl'
    kw = dict(space={'lr': (1e-5, 1e-1, 'log')}, dls_fn=lambda r: data, seeds=1, log=log, threads=1)
    start = time.monotonic()
    found = tune(RECIPE, budget=8 / 60, **kw)
    assert time.monotonic() - start < 8 + 8
    assert found.tried and len(found.gains) == 1
    # taken up, it tries the same settings first
    again = tune(RECIPE, trials=len(found.tried) + 1, **kw)
    assert again.tried[: len(found.tried)] == found.tried
    with pytest.raises(ValueError, match='holds the runs of another ablation, with another space'):
        tune(RECIPE, trials=1, **{**kw, 'space': {'lr': [0.1]}})


def test_settings():
    two = changed(RECIPE, {'bs': 32, 'MixUp.alpha': 0.7})
    # the rate belongs to the batch; AdamW's grows with its root
    assert two.lr == pytest.approx(1e-7 * 2**0.5) and two.tricks[-1] == 'MixUp(alpha=0.7)'
    assert changed(RECIPE, {'MixUp': False}).tricks == ('OneCycle()',)
    assert changed(RECIPE, {'MixUp': True}).tricks == RECIPE.tricks


def test_a_range_of_whole_numbers_for_a_float_is_of_floats(data, tmp_path):
    space = {'MixUp.alpha': (1, 2), 'epochs': (1, 2)}
    found = tune(RECIPE, space, lambda r: data, trials=5, seeds=1, log=tmp_path / 'log.jsonl', threads=1)
    alphas, epochs = ([setting[name] for setting, _ in found.tried] for name in space)
    assert any(alpha not in (1, 2) for alpha in alphas) and {*epochs} <= {1, 2}
