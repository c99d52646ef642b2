"Every pair of tricks: legal ones train, in any order and without a trace; the others are refused before the first step."
import pytest, torch
from trickbag.pairs import BAG, prove_pair

NAMES = sorted(BAG)
SCHEDULES = {'Cosine', 'FlatCos', 'Linear', 'OneCycle', 'StepDecay'}
GROUPS = [SCHEDULES, {'CutMix', 'MixOrCut', 'MixUp'}]   # of each of these there can be one
REFUSED = {frozenset(p) for g in GROUPS for p in ((a, b) for a in g for b in g if a!=b)} | {frozenset(p) for p in [('Cosine', 'Warmup')]}

@pytest.mark.parametrize('a', NAMES)
def test_pairs(a):
    for b in NAMES[NAMES.index(a)+1:]:
        err = prove_pair(a, b)
        assert bool(err)==(frozenset((a, b)) in REFUSED), f"{a} and {b}: {err or 'not refused'}"
