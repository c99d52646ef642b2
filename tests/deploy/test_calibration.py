"Calibration, thresholds and open-set scores where data are few, tied, wrong, or of another kind than a float32 tensor."

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from trickbag.deploy.calibration import (
    Reliability,
    energy,
    expected_calibration_error,
    fit_temperature,
    max_logit,
    max_probability,
    plot_reliability,
    rejection_threshold,
    reliability,
    roc,
    threshold_for,
)


def made_up(n=200, c=4, spread=2.0, seed=0):
    "Logits and class indices, half of which are the predicted ones"
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator) * spread
    targets = torch.randint(0, c, (n,), generator=generator)
    targets[::2] = logits[::2].argmax(1)
    return logits, targets


LOGITS, TARGETS = made_up()
PROBS = LOGITS.softmax(1)
SCORES = PROBS[:, 0]
IS_FIRST = TARGETS == 0

# name -> what it gives for any kind of logits, probabilities and targets
ALL = dict(
    ece=lambda z, p, y: expected_calibration_error(p, y),
    reliability=lambda z, p, y: [column.tolist() for column in reliability(p, y, 3)],
    temperature=lambda z, p, y: fit_temperature(z, y),
    threshold=lambda z, p, y: threshold_for(p, y, recall=0.5).tolist(),
    max_probability=lambda z, p, y: max_probability(z).tolist(),
    max_logit=lambda z, p, y: max_logit(z).tolist(),
    energy=lambda z, p, y: energy(z, 2).tolist(),
    roc=lambda z, p, y: [roc(p[:, 0], p[:, 1]).auroc, *roc(p[:, 0], p[:, 1]).thresholds.tolist()],
    rejection=lambda z, p, y: rejection_threshold(p[:, 0]),
)


def fortran(x):
    return np.asfortranarray(x.numpy())


def backwards(x):
    "The same values in an array of negative strides and the other byte order"
    array = x.numpy()
    return array[::-1].astype(array.dtype.newbyteorder('>'))[::-1]


def read_only(x):
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


def with_gradient(x):
    return (x * torch.ones((), requires_grad=True)) if x.is_floating_point() else x


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('kind', [torch.Tensor.numpy, fortran, backwards, read_only, with_gradient])
def test_any_kind_of_numbers(name, kind):
    expected = ALL[name](LOGITS, PROBS, TARGETS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert ALL[name](kind(LOGITS), kind(PROBS), kind(TARGETS)) == expected


@pytest.mark.parametrize('name', ALL)
def test_another_default_dtype_and_device(name):
    expected = ALL[name](LOGITS, PROBS, TARGETS)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device('meta')
    assert ALL[name](LOGITS, PROBS, TARGETS) == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('name', ALL)
def test_other_floats_are_taken_at_their_value(name, dtype):
    logits = LOGITS.to(dtype)
    probs = PROBS.to(dtype)
    assert ALL[name](logits, probs, TARGETS) == ALL[name](logits.double(), probs.double(), TARGETS)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.float16, torch.float32])
def test_targets_of_any_type(dtype):
    assert fit_temperature(LOGITS, TARGETS.to(dtype)) == fit_temperature(LOGITS, TARGETS)
    assert expected_calibration_error(PROBS, TARGETS.to(dtype)[:, None]) == expected_calibration_error(PROBS, TARGETS)


def test_inputs_stay_as_they_are():
    before = LOGITS.clone(), PROBS.clone(), TARGETS.clone()
    array = LOGITS.double().numpy().copy()
    for f in ALL.values():
        f(LOGITS, PROBS, TARGETS)
        f(array, PROBS, TARGETS)
    assert all(torch.equal(a, b) for a, b in zip(before, (LOGITS, PROBS, TARGETS)))
    assert np.array_equal(array, LOGITS.double().numpy())


def test_imports_neither_loop_nor_data():
    code = (
        "import sys, trickbag.deploy.calibration; print(*sorted(m for m in sys.modules if m.startswith('trickbag.')))"
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert {module.split('.')[1] for module in run.stdout.split()} <= {'core', 'deploy'}
    assert 'matplotlib' not in run.stdout


# what is wrong

WRONG = {
    'empty': (torch.zeros(0, 4), [], 'is empty; give one sample at least'),
    'NaN': (torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), [0, 1], '1 of 4, the first in row 1'),
    'inf': (torch.tensor([[math.inf, 0.5], [0.5, 0.5]]), [0, 1], '1 of 4, the first in row 0'),
    'overflow': (torch.tensor([[7e4, 0.5], [0.5, 0.5]]).half(), [0, 1], 'compute in float32 where float16 overflows'),
    'a number': (torch.tensor(0.5), [0], 'got shape ()'),
    'three axes': (torch.zeros(2, 2, 2), [0, 1], 'got shape (2, 2, 2)'),
    'index too high': (PROBS, torch.full((200,), 4), 'from 0 to 3, got 4 in row 0'),
    'ignored index': (PROBS[:2], [0, -100], 'got -100 in row 1; leave such samples out'),
    'fractions': (PROBS[:2], [0, 0.5], 'got 0.5 in row 1'),
    'one output': (PROBS[:2, 0], [0, 2], 'from 0 to 1, got 2 in row 1'),
    'too few targets': (PROBS, [0, 1], '2 targets for 200 samples'),
    'targets empty': (PROBS, [], 'targets is empty'),
    'targets NaN': (PROBS[:2], [0, math.nan], 'targets has NaN'),
}
TAKE_TARGETS = dict(
    expected_calibration_error=expected_calibration_error,
    reliability=reliability,
    fit_temperature=fit_temperature,
    threshold_for=lambda scores, y: threshold_for(scores, y, recall=0.5),
)


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('name', TAKE_TARGETS)
def test_wrong_numbers(name, wrong):
    values, targets, message = WRONG[wrong]
    with pytest.raises(ValueError) as e:
        TAKE_TARGETS[name](values, targets)
    assert message in str(e.value)
    assert str(e.value).startswith(name + ': ') and '\n' not in str(e.value)


@pytest.mark.parametrize('values', [None, 'text', [[1, 2], [3]], np.array(['a']), [1j], {}, torch.ones(2) * 1j])
def test_no_numbers(values):
    for name, f in TAKE_TARGETS.items():
        with pytest.raises(TypeError, match=f'{name}: .* must be a tensor or an array of numbers'):
            f(values, [0, 1])
    with pytest.raises(TypeError, match='energy: logits must be'):
        energy(values)


@pytest.mark.parametrize('scores', [[], [math.nan], [[0.1, 0.2]], 0.5])
def test_wrong_score_lists(scores):
    for f in (rejection_threshold, lambda s: roc(s, [1.0]), lambda s: roc([1.0], s)):
        with pytest.raises(ValueError, match='scores_(un)?known'):
            f(scores)


@pytest.mark.parametrize('keep', [0, 1.1, -1, math.nan, None, '0.9'])
def test_keep_is_a_fraction(keep):
    with pytest.raises(ValueError, match='rejection_threshold: keep must be a finite number > 0 and <= 1'):
        rejection_threshold([1.0, 2.0], keep)


# calibration error


def test_probabilities_a_little_above_one_by_rounding():
    probs = torch.tensor([[1.0000001, 0.0], [0.2, 0.8]])
    assert expected_calibration_error(probs, [0, 1]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match='probs go from 0 to 1.001; give probabilities'):
        reliability(probs * 1.001, [0, 1])


def test_exactly_one_is_in_the_last_bin():
    probs = torch.tensor([[1.0, 0.0], [0.95, 0.05]])
    targets = torch.tensor([1, 0])
    assert reliability(probs, targets, 10).count.tolist() == [0] * 9 + [2]
    # over- and underconfidence within one bin cancel; torchmetrics has a bin of its own for 1
    assert expected_calibration_error(probs, targets, 10) == pytest.approx(0.475)
    assert multiclass_calibration_error(probs, targets, 2, 10).item() == pytest.approx(0.525)
    below = probs.clamp(max=1 - 2**-24)
    ours = expected_calibration_error(below, targets, 10)
    assert ours == pytest.approx(multiclass_calibration_error(below, targets, 2, 10).item(), abs=1e-6)


def test_edges_belong_to_the_upper_bin_in_any_dtype():
    for edge in (0.1, 0.3, 0.6, 0.7):
        for dtype in (torch.float32, torch.float64):
            table = reliability(torch.tensor([edge], dtype=dtype), [1], 10)
            assert table.count.argmax() == round(edge * 10)


@pytest.mark.parametrize('probs', [[[0.3, 0.7]], [0.7], [[0.7]]])
def test_one_sample(probs):
    assert expected_calibration_error(probs, [1]) == pytest.approx(0.3)
    assert expected_calibration_error(probs, [1], norm='max') == pytest.approx(0.3)


def test_one_class_that_is_always_right():
    assert expected_calibration_error([[1.0, 0.0]] * 5, [0] * 5) == 0


def test_table_prints_empty_bins():
    text = repr(reliability([0.1, 0.9, 0.95], [0, 1, 0], 2))
    assert text.splitlines()[1:] == [
        '0.000-0.500      0.1000    0.0000      1',
        '0.500-1.000      0.9250    0.5000      2',
    ]
    assert '-         -      0' in repr(reliability([0.9], [1], 2))


def test_plot():
    table = reliability(PROBS, TARGETS)
    assert len(plot_reliability(table).axes) == 1
    fig = plot_reliability(table, table, ('now', 'then'))
    assert [ax.get_title()[:4] for ax in fig.axes] == ['now:', 'then']
    assert len(plot_reliability(reliability([0.9], [1])).axes) == 1
    with pytest.raises(TypeError, match='give what reliability'):
        plot_reliability(PROBS, TARGETS)
    assert isinstance(table, Reliability)


# temperature


def test_many_samples_are_summed_in_parts():
    logits, targets = made_up(3000, 100, 1.5)
    T = fit_temperature(logits, targets)
    log_T = torch.tensor(math.log(T), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits.double() / log_T.exp(), targets).backward()
    assert abs(log_T.grad) < 1e-9


@pytest.mark.parametrize('factor', [1e-4, 1e-2, 1.0, 1e2, 1e4])
def test_scale_goes_into_the_temperature(factor):
    T = fit_temperature(LOGITS.double() * factor, TARGETS, bounds=(1e-7, 1e7))
    assert T == pytest.approx(fit_temperature(LOGITS.double(), TARGETS) * factor, rel=1e-7)


def test_softmax_of_two_logits_is_the_sigmoid_of_their_difference():
    logits, targets = made_up(100, 2)
    T = fit_temperature(logits.double(), targets)
    difference = logits[:, 1].double() - logits[:, 0].double()
    for shape in ((100,), (100, 1)):
        assert fit_temperature(difference.reshape(shape), targets.reshape(shape)) == pytest.approx(T, rel=1e-8)
    assert fit_temperature(logits.double(), F.one_hot(targets), act='softmax') == pytest.approx(T, rel=1e-8)


def test_class_indices_with_sigmoid_are_one_hot():
    T = fit_temperature(LOGITS, F.one_hot(TARGETS), act='sigmoid')
    assert fit_temperature(LOGITS, TARGETS, act='sigmoid') == T
    assert fit_temperature(LOGITS.flatten(), F.one_hot(TARGETS).flatten()) == pytest.approx(T, rel=1e-9)


def test_huge_logits():
    logits = LOGITS.double() * 1e3 + 1e6
    assert fit_temperature(logits, TARGETS, bounds=(1e-3, 1e6)) == pytest.approx(
        1e3 * fit_temperature(LOGITS.double(), TARGETS), rel=1e-6
    )


@pytest.mark.parametrize('margin', [1e-3, 1.0, 50.0, 1e5])
def test_all_right_gives_the_lower_bound_whatever_the_margin(margin):
    logits = torch.eye(3) * margin
    with pytest.warns(UserWarning, match='all 3 predictions are right') as caught:
        assert fit_temperature(logits, [0, 1, 2], bounds=(0.5, 2)) == 0.5
    assert caught[0].filename == __file__


def test_a_tie_at_the_top_has_no_optimum_either():
    with pytest.warns(UserWarning, match='smallest of bounds'):
        assert fit_temperature([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]], [0, 1]) == 0.01


def test_one_mistake_is_enough_for_an_optimum():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        T = fit_temperature([[3.0, 0.0]] * 9 + [[0.0, 3.0], [3.0, 0.0]], [0] * 9 + [1, 1])
    assert T == pytest.approx(3 / math.log(10))  # 10 of 11 right


def test_all_wrong_gives_the_upper_bound():
    with pytest.warns(UserWarning, match='hardly better than chance') as caught:
        assert fit_temperature(-torch.eye(3), [0, 1, 2], bounds=(0.5, 7)) == 7
    assert caught[0].filename == __file__


def test_an_optimum_outside_the_bounds():
    T = fit_temperature(LOGITS, TARGETS)
    with pytest.warns(UserWarning, match='logits are so small'):
        assert fit_temperature(LOGITS, TARGETS, bounds=(T * 1.1, T * 2)) == T * 1.1
    with pytest.warns(UserWarning, match='largest of bounds'):
        assert fit_temperature(LOGITS, TARGETS, bounds=(T / 2, T / 1.1)) == T / 1.1


@pytest.mark.parametrize('bounds', [(0, 1), (1, 1), (2, 1), (1,), None, 5, (math.nan, 1), (1, math.inf)])
def test_wrong_bounds(bounds):
    with pytest.raises(ValueError, match='fit_temperature: .*bounds'):
        fit_temperature(LOGITS, TARGETS, bounds=bounds)


def test_wrong_label_matrices():
    for targets, act, message in (
        (torch.ones(200, 4), 'softmax', 'must be probabilities that sum to 1'),
        (torch.ones(200, 3) / 3, 'softmax', 'must be probabilities that sum to 1'),
        (torch.ones(200, 3), 'sigmoid', 'targets must be N class indices'),
        (torch.full((200, 4), 2), 'sigmoid', 'must be from 0 to 1, got 2 to 2'),
        (torch.zeros(200, 4), 'sigmoid', 'all 800 targets are 0'),
    ):
        with pytest.raises(ValueError, match=message):
            fit_temperature(LOGITS, targets, act=act)


# thresholds


def test_ties_are_accepted_together():
    scores = [0.9, 0.5, 0.5, 0.5, 0.1]
    for targets in ([1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [1, 1, 1, 0, 0]):
        assert threshold_for(scores, targets, precision=0.75) == 0.5
        assert threshold_for(scores, targets, precision=0.76) == 0.9
        assert threshold_for(scores, targets, recall=1) == 0.5
        assert threshold_for(scores, targets, recall=0.3) == 0.9


def test_precision_that_falls_and_rises_again():
    scores = [9, 8, 7, 6, 5, 4]
    targets = [1, 0, 1, 1, 1, 0]
    # 1, 1/2, 2/3, 3/4, 4/5, 4/6: the most recall is at 5
    assert threshold_for(scores, targets, precision=0.8) == 5
    # a recall of 1/2 is had at 7, but 5 has more of both
    assert threshold_for(scores, targets, recall=0.5) == 5
    assert threshold_for(scores, targets, recall=0.25) == 9


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_threshold_is_a_score_and_accepts_it(dtype):
    scores = SCORES.to(dtype)
    threshold = threshold_for(scores, IS_FIRST, precision=0.5)
    for accepted in (scores >= threshold, scores >= torch.tensor(threshold, dtype=torch.float64)):
        hits = (accepted & IS_FIRST).sum()
        assert hits / accepted.sum() >= 0.5
    precision, recall, _ = precision_recall_curve(IS_FIRST, scores.double())
    assert (hits / IS_FIRST.sum()).item() == pytest.approx(recall[:-1][precision[:-1] >= 0.5].max())


def test_numpy_compares_alike():
    threshold = threshold_for(SCORES.numpy(), IS_FIRST.numpy(), recall=0.9)
    assert (SCORES.numpy()[IS_FIRST] >= threshold).mean() >= 0.9


@pytest.mark.parametrize('goal', ['precision', 'recall'])
def test_classes_are_one_against_the_rest(goal):
    wanted = {goal: 0.45}
    thresholds = threshold_for(PROBS, TARGETS, **wanted)
    assert thresholds.dtype == torch.float64 and thresholds.shape == (4,)
    assert thresholds.tolist() == [threshold_for(PROBS[:, i], TARGETS == i, **wanted) for i in range(4)]
    assert torch.equal(threshold_for(PROBS, F.one_hot(TARGETS, 4), **wanted), thresholds)
    assert threshold_for(PROBS[:, :1], IS_FIRST[:, None], **wanted) == thresholds[0]


def test_wanted_fractions_are_met_to_the_bit():
    for n in range(1, 60):
        scores = torch.arange(n, 0, -1)
        for k in range(1, n + 1):
            # the lowest are positive: precision rises to k / n, which is had by accepting all
            assert threshold_for(scores, scores <= k, precision=k / n) == 1
            # precision is 1 everywhere, so the most recall is taken
            assert threshold_for(scores, torch.ones(n), recall=k / n) == 1
            assert rejection_threshold(scores, k / n) == n - k + 1


def test_what_cannot_be_reached():
    probs = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]]
    targets = [1, 0, 1]
    with pytest.raises(ValueError) as e:
        threshold_for(probs, targets, precision=0.9)
    assert 'precision 0.9 of class 0 (0.5 at best), 2 (no sample of it) cannot be reached' in str(e.value)
    found = threshold_for(probs, targets, precision=0.9, unreachable=math.inf)
    assert found.tolist() == [math.inf, pytest.approx(0.7), math.inf]
    with pytest.raises(ValueError) as e:
        threshold_for([0.1, 0.2], [0, 0], recall=0.9)
    assert 'recall 0.9 with these scores (no sample of it) cannot be reached' in str(e.value)
    assert 'unreachable=math.inf' in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match=r'and 5 more cannot'):
        threshold_for(torch.zeros(2, 10), torch.zeros(2, 10), recall=0.9)


def test_wrong_wishes():
    for wish in ({}, dict(precision=0.5, recall=0.5)):
        with pytest.raises(ValueError, match='one of them'):
            threshold_for(SCORES, IS_FIRST, **wish)
    for value in (0, 1.5, -0.1, math.nan, True, 'high'):
        with pytest.raises(ValueError, match='recall must be a finite number > 0 and <= 1'):
            threshold_for(SCORES, IS_FIRST, recall=value)
    with pytest.raises(ValueError, match='must be 0 or 1, got 0 to 0.5'):
        threshold_for(PROBS, F.one_hot(TARGETS) / 2, recall=0.5)


# what belongs to no class


@pytest.mark.parametrize('score', [max_probability, max_logit, energy])
def test_scores_need_a_logit_a_class(score):
    for logits in (torch.ones(3), torch.ones(3, 1), torch.ones(2, 3, 4)):
        with pytest.raises(ValueError, match='two classes at least'):
            score(logits)
    assert score(torch.ones(1, 2)).shape == (1,)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0], [1e4, 1e4]])
    assert energy(logits).tolist() == pytest.approx([1e4, 1e4 + math.log(2)])
    assert max_probability(logits).tolist() == [1, 0.5]
    assert energy(logits, 1e-3).tolist() == pytest.approx([1e4, 1e4 + 1e-3 * math.log(2)])


def test_temperature_of_the_energy():
    for temperature in (0, -1, math.inf, None):
        with pytest.raises(ValueError, match='energy: temperature must be'):
            energy(LOGITS, temperature)


def test_roc_of_equal_scores_is_chance():
    curve = roc([1.0] * 5, [1.0] * 3)
    assert curve.auroc == 0.5
    assert curve.fpr95 == 1
    assert curve.thresholds.tolist() == [math.inf, 1]
    assert repr(curve) == 'ROC(auroc=0.5000, fpr95=1.0000, 2 thresholds)'


@pytest.mark.parametrize('known, unknown, auroc', [([2.0], [1.0], 1.0), ([1.0], [2.0], 0.0), ([3.0, 1.0], [2.0], 0.5)])
def test_roc_of_a_few(known, unknown, auroc):
    assert roc(known, unknown).auroc == auroc


def test_area_is_the_chance_of_a_right_order():
    generator = torch.Generator().manual_seed(1)
    known = torch.randint(2, 9, (40,), generator=generator)
    unknown = torch.randint(0, 7, (30,), generator=generator)
    wins = (known[:, None] > unknown).double() + (known[:, None] == unknown).double() / 2
    curve = roc(known, unknown)
    assert curve.auroc == pytest.approx(wins.mean().item())
    labels = [1] * 40 + [0] * 30
    assert curve.auroc == pytest.approx(roc_auc_score(labels, torch.cat([known, unknown])))
    assert average_precision_score(labels, torch.cat([known, unknown])) > 0.5  # the known score higher


@pytest.mark.parametrize('n', [1, 19, 20, 21, 100])
def test_threshold_and_curve_agree(n):
    generator = torch.Generator().manual_seed(n)
    known = torch.randint(0, 30, (n,), generator=generator) + 3
    unknown = torch.randint(0, 30, (50,), generator=generator)
    limit = rejection_threshold(known)
    assert (known >= limit).double().mean() >= 0.95
    # the next higher score keeps too few
    higher = known[known > limit]
    assert not len(higher) or (known >= higher.min()).double().mean() < 0.95
    assert roc(known, unknown).fpr95 == (unknown >= limit).double().mean()


def test_keep_all_is_the_lowest_score():
    assert rejection_threshold([3.0, 1.0, 2.0], 1) == 1
    assert rejection_threshold([3.0, 1.0, 2.0], 1e-9) == 3
