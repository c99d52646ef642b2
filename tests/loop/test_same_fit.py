"How a checkpoint describes the data and the loss of its fit: the same ones alike, others differently."

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trickbag.all import Checkpoint, DataLoaders, FileSource, ImageLoader, Store
from trickbag.loop.same_fit import describe_data, described
from trickbag.testing.proofs import tiny_learner


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
