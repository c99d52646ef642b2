"Compiled models: no graph break, no graph after the first epoch, the same training."

import pytest
import torch
from torch._dynamo.utils import counters

from trickbag.callback import Callback
from trickbag.loop.schedule import Cosine
from trickbag.models.xresnet import XResNet
from trickbag.speed.channels_last import ChannelsLast
from trickbag.speed.compile import Compile
from trickbag.speed.mixed_precision import MixedPrecision
from trickbag.testing.proofs import TinyData, prove_order, prove_resume, prove_undone, tiny_learner, tiny_model, weights
from trickbag.tricks.ema import EMA
from trickbag.tricks.label_smoothing import LabelSmoothing
from trickbag.tricks.mixup import MixUp
from trickbag.tricks.no_bias_decay import NoBiasDecay
from trickbag.tricks.progressive_resize import ProgressiveResize
from trickbag.tricks.zero_gamma import ZeroGamma


def resnet(**kw):
    torch.manual_seed(0)
    return XResNet(1, [1, 1], 4, **{'stem': 'small', 'widen': 0.125, **kw})


class Graphs(Callback):
    "Graphs compiled, and graph breaks, up to the end of each epoch"

    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        counters.clear()
        self.n = []
        self.breaks = []

    def after_epoch(self, learn):
        self.n.append(counters['stats']['unique_graphs'])
        self.breaks.append(sum(counters['graph_break'].values()))


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    counters.clear()


def graphs(*cbs, n=2, model=resnet, **kw):
    learn = tiny_learner([*cbs, g := Graphs()], model=model(), **kw)
    learn.fit(n)
    assert g.breaks == [0] * n
    return g.n


def bag():
    return [
        ZeroGamma(),
        NoBiasDecay(),
        LabelSmoothing(),
        MixUp(),
        Cosine(warmup=0.2),
        EMA(),
        MixedPrecision('bf16'),
        ChannelsLast(),
    ]


def test_no_break_and_no_recompilation_in_bag_of_tricks():
    assert graphs(*bag(), Compile(backend='aot_eager'), n=3, model=lambda: resnet(zero_gamma=False)) == [2, 2, 2]


@pytest.mark.parametrize(
    'kw', [dict(se=True, sa=True), dict(blur_pool=True, drop_path=0.2), dict(shortcut='B', stem='7x7')], ids=str
)
def test_no_break_in_variants(kw):
    assert graphs(Compile(backend='eager'), model=lambda: resnet(**kw)) == [2, 2]


def test_the_count_sees_a_recompilation():
    class Wide(Callback):
        "A tensor as a key of control flow: a graph break in every forward"

        def before_fit(self, learn):
            self.h = learn.model[5].register_forward_hook(lambda m, i, o: o if o.sum() > -1e9 else -o)

        def cleanup_fit(self, learn):
            self.h.remove()

    learn = tiny_learner([Wide(), Compile(backend='eager'), g := Graphs()], model=resnet())
    learn.fit(1)
    assert g.breaks[0] > 0


@pytest.mark.parametrize('dynamic,n', [(False, [2, 3, 4, 4]), (True, [2, 2, 2, 2])])
def test_one_graph_a_size(dynamic, n):
    sizes = dict(sizes=[4, 6], start=0.25, end=0.5)
    assert graphs(ProgressiveResize(**sizes), Compile(backend='eager', dynamic=dynamic), n=4) == n


def test_more_sizes_than_torchs_limit():
    class Grow(Callback):
        "Ten widths, two batches each"

        stage = 'resize'
        train_only = True
        writes = ('x',)

        def before_batch(self, learn):
            learn.xb = learn.xb[..., : 4 + learn.iter // 2]

    dls = TinyData(n=160, size=16)
    dls.valid = None
    assert graphs(Grow(), Compile(backend='eager'), model=tiny_model, n=2, dls=dls) == [10, 10]


def test_many_models_in_one_process():
    for _ in range(10):
        assert graphs(Compile(backend='eager'), model=tiny_model, n=1) == [2]


def test_the_same_training_through_aot_autograd():
    a, b = (weights(tiny_learner(cbs, model=resnet()).fit(2)) for cbs in ([], [Compile(backend='aot_eager')]))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def eager():
    return [Compile(backend='eager')]


def test_resumed_to_the_bit():
    prove_resume(eager)


def test_undone_after_an_error():
    events = ['before_fit', 'before_batch', 'after_loss', 'after_epoch', 'cleanup_validate', 'cleanup_fit']
    prove_undone(eager, events=events)


def test_any_order():
    prove_order(lambda: [*eager(), MixUp(), EMA(0.9)])
