"""Where two parts meet: labels that a loss ignores, checkpoints of compiled models, what a store decodes to. Right
values come from torch"""

import copy
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trickbag.all import (
    Checkpoint,
    DataLoaders,
    FileSource,
    ImageLoader,
    Learner,
    MixUp,
    SaveBest,
    Store,
    TerminateOnNaN,
)
from trickbag.callback import Callback
from trickbag.loop.same_fit import describe_data, described
from trickbag.testing.proofs import tiny_learner, tiny_model, weights

from .loop.fake_gpu import GPU, fake_gpu

C = 4


def images(n=24):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=g), torch.randint(0, C, (n,), generator=g)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, C))


def batches(x, y, bs=8):
    return [(x[i : i + bs], y[i : i + bs]) for i in range(0, len(x), bs)]


# Labels that the loss ignores


@pytest.mark.parametrize('ignore', [-100, C, 255])
def test_ignored_labels_are_no_classes(ignore):
    "Nothing tells how many classes the data has, but for the labels themselves"
    x, y = images()
    y[::5] = ignore
    loss = nn.CrossEntropyLoss(ignore_index=ignore)
    learn = tiny_learner(
        dls=DataLoaders(batches(x, y), batches(x, y)), model=linear(), loss_func=loss, opt_func=torch.optim.SGD, lr=0.1
    )
    learn.fit(1)
    model = linear()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for xb, yb in batches(x, y):
        F.cross_entropy(model(xb), yb, ignore_index=ignore).backward()
        opt.step()
        opt.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), model.parameters()))
    assert learn.history[-1]['valid_loss'] == pytest.approx(
        F.cross_entropy(model(x), y, ignore_index=ignore).item(), rel=1e-5
    )


def test_labels_that_are_not_ignored_are_still_counted():
    x, y = images()
    y[3] = 255
    with pytest.raises(ValueError, match='255'):
        tiny_learner(dls=DataLoaders(batches(x, y)), loss_func=nn.CrossEntropyLoss(ignore_index=254)).fit(1)


def test_several_labels_mix_though_the_data_counts_no_classes():
    x, y = images()
    learn = tiny_learner(
        [MixUp()],
        dls=DataLoaders(batches(x, (y > 1).float()[:, None])),
        model=tiny_model(1),
        loss_func=nn.BCEWithLogitsLoss(),
    )
    assert weights(learn.fit(1)).isfinite().all()


def test_labels_that_are_ignored_reach_a_gpu_in_validation_too():
    x, y = images()
    y[::5] = 255
    with fake_gpu():
        dls = DataLoaders(batches(x[:16], y[:16]), batches(x[16:], y[16:]))
        dls.c = C
        Learner(dls, linear(), loss_func=nn.CrossEntropyLoss(ignore_index=255), device=GPU).fit(1)


def test_labels_that_are_no_classes_are_refused_on_their_way_to_a_gpu():
    x, y = images()
    y[-1] = 255
    with fake_gpu(), pytest.raises(ValueError, match='in validation has the class index 255'):
        dls = DataLoaders(batches(x[:16], y[:16]), batches(x[16:], y[16:]))
        dls.c = C
        Learner(dls, linear(), device=GPU).fit(1)


@pytest.mark.parametrize('every', [1, 50])
def test_a_batch_of_ignored_samples_ends_no_run(every):
    x, y = images()
    y[8:16] = -100
    learn = tiny_learner([TerminateOnNaN(every)], dls=DataLoaders(batches(x, y)))
    assert weights(learn.fit(2)).isfinite().all()


# Checkpoints


class Counting(torch.optim.SGD):
    "Keeps in its groups how often it stepped, as schedule-free optimizers and timm's Adan do"

    def step(self, closure=None):
        for g in self.param_groups:
            g['steps'] = g.get('steps', 0) + 1
        return super().step(closure)


class WithTable(nn.Module):
    "A buffer that no state dict has"

    def __init__(self, n=3):
        super().__init__()
        self.m = tiny_model()
        self.register_buffer('table', torch.arange(float(n)), persistent=False)

    def forward(self, x):
        return self.m(x)


def compiled(model):
    return torch.compile(model, backend='eager')


def plain(model):
    return model


@pytest.mark.parametrize('then,now', [(compiled, plain), (plain, compiled)])
def test_all_of_a_checkpoint_finds_its_place_though_a_wrapper_changed_the_names(then, now, tmp_path):
    a = tiny_learner(model=then(WithTable()), opt_func=Counting, path=tmp_path).fit(1)
    next(b for n, b in a.model.named_buffers() if n.endswith('table')).fill_(7)
    a.save('a')
    b = tiny_learner(model=now(WithTable()), opt_func=Counting, path=tmp_path)
    with pytest.warns(UserWarning, match='the names are matched'):
        b.load('a')
    assert next(b for n, b in b.model.named_buffers() if n.endswith('table')).tolist() == [7, 7, 7]
    assert b.opt.param_groups[0]['steps'] == a.opt.param_groups[0]['steps'] == 6
    assert torch.equal(weights(a), weights(b))


def test_weights_that_fit_bring_no_tables_of_another_size(tmp_path):
    tiny_learner(model=WithTable(3), path=tmp_path).save('a')
    b = tiny_learner(model=WithTable(5), path=tmp_path).load('a', strict=False)
    assert b.model.table.tolist() == [0, 1, 2, 3, 4]


def test_another_presize_is_another_fit():
    source = FileSource([np.full((20, 20, 3), i, 'uint8') for i in range(8)], [0, 1] * 4)
    small, large = (describe_data(ImageLoader(Store(copy.copy(source), P, keep='memory'), 4)) for P in (16, 24))
    assert (small['presize'], large['presize']) == (16, 24)


# What is kept from batch to batch


def test_targets_of_every_pixel_are_counted_and_not_kept():
    "A thousand batches of them would fill a GPU"
    x, _ = images(32)
    alive = []
    most = []

    class Fresh:
        def __len__(self):
            return 8

        def __iter__(self):
            g = torch.Generator().manual_seed(1)
            for i in range(8):
                y = torch.randint(0, C, (4, 8, 8), generator=g)
                y[:, :i] = 255
                alive.append(weakref.ref(y))
                most.append(sum(r() is not None for r in alive))
                yield x[i * 4 : i * 4 + 4], y
                del y

    loss = nn.CrossEntropyLoss(ignore_index=255)
    learn = tiny_learner([TerminateOnNaN()], dls=DataLoaders(Fresh()), model=nn.Conv2d(3, C, 1), loss_func=loss, lr=0.0)
    learn.fit(1)
    assert max(most) <= 3
    pairs = list(Fresh())
    want = F.cross_entropy(
        learn.model(torch.cat([a for a, _ in pairs])), torch.cat([b for _, b in pairs]), ignore_index=255
    ).item()
    assert learn.history[0]['train_loss'] == pytest.approx(want, rel=1e-5)


class StopAt(Callback):
    stage = 'stop'
    monitor = True

    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 1):
            raise KeyboardInterrupt


def best_of_the_first(path, then, now, spoil=lambda file: None):
    """A run whose first epoch is taken for the best, stopped in the second, and taken up by a model that is wrapped
    otherwise"""

    def made(model):
        return tiny_learner([SaveBest(mode='max')], model=model, path=path)

    with pytest.raises(KeyboardInterrupt):
        made(then(tiny_model())).fit(3, cbs=[Checkpoint(every_batches=1), StopAt()])
    spoil(path / 'models/best.pt')
    return made(now(tiny_model())).fit(3, resume='models/last')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('then,now', [(compiled, plain), (plain, compiled), (plain, plain)])
def test_the_best_weights_are_restored_though_a_wrapper_changed_their_names(then, now, tmp_path):
    learn = best_of_the_first(tmp_path, then, now)
    assert learn.cb(SaveBest).best_epoch == 0
    assert torch.equal(weights(learn), weights(tiny_learner(path=tmp_path).fit(1)))


def test_best_weights_of_another_model_are_no_end_of_a_run(tmp_path):
    def spoil(file):
        torch.save(nn.Linear(2, 2).state_dict(), file)

    with pytest.warns(UserWarning, match='is of another model'):
        learn = best_of_the_first(tmp_path, plain, plain, spoil)
    losses = [row['valid_loss'] for row in learn.history]
    assert learn.cb(SaveBest).best == max(losses[1:])


# The data as a checkpoint describes it


class Holds(torch.utils.data.Dataset):
    "A dataset that keeps something with an entry for each of its samples"

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.zeros(3, 8, 8), i % C


class OneBased:
    "Nothing has the number 0"

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return {k + 1: v for k, v in enumerate(self.items)}[i]


def table(names):
    import pandas as pd

    return pd.DataFrame({'file': names, 'label': range(len(names))}, index=range(10, 10 + len(names)))


ENTRIES = dict(
    table=table,
    column=lambda names: table(names)['file'],
    objects=lambda names: np.array(names, dtype=object),
    text=np.array,
    rows=lambda names: [(n, i, None) for i, n in enumerate(names)],
)


@pytest.mark.parametrize('kind', ENTRIES)
def test_tables_and_lists_of_a_dataset_are_told_apart_and_may_move(kind, tmp_path):
    def seen(names):
        return describe_data(torch.utils.data.DataLoader(Holds(ENTRIES[kind](names)), 2))['samples']

    here, there = ([f'/{root}/{c}.png' for c in 'abcdef'] for root in ('here', 'somewhere/else'))
    other = [*here[:-1], '/here/g.png']
    assert seen(here) == seen(there) != seen(other)
    dls = DataLoaders(torch.utils.data.DataLoader(Holds(ENTRIES[kind](here)), 2))
    assert tiny_learner([Checkpoint()], dls=dls, path=tmp_path).fit(1).epochs_run == 1


ODD = dict(
    mixed=lambda: ['a', 1, None, 2.0, 'b', True],
    objects=lambda: [object() for _ in range(6)],
    one_based=lambda: OneBased('abcdef'),
    some_paths=lambda: [('a', 1)] * 5 + [(None, 2)],
    sparse=lambda: torch.eye(6).to_sparse(),
)


@pytest.mark.parametrize('kind', ODD)
def test_no_dataset_is_too_odd_to_be_described(kind, tmp_path):
    def seen():
        return describe_data(torch.utils.data.DataLoader(Holds(ODD[kind]()), 2))

    assert seen() == seen()
    dls = DataLoaders(torch.utils.data.DataLoader(Holds(ODD[kind]()), 2))
    assert tiny_learner([Checkpoint()], dls=dls, path=tmp_path).fit(1).epochs_run == 1


def test_a_function_whose_closure_is_not_filled_yet_is_described():
    def made():
        def loss(p, y):
            return later(p, y)

        told = described(loss)
        later = F.cross_entropy
        return told

    assert 'loss' in str(made())
