"The tricks that change a batch never ask for a tensor's value: on a GPU that would wait for it, every step."

import pytest
import torch

from tests.helpers import NoWait
from trickbag.testing.proofs import tiny_learner
from trickbag.tricks.cutmix import CutMix
from trickbag.tricks.label_smoothing import LabelSmoothing
from trickbag.tricks.mix_or_cut import MixOrCut
from trickbag.tricks.mixup import MixUp
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


makes = [
    MixUp,
    CutMix,
    MixOrCut,
    lambda: MixOrCut(p=0.5, mode='batch'),
    LabelSmoothing,
    RandomErasing,
    lambda: RandomErasing(mode='color', max_count=3),
    lambda: RandomErasing(mode='const'),
]


@pytest.mark.parametrize('i', range(len(makes)))
def test_no_wait_and_no_loop(i):
    assert watched(makes[i](), 8) == watched(makes[i](), 64) > 0  # as many operations for 64 samples as for 8


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
