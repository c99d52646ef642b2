"""Everything that changes a model for a fit, together: one order, the same keys, resume to the bit, one graph a mode,
no trace."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from trickbag import all as tb
from trickbag.all import *
from trickbag.callback import Callback
from trickbag.models.xresnet import XResNet
from trickbag.speed.compile import Compile
from trickbag.speed.grad_checkpoint import GradientCheckpointing
from trickbag.testing.pairs import small_data, small_model
from trickbag.testing.proofs import found, prove_order, prove_resume, prove_undone, tiny_learner, weights
from trickbag.tricks.blur_pool import BlurPool
from trickbag.tricks.ema import EMA
from trickbag.tricks.ghost_batch_norm import GhostBatchNorm
from trickbag.tricks.mixup import MixUp
from trickbag.tricks.squeeze_excite import SqueezeExcite
from trickbag.tricks.stochastic_depth import StochasticDepth


def resnet():
    torch.manual_seed(0)
    return XResNet(1, [1, 1], 4, stem='small', widen=0.125, shortcut='B', zero_gamma=False)


def surgery():
    return [
        BlurPool(min_channels=8),
        SqueezeExcite(min_channels=8, latent=4),
        GhostBatchNorm(4),
        StochasticDepth(0.3),
        GradientCheckpointing(),
    ]


def with_average_and_mix():
    return [*surgery(), EMA(0.9), MixUp()]


def test_any_order():
    prove_order(with_average_and_mix, model=resnet, n=6)


def test_resumed_to_the_bit():
    prove_resume(with_average_and_mix, model=resnet, at=[(0, 3), (1, 2)])


def test_undone_after_an_error():
    prove_undone(
        surgery,
        model=resnet,
        events=['before_fit', 'after_pred', 'after_backward', 'before_validate', 'after_epoch', 'cleanup_fit'],
    )


def test_recomputing_changes_no_bit():
    a, b = (weights(tiny_learner(cbs, model=resnet()).fit(1)) for cbs in (surgery(), surgery()[:-1]))
    assert torch.equal(a, b)


def test_keys_and_checkpoints(tmp_path):
    class Save(Callback):
        stage = 'report'

        def after_epoch(self, learn):
            learn.save(tmp_path / 'x')
            resnet().load_state_dict(learn.model.state_dict(), strict=True)

    learn = tiny_learner([*surgery(), Save()], model=resnet())
    was = found(learn)
    learn.fit(1)
    now = found(learn)
    assert [k for k in was if was[k] != now[k]] == []
    tiny_learner(model=resnet()).load(tmp_path / 'x')  # the plain model takes it, without the callbacks
    other = tiny_learner(surgery(), model=resnet()).load(tmp_path / 'x')
    assert other.validate() == learn.validate()


@pytest.mark.parametrize(
    'make',
    [
        lambda: [BlurPool(min_channels=8)],
        lambda: [SqueezeExcite(min_channels=8, latent=4)],
        lambda: [GhostBatchNorm(4)],
        lambda: [StochasticDepth(0.3)],
        lambda: [GradientCheckpointing()],
        surgery,
    ],
    ids=['blur', 'se', 'ghost', 'depth', 'checkpoint', 'all'],
)
def test_compiles_without_a_break(make):
    torch._dynamo.reset()
    counters.clear()
    learn = tiny_learner([*make(), Compile(backend='aot_eager')], model=resnet()).fit(2)
    assert not counters['graph_break'] and counters['stats']['unique_graphs'] == 2
    ref = tiny_learner(make(), model=resnet()).fit(2)
    torch.testing.assert_close(weights(learn), weights(ref), rtol=2e-3, atol=2e-4)
    torch._dynamo.reset()
    counters.clear()


def test_drop_paths_that_derive_from_timms():
    class DropPath(nn.Module):
        def __init__(self, drop_prob):
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x):
            return x

    class Mine(DropPath):
        pass

    model = small_model()
    model.add_module('drop', Mine(0.1))
    with pytest.raises(ValueError, match='drops branches already'):
        tiny_learner(tb.StochasticDepth(), small_data(), model).fit(1)
