"How a checkpoint describes the data and the loss of its fit: the same ones alike, others differently."

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import check_line
from trickbag.all import Checkpoint, DataLoaders, FileSource, ImageLoader, Store
from trickbag.loop.same_fit import describe_data, described
from trickbag.testing.proofs import StopAt, tiny_learner


def test_another_presize_is_another_fit():
    source = FileSource([np.full((20, 20, 3), i, 'uint8') for i in range(8)], [0, 1] * 4)
    small, large = (describe_data(ImageLoader(Store(copy.copy(source), P, keep='memory'), 4)) for P in (16, 24))
    assert (small['presize'], large['presize']) == (16, 24)


class Holds(torch.utils.data.Dataset):
    "A dataset that keeps something with an entry for each of its samples"

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.zeros(3, 8, 8), i % 4


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


def mlp(rate=0.1, act=nn.ReLU, n_out=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), act(), nn.Dropout(rate), nn.Linear(8, n_out))


class Activation(nn.Module):
    "Its activation is a function"

    def __init__(self, f):
        super().__init__()
        self.layer = mlp()
        self.f = f

    def forward(self, x):
        return self.layer(self.f(x))


@pytest.mark.parametrize(
    'then,now,text',
    [
        (mlp, lambda: mlp(0.9), 'layer 3: p=0.1 then, 0.9 now'),
        (mlp, lambda: mlp(act=nn.GELU), 'layer 2: ReLU then, GELU now'),
        (mlp, lambda: mlp(act=lambda: nn.LeakyReLU(0.3)), 'layer 2: ReLU then, LeakyReLU now'),
        (
            lambda: mlp(act=lambda: nn.LeakyReLU(0.1)),
            lambda: mlp(act=lambda: nn.LeakyReLU(0.3)),
            'layer 2: negative_slope=0.1 then, 0.3 now',
        ),
        (mlp, lambda: nn.Sequential(*mlp(), nn.Hardtanh()), 'layer 5: Hardtanh now, not then'),
        (lambda: Activation(F.relu), lambda: Activation(F.silu), 'the model: f.function=relu then, silu now'),
        # shapes are named as shapes
        (mlp, lambda: mlp(n_out=5), 'size mismatch in 2 of 4'),
    ],
    ids=['rate', 'class', 'class of a family', 'slope', 'layer', 'function', 'shape'],
)
def test_another_model_of_the_same_shapes_is_another_fit(then, now, text, tmp_path):
    file = tmp_path / 'f.pt'
    tiny_learner(model=then()).fit(2, cbs=StopAt((0, None), file))
    with pytest.raises(ValueError) as e:
        tiny_learner(model=now()).fit(2, resume=file)
    check_line(e.value, text)
    assert tiny_learner(model=then()).fit(2, resume=file).epochs_run == 2


def test_wrappers_and_counters_do_not_make_another_model(tmp_path):
    class Counts(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.layer = mlp()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    file = tmp_path / 'f.pt'
    learn = tiny_learner(model=Counts())
    learn.fit(1), learn.fit(2, cbs=StopAt((0, None), file))
    learn = tiny_learner(model=Counts())
    assert learn.fit(1, resume=file).fit(2, resume=file).epochs_run == 3
    file = tmp_path / 'g.pt'
    tiny_learner(model=mlp(act=lambda: nn.ReLU(inplace=True))).fit(2, cbs=StopAt((0, None), file))
    compiled = torch.compile(mlp(), backend='eager')
    assert tiny_learner(model=compiled).fit(2, resume=file).epochs_run == 2


def test_other_labels_are_named_by_what_differs(tmp_path):
    file = tmp_path / 'f.pt'
    x = torch.zeros(8, 3, 8, 8)

    def learner(shift):
        data = torch.utils.data.TensorDataset(x, (torch.arange(8) + shift) % 4)
        return tiny_learner(dls=DataLoaders(torch.utils.data.DataLoader(data, 4)))

    learner(0).fit(2, cbs=StopAt((0, None), file))
    with pytest.raises(ValueError, match=r'train.samples.tensors\[1\]=torch.int64 \(8,\), \w+ then, torch') as e:
        learner(1).fit(2, resume=file)
    assert 'tensors[0]' not in str(e.value) and '...' not in str(e.value)
