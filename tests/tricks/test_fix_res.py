"fix_res is a fit of its own, whatever the learner was trained with."

import pytest
import torch

from tests.helpers import small_learner
from trickbag.all import *
from trickbag.callback import Callback
from trickbag.testing.proofs import weights


class Looks(Callback):
    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        self.names = {cb.name for cb in learn.active}
        self.lr = learn.opt.param_groups[0]['lr']


@pytest.mark.parametrize(
    'make',
    [
        lambda: LayerFreezing(0, 0.5),
        lambda: StochasticDepth(0.5),
        lambda: DropBlock(0.5),
        lambda: LinearScaling(4),
        lambda: FreezeBatchNorm(),
        lambda: LayerDecay(),
    ],
)
def test_fix_res_is_a_fit_of_its_own(make):
    look = Looks()
    plain = Looks()
    small_learner(make()).fix_res(16, cbs=look)
    small_learner().fix_res(16, cbs=plain)
    assert look.names == plain.names and look.lr == plain.lr


def test_fix_res_and_norms_that_keep_their_statistics():
    with pytest.raises(ValueError, match='lets the last BatchNorm follow the new size'):
        small_learner(FixRes(16), FreezeBatchNorm()).fit(1)
    one = small_learner(FixRes(16, norm=False), FreezeBatchNorm()).fit(1)
    other = small_learner(FixRes(16, norm=False)).fit(1)
    assert torch.equal(weights(one), weights(other))


def test_fix_res_with_another_kind_of_mirror():
    learn = small_learner()
    learn.dls.cbs.append(AlternatingFlip())
    learn.fix_res(16)
    with pytest.raises(ValueError, match='features that the test never drops'):
        small_learner(FixRes(16), DropBlock(0.5)).fit(1)
