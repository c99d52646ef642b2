"Each trick changes what it says that it writes, and nothing else; and it does something."
import pytest, torch
from trickbag.pairs import BAG, pair_learner
from trickbag.testing import weights
from trickbag.trace import trace_step

LOOKS_ALONE = {'TTA', 'ChannelsLast'}      # training is the same to the bit, or to rounding

def wrote(name, at=1, **kw):
    "Parts that each callback of a dry step really changed"
    learn = pair_learner(name)
    res = {cb.name: set() for cb in learn.cbs}
    for n,_,did in trace_step(learn, at=at, timed=1, **kw).did:
        if n in res: res[n] |= set(did)
    return learn.cbs,res

@pytest.mark.parametrize('name', BAG)
def test_writes_what_it_declares(name):
    for at in (0, 1, 2):
        cbs,res = wrote(name, at)
        for cb in cbs: assert res[cb.name]<=set(cb.writes), f"{cb.name} changed {res[cb.name]-set(cb.writes)}, which is not in its writes"

@pytest.mark.parametrize('name', [n for n in BAG if n not in LOOKS_ALONE])
def test_does_something(name):
    a,b = pair_learner(name).fit(2),pair_learner().fit(2)
    a_opt = BAG[name].opt or BAG[name].loss
    if a_opt:   # the same loss and optimizer without the trick
        b = pair_learner(name); b.cbs = []; b.fit(2)
    assert not torch.equal(weights(a), weights(b)), f"{name} changed nothing in two epochs"

@pytest.mark.parametrize('name', BAG)
def test_says_what_it_tells(name):
    for cb in pair_learner(name).cbs:
        for n in cb.tells: assert hasattr(cb, n), f"{cb.name} tells of {n}, which it does not have before a fit"
