"The tricks around the step, several at once: order, resume, clean-up, and nothing that waits for the device"

from functools import partial

import pytest
import torch

from tests.helpers import NoWait
from trickbag.callback import Callback, CancelStep
from trickbag.loop.schedule import OneCycle
from trickbag.models.xresnet import XResNet
from trickbag.speed.channels_last import ChannelsLast
from trickbag.speed.mixed_precision import MixedPrecision
from trickbag.testing.proofs import prove_order, prove_resume, prove_undone, tiny_learner, weights
from trickbag.tricks.ema import EMA
from trickbag.tricks.grad_accumulation import GradientAccumulation
from trickbag.tricks.grad_clip import GradientClip
from trickbag.tricks.label_smoothing import LabelSmoothing
from trickbag.tricks.layer_freezing import LayerFreezing
from trickbag.tricks.lookahead import Lookahead
from trickbag.tricks.mixup import MixUp
from trickbag.tricks.no_bias_decay import NoBiasDecay
from trickbag.tricks.sam import SAM
from trickbag.tricks.swa import SWA
from trickbag.tricks.zero_gamma import ZeroGamma


def model():
    torch.manual_seed(0)
    return XResNet(1, [1, 1], 4, stem='small', widen=0.125, zero_gamma=False)


def cbs(dtype):
    return lambda: [
        MixUp(),
        EMA(0.9),
        GradientAccumulation(4),
        GradientClip(0.5),
        MixedPrecision(dtype, growth_interval=2),
        ChannelsLast(),
        NoBiasDecay(),
        ZeroGamma(),
    ]


def test_any_order():
    prove_order(cbs('bf16'), n=20, model=model)


def test_resumed_to_the_bit():
    prove_resume(cbs('bf16'), model=model)


def test_undone_after_an_error():
    prove_undone(cbs('bf16'), model=model)


def test_any_order_in_fp16():
    prove_order(cbs('fp16'), n=4, model=model)


def test_resumed_to_the_bit_in_fp16():
    prove_resume(cbs('fp16'), model=model, at=((0, 2), (0, 5), (1, 4)))


OPTIMIZERS = dict(
    sgd=partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-3),
    rmsprop=partial(torch.optim.RMSprop, weight_decay=1e-3),
)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_resumed_with_another_optimizer(name):
    prove_resume(cbs('bf16'), model=model, opt_func=OPTIMIZERS[name])


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_any_order_with_another_optimizer(name):
    prove_order(cbs('bf16'), n=4, model=model, opt_func=OPTIMIZERS[name])


# SAM, Lookahead, SWA and LayerFreezing


def four(avg=lambda: SWA(0.3)):
    return lambda: [
        SAM(interval=2),
        Lookahead(2),
        avg(),
        LayerFreezing(0, 0.5, 0.5),
        GradientAccumulation(2),
        GradientClip(0.5),
        MixUp(),
        LabelSmoothing(),
        OneCycle(),
    ]


@pytest.mark.parametrize(
    'opt', [partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01), torch.optim.AdamW], ids=['sgd', 'adamw']
)
@pytest.mark.parametrize(
    'avg', [lambda: SWA(0.3), lambda: SWA(0.3, every=2, lr=0.02), lambda: EMA(0.9)], ids=['swa', 'swa_steps', 'ema']
)
def test_four_resumed_to_the_bit(avg, opt):
    prove_resume(four(avg), opt_func=opt)


def test_four_in_any_order():
    prove_order(four(), n=8, fit=lambda learn: learn.fit(2))


def test_four_undone_after_an_error():
    prove_undone(four())


def test_each_of_four_does_something():
    whole = weights(tiny_learner(four()()).fit(2))
    for i in range(4):
        cbs = four()()
        del cbs[i]
        assert not torch.equal(whole, weights(tiny_learner(cbs).fit(2))), i


class Watched(Callback):
    "No value is asked for from `before_step` to `after_step`, but by the optimizer itself"

    stage = 'surgery'

    def check(self, learn):
        self.n = 0

        def quiet(f):
            def g(learn):
                with NoWait() as m:
                    f(learn)
                self.n += m.n

            g.__self__ = f.__self__
            return g

        learn._hooks = {
            e: [
                quiet(f)
                if f.__self__.name in ('SAM', 'Lookahead', 'SWA')
                and e in ('after_backward', 'before_step', 'after_step')
                else f
                for f in fs
            ]
            for e, fs in learn._hooks.items()
        }


@pytest.mark.parametrize(
    'cb', [SAM, lambda: Lookahead(2), lambda: SWA(0, every=2, lr=0.1)], ids=['SAM', 'Lookahead', 'SWA']
)
def test_no_step_waits(cb):
    learn = tiny_learner([cb(), w := Watched()]).fit(1)
    assert w.n > 0


def test_statistics_do_not_wait():
    from trickbag.models.batchnorm import _Stats

    learn = tiny_learner()
    s = _Stats([learn.model[1]], None)
    s.before_validate(learn)
    with NoWait():
        for learn.iter in range(3):
            s.before_batch(learn)
            learn.model[1](torch.randn(8, 6, 6, 6))
        learn.model[1].momentum = None
        with pytest.raises(AssertionError):
            learn.model[1](torch.randn(8, 6, 6, 6))  # torch's own way
    s.cleanup_validate(learn)
    assert learn.model[1].momentum == 0.1


def test_a_step_that_a_later_callback_cancels():
    "The gradients stay; the next ascent takes in all batches since the last step"

    class Later(Callback):
        stage = 'clip'

        def before_step(self, learn):
            seen.append(len(learn.cb(SAM).window))
            if learn.iter == 1:
                raise CancelStep

    seen = []
    tiny_learner([SAM(), Later()]).fit(1)
    assert seen == [1, 1, 2, 1, 1, 1]
