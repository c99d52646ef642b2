"""What can be known of a GPU without one: no step mixes devices, and no step asks for a value, which would wait for the
GPU.

Not known this way: speed, memory, streams, and the backward pass."""

import contextlib

import pytest
import torch
from PIL import Image

import trickbag.all as tb
import trickbag.data.store
from trickbag.core.streams import Streams
from trickbag.testing.pairs import BAG, bag_opt, small_data, small_model, trial

from .fake_gpu import GPU, Races, Stream, Waits, fake_gpu


class Peek(tb.Callback):
    "Does something that a step must not do, from the second batch on"

    def __init__(self, f):
        self.f = f

    def after_loss(self, learn):
        learn.iter and self.f(learn)


PEEKS = dict(
    item=lambda l: l.loss.item(),
    float=lambda l: float(l.loss),
    bool=lambda l: bool(l.loss > 0),
    tolist=lambda l: l.pred.tolist(),
    cpu=lambda l: l.pred.cpu(),
    into_cpu=lambda l: torch.zeros(()).copy_(l.loss.detach()),
    mask=lambda l: l.pred[l.pred > 0],
    nonzero=lambda l: l.pred.nonzero(),
    unique=lambda l: l.yb.unique(),
    repeat=lambda l: torch.ones(3, device=l.device).repeat_interleave(l.yb[:3]),
    cpu_index=lambda l: l.pred[torch.arange(2)],
    made_there=lambda l: torch.tensor([1.0], device=l.device),
    sent=lambda l: torch.ones(3).to(l.device),
    not_pinned=lambda l: torch.ones(99_999).to(l.device, non_blocking=True),
    mask_set=lambda l: l.pred.detach().index_put_((l.pred > 0,), torch.zeros((), device=l.device)),
    copied=lambda l: l.pred.detach().copy_(torch.ones(l.pred.shape)),
)


@pytest.mark.parametrize('f', PEEKS.values(), ids=PEEKS)
def test_the_watch_sees_what_waits(f):
    with fake_gpu(), pytest.raises(Waits):
        tb.Learner(small_data(), small_model(), cbs=Peek(f), device=GPU).fit(1)


def test_the_watch_sees_generators_of_another_device():
    with fake_gpu():
        g = Streams(GPU)('x', 0, True)
        assert torch.rand(2, generator=g, device=GPU).device == GPU
        for f in (lambda: torch.rand(2, generator=g), lambda: torch.rand(2, generator=torch.Generator(), device=GPU)):
            with pytest.raises(RuntimeError, match='generator'):
                f()


@pytest.mark.parametrize('what', ['wait_event', 'record_stream', 'pin_memory'])
def test_the_watch_sees_how_batches_are_sent(folder, monkeypatch, what):
    with fake_gpu(), pytest.raises(Waits if what == 'pin_memory' else Races):
        if what == 'wait_event':
            monkeypatch.setattr(Stream, what, lambda self, event: None)
        else:
            monkeypatch.setattr(torch.Tensor, what, lambda t, *args: t)
        learner(folder, [], keep='memory', presize=128).fit(1)


def test_another_device_in_mid_epoch(folder):
    "A validation elsewhere takes nothing from the epoch that is running"

    class Elsewhere(tb.Callback):
        def after_batch(self, learn):
            learn.dls.train.use(torch.device('cpu'))
            next(iter(learn.dls.train))

    with fake_gpu():
        learn = learner(folder, [Elsewhere()], keep='memory').fit(2)
        (gpu,) = learn.dls.train.store._gpus.values()
        assert gpu.copied.sum() >= 32


def test_images_cross_once(folder, monkeypatch):
    "Also with an incomplete last batch that is left out, whose images come in later epochs"
    with fake_gpu() as m:
        learn = learner(folder, [], keep='memory')
        sent = []
        submit = trickbag.data.store.Store.submit
        monkeypatch.setattr(
            trickbag.data.store.Store,
            'submit',
            lambda self, idx, pin=False: (
                sent.extend(idx.tolist()) if self is learn.dls.train.store else None,
                submit(self, idx, pin),
            )[1],
        )
        learn.fit(4)
    assert len(sent) == len(set(sent)) <= 36


def test_the_watch_sees_mixed_devices():
    with fake_gpu(), pytest.raises(RuntimeError, match='devices'):
        tb.Learner(small_data(), small_model(), cbs=Peek(lambda l: l.pred + torch.ones(l.pred.shape)), device=GPU).fit(
            1
        )


# Im2Col is refused on a GPU; ZeroGamma does all before the first step, and looks at values; the others ask what the
# loss is, which is read from what it gives for made-up logits, and here tensors have no values
NOT_WATCHED = 'Im2Col', 'ZeroGamma', 'BinaryTargets', 'ClassWeights', 'LogitAdjustment'


@pytest.mark.parametrize('name', [n for n in BAG if n not in NOT_WATCHED])
def test_no_trick_waits(name):
    t = trial(name)
    with fake_gpu() as gpu:
        learn = tb.Learner(
            small_data(),
            small_model(),
            loss_func=t.loss and t.loss(),
            opt_func=t.opt or bag_opt,
            lr=0.1,
            cbs=t.make(),
            device=GPU,
        ).fit(1)
    assert learn.epochs_run == 1 and gpu.ops > 1000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for split, n in (('train', 12), ('val', 5)):
        for k in 'abc':
            (root / split / k).mkdir(parents=True)
            for i in range(n):
                Image.new('RGB', (40 + i, 30), (20 * i, 60, 90)).save(root / split / k / f'{i}.jpg')
    return root


def learner(folder, cbs, **kw):
    dls = tb.DataLoaders.from_folder(folder, valid='val', size=32, bs=8, **kw)
    return tb.Learner(dls, small_model(3), cbs=cbs, metrics=tb.accuracy, device=GPU, path=folder)


def recipe():
    return [
        tb.TrivialAugment(),
        tb.RandomErasing(),
        tb.MixUp(),
        tb.LabelSmoothing(),
        tb.EMA(),
        tb.OneCycle(),
        tb.ChannelsLast(),
        tb.MixedPrecision(),
    ]


@pytest.mark.parametrize('kind', ['disk', 'memory', 'none', 'no room on the GPU', 'gathered by a thread'])
def test_the_recipe_from_files(folder, kind, tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    if kind == 'gathered by a thread':
        monkeypatch.setattr(trickbag.data.store, 'LARGE', 100)
    with fake_gpu():
        if kind == 'no room on the GPU':
            monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (1000, 2000))
        learn = learner(folder, recipe(), keep=kind if kind in ('disk', 'none') else 'memory').fit(2)
        store = learn.dls.train.store
        if kind in ('none', 'no room on the GPU'):
            assert store.gpu.copy is None
        else:
            assert store.gpu.copied.sum() >= 32 and store.gpu.copy.device == GPU and 'and on the GPU' in repr(store)


WAYS = dict(
    validate=lambda l: l.validate(),
    get_preds=lambda l: l.get_preds(),
    tta=lambda l: l.tta(),
    summary=lambda l: l.summary(),
    explain=lambda l: l.explain(),
    fix_res=lambda l: l.fix_res(48),
    size_sweep=lambda l: l.size_sweep([24, 40]),
    fine_tune=lambda l: l.fine_tune(1),
    fit_flat_cos=lambda l: l.fit_flat_cos(1),
)


@pytest.mark.parametrize('f', WAYS.values(), ids=WAYS)
def test_other_ways_do_not_mix_devices(folder, f):
    with fake_gpu(), contextlib.redirect_stdout(None):
        f(learner(folder, [tb.EMA(), tb.MixUp()], keep='memory'))


def test_others_in_a_fit(folder):
    for cbs in (
        [tb.ProgressiveResize(16, step=8)],
        tb.Fast(device='cuda', compile=False),
        [tb.Recorder(train_metrics=True), tb.EarlyStopping(), tb.TerminateOnNaN(every=2000)],
    ):
        with fake_gpu():
            learner(folder, cbs, keep='memory').fit(2)


@pytest.mark.parametrize(
    'f',
    [
        lambda root: learner(root, tb.MixedPrecision('fp16'), keep='memory').fit(1),
        lambda root: learner(root, [], keep='memory').lr_find(),
    ],
    ids=['fp16', 'lr_find'],
)
def test_those_that_wait_are_seen(folder, f):
    "As the performance page says: one must know whether a step was taken, the other looks at every loss"
    with fake_gpu(), pytest.raises(Waits):
        f(folder)


def test_layout_by_default():
    "Channels last for models that are known to bear it; others may `.view` what a convolution gives. `summary` says it"
    import torchvision

    own = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4)
    )
    for m, last in ((small_model(), True), (torchvision.models.resnet18(num_classes=4), True), (own, False)):
        with fake_gpu():
            learn = tb.Learner(small_data(), m, device=GPU).fit(1)
            assert (
                ('convolutions in channels_last' in str(learn.summary()))
                == last
                == any(cb.name == 'ChannelsLast' for cb in learn.default_cbs)
            )
    assert not any(
        cb.name == 'ChannelsLast' for cb in tb.Learner(small_data(), small_model(), device='cpu').default_cbs
    )
