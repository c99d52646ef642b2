"The tricks around the step, all at once: order, resume, clean-up"

from functools import partial

import torch

from trickbag.models.xresnet import XResNet
from trickbag.speed.channels_last import ChannelsLast
from trickbag.speed.mixed_precision import MixedPrecision
from trickbag.testing.proofs import prove_order, prove_resume, prove_undone
from trickbag.tricks.ema import EMA
from trickbag.tricks.grad_accumulation import GradientAccumulation
from trickbag.tricks.grad_clip import GradientClip
from trickbag.tricks.mixup import MixUp
from trickbag.tricks.no_bias_decay import NoBiasDecay
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


def test_all():
    prove_order(cbs('bf16'), n=20, model=model)
    prove_resume(cbs('bf16'), model=model)
    prove_undone(cbs('bf16'), model=model)


def test_fp16():
    prove_order(cbs('fp16'), n=4, fit=lambda learn: learn.fit(1), model=model)
    prove_resume(cbs('fp16'), model=model, at=((0, 2), (0, 5), (1, 4)))


def test_optimizers():
    for opt_func in (
        partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-3),
        partial(torch.optim.RMSprop, weight_decay=1e-3),
    ):
        prove_resume(cbs('bf16'), model=model, opt_func=opt_func)
        prove_order(cbs('bf16'), n=4, model=model, opt_func=opt_func)
