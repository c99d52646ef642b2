"""Every pair of tricks: legal ones train, in any order and without a trace; the others are refused before the first
step.

Every legal pair occurs in one of some sets of eight, each of which is trained in both orders. A set that fails is
searched for the pair that does."""

import warnings
from itertools import combinations

import pytest

from trickbag.all import Callback, Flip
from trickbag.testing.pairs import BAG, Trial, covering_sets, prove_any_order, prove_pair, refused_pairs

NAMES = sorted(BAG)
ALONE = [  # of each of these there can be one
    {'Cooldown', 'Cosine', 'FlatCos', 'Linear', 'OneCycle', 'StepDecay'},
    {'CutMix', 'FMix', 'MixOrCut', 'MixUp', 'RegMixUp', 'ResizeMix', 'FixRes'},
    {'AugMix', 'AutoAugment', 'JensenShannon', 'RandAugment', 'ThreeAugment', 'TrivialAugment'},
    {'AGC', 'GradientClip'},
    {'AlternatingFlip', 'Flip'},
    {'EMA', 'ScheduleFree', 'SWA'},
    *({'ScheduleFree', other} for other in ('Cooldown', 'Cosine', 'FlatCos', 'Linear', 'OneCycle', 'StepDecay')),
    *({'ScheduleFree', other} for other in ('DecoupledDecay', 'LAMB', 'Lookahead')),
    {'LAMB', 'LARS', 'L2SP'},
    {'L2SP', 'NoBiasDecay'},
    {'L2SP', 'DecoupledDecay'},
    {'FreezeBatchNorm', 'GhostBatchNorm', 'SyncBatchNorm'},
    {'FixRes', 'ProgressiveResize'},
    {'FixRes', 'FreezeBatchNorm'},
    {'FixRes', 'LayerFreezing'},
    {'FixRes', 'StochasticDepth'},
    {'FixRes', 'DropBlock'},
    {'Cosine', 'Warmup'},
    {'OneCycle', 'Warmup'},
    {'GradientAccumulation', 'SelectiveBackprop'},
    {'OHEM', 'RegMixUp'},
    {'BinaryTargets', 'ClassWeights'},
    {'BinaryTargets', 'LogitAdjustment'},
    # an image and its views in one batch
    *({'JensenShannon', other} for other in ('CutMix', 'FMix', 'MixOrCut', 'MixUp', 'RegMixUp', 'ResizeMix')),
    *({'JensenShannon', other} for other in ('BinaryTargets', 'OHEM', 'SelectiveBackprop')),
]
REFUSED = {frozenset((a, b)) for g in ALONE for a in g for b in g if a != b}
SETS = covering_sets(NAMES, REFUSED)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # some pairs are legal with a warning
        yield


def prove_set(names, bag=BAG):
    "If tricks do not go together in any order, try every two of them, to say which it is"
    try:
        message = prove_any_order(*names, bag=bag)
    except AssertionError as e:
        message = str(e)
    if message:
        found = [failure for pair in combinations(names, 2) if (failure := pair_failure(*pair, bag=bag))]
        pytest.fail('; '.join(found) or f'only together: {message}')


def pair_failure(a, b, bag):
    try:
        return prove_pair(a, b, bag=bag)
    except AssertionError as e:
        return str(e)


@pytest.mark.parametrize('names', SETS, ids='-'.join)
def test_they_train_in_both_orders(names):
    prove_set(names)


@pytest.mark.parametrize('a, b', sorted(map(sorted, REFUSED)), ids=str)
def test_refused_before_the_first_step_in_both_orders(a, b):
    assert prove_pair(a, b), f'{a} and {b} are not refused'


def test_what_is_refused_is_known_without_training():
    found = refused_pairs(NAMES)
    assert {frozenset(pair) for pair, message in found.items() if message} == REFUSED


def test_every_legal_pair_is_in_a_set():
    in_sets = {frozenset(pair) for names in SETS for pair in combinations(names, 2)}
    assert in_sets == {frozenset(pair) for pair in combinations(NAMES, 2)} - REFUSED


class ReadsTheList(Callback):
    "Doubles the gradients if `Flip` stands before it in the list"

    stage = 'gradient'

    def after_backward(self, learn):
        kinds = [type(cb) for cb in learn.cbs]
        if Flip in kinds and kinds.index(Flip) < kinds.index(ReadsTheList):
            for parameter in learn.model.parameters():
                parameter.grad *= 2


def test_a_pair_whose_order_matters_is_found_in_its_set():
    bag = BAG | {'ReadsTheList': Trial(ReadsTheList)}
    with pytest.raises(pytest.fail.Exception, match='the order of the list matters, by') as e:
        prove_set(['EMA', 'Flip', 'LabelSmoothing', 'MixUp', 'ReadsTheList'], bag)
    # no other pair is blamed
    assert str(e.value).startswith('Flip and ReadsTheList') and ';' not in str(e.value)
