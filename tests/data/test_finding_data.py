"""What is found is said: nothing is left out, merged or multiplied without a word, and labels are those that the items
have."""

import copy
import os
import pickle
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.datasets import ImageFolder

from tests.helpers import class_folders
from trickbag.all import *
from trickbag.data.datasets import class_index, dataset_labels
from trickbag.data.files import split_idxs
from trickbag.loop.loading import ordered_view
from trickbag.testing.proofs import TinyData, tiny_learner, tiny_model, weights


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8), (value % 256, 40, 90)).save(path, format=None if path.suffix else 'PNG')
    return path


def classes(root, names=('cat', 'dog'), n=4, sides=('train', 'valid')):
    "Pictures in a folder a class"
    for side in sides:
        for name in names:
            for i in range(n):
                image(root / side / name / f'{i}.png', 9 * i)
    return root


def quiet(f):
    "Its result, and that it had nothing to say"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return f()


def told(f, *words):
    "Its result, and one warning that says all of it"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        result = f()
    texts = [str(w.message) for w in ws]
    assert any(all(word in t for word in words) for t in texts), texts
    return result


def refused(f, *words, exc=(ValueError, TypeError, OSError)):
    with pytest.raises(exc) as e:
        f()
    s = str(e.value)
    assert '\n' not in s and all(w in s for w in words), s


def names(files, root):
    return sorted(os.path.relpath(f, root) for f in files)


def folder(root, **kw):
    return DataLoaders.from_folder(root, size=8, bs=4, **kw)


# Which files


def test_the_usual_folder_is_found_without_a_word(tmp_path):
    classes(tmp_path)
    for name in ('labels.csv', 'Thumbs.db', '.DS_Store', 'README', 'a.json'):
        (tmp_path / 'train/cat' / name).write_text('x')
    dls = quiet(lambda: folder(tmp_path))
    ours = ImageFolder(tmp_path / 'train')
    assert (
        dls.vocab == ours.classes
        and list(dls.train.store.source.files) == [f for f, _ in ours.samples]
        and dls.train.labels.tolist() == ours.targets
    )
    assert dls.counts() == dls.counts(train=False) == dict(cat=4, dog=4) and '\n' not in repr(dls)


@pytest.mark.parametrize('suffix', ['.jfif', '.jpe', '.JPG', '.Png', '.jp2', '.avif', '.tga', '.qoi', '.pnm'])
def test_what_pillow_decodes_is_found(tmp_path, suffix):
    kind = Image.registered_extensions()[suffix.lower()]
    if kind not in Image.SAVE:
        pytest.skip('this Pillow does not write it')
    Image.new('RGB', (8, 8)).save(tmp_path / f'a{suffix}', format=kind)
    assert quiet(lambda: find_images(tmp_path)) == [str(tmp_path / f'a{suffix}')]
    assert decode(tmp_path / f'a{suffix}', 4)[1] == (8, 8)


@pytest.mark.parametrize('name', ['a.heic', 'a.npy', 'a.mp4', 'photo', 'a.png~', 'a.jpg '])
def test_other_files_are_counted_by_suffix(tmp_path, name):
    classes(tmp_path)
    (tmp_path / 'train/cat' / name).write_bytes(b'x')
    suffix = os.path.splitext(name)[1]
    dls = told(lambda: folder(tmp_path), '1 file with', suffix or 'without a suffix')
    assert 'left out' in repr(dls) and len(dls.train.store) == 8


def test_a_folder_of_files_that_are_not_read_says_which(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.heic').write_bytes(b'x')
    refused(lambda: find_images(tmp_path), '3 files with suffix .heic', 'pillow_heif')


def test_hidden_images_are_said(tmp_path):
    (
        image(tmp_path / 'a.png'),
        image(tmp_path / '.b.png'),
        image(tmp_path / '.net/c.png'),
        image(tmp_path / '.ipynb_checkpoints/a.png'),
    )
    assert names(told(lambda: find_images(tmp_path), '2 hidden images'), tmp_path) == ['a.png']


def test_what_is_no_file_is_said(tmp_path):
    image(tmp_path / 'a.png')
    os.mkfifo(tmp_path / 'pipe.png')
    os.symlink('nowhere.png', tmp_path / 'gone.png')
    os.symlink('loop.png', tmp_path / 'loop.png')
    (tmp_path / 'folder.png').mkdir()
    image(tmp_path / 'folder.png/b.png')
    assert names(told(lambda: find_images(tmp_path), '3 links that lead nowhere'), tmp_path) == [
        'a.png',
        'folder.png/b.png',
    ]


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    classes(tmp_path, sides=['train'])
    scan = os.scandir

    def closed(path):
        if str(path).endswith('dog'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', closed)
    assert len(told(lambda: find_images(tmp_path), '1 folders that cannot be read', 'dog')) == 4


def test_paths_that_are_no_folders(tmp_path, monkeypatch):
    f = image(classes(tmp_path) / 'a.png')
    for call in (
        lambda: find_images(f),
        lambda: folder(f),
        lambda: folder(f, valid_pct=0.2),
        lambda: DataLoaders.from_csv(f),
    ):
        refused(call, 'is a file')
    refused(lambda: find_images(tmp_path / 'x'), 'there is no folder')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(folder('~').train.store) == 8


# Links


def test_links_upwards_and_loops_multiply_nothing(tmp_path):
    classes(tmp_path, sides=['.'])
    os.symlink(tmp_path, tmp_path / 'cat/up')
    os.symlink(tmp_path.parent, tmp_path / 'dog/higher')
    os.symlink(tmp_path / 'cat', tmp_path / 'dog/other')
    (tmp_path / 'a').mkdir(), (tmp_path / 'b').mkdir()
    os.symlink(tmp_path / 'b', tmp_path / 'a/to_b'), os.symlink(tmp_path / 'a', tmp_path / 'b/to_a')
    image(tmp_path.parent / 'beside.png')
    files = told(lambda: find_images(tmp_path), '2 links that point upwards', '3 links to what was found already')
    assert names(files, tmp_path) == [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(4)]
    (tmp_path.parent / 'beside.png').unlink()


def test_linked_class_folders_are_classes(tmp_path):
    classes(tmp_path / 'pool', sides=['.'])
    for side in ('train', 'valid'):
        (tmp_path / side).mkdir()
    for side in ('train', 'valid'):
        for c in ('cat', 'dog'):
            os.symlink(tmp_path / 'pool' / c, tmp_path / side / c)
    dls = told(lambda: folder(tmp_path), '8 files are in training and in validation')
    assert dls.vocab == ['cat', 'dog'] and dls.counts() == dict(cat=4, dog=4)


def test_a_file_linked_twice_is_found_once_and_where_it_lies(tmp_path):
    image(tmp_path / 'z/real.png')
    image(tmp_path / 'pool.d/x.png')
    (tmp_path / 'in').mkdir()
    os.symlink(tmp_path / 'z/real.png', tmp_path / 'in/a.png')
    os.rename(tmp_path / 'pool.d', tmp_path.parent / 'pool.d')
    for n in 'bc':
        os.symlink(tmp_path.parent / 'pool.d/x.png', tmp_path / f'in/{n}.png')
    assert names(told(lambda: find_images(tmp_path), '2 links to what was found already'), tmp_path) == [
        'in/b.png',
        'z/real.png',
    ]


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_one_file_on_both_sides_under_two_names_is_said(tmp_path, link):
    classes(tmp_path)
    link(tmp_path / 'train/cat/0.png', tmp_path / 'valid/cat/copy.png')
    told(lambda: folder(tmp_path), '1 files are in training and in validation')


def test_files_listed_twice_are_said():
    def lists(files, labels, **kw):
        return DataLoaders.from_lists(files, labels, [False] * len(files), size=8, verify=False, **kw)

    told(lambda: lists(['a', 'b', 'a'], ['x', 'y', 'x']), '1 files are listed more than once')
    told(lambda: lists(['a', 'b', 'a'], ['x', 'y', 'y']), 'more than one label')
    quiet(lambda: lists(['a', 'b', 'a'], ['x', 'y', 'y'], boxes=[(0, 0, 4, 4), (0, 0, 4, 4), (4, 4, 8, 8)]))


# Classes


@pytest.mark.parametrize('inside', ['monday', 'monday/morning'])
def test_the_class_is_the_folder_under_train(tmp_path, inside):
    for side in ('train', 'valid'):
        for c in ('cat', 'dog'):
            (
                image(tmp_path / side / c / inside / 'a.png'),
                image(tmp_path / side / c / 'tuesday/b.png'),
                image(tmp_path / side / c / 'c.png'),
            )
    dls = told(lambda: folder(tmp_path), 'folders within folders', "label='outer'")
    ours = ImageFolder(tmp_path / 'train')
    assert dls.vocab == ours.classes and dls.counts() == dict(cat=3, dog=3)
    assert dict(zip(dls.train.store.source.files, dls.train.labels.tolist())) == dict(ours.samples)
    assert quiet(lambda: folder(tmp_path, label='outer')).vocab == ['cat', 'dog']
    assert set(quiet(lambda: folder(tmp_path, label='inner')).vocab) == {'cat', 'dog', 'tuesday', inside.split('/')[-1]}


@pytest.mark.parametrize(
    'paths,vocab',
    [
        (['cat/{}', 'dog/{}'], ['cat', 'dog']),
        (['images/cat/{}', 'images/dog/{}'], ['cat', 'dog']),  # one folder holds everything
        (['cat/images/{}', 'dog/images/{}'], ['cat', 'dog']),  # the inner ones cannot be the classes
        (['train/cat/{}', 'train/dog/{}', 'val/cat/{}', 'val/dog/{}'], ['cat', 'dog']),
        (['cat/monday/{}', 'cat/tuesday/{}', 'dog/monday/{}', 'dog/tuesday/{}'], None),  # nobody can tell
        (['animals/cat/{}', 'plants/rose/{}'], None),
        (['cat/{}', 'cat/more/{}', 'dog/{}'], ['cat', 'dog']),
    ],
)
def test_classes_of_a_random_split(tmp_path, paths, vocab):
    for p in paths:
        for i in range(4):
            image(tmp_path / p.format(f'{i}.png'))
    if vocab is None:
        refused(lambda: folder(tmp_path, valid_pct=0.25), "label='outer'", "label='inner'")
        assert folder(tmp_path, valid_pct=0.25, label='outer').vocab == sorted({p.split('/')[0] for p in paths})
        assert folder(tmp_path, valid_pct=0.25, label='inner').vocab == sorted({p.split('/')[1] for p in paths})
    else:
        assert folder(tmp_path, valid_pct=0.25).vocab == vocab


def test_images_in_no_class_folder_are_left_out_and_said(tmp_path):
    image(classes(tmp_path) / 'train/stray.png')
    dls = told(lambda: folder(tmp_path), '1 images lie in no class folder', 'stray.png')
    assert dls.vocab == ['cat', 'dog'] and len(dls.train.store) == 8 and 'stray.png' in repr(dls)


def test_empty_folders_and_classes_of_one_side(tmp_path):
    classes(tmp_path)
    (tmp_path / 'train/emu').mkdir(), (tmp_path / 'valid/emu').mkdir()
    told(lambda: folder(tmp_path), 'no images in', 'train/emu')
    told(lambda: folder(tmp_path), 'no images in', 'valid/emu')
    image(tmp_path / 'train/emu/a.png')
    told(lambda: folder(tmp_path), '1 of 3 classes have no validation images', 'emu')
    os.rename(tmp_path / 'train/emu/a.png', tmp_path / 'valid/emu/a.png')
    refused(lambda: folder(tmp_path), "'emu'", 'no training image')


@pytest.mark.parametrize(
    'a,b',
    [
        ('Cat', 'cat'),
        ('cat', 'cat '),
        ('great dane', 'great_dane'),
        (unicodedata.normalize('NFC', 'caf\u00e9'), unicodedata.normalize('NFD', 'caf\u00e9')),
        ('1', 1),
    ],
)
def test_classes_that_look_alike(a, b):
    files = [f'{i}.jpg' for i in range(4)]
    told(lambda: DataLoaders.from_lists(files, [a, b, a, b], [0, 0, 1, 1], size=8, verify=False), 'differ only in')
    refused(
        lambda: DataLoaders.from_lists(files, [a, 'x', a, b], [0, 0, 1, 1], size=8, verify=False), 'written otherwise'
    )


def test_letters_and_numbers_are_different_classes():
    quiet(lambda: DataLoaders.from_lists(list('abcd'), ['a', 'A', '-1', '1'], [0] * 4, size=8, verify=False))


@pytest.mark.parametrize(
    'label,word',
    [
        (['x'], 'one class'),
        (['x', 'y'], 'not several'),
        (('x',), 'one class'),
        ({'x'}, 'one class'),
        ({'x': 1}, 'one class'),
        (np.eye(3)[1], 'argmax'),
        (torch.eye(3)[1], 'argmax'),
        (0.5, 'fraction'),
        (np.float32(0.5), 'fraction'),
        (torch.tensor(2.5), 'fraction'),
        (None, 'no label'),
        (float('nan'), 'no label'),
        (np.nan, 'no label'),
        (pd.NA, 'no label'),
        (pd.NaT, 'no label'),
        ('', 'no label'),
        ('  ', 'no label'),
        (np.datetime64('NaT'), 'no label'),
    ],
)
def test_what_is_no_label(label, word):
    refused(lambda: DataLoaders.from_lists(['a', 'b', 'c'], ['x', 'y', label], size=8), 'from_lists', 'c has', word)


@pytest.mark.parametrize(
    'files,labels',
    [
        ('ab', ['x', 'y']),
        (['a', 'b'], 'xy'),
        (['a', 'b'], {'a': 1, 'b': 2}),
        ({'a', 'b'}, ['x', 'y']),
        (pd.DataFrame(dict(f=['a'])), ['x']),
    ],
)
def test_what_are_no_lists(files, labels):
    refused(lambda: DataLoaders.from_lists(files, labels, size=8), 'from_lists')


@pytest.mark.parametrize(
    'labels',
    [
        [0, 1, 0, 1],
        [np.int64(0), np.int32(1)] * 2,
        torch.tensor([0, 1, 0, 1]),
        np.array([0.0, 1.0, 0.0, 1.0]),
        [False, True] * 2,
        pd.Series([3, 5, 3, 5]),
        pd.Categorical(['a', 'b'] * 2),
    ],
)
def test_labels_in_any_guise(labels):
    assert DataLoaders.from_lists(list('abcd'), labels, [0, 0, 1, 1], size=8, verify=False).train.labels.tolist() == [
        0,
        1,
    ]


def test_a_vocab_must_fit():
    def lists(vocab, labels=('x', 'y', 'x')):
        return DataLoaders.from_lists(list('abc'), labels, [0, 0, 1], size=8, verify=False, vocab=vocab)

    dls = lists(['y', 'x'])
    assert dls.vocab == ['y', 'x'] and dls.train.labels.tolist() == [1, 0]
    refused(lambda: lists(['x', 'z']), "'y'", 'not in vocab')
    told(lambda: lists(['x', 'y', 'z']), 'no training images', 'z')
    src = FileSource(['a', 'b'], [0, 2])
    refused(lambda: DataLoaders.from_sources(src, None, ['x', 'y'], size=8), 'index 2', '2 names')
    refused(lambda: DataLoaders.from_sources(src, None, 'xyz', size=8), 'a list of class names')


def test_a_class_without_images_is_said(tmp_path):
    class_folders(tmp_path)
    (tmp_path / 'train' / 'c').mkdir()
    with pytest.warns(UserWarning, match='no images in .*c'):
        dls = DataLoaders.from_folder(tmp_path, size=16)
    assert dls.vocab == ['a', 'b'] and '; images in memory' in repr(dls)


@pytest.mark.parametrize('n,held', [(3, 1), (7, 1), (8, 2), (12, 2), (13, 3)])
def test_a_share_of_a_class_is_rounded_to_the_nearest(n, held):
    _, valid = split_idxs(['a'] * n + ['b'] * 5, 0.2)
    assert sum(i < n for i in valid) == held and sum(i >= n for i in valid) == 1


# Datasets


class Pictures(Dataset):
    "Labels as given; the picture is the number of the item"

    def __init__(self, own, **attributes):
        self.__dict__.update(own=own, **attributes)

    def __len__(self):
        return len(self.own)

    def __getitem__(self, i):
        return Image.new('RGB', (8, 8), (i % 256, 0, 0)), self.own[i]


def from_dataset(*ds, **kw):
    return DataLoaders.from_dataset(*ds, size=8, bs=4, **kw)


def test_target_transform_is_applied(tmp_path):
    classes(tmp_path, 'abcd', sides=['.'])
    ds = ImageFolder(tmp_path, target_transform=lambda y: y // 2)
    dls = told(lambda: from_dataset(ds), 'target_transform', 'vocab')
    assert dls.vocab == ['0', '1']
    for d in (ds, Subset(ds, range(0, 16, 2)), ConcatDataset([ds, Subset(ds, [15, 0])])):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dls = from_dataset(d, vocab=['ab', 'cd'])
        for dl in (dls.train, dls.valid):
            assert dl.labels.tolist() == [d[i][1] for i in dl.store.source.idxs]
    same = ImageFolder(tmp_path, target_transform=torch.tensor)
    assert quiet(lambda: from_dataset(same)).vocab == list('abcd')  # another type, the same labels


@pytest.mark.parametrize(
    'attributes',
    [
        dict(targets=[0] * 6),
        dict(labels=['a'] * 6),
        dict(labels=[5] * 6),
        dict(targets=torch.zeros(6)),
        dict(targets=[[0, 1]] * 6),
        dict(targets=[0, 1] * 2 + [1, 1]),
    ],
)
def test_listed_labels_are_compared_with_the_items(attributes):
    ds = Pictures([0, 1] * 3, **attributes)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert dataset_labels(ds) == [0, 1] * 3


def test_a_list_that_differs_is_said():
    told(lambda: dataset_labels(Pictures([0, 1] * 3, targets=[0, 1] * 2 + [1, 1])), 'item 4', 'all 6 items are read')
    assert quiet(lambda: dataset_labels(Pictures([0, 1] * 3, targets=np.array([0, 1] * 3)))) == [0, 1] * 3


def test_an_item_that_no_sample_showed_is_noticed_when_it_is_read():
    own = [0, 1] * 200
    flatten = list(own)
    flatten[5] = 0
    ds = Pictures(own, targets=flatten)
    assert quiet(lambda: dataset_labels(ds)) == flatten  # item 5 is not among those looked at
    dl = ImageLoader(Store(DatasetSource(ds), 8), 4)
    refused(lambda: list(dl), 'item 5', 'has the label 1', 'lists 0')


@pytest.mark.parametrize(
    'label,index',
    [
        (np.int64(2), 2),
        (np.uint8(2), 2),
        (torch.tensor(2), 2),
        (torch.tensor([2]), 2),
        (np.array(2), 2),
        (True, 1),
        (np.bool_(True), 1),
        (2.0, 2),
        ('two', 'two'),
        (np.str_('two'), 'two'),
    ],
)
def test_class_index(label, index):
    assert class_index(label) == index and type(class_index(label)) is type(index)


@pytest.mark.parametrize(
    'label',
    [
        0.7,
        None,
        float('nan'),
        torch.tensor(0.7),
        [0, 1],
        (0, 1),
        np.eye(3)[0],
        torch.eye(3)[0],
        {'a': 1},
        pd.NA,
        object(),
    ],
)
def test_what_is_no_class_index(label):
    refused(lambda: from_dataset(Pictures([label, 0])), 'from_dataset', 'must be class indices or names')


def test_labels_may_be_names():
    dls = from_dataset(Pictures(['cat', 'dog'] * 4), Pictures(['dog', 'cat']))
    assert dls.vocab == ['cat', 'dog'] and dls.valid.labels.tolist() == [1, 0] and len(list(dls.valid)) == 1
    refused(lambda: from_dataset(Pictures(['cat', 'dog']), Pictures(['emu', 'cat'])), "'emu'")
    refused(lambda: from_dataset(Pictures(['cat', 1])), 'names and some are numbers')


def test_classes_must_be_the_same(tmp_path):
    classes(tmp_path, ('cat', 'dog'), sides=['a'])
    classes(tmp_path, ('bat', 'cat'), sides=['b'])
    a = ImageFolder(tmp_path / 'a')
    b = ImageFolder(tmp_path / 'b')
    refused(lambda: from_dataset(a, b), "'cat' and 'bat'", 'one index means two things')
    refused(lambda: from_dataset(ConcatDataset([a, b])), 'one index means two things')
    assert from_dataset(
        Subset(a, range(8)), Subset(ImageFolder(tmp_path / 'a', target_transform=int), [0, 7]), vocab=['x', 'y']
    ).vocab == ['x', 'y']
    told(lambda: from_dataset(Subset(a, range(6)), Subset(a, range(4, 8))), '2 items are in training and in validation')
    quiet(lambda: from_dataset(Subset(a, [0, 1, 6, 7]), Subset(a, [2, 3, 4, 5])))


def test_items_that_are_dicts():
    class Dicts(Pictures):
        def __getitem__(self, i):
            return dict(zip(('image', 'label'), super().__getitem__(i)))

    ds = Dicts([0, 1] * 4)
    refused(lambda: from_dataset(ds), "'image', 'label'", 'keys=')
    refused(lambda: from_dataset(ds, keys=('img', 'label')), "no 'img'")
    dls = from_dataset(ds, keys=('image', 'label'))
    assert (
        dls.train.labels.tolist() == [ds[i]['label'] for i in dls.train.store.source.idxs]
        and next(iter(dls.train))[0].shape[0] == 4
    )


def test_what_is_no_dataset_of_pictures():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    class Bare(Pictures):
        def __getitem__(self, i):
            return super().__getitem__(i)[0]

    for ds in (Stream(), DataLoader(Pictures([0, 1])), iter([]), 'path', {'train': 1}):
        refused(lambda: from_dataset(ds), 'from_dataset')
    refused(lambda: from_dataset(Bare([0, 1])), 'must be (PIL image')
    refused(lambda: from_dataset([(0, Image.new('RGB', (8, 8)))] * 2), '(int, Image)')


# Predictions


@pytest.fixture
def trained(tmp_path):
    classes(tmp_path, n=7)
    for i, f in enumerate(find_images(tmp_path / 'train')):
        image(type(tmp_path)(f), 17 * i)
    learn = Learner(folder(tmp_path), tiny_model(2), device='cpu')
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
    return learn


def test_predictions_of_the_training_set_are_one_an_image_in_the_order_of_the_files(trained):
    dls = trained.dls
    assert dls.train.shuffle and len(dls.train) * 4 < 14
    whole = trained.get_preds(ImageLoader(dls.train.store, 14))
    i = Interpretation(trained, dls.train)
    for p, t in (trained.get_preds(dls.train), (i.probs, i.targets)):
        assert torch.equal(t, dls.train.labels) and torch.allclose(p, whole[0], atol=1e-6)
    assert torch.equal(i.idxs, torch.arange(14)) and torch.equal(trained.tta(dls.train)[1], dls.train.labels)
    n = []

    class Count(Callback):
        def after_batch(self, learn):
            n.append(len(learn.xb))

    trained.validate(dls.train, cbs=Count())
    assert sum(n) == 14


@pytest.mark.parametrize(
    'kw',
    [
        dict(shuffle=True),
        dict(drop_last=True),
        dict(shuffle=True, drop_last=True),
        dict(shuffle=True, num_workers=1, prefetch_factor=3),
    ],
)
def test_a_torch_loader_is_read_in_order(kw):
    data = TensorDataset(torch.randn(11, 3, 8, 8), torch.arange(11) % 4)
    learn = tiny_learner()
    p, t = quiet(lambda: learn.get_preds(DataLoader(data, 4, **kw)))
    q, u = learn.get_preds(DataLoader(data, 4))
    assert torch.equal(t, u) and torch.equal(p, q) and len(t) == 11


def test_loaders_that_have_no_order_are_said():
    data = TensorDataset(torch.randn(11, 3, 8, 8), torch.arange(11) % 4)

    class Own(DataLoader):
        pass

    for dl in (
        DataLoader(data, 4, sampler=WeightedRandomSampler([1.0] * 11, 11)),
        DataLoader(data, 4, sampler=RandomSampler(data, replacement=True)),
        Own(data, 4, shuffle=True),
        Own(data, 4, drop_last=True),
        DataLoader(data, batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 11, 11), 4, False)),
    ):
        told(lambda: tiny_learner().get_preds(dl), 'not known which image', 'DataLoader(dl.dataset')
    for dl in (DataLoader(data, 4), DataLoader(data, 11, drop_last=True), [next(iter(DataLoader(data, 4)))]):
        assert quiet(lambda: ordered_view(dl, 'x')) is dl
    told(
        lambda: tiny_learner(dls=DataLoaders(DataLoader(data, 4), DataLoader(data, 4, drop_last=True))).fit(1),
        'validation loader leaves 3 samples out',
    )


class Says(list):
    "Batches, and a length of its own"

    def __init__(self, batches, n):
        super().__init__(batches)
        self.n = n

    def __len__(self):
        return self.n


@pytest.mark.parametrize('n', [1, 9])
def test_a_length_that_is_wrong_is_said_once(n):
    batches = list(TinyData().train)
    with pytest.warns(UserWarning, match=f'{n} batches .* gave {len(batches)} in epoch 0') as ws:
        tiny_learner(dls=DataLoaders(Says(batches, n))).fit(3)
    assert len([w for w in ws if 'batches' in str(w.message)]) == 1
    quiet(lambda: tiny_learner(dls=DataLoaders(batches)).fit(2))

    class Stop(Callback):
        def after_batch(self, learn):
            raise CancelEpoch

    quiet(lambda: tiny_learner([Stop()], dls=DataLoaders(batches)).fit(2))  # whoever stops an epoch knows


def test_samples_have_names(tmp_path, monkeypatch):
    classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    dls = folder('.')
    xb, yb, idx = dls.one_batch()
    os.chdir('/')
    for x, y, i in zip(xb, yb, idx):
        assert f'/train/{dls.vocab[y]}/' in dls.name(i, train=True) and torch.equal(
            decode(dls.name(i, train=True), x.shape[-1])[0].permute(2, 0, 1), x
        )
    assert dls.valid.name(0) == f'{tmp_path}/./valid/cat/0.png'.replace('/./', '/') or os.path.samefile(
        dls.valid.name(0), tmp_path / 'valid/cat/0.png'
    )
    ds = ImageFolder(tmp_path / 'train')
    assert from_dataset(Subset(ds, range(8)), valid_pct=0.25).train.name(0) in [f for f, _ in ds.samples]
    with pytest.raises(IndexError):
        dls.valid.name(8)


def test_relative_names_stay_right_elsewhere(tmp_path, monkeypatch):
    classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    dls = folder('.', keep='none')
    os.chdir('/')
    assert len(list(dls.valid)) == 1


# Arguments


@pytest.mark.parametrize(
    'make,own',
    [
        (lambda **kw: DataLoaders.from_folder('x', **kw), 'from_folder'),
        (lambda **kw: DataLoaders.from_lists(['a'], ['b'], **kw), 'from_lists'),
        (lambda **kw: DataLoaders.from_csv('x', **kw), 'from_csv'),
        (lambda **kw: DataLoaders.from_df(None, **kw), 'from_df'),
        (lambda **kw: DataLoaders.from_rows([], **kw), 'from_rows'),
        (lambda **kw: DataLoaders.from_dataset(None, **kw), 'from_dataset'),
        (lambda **kw: DataLoaders.from_sources(None, None, None, **kw), 'from_sources'),
    ],
)
def test_unknown_arguments_are_answered(make, own):
    for given, right in (
        ('num_workers', 'threads='),
        ('batch_size', 'bs='),
        ('image_size', 'size='),
        ('img_size', 'size='),
        ('item_tfms', 'size='),
        ('sise', 'size='),
        ('val_bs', 'valid_bs='),
        ('shuffle', 'always shuffled'),
        ('pin_memory', 'pinned'),
        ('transform', 'callbacks'),
        ('qqq', 'there are'),
    ):
        refused(lambda: make(**{given: 4}), f'DataLoaders.{own}:', repr(given), right, exc=TypeError)


def test_unknown_arguments_of_plain_loaders():
    refused(lambda: DataLoaders([], batch_size=4), 'DataLoaders:', 'from_folder', exc=TypeError)
    refused(lambda: ImageLoader(None, batch_size=4), 'ImageLoader:', 'bs=', exc=TypeError)
    refused(lambda: DataLoaders.from_folder('x', is_valid=[1]), 'from_folder', exc=TypeError)
    refused(lambda: DataLoaders.from_sources(None, None, None, size=(3, 4, 5)), 'size is a number')


@pytest.mark.parametrize(
    'box,word',
    [
        ((4, 0, 2, 8), 'x1 > x0'),
        ((0, 4, 8, 4), 'y1 > y0'),
        ((0, 0, 4), 'four numbers'),
        ((0, 0, float('nan'), 4), 'empty entry'),
        (5, 'four numbers'),
    ],
)
def test_boxes(box, word):
    refused(lambda: FileSource(['a', 'b'], [0, 1], [(0, 0, 1, 1), box]), 'b', word)


# Tables

TABLE = 'file,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n'


@pytest.fixture
def table(tmp_path):
    for n in 'abcd':
        image(tmp_path / f'{n}.png')

    def read(text, **kw):
        (tmp_path / 'labels.csv').write_bytes(
            text if isinstance(text, bytes) else text.replace('DIR', str(tmp_path)).encode()
        )
        return DataLoaders.from_csv(tmp_path, size=8, bs=2, valid_pct=0.5, **kw)

    return read


@pytest.mark.parametrize(
    'text',
    [
        TABLE,
        '\ufeff' + TABLE,
        TABLE.encode('utf-16'),
        TABLE.encode('utf-8-sig'),
        TABLE.encode('utf-32'),
        TABLE.replace('\n', '\r\n'),
        TABLE.replace('\n', '\n\n'),
        TABLE.replace('a.png', '"a.png"'),
        TABLE.replace('a.png', 'DIR/a.png'),
        TABLE.replace('a.png', 'a.png '),
        TABLE.replace('file,label', 'file , label'),
        TABLE.rstrip(),
    ],
)
def test_tables_that_are_read(table, text):
    dls = quiet(lambda: table(text))
    assert (
        dls.vocab == ['cat', 'dog'] and len(dls.train.store) + len(dls.valid.store) == 4 and len(list(dls.train)) == 1
    )


@pytest.mark.parametrize(
    'text,word',
    [
        (TABLE.replace('cat', 'caf\u00e9').encode('latin-1'), "encoding='latin-1'"),
        (TABLE.encode('utf-16-le'), 'utf-16-le'),
        (TABLE.replace(',', ';'), "delimiter=';'"),
        (TABLE.replace(',', '\t'), 'delimiter='),
        (TABLE.replace('label', 'file'), 'more than one column'),
        (TABLE[11:], 'no header'),
        (TABLE.replace('dog\nc', 'dog,x\nc'), 'line 3'),
        (TABLE.replace('a.png,cat', 'a.png'), 'line 2'),
        (TABLE.replace('a.png', '"a.png'), 'quote'),
        (TABLE.replace('a.png', ''), 'no file name'),
        (TABLE.replace('a.png,cat', 'a.png,'), 'no label'),
        (TABLE.replace('.png', ''), "suff='.png'"),
        (TABLE.replace('a.png', 'z.png'), 'no file'),
        ('', 'no rows'),
        ('file,label\n', 'no rows'),
        (',file,label\n0,a.png,cat\n1,b.png,dog\n', 'file_col'),
        (b'PK\x03\x04xxxx', 'from_df'),
    ],
)
def test_tables_that_are_refused(table, text, word):
    refused(lambda: table(text), word)


def test_an_encoding_can_be_given(table):
    assert table(TABLE.replace('cat', 'caf\u00e9').encode('latin-1'), encoding='latin-1').vocab == ['caf\u00e9', 'dog']
    refused(lambda: table(TABLE, encoding='klingon'), 'no encoding')
    assert table(TABLE.replace(',', ';'), delimiter=';').vocab == ['cat', 'dog']


def test_odd_data_frames(tmp_path):
    for n in 'ab':
        image(tmp_path / f'{n}.png')

    def df(d, **kw):
        return DataLoaders.from_df(d, tmp_path, size=8, valid_pct=0.5, stratify=False, **kw)

    ok = pd.DataFrame(dict(file=['a.png', 'b.png'], label=['x', 'y']))
    refused(lambda: df('labels.csv'), 'from_df')
    refused(lambda: df(pd.concat([ok, ok], axis=1)), 'more than one column')
    refused(lambda: df(pd.DataFrame({'Unnamed: 0': [0, 1], **ok})), 'file_col')
    refused(lambda: df(ok.assign(file=['a.png', None])), 'row 2', 'no file name')
    refused(lambda: df(ok.assign(label=['x', pd.NA])), 'no label')
    refused(
        lambda: df(ok.assign(is_valid=False, x0=0, y0=0, x1=[4, None], y1=4), box_cols=['x0', 'y0', 'x1', 'y1']),
        'empty entry',
    )


# Copies


def test_loaders_and_learners_can_be_copied_and_pickled(tmp_path):
    dls = folder(classes(tmp_path))
    want = [x.clone() for x, *_ in dls.valid]
    for copied in (copy.deepcopy(dls), pickle.loads(pickle.dumps(dls))):
        assert (
            all(torch.equal(a, b) for a, (b, *_) in zip(want, copied.valid, strict=True))
            and copied.test_dl([dls.name(0)]).bs == 8
        )
        assert copied.train.store is not dls.train.store and repr(copied) == repr(dls)


@pytest.mark.parametrize(
    'cbs',
    [lambda: [], lambda: [OneCycle(), EMA(half_life=1)], lambda: [During(MixUp(), 0.2)]],
    ids=['none', 'schedule', 'phase'],
)
def test_a_fitted_learner_can_be_copied_and_pickled(cbs):
    learn = tiny_learner(cbs()).fit(1)
    copies = [copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))]
    want = weights(learn.fit(1))
    for c in copies:
        assert torch.equal(want, weights(c.fit(1))) and [repr(cb) for cb in c.cbs] == [repr(cb) for cb in learn.cbs]
