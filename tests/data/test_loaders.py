"Loaders: trickbag's own against torch's, and any others that give images and targets."

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset

from tests.helpers import Levels, class_folders, levels, logits, one_line, x, y
from trickbag.all import *
from trickbag.data.image_loader import ImageLoader
from trickbag.testing.proofs import tiny_learner, tiny_model

# Loaders that are not trickbag's


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
    one_line(lambda: learn.fit(1, cbs=OneCycle()), 'OneCycle')


@pytest.mark.parametrize('dl', [None, 5, 'data', x, lambda: [], {}], ids=lambda o: type(o).__name__)
def test_what_is_no_loader(dl):
    one_line(lambda: tiny_learner([], DataLoaders(dl)).fit(1), 'fit: the training loader is', exc=TypeError)
    if dl is not None:
        one_line(lambda: tiny_learner().validate(dl), 'validate: dl is', exc=TypeError)


def test_a_dataset_is_no_loader():
    one_line(lambda: tiny_learner([], DataLoaders(TensorDataset(x, y))).fit(1), 'DataLoader(dataset, batch_size)')


def test_labeled_images_of_another_folder(tmp_path):
    dls = DataLoaders.from_folder(class_folders(tmp_path), size=16, bs=4)
    learn = tiny_learner(dls=dls, model=tiny_model(dls.c), metrics=accuracy)
    files = find_images(tmp_path / 'valid')
    names = [Path(file).parent.name for file in files]
    by_name = dls.test_dl(files, names)
    by_number = dls.test_dl(files, [dls.vocab.index(name) for name in names])
    assert learn.validate(by_name) == learn.validate(by_number)
    assert Interpretation(learn, by_name).targets.tolist() == [dls.vocab.index(name) for name in names]
    with pytest.raises(ValueError, match="'dog' is no class"):
        dls.test_dl(files, ['dog'] * len(files))


def test_no_targets():
    one_line(lambda: tiny_learner([], DataLoaders([(x, None)])).fit(1), 'without targets')


class Shuffled(Sampler):
    def __init__(self):
        pass

    def __len__(self):
        return 22

    def __iter__(self):
        return iter(torch.randperm(22).tolist())


class ShuffledBatches:
    def __len__(self):
        return 2

    def __iter__(self):
        return iter(torch.randperm(22).view(2, 11).tolist())


class Backwards(Shuffled):
    def __iter__(self):
        return iter(range(21, -1, -1))


class Stream(IterableDataset):
    def __iter__(self):
        return zip(x, y)


data = TensorDataset(x, y)


@pytest.mark.parametrize(
    'dl',
    [
        DataLoader(data, 4, sampler=Shuffled()),
        DataLoader(data, batch_sampler=ShuffledBatches()),
        DataLoader(data, batch_sampler=BatchSampler(Shuffled(), 4, False)),
    ],
)
def test_a_sampler_of_ones_own_that_shuffles_is_said(dl):
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match='at random'):
        tiny_learner().get_preds(dl)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    'dl',
    [
        DataLoader(Stream(), 4, drop_last=True),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, True)),
    ],
)
def test_predictions_are_whole_and_in_order(dl):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(tiny_learner().get_preds(dl)[1], y)


class Files(TensorDataset):
    samples = [(f'{i}.png', int(k)) for i, k in enumerate(y)]


def test_files_of_top_losses_follow_the_sampler():
    files = Files(x, y)
    right = F.cross_entropy(logits(), y, reduction='none').argmax().item()
    for kw in (dict(), dict(sampler=Backwards()), dict(batch_sampler=BatchSampler(Backwards(), 4, False))):
        dl = DataLoader(files, **(kw if 'batch_sampler' in kw else kw | dict(batch_size=4)))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert Interpretation(tiny_learner(), dl).top_losses(1).files == [f'{right}.png']
    with pytest.warns(UserWarning, match='at random'):
        assert Interpretation(tiny_learner(), DataLoader(files, 4, sampler=Shuffled())).top_losses(1).files == [None]


# Trickbag's own


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize(
    'kw,says',
    [
        (dict(size='64'), 'size is a number of pixels'),
        (dict(size=(64, 64, 3)), 'size is'),
        (dict(bs=16.0), 'bs is'),
        (dict(threads=-1), 'threads is'),
        (dict(scale=0.5), 'scale is a tuple'),
        (dict(mean=0.5), 'mean is'),
        (dict(valid=None), 'valid_pct'),
        (dict(crop_pct=2), 'crop_pct'),
    ],
    ids=str,
)
def test_bad_values_of_a_loader_are_named(kw, says, folder):
    with pytest.raises(ValueError, match=says):
        DataLoaders.from_folder(folder, **kw)


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


def test_training_images_come_in_another_order_each_time():
    class Named(Levels):
        labels = torch.arange(32) % 2

    source = Named(32)
    source.free.set()
    train = DataLoaders.from_sources(source, None, ['a', 'b'], size=4, presize=4, bs=8, keep='memory').train
    orders = [torch.cat([idx for *_, idx in train]).tolist() for _ in range(2)]
    assert [sorted(o) for o in orders] == [list(range(32))] * 2 and orders[0] != orders[1]
