"Statistics of an ablation: against SciPy, and on simulated trainings whose truth is known."

import json

import numpy as np
import pytest
from scipy import stats

from trickbag.recipes.ablation import Findings, Plan
from trickbag.recipes.paired import holm, mean_std, paired_p, t_tail
from trickbag.recipes.recipe import Recipe
from trickbag.recipes.runs import Job, RunLog


@pytest.mark.parametrize('dof', [1, 2, 3, 4, 5, 6, 9, 10, 29, 30])
def test_tails_of_t(dof):
    for t in (0.0, 0.01, 0.5, 1.0, -2.0, 3.3, 12.0, 100.0):
        assert t_tail(t, dof) == pytest.approx(2 * stats.t.sf(abs(t), dof), rel=1e-9, abs=1e-13)


def test_paired_p_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 12):
        a, b = rng.normal(size=(2, n))
        assert paired_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert mean_std([1.0, 4.0]) == (2.5, pytest.approx(np.std([1, 4], ddof=1)))


def test_holm_by_its_definition():
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.uniform(size=6) ** 3
        order = np.argsort(p)
        expected = np.empty(6)
        expected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(6, 0, -1)))
        assert holm(list(p)) == pytest.approx(list(expected))


def test_equal_accuracies_prove_nothing_beyond_the_number_of_images():
    # one image of 100 more, three times: not p = 0
    assert paired_p([0.01] * 3, 1 / 100) == pytest.approx(2 * stats.t.sf(np.sqrt(18), 2))
    assert paired_p([0.0] * 3, 1 / 100) == 1
    assert paired_p([0.5]) is None


class Simulation:
    "An ablation whose trainings are numbers: a seed's luck, which rows share, and each training's own"

    def __init__(self, tmp_path, n_rows, n_seeds):
        calls = 'OneCycle() MixUp() EMA() LabelSmoothing() CutOut() Flip() SAM() AGC() OHEM()'.split()
        recipe = Recipe('whole', arch='xresnet18', tricks=calls[: n_rows + 1])
        base = Recipe('base', arch='xresnet18', tricks=calls[:1])
        plan = Plan(recipe, base, ('alone',), tuple(range(n_seeds)), (), False)
        self.file = tmp_path / 'log.jsonl'
        self.found = Findings(plan, RunLog(self.file, plan.about()))
        self.keys = [[Job(row.recipe, seed).key for row in self.found.rows] for seed in plan.seeds]

    def draw(self, rng, gains):
        "New trainings; the difference of two has standard deviation 1"
        for keys in self.keys:
            luck = rng.normal()
            for key, gain in zip(keys, [0, *gains], strict=True):
                score = luck + gain + rng.normal(scale=0.5**0.5)
                self.found.log.runs[key] = dict(key=key, choose=score, confirm=score, n_choose=10**6, n_confirm=10**6)
        return self.found


def test_p_values_are_uniform_on_pure_noise(tmp_path):
    rng = np.random.default_rng(2)
    simulation = Simulation(tmp_path, 1, 3)
    p_values = []
    for _ in range(200):
        found = simulation.draw(rng, [0])
        p_values.append(found.p_value(found.rows[1]))
    assert stats.kstest(p_values, 'uniform').pvalue > 0.05
    assert stats.binomtest(sum(p < 0.05 for p in p_values), 200, 0.05).pvalue > 0.05


def test_the_chance_of_any_false_gain_among_eight(tmp_path):
    rng = np.random.default_rng(3)
    simulation = Simulation(tmp_path, 8, 3)
    n = 600
    any_false = any_without_care = 0
    for _ in range(n):
        found = simulation.draw(rng, [0] * 8)
        any_false += any(p is not None and p < 0.05 for p in found.adjusted())
        any_without_care += any(found.p_value(row) < 0.05 for row in found.rows[1:])
    # rows share the base, so Holm's bound is not quite reached
    assert 0.02 < any_false / n < 0.065
    assert any_without_care / n > 0.2


@pytest.mark.parametrize('n_seeds', [3, 5, 10])
def test_a_gain_of_one_deviation_is_found_as_often_as_theory_says(tmp_path, n_seeds):
    rng = np.random.default_rng(4)
    simulation = Simulation(tmp_path, 1, n_seeds)
    n = 300
    hits = 0
    for _ in range(n):
        found = simulation.draw(rng, [1])
        hits += found.p_value(found.rows[1]) < 0.05
    critical = stats.t.ppf(0.975, n_seeds - 1)
    shift = n_seeds**0.5
    power = stats.nct.sf(critical, n_seeds - 1, shift) + stats.nct.cdf(-critical, n_seeds - 1, shift)
    assert stats.binomtest(hits, n, power).pvalue > 0.01


def test_dropped_rows_count_as_comparisons(tmp_path):
    simulation = Simulation(tmp_path, 4, 3)
    found = simulation.draw(np.random.default_rng(5), [3, 0, 0, 0])
    p = found.p_value(found.rows[1])
    assert found.adjusted()[1] == pytest.approx(min(1, 4 * p))
    for keys in simulation.keys[1:]:
        for key in keys[3:]:
            del found.log.runs[key]
    assert found.adjusted()[1] == pytest.approx(min(1, 4 * p)) and found.adjusted()[4] is None
    assert json.loads(simulation.file.read_text()) == found.log.about


def test_each_two_trainings_that_are_compared_count_once(tmp_path):
    "Of two techniques: A and B over the base, both over A, and B over both; the ladder's first row is A's own"
    recipe = Recipe('whole', arch='xresnet18', tricks=['MixUp()', 'EMA()'])
    base = Recipe('base', arch='xresnet18')
    plan = Plan(recipe, base, ('alone', 'ladder', 'without'), (0, 1, 2, 3), (), False)
    found = Findings(plan, RunLog(tmp_path / 'log.jsonl', plan.about()))
    scores = dict(base=[0.1, 0.2, 0.3, 0.4], a=[0.4, 0.45, 0.7, 0.75], b=[0.1, 0.3, 0.2, 0.5], ab=[0.5, 0.65, 0.8, 0.9])
    recipes = dict(base=base, a=base + 'MixUp()', b=base + 'EMA()', ab=recipe)
    for name, values in scores.items():
        for seed, score in enumerate(values):
            run = dict(choose=score, confirm=score, n_choose=10**6, n_confirm=10**6)
            found.log.runs[Job(recipes[name], seed).key] = run
    pairs = dict(a='base', b='base', ab='a')
    p_values = [stats.ttest_rel(scores[one], scores[other]).pvalue for one, other in [*pairs.items(), ('b', 'ab')]]
    order = np.argsort(p_values)
    adjusted = np.empty(4)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(4, 0, -1)))
    a_base, b_base, ab_a, b_ab = adjusted
    names = ['base', 'MixUp()', 'EMA()', '+ MixUp()', '+ EMA()', 'all - MixUp()', 'all - EMA()']
    assert [row.name for row in found.rows] == names
    assert found.adjusted() == [None, *map(pytest.approx, (a_base, b_base, a_base, ab_a, b_ab, ab_a))]
