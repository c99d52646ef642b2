"The tricks that change a batch never ask for a tensor's value: on a GPU that would wait for it, every step."

import pytest
import torch

from tests.helpers import TRIALS, NoWait
from trickbag.testing.proofs import tiny_learner
from trickbag.tricks.mix_or_cut import MixOrCut
from trickbag.tricks.random_erasing import RandomErasing


def watched(cb, n=8):
    "Number of operations of one `before_batch` of `cb` on a batch of `n`"
    learn = tiny_learner([cb])
    g = torch.Generator().manual_seed(0)
    learn.xb, learn.yb = torch.randn(n, 3, 8, 8, generator=g), torch.randint(0, 4, (n,), generator=g)
    learn.clean_yb = learn.yb
    learn.n_out  # found once for a model, and kept
    # on a CPU the labels are looked at for those that the loss ignores; on a GPU they are not
    learn.loss_facts.ignore = None
    with NoWait() as m:
        cb.before_batch(learn)
    return m.n


MAKES = {n: TRIALS[n].make for n in ('MixUp', 'CutMix', 'MixOrCut', 'LabelSmoothing', 'RandomErasing')} | dict(
    MixOrCut_by_batch=lambda: MixOrCut(p=0.5, mode='batch'),
    RandomErasing_in_color=lambda: RandomErasing(mode='color', max_count=3),
    RandomErasing_with_one_color=lambda: RandomErasing(mode='const'),
)


@pytest.mark.parametrize('name', MAKES)
def test_as_many_operations_for_64_samples_as_for_8_and_none_waits(name):
    make = MAKES[name]
    assert watched(make(), 8) == watched(make(), 64) > 0


@pytest.mark.parametrize(
    'f',
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: float(t[0]),
    ],
    ids=['item', 'bool', 'mask', 'nonzero', 'float'],
)
def test_the_watch_sees(f):
    with pytest.raises(AssertionError), NoWait():
        f(torch.ones(3))
