"The tricks that change a batch never ask for a tensor's value: on a GPU that would wait for it, every step."

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trickbag.testing.proofs import tiny_learner
from trickbag.tricks.cutmix import CutMix
from trickbag.tricks.label_smoothing import LabelSmoothing
from trickbag.tricks.mix_or_cut import MixOrCut
from trickbag.tricks.mixup import MixUp
from trickbag.tricks.random_erasing import RandomErasing

# operations that need a value, or make a shape of one
WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal', '_unique2', 'repeat_interleave')


class NoWait(TorchDispatchMode):
    "Raise where an operation would need a value on the CPU; count the rest"

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.n = self.n + 1
        if name in WAITS:
            raise AssertionError(f'{name} waits for the device')
        if name == 'index' and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise AssertionError('a boolean index waits for the device')
        return func(*args, **(kwargs or {}))


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
