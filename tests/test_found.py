"What a review found once must not come back."

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from trickbag.all import *
from trickbag.data.sources import Paths
from trickbag.loop.metrics import probabilities
from trickbag.testing.proofs import StopAt, TinyData, tiny_learner, tiny_model, weights


def said(f, *words, exc=ValueError):
    with pytest.raises(exc) as e:
        f()
    s = str(e.value)
    assert '\n' not in s and all(w in s for w in words), s


def test_a_new_head_trains_and_can_be_saved(tmp_path):
    learn = tiny_learner([MixUp()]).fit(1)
    learn.model[-1] = nn.Linear(6, 9)
    w = learn.model[-1].weight.clone()
    learn.fit(1)
    assert not torch.equal(w, learn.model[-1].weight) and learn.n_out == 9
    learn.save(tmp_path / 'x')


@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_backward', 'after_step'])
def test_half_a_batch_is_no_point_to_resume_from(event, tmp_path):
    C = type('C', (Callback,), {event: lambda self, learn: learn.training and learn.save(tmp_path / 'x')})
    said(lambda: tiny_learner([C()]).fit(1), 'half done')


def test_a_fit_inside_a_fit_is_refused():
    class C(Callback):
        def after_epoch(self, learn):
            learn.fit(1)

    said(lambda: tiny_learner([C()]).fit(1), 'a fit is running')


class OwnGenerator(TinyData):
    def __init__(self):
        super().__init__()
        ds = self.train.dataset
        self.train = torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(1))


def test_loaders_with_a_generator_of_their_own(tmp_path):
    def new():
        return tiny_learner([MixUp()], dls=OwnGenerator())

    a = new()
    b = new()
    s = b.dls.train.generator.get_state()
    b.summary()
    b.lr_find(num_it=20, show_plot=False)
    a.fit(2)
    b.fit(2)
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(s, b.dls.train.generator.get_state())
    new().fit(2, cbs=StopAt((1, 2), tmp_path / 's.pt'))
    assert torch.equal(weights(a), weights(new().fit(2, resume=tmp_path / 's.pt')))


def test_the_order_of_samples_does_not_depend_on_workers():
    class D(TinyData):
        def __init__(self, n):
            super().__init__()
            self.train = torch.utils.data.DataLoader(self.train.dataset, 8, shuffle=True, num_workers=n)

    assert torch.equal(*(weights(tiny_learner(dls=D(n)).fit(1)) for n in (0, 1)))


def test_slices_keep_the_users_groups_and_miss_no_parameter():
    def of(ps, lr):
        return torch.optim.SGD([dict(params=ps[:1], weight_decay=0.1), dict(params=ps[1:], weight_decay=0.0)], lr=lr)

    seen = {}

    class Look(Callback):
        def after_step(self, learn):
            seen[0] = sorted((len(g['params']), g['weight_decay'], g['lr']) for g in learn.opt.param_groups)

    tiny_learner(opt_func=of).fit(1, slice(1e-4, 1e-2), cbs=Look())
    assert seen[0] == [(1, 0.1, 1e-4), (2, 0.0, 1e-4), (2, 0.0, 1e-2)]
    learn = tiny_learner(splitter=lambda m: [list(m[0].parameters()), list(m[-1].parameters())])
    said(lambda: learn.fit(1, slice(1e-4, 1e-2)), 'every parameter')


@pytest.mark.parametrize(
    'loss,f',
    [
        (partial(F.binary_cross_entropy_with_logits), torch.sigmoid),
        (nn.BCELoss(), lambda p: p),
        (nn.MultiLabelSoftMarginLoss(), torch.sigmoid),
    ],
)
def test_probabilities(loss, f):
    p = torch.rand(3, 4)
    assert torch.equal(probabilities(loss)(p), f(p))


def test_a_second_crop_is_refused():
    class MyCrop(Crop):
        pass

    class OtherCrop(Callback):
        stage = 'crop'
        owns = ('crop',)

    dls = TinyData()
    dls.cbs = [Crop(8)]
    # by class a crop of another kind: nothing says which of them is meant
    said(lambda: tiny_learner([OtherCrop()], dls=dls).fit(1), 'Crop', 'OtherCrop', "'crop'")
    said(lambda: tiny_learner([Crop(8), MyCrop(8)]).fit(1), 'Crop', 'MyCrop', "'crop'")
    # a subclass takes the place of the data's own, as another Crop does
    learn = tiny_learner([MyCrop(8)], dls=dls)
    with learn.composed():
        assert [type(cb) for cb in learn.active if isinstance(cb, Crop)] == [MyCrop]


def test_streams_without_a_length():
    class It(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))] * 3)

    dl = torch.utils.data.DataLoader(It(), batch_size=None)
    dls = DataLoaders(dl, dl)
    assert 'stream' in repr(dls)
    learn = Learner(dls, tiny_model(), device='cpu')
    learn.fit(2)
    assert len(learn.history) == 2
    said(lambda: learn.fit(1, cbs=OneCycle()), 'OneCycle')


def test_empty_validation_is_refused():
    d = list(TinyData().train)
    said(lambda: tiny_learner(dls=DataLoaders(d, [])).fit(1), 'validation loader is empty')
    said(lambda: tiny_learner(dls=DataLoaders(d, iter(d))).fit(2), 'gave no batch')
    said(lambda: tiny_learner().validate([]), 'gave no batch')
    said(lambda: tiny_learner().get_preds([]), 'gave no batch')


def test_what_does_not_fit_is_not_half_loaded(tmp_path):
    f = tiny_learner(opt_func=torch.optim.SGD).fit(1).save(tmp_path / 'm')
    learn = tiny_learner().fit(1)
    w = weights(learn)
    said(lambda: learn.load(f), 'saved with SGD', 'AdamW')
    s = tmp_path / 's.pt'
    tiny_learner().fit(2, cbs=StopAt((0, 2), s))
    n = learn.step
    said(lambda: learn.fit(3, resume=s), 'n_epoch')
    assert torch.equal(w, weights(learn)) and learn.step == n


def test_state_that_could_not_be_read_is_not_saved(tmp_path):
    class C(Callback):
        state = ('v',)

        def __init__(self):
            self.v = tmp_path

    said(lambda: tiny_learner([C()]).fit(1, cbs=StopAt((0, 0), tmp_path / 'x')), 'C.v', exc=TypeError)


def test_callback_state_outside_a_fit_is_saved(tmp_path):
    a = tiny_learner().fit(1)
    a.save(tmp_path / 'x')
    b = tiny_learner().load(tmp_path / 'x')
    assert a.cb(Recorder).losses == b.cb(Recorder).losses != []


def test_misplaced_cancels_say_where():
    class C(Callback):
        def after_loss(self, learn):
            raise CancelStep

    said(lambda: tiny_learner([C()]).fit(1), 'CancelStep was raised in C.after_loss', exc=RuntimeError)
    said(lambda: tiny_learner([C()]).validate(), 'C.after_loss', exc=RuntimeError)


def test_metrics_are_looked_at_before_training():
    for m, w, e in (([accuracy, accuracy], 'two are called', ValueError), ('accuracy', 'is no function', TypeError)):
        said(lambda: tiny_learner(metrics=m), w, exc=e)

    def odd(p, y):
        raise KeyError('x')

    with pytest.raises(KeyError) as e:
        tiny_learner(metrics=odd).validate()
    assert any('in metric odd' in n for n in e.value.__notes__)


def test_torchmetrics_collections_and_nested_validation():
    import torchmetrics as tm

    mc = tm.MetricCollection(
        [tm.Accuracy('multiclass', num_classes=4, average='micro'), tm.F1Score('multiclass', num_classes=4)]
    )
    assert {'MulticlassAccuracy', 'MulticlassF1Score'} <= set(tiny_learner(metrics=mc).validate())

    class Peek(Callback):
        def after_batch(self, learn):
            if not getattr(self, 'busy', 0):
                self.busy = 1
                learn.validate()

    m = tm.Accuracy('multiclass', num_classes=4, average='micro')
    r = tiny_learner([Peek()], metrics=[accuracy, m]).validate()
    assert r['accuracy'] == pytest.approx(r['MulticlassAccuracy'], abs=1e-6)


def test_optimizers_that_need_a_closure():
    said(lambda: tiny_learner(opt_func=torch.optim.LBFGS).fit(1), 'LBFGS needs a closure')


def test_no_epochs():
    tiny_learner([EMA(half_life=0.1)]).fit(0)
    tiny_learner().fit(np.int64(1))


def test_batches_that_are_no_tensors_or_bytes():
    y = torch.tensor([0, 1])
    for d, w, e in (
        ((np.zeros((2, 3, 8, 8)), y), 'ndarray', TypeError),
        ((torch.zeros(2, 3, 8, 8, dtype=torch.uint8), y), 'Normalize()', ValueError),
        ((torch.zeros(2, 3, 8, 8), y.int()), 'int64', ValueError),
    ):
        said(lambda: tiny_learner(dls=DataLoaders([d])).fit(1), w, exc=e)


def test_predict_leaves_the_image_alone(tmp_path):
    for k in range(2):
        (tmp_path / 'train' / str(k)).mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (400, 300), (80 * k, i, 9)).save(tmp_path / 'train' / str(k) / f'{i}.jpg')
    dls = DataLoaders.from_folder(tmp_path, valid='train', size=32, bs=2)
    learn = Learner(dls, xresnet18(n_out=2, stem='small'), device='cpu')
    im = Image.open(tmp_path / 'train/0/0.jpg')
    a = learn.predict(im)
    assert im.size == (400, 300)
    assert torch.equal(a[2], learn.predict(np.array(im))[2])


def test_private_helpers_may_look_like_events():
    class C(Callback):
        def _after_step(self):
            pass


def test_show_batch_with_schedules():
    import matplotlib

    matplotlib.use('agg')
    tiny_learner([OneCycle(), ProgressiveResize(0.5, step=2), MixUp()]).show_batch(4)


def test_freeze_to_a_group_that_is_not_there():
    said(lambda: tiny_learner().freeze_to(7), 'no group 7')


def test_losses_that_broadcast_get_probabilities():
    "MSE takes N indices beside N x N logits; the learner must not let it"
    dls = DataLoaders([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))])
    dls.c = 2
    learn = tiny_learner(dls=dls, model=tiny_model(2), loss_func=nn.MSELoss())
    seen = {}

    class Look(Callback):
        stage = 'stop'

        def after_loss(self, learn):
            seen[0] = learn.yb

    learn.fit(1, cbs=Look())
    assert seen[0].shape == (4, 2)


def test_typical_slips():
    said(lambda: Learner(TinyData(), xresnet18), 'call the function', exc=TypeError)

    def no_learn():
        class C(Callback):
            def before_batch(self):
                pass

    said(no_learn, 'def before_batch(self, learn)', exc=TypeError)
    said(lambda: tiny_learner().cb('MixUp'), 'it has', 'Recorder', exc=KeyError)
    from trickbag.testing.proofs import prove

    said(lambda: prove([EMA()]), 'prove(lambda', exc=TypeError)
    prove(EMA)


def test_a_column_named_is_valid_is_used(tmp_path):
    p = toy_set(tmp_path / 't', n_classes=3, n_train=24, n_valid=12, size=48)
    dls = DataLoaders.from_csv(p, size=32)
    assert (len(dls.train.store), len(dls.valid.store)) == (24, 12)
    said(lambda: DataLoaders.from_csv(p, box_cols='box'), 'four column names')


def _images(root, empty=False):
    for split, n in (('train', 6), ('valid', 3)):
        for k in 'ab':
            (root / split / k).mkdir(parents=True)
            for i in range(n):
                Image.new('RGB', (300 + i, 200), (40 * i, 60, 90)).save(root / split / k / f'{i}.jpg')
    if empty:
        (root / 'train' / 'c').mkdir()
    return root


def test_bad_values_of_a_loader_are_named(tmp_path):
    root = _images(tmp_path)
    for kw, says in (
        (dict(size='64'), 'size is a whole number'),
        (dict(size=(64, 64)), 'size is'),
        (dict(bs=16.0), 'bs is'),
        (dict(threads=-1), 'threads is'),
        (dict(scale=0.5), 'scale is a tuple'),
        (dict(mean=0.5), 'mean is'),
        (dict(valid=None), 'valid_pct'),
        (dict(crop_pct=2), 'crop_pct'),
    ):
        with pytest.raises(ValueError, match=says):
            DataLoaders.from_folder(root, **kw)


def test_a_class_without_images_is_said(tmp_path):
    with pytest.warns(UserWarning, match='no images in .*c'):
        dls = DataLoaders.from_folder(_images(tmp_path, empty=True), size=16)
    assert dls.vocab == ['a', 'b'] and repr(dls).endswith('; images in memory')


def test_bad_values_elsewhere_are_named():
    m = lambda: nn.Linear(2, 2)
    for f, says in (
        (lambda: Learner(DataLoaders([]), m(), loss_func=nn.CrossEntropyLoss), 'the loss itself'),
        (lambda: Learner(DataLoaders([]), m(), loss_func='ce'), 'the loss itself'),
        (lambda: Learner(DataLoaders([]), m(), opt_func='adam'), 'a function'),
        (lambda: update_bn(m()), 'takes the learner'),
        (lambda: Paths('abc.jpg'), 'a list of paths'),
        (lambda: OneCycle(moms=(1, 2, 3)), 'moms are three numbers'),
        (lambda: MixUp(float('nan')), 'alpha must be'),
        (lambda: Im2Col(float('nan')), 'whole must be'),
        (lambda: tiny_learner([Fast]).fit(1), 'is a class'),
        (lambda: tiny_learner().profile(0), 'n must be a whole number >= 1'),
        (lambda: tiny_learner().explain(step=True, at=-1), 'counts batches'),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            f()


def test_profile_finds_decoding(tmp_path):
    dls = DataLoaders.from_folder(_images(tmp_path), size=64, bs=4, keep='none')
    learn = tiny_learner([], dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    assert 'decoded anew each epoch' in learn.profile(3).notes[-1]
