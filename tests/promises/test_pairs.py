"""Every pair of tricks: legal ones train, in any order and without a trace; the others are refused before the first
step.

Both orders of the list must compose the same loop, for every pair. What that cannot show, such as a random stream
that is numbered by a place in the list, shows in training: every third pair is trained in both orders, each trick in
some twenty of them."""

import warnings

import pytest

from trickbag.testing.pairs import BAG, prove_pair, refused_pairs

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


def trained_in_both_orders(a, b):
    # to compile takes as long as ten fits
    return (NAMES.index(a) + NAMES.index(b)) % 3 == 0 and 'Compile' not in (a, b)


@pytest.mark.parametrize('a', NAMES)
def test_pairs(a):
    for b in NAMES[NAMES.index(a) + 1 :]:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # some pairs are legal with a warning
            err = prove_pair(a, b, both_orders=trained_in_both_orders(a, b))
        assert bool(err) == (frozenset((a, b)) in REFUSED), f"{a} and {b}: {err or 'not refused'}"


def test_what_is_refused_is_known_without_training():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = refused_pairs(NAMES)
    assert {frozenset(pair) for pair, message in found.items() if message} == REFUSED
