"""What planted bugs showed that no test looked at (tests/bench/plant.py): each right value is a formula's, numpy's,
torch's or the system's."""

import os
import pickle
import threading
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import ten_crop

from trickbag.all import (
    EMA,
    Callback,
    Crop,
    DataLoaders,
    GradientClip,
    MixedPrecision,
    MixUp,
    Normalize,
    Recorder,
    SelectiveBackprop,
    accuracy,
)
from trickbag.core.files import atomic_save
from trickbag.core.interrupts import preserve_torch_state
from trickbag.core.modules import wrap_forward
from trickbag.core.streams import name_key
from trickbag.data import sources
from trickbag.data.files import split_idxs
from trickbag.data.loaders import ImageLoader, read_table
from trickbag.data.store import Store
from trickbag.loop.losses import feature_distance
from trickbag.loop.snapshot import preserve_learner
from trickbag.models.batchnorm import update_bn
from trickbag.testing.proofs import StopAt, TinyData, tiny_learner
from trickbag.tricks.muon import split_hidden
from trickbag.vision.crop import random_boxes, tta_views


def before_batch(cb, x, y, **more):
    "The learner after that callback's `before_batch` on these images"
    learn = tiny_learner([cb])
    learn.xb, learn.yb, learn.clean_yb, learn.idx = x, y, y, torch.arange(len(x))
    vars(learn).update(more)
    cb.before_batch(learn)
    return learn


def test_lambda_of_mixup_is_the_larger_part():
    mix = MixUp(0.4)
    before_batch(mix, torch.zeros(4096, 3, 4, 4), torch.zeros(4096, dtype=torch.long))
    lam = np.random.default_rng(0).beta(0.4, 0.4, 10**6)
    folded = np.maximum(lam, 1 - lam)
    assert mix.lam.min() >= 0.5
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(mix.lam.numpy(), q) - np.quantile(folded, q)) < 0.02


@pytest.mark.parametrize('field', ['st_mtime_ns', 'st_size', 'st_ctime_ns', 'st_ino'])
def test_a_stamp_depends_on_all_that_tells_a_changed_file(field, tmp_path, monkeypatch):
    "Each alone: a file may grow within one tick of the clock, or be replaced by one of its size and date"
    f = tmp_path / 'a.bmp'
    f.write_bytes(b'BM')
    source = sources.FileSource([f])
    now = dict(st_mtime_ns=1, st_size=2, st_ctime_ns=3, st_ino=4)
    monkeypatch.setattr(sources, 'os', SimpleNamespace(**(vars(os) | dict(stat=lambda _: SimpleNamespace(**now)))))
    was = source.stamp(0)
    now[field] += 1
    assert source.stamp(0) != was


def test_a_file_is_on_the_disk_before_it_takes_the_others_name(tmp_path, monkeypatch):
    "Else a loss of power may leave the name with nothing behind it (POSIX: only fsync says that data has arrived)"
    done = []
    fsync = os.fsync
    replace = os.replace

    def synced(fd):
        done.append(('fsync', os.fstat(fd).st_ino, os.fstat(fd).st_size))
        fsync(fd)

    def replaced(a, b):
        done.append(('replace', os.stat(a).st_ino, os.stat(a).st_size))
        replace(a, b)

    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(os, 'replace', replaced)
    f = atomic_save(dict(a=torch.zeros(1000)), tmp_path / 'a.pt')
    at = os.stat(f).st_ino, os.stat(f).st_size
    assert done[:2] == [('fsync', *at), ('replace', *at)]


class Draws(Callback):
    "Keeps what it draws, and the labels in the order in which they come"

    def __init__(self):
        self.drawn = []
        self.came = []

    def before_batch(self, learn):
        if not learn.training:
            return
        self.drawn.append(torch.rand(4, generator=learn.rng(self)))
        self.came.append(learn.yb.tolist())


def test_a_second_fit_goes_on_with_the_streams():
    "A fit of two epochs draws what two fits of one epoch draw, and nothing twice"
    once = Draws()
    twice = Draws()
    tiny_learner([once]).fit(2)
    tiny_learner([twice]).fit(1).fit(1)
    drawn = torch.stack(twice.drawn)
    assert torch.equal(drawn, torch.stack(once.drawn)) and len(drawn.unique(dim=0)) == len(drawn)
    assert twice.came == once.came and twice.came[:6] != twice.came[6:]


class ValidatesElsewhere(Callback):
    "Validates on the training images, before the row of the history is written"

    stage = 'schedule'

    def after_epoch(self, learn):
        learn.validate(learn.dls.train)


def test_a_validation_in_between_does_not_get_into_the_history():
    plain = tiny_learner()
    learn = tiny_learner([ValidatesElsewhere()])
    plain.fit(1)
    learn.fit(1)
    assert learn.history[0]['valid_loss'] == plain.history[0]['valid_loss']
    was = learn.results
    assert learn.validate(learn.dls.train) != was and learn.results == was


def test_no_graph_is_kept_in_validation():
    class Look(Callback):
        def after_loss(self, learn):
            seen.append((learn.training, learn.loss.requires_grad))

    seen = []
    tiny_learner([Look()]).fit(1)
    assert set(seen) == {(True, True), (False, False)}


def test_a_rate_of_zero_is_no_missing_rate():
    learn = tiny_learner(opt_func=torch.optim.SGD)
    was = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1, lr=0.0)
    assert all(torch.equal(p, w) for p, w in zip(learn.model.parameters(), was))


def test_callbacks_of_one_stage_run_by_name_however_they_are_listed():
    class A(Callback):
        def before_fit(self, learn):
            ran.append(self.name)

    class B(A):
        pass

    for cbs in ([A(), B()], [B(), A()]):
        ran = []
        tiny_learner(cbs).fit(0)
        assert ran == ['A', 'B']


def test_what_load_read_is_not_trained_further(tmp_path):
    "Else the same file, loaded once, resumes from another place the second time"
    tiny_learner([EMA()]).fit(2, cbs=StopAt((0, 2), tmp_path / 's.pt'))
    learn = tiny_learner([EMA()]).load(tmp_path / 's.pt')
    read = learn._loaded['cbs']['EMA']['avg']
    learn.fit(2, resume=True)
    was = torch.load(tmp_path / 's.pt', weights_only=True)['cbs']['EMA']['avg']
    assert all(torch.equal(read[n], was[n]) for n in was)


@pytest.mark.parametrize('name', ['reads', 'writes', 'owns', 'does', 'traced', 'state'])
def test_a_text_where_names_are_listed_is_refused(name):
    with pytest.raises(TypeError, match=f'Wrong.{name} is a text'):
        type('Wrong', (Callback,), {name: 'weights'})


@pytest.mark.parametrize('state', [[Fraction(1, 2)], [[Fraction(1, 2)]], [dict(a=Fraction(1, 2))]])
def test_state_in_lists_is_looked_at_before_it_is_saved(state, tmp_path):
    "As `torch.load(weights_only=True)` would refuse it"

    class Wrong(Callback):
        pass

    Wrong.state = ('kept',)
    cb = Wrong()
    cb.kept = state
    torch.save(state, tmp_path / 's.pt')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 's.pt', weights_only=True)
    with pytest.raises(TypeError, match='Fraction'):
        tiny_learner([cb]).save(tmp_path / 't')


@pytest.mark.parametrize('norm_type', [1.0, 2.0, float('inf')])
def test_gradient_clip_takes_the_norm_it_is_given(norm_type):
    class Look(Callback):
        stage = 'gradient'

        def before_step(self, learn):
            self.norm = torch.nn.utils.get_total_norm([p.grad.clone() for p in learn.model.parameters()], norm_type)

    clip = GradientClip(0.1, norm_type)
    look = Look()
    tiny_learner([clip, look]).fit(1)
    assert torch.equal(clip.norm, look.norm)


def test_kept_puts_every_counter_back():
    learn = tiny_learner().fit(1)

    def counters():
        return (
            learn.step,
            learn.epochs_run,
            learn.epoch,
            learn.iter,
            learn.n_epoch,
            learn.n_iter,
            learn.position,
            len(learn.history),
        )

    was = counters()
    with preserve_learner(learn):
        learn.fit(2)
        # the last batch of an epoch is the last again
        assert all(a != b for a, b in zip(counters(), was) if b not in (5, 6))
    assert counters() == was


def test_classes_in_another_order_are_other_classes(tmp_path):
    a = TinyData()
    b = TinyData()
    a.vocab = list('abcd')
    b.vocab = list('abdc')
    tiny_learner(dls=a).save(tmp_path / 's')
    tiny_learner(dls=a).load(tmp_path / 's')
    with pytest.raises(ValueError, match='trained on 4 classes'):
        tiny_learner(dls=b).load(tmp_path / 's')


def test_a_metric_of_training_is_a_mean_over_samples():
    "45 images in batches of 8 and one of 5, counted one by one"

    class Count(Callback):
        stage = 'monitor'
        monitor = True
        right = 0

        def after_pred(self, learn):
            if learn.training:
                self.right += int((learn.pred.argmax(1) == learn.clean_yb).sum())

    count = Count()
    learn = tiny_learner([Recorder(train_metrics=True), count], metrics=accuracy).fit(1)
    assert abs(learn.history[0]['train_accuracy'] - count.right / 45) < 1e-6


class Levels:
    "A source of one-colored images, image i of the level i; `get` waits until `free` is set"

    labels = None

    def __init__(self, n):
        self.n, self.free = n, threading.Event()

    def __len__(self):
        return self.n

    def get(self, i, P):
        self.free.wait(10)
        return torch.full((P, P, 3), i, dtype=torch.uint8), (P, P)


def levels(n):
    source = Levels(n)
    source.free.set()
    return Store(source, 4, keep='memory', threads=1)


@pytest.mark.parametrize('n', [6, 7, 8])
@pytest.mark.parametrize('drop_last', [False, True])
def test_an_image_loader_has_as_many_batches_as_torchs(n, drop_last):
    ours = ImageLoader(levels(n), 2, drop_last=drop_last)
    torchs = torch.utils.data.DataLoader(range(n), 2, drop_last=drop_last)
    assert len(ours) == len(torchs) and [len(b[2]) for b in ours] == [len(b) for b in torchs]


@pytest.mark.parametrize('drop_last', [False, True])
def test_a_shuffling_loader_has_an_ordered_view(drop_last):
    view = ImageLoader(levels(8), 4, shuffle=True, drop_last=drop_last).ordered_view()
    for _ in range(3):
        assert torch.cat([idx for *_, idx in view]).tolist() == list(range(8))


def test_an_image_asked_for_twice_at_once_counts_once():
    "Else a store takes itself for complete, and gives what was never decoded"
    store = Store(Levels(4), 4, keep='memory', threads=1)
    waits = [store.submit(torch.tensor([0, 1])) for _ in range(2)]
    store.source.free.set()
    for w in waits:
        w()
    assert store.submit(torch.tensor([2, 3]))()[:, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.parametrize('n,held', [(3, 1), (7, 1), (8, 2), (12, 2), (13, 3)])
def test_a_share_of_a_class_is_rounded_to_the_nearest(n, held):
    _, valid = split_idxs(['a'] * n + ['b'] * 5, 0.2)
    assert sum(i < n for i in valid) == held and sum(i >= n for i in valid) == 1


def test_blanks_around_the_names_of_columns_do_not_count(tmp_path):
    f = tmp_path / 'labels.csv'
    f.write_text('file , label\na.png,cat\n')
    assert read_table(f) == [dict(file='a.png', label='cat')]


def test_training_images_come_in_another_order_each_time():
    class Named(Levels):
        labels = torch.arange(32) % 2

    source = Named(32)
    source.free.set()
    train = DataLoaders.from_sources(source, None, ['a', 'b'], size=4, presize=4, bs=8, keep='memory').train
    orders = [torch.cat([idx for *_, idx in train]).tolist() for _ in range(2)]
    assert [sorted(o) for o in orders] == [list(range(32))] * 2 and orders[0] != orders[1]


def test_attention_maps_are_of_squares():
    "Zagoruyko and Komodakis 2017 in numpy: squares over channels, as vectors of length 1"
    g = np.random.default_rng(0)
    s = g.normal(size=(2, 3, 4, 5))
    t = g.normal(size=(2, 6, 4, 5))
    a, b = ((o**2).mean(1).reshape(2, -1) for o in (s, t))
    a, b = (o / np.linalg.norm(o, axis=1, keepdims=True) for o in (a, b))
    ours = feature_distance(torch.tensor(s), torch.tensor(t), 'attention')
    assert abs(ours.item() - ((a - b) ** 2).mean()) < 1e-7


def test_an_image_that_is_being_replaced_in_a_store_on_disk_is_marked(tmp_path, monkeypatch):
    "A run that is killed in the middle leaves half of the new picture: no stamp may say that it is right"
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    f = tmp_path / 'a.bmp'

    def store(color):
        Image.new('RGB', (4, 4), color).save(f)
        return Store(sources.FileSource([f]), 4, keep='disk', threads=1)

    store('red').submit(torch.tensor([0]))()
    new = store('blue')
    assert new.index[0, 0] != 0

    def killed(i, x):
        raise RuntimeError('killed')

    monkeypatch.setattr(new.arrays, 'write', killed)
    with pytest.raises(RuntimeError, match='killed'):
        new.submit(torch.tensor([0]))()
    assert new.index[0, 0] == 0


def test_every_epoch_drops_samples_of_the_same_batches():
    "Five batches an epoch, every second one whole: as Composer counts, from the start of each epoch"

    class Sizes(Callback):
        stage = 'report'
        monitor = True

        def after_pred(self, learn):
            if learn.training:
                sizes.append(len(learn.xb))

    sizes = []
    tiny_learner([SelectiveBackprop(start=0, end=1, interrupt=2), Sizes()], TinyData(40)).fit(2)
    assert sizes == [4, 8, 4, 8, 4] * 2


def test_the_loss_gets_scores_in_float32():
    seen = []

    class Look(Callback):
        stage = 'report'

        def after_loss(self, learn):
            seen.append(learn.pred.dtype)

    tiny_learner([MixedPrecision('bf16'), Look()]).fit(1)
    assert set(seen) == {torch.float32}


def test_new_statistics_leave_the_momentum_of_norms():
    learn = tiny_learner()
    update_bn(learn)
    assert learn.model[1].momentum == torch.nn.BatchNorm2d(6).momentum


def test_views_are_those_of_torchvisions_ten_crop():
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tta_views(x, 6), torch.cat(ten_crop(x, 6)))


def test_evaluation_sees_its_own_size():
    class Look(Callback):
        stage = 'report'

        def after_pred(self, learn):
            seen.add((learn.training, tuple(learn.xb.shape[-2:])))

    class Named(Levels):
        labels = torch.arange(8) % 4

    source = Named(8)
    seen = set()
    source.free.set()
    loader = ImageLoader(Store(source, 16, keep='memory', threads=1), 4)
    tiny_learner([Look()], DataLoaders(loader, loader, [Crop(8, valid_size=12), Normalize()], list('abcd'))).fit(1)
    assert seen == {(True, (8, 8)), (False, (12, 12))}


@pytest.mark.parametrize('ratio', [(0.25, 0.5), (2.0, 3.0)])
def test_the_ratio_of_a_box_is_width_over_height(ratio):
    "As `RandomResizedCrop.get_params` of torchvision, which gives top, left, height, width"
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(torch.empty(1, 900, 900), [0.1, 0.2], list(ratio)) for _ in range(300)]
    ).double()
    ours = random_boxes(torch.tensor([[900, 900]]).expand(300, 2), (0.1, 0.2), ratio).double()
    a = theirs[:, 3] / theirs[:, 2]
    b = ours[:, 2] / ours[:, 3]
    assert ratio[0] * 0.99 <= b.min() and b.max() <= ratio[1] * 1.01 and (a.mean() - b.mean()).abs() < 0.06 * ratio[0]


def test_boxes_reach_the_last_row_and_column():
    "A box of 3 x 3 in an image of 4 x 4 has four places, as in torchvision"
    boxes = random_boxes(torch.full((400, 2), 4), (9 / 16, 9 / 16), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert {tuple(b) for b in boxes.tolist()} == {(x, y, 3, 3) for x in (0, 1) for y in (0, 1)}


def test_a_name_has_one_number_in_every_process():
    "CRC-32; of these digits the standards give 0xCBF43926"
    assert name_key('123456789') == 0xCBF43926


def test_wrappers_are_taken_off_in_any_order():
    m = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = m(x)
    first = wrap_forward(m, lambda m, forward, x: forward(x) + 1)
    second = wrap_forward(m, lambda m, forward, x: forward(x) * 2)
    assert torch.equal(m(x), (plain + 1) * 2)
    first()
    assert torch.equal(m(x), plain * 2)
    second()
    assert torch.equal(m(x), plain) and 'forward' not in vars(m)


def test_muon_gets_what_lies_inside_and_mixes_channels():
    "Keller Jordan's: hidden matrices only, neither the first nor the last; a depthwise filter is no matrix"
    convs = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8)
    params = [p for m in (*convs, torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)) for p in m.parameters()]
    hidden, rest = split_hidden(params)
    assert [id(p) for p in hidden] == [id(params[2]), id(params[6])]
    assert [id(p) for p in rest] == [id(p) for i, p in enumerate(params) if i not in (2, 6)]


def test_a_grad_mode_that_was_left_on_or_off_is_put_back():
    with preserve_torch_state():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
