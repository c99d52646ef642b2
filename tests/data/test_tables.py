"Tables and lists of files: which column is what, which rows are for validation."

import warnings

import numpy as np
import pytest
import torch

from tests.helpers import image_files, one_line
from trickbag.all import *
from trickbag.data.tables import read_table


def test_a_column_named_is_valid_is_used(tmp_path):
    p = toy_set(tmp_path / 't', n_classes=3, n_train=24, n_valid=12, size=48)
    dls = DataLoaders.from_csv(p, size=32)
    assert (len(dls.train.store), len(dls.valid.store)) == (24, 12)
    one_line(lambda: DataLoaders.from_csv(p, box_cols='box'), 'four column names')


@pytest.mark.parametrize(
    'marks',
    [
        ['train', 'valid'] * 4,
        ['0', '1'] * 4,
        ['False', 'True'] * 4,
        [0.0, 1.0] * 4,
        np.array([False, True] * 4),
        torch.tensor([False, True] * 4),
        [float('nan'), 1] * 4,
    ],
)
def test_marks_of_validation_in_every_form(marks, tmp_path):
    dls = DataLoaders.from_lists(image_files(tmp_path), list('aabbaabb'), is_valid=marks, size=8, bs=2)
    assert [dls.name(i).rsplit('/')[-1] for i in range(4)] == ['1.png', '3.png', '5.png', '7.png']


def test_marks_that_mean_nothing(tmp_path):
    one_line(
        lambda: DataLoaders.from_lists(image_files(tmp_path), list('aabbaabb'), is_valid=[0, 2] * 4, size=8),
        'from_lists: ',
        '2',
    )


def test_labels_in_several_columns_are_asked_for(tmp_path):
    image_files(tmp_path)
    (tmp_path / 'labels.csv').write_text('file,cat,dog\n' + ''.join(f'{i}.png,{i % 2},{1 - i % 2}\n' for i in range(8)))
    one_line(lambda: DataLoaders.from_csv(tmp_path, size=8), 'label_col', "'cat' and 'dog'")
    assert DataLoaders.from_csv(tmp_path, size=8, bs=2, label_col='dog').vocab == ['0', '1']


def test_a_split_that_is_not_used_is_said(tmp_path):
    image_files(tmp_path)
    (tmp_path / 'labels.csv').write_text(
        'file,label,part\n' + ''.join(f'{i}.png,{"ab"[i % 2]},{"test" if i > 5 else "train"}\n' for i in range(8))
    )
    with pytest.warns(UserWarning, match="valid_col='part'"):
        DataLoaders.from_csv(tmp_path, size=8, bs=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = DataLoaders.from_csv(tmp_path, size=8, bs=2, valid_col='part')
    assert [dls.name(i).rsplit('/')[-1] for i in range(2)] == ['6.png', '7.png']


def test_columns_called_by_numbers(tmp_path):
    rows = [{0: f, 1: 'ab'[i % 2]} for i, f in enumerate(image_files(tmp_path))]
    assert DataLoaders.from_rows(rows, file_col=0, label_col=1, size=8, bs=2).vocab == ['a', 'b']


def test_blanks_around_the_names_of_columns_do_not_count(tmp_path):
    f = tmp_path / 'labels.csv'
    f.write_text('file , label\na.png,cat\n')
    assert read_table(f) == [dict(file='a.png', label='cat')]
