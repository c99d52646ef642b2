"Images that cannot be read: left out, counted and listed, or an error that names them."

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import one_line
from tests.parallel.ranks import on_ranks
from trickbag.all import EMA, Callback, DataLoaders
from trickbag.cli import main
from trickbag.data.decode import ImageError
from trickbag.data.image_loader import ImageLoader
from trickbag.data.sources import FileSource
from trickbag.data.store import Store
from trickbag.testing.proofs import StopAt, tiny_learner, tiny_model, weights

BAD = [3, 4, 10]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'pictures'
    folder.mkdir()
    paths = [folder / f'{i:02d}.jpg' for i in range(12)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return [str(path) for path in paths]


def spoil(files, numbers=BAD):
    for i in numbers:
        Path(files[i]).write_bytes(Path(files[i]).read_bytes()[:300])


def loader(files, keep, max_bad=0.5, bs=4):
    return ImageLoader(Store(FileSource(files, list(range(len(files)))), 16, keep, 2, max_bad), bs)


@pytest.mark.parametrize('keep', ['none', 'memory', 'disk'])
def test_the_others_are_as_they_were(files, keep):
    whole = {int(i): image for images, _, idx in loader(files, 'none') for image, i in zip(images, idx, strict=True)}
    spoil(files)
    bad = loader(files, keep)
    # the second pass reads what the first one kept, and another loader what is on disk
    for dl in (bad, bad, loader(files, keep)):
        batches = list(dl)
        assert [idx.tolist() for _, _, idx in batches] == [[0, 1, 2], [5, 6, 7], [8, 9, 11]]
        for images, labels, idx in batches:
            assert torch.equal(labels, idx) and images.is_contiguous(memory_format=torch.channels_last)
            assert all(torch.equal(image, whole[int(i)]) for image, i in zip(images, idx, strict=True))
        assert sorted(dl.store.bad) == BAD and all(files[i] in dl.store.bad[i] for i in BAD)


def test_a_file_that_can_be_read_again_is_back(files):
    good = Path(files[3]).read_bytes()
    spoil(files)
    dl = loader(files, 'memory')
    list(dl)
    Path(files[3]).write_bytes(good)
    assert next(iter(dl))[2].tolist() == [0, 1, 2, 3] and sorted(dl.store.bad) == [4, 10]


def test_too_many(files):
    spoil(files)
    assert len(list(loader(files, 'memory', max_bad=0.25))) == 3
    one_line(lambda: list(loader(files, 'memory', max_bad=0.2)), files[3], '3 of 12 images', 'the share of 0.2')
    spoil(files, [0, 1, 2])
    with pytest.raises(ImageError, match='00.jpg: .*; none of the 4 images of this batch can be read'):
        list(loader(files, 'memory', max_bad=1))
    with pytest.raises(ImageError, match='0[0-3].jpg: not a readable image'):
        list(loader(files, 'memory', max_bad=None))


def learner(files, *cbs, bs=3, **kw):
    labels = [i % 2 for i in range(12)]
    is_valid = [i > 7 for i in range(12)]
    dls = DataLoaders.from_lists(
        files, labels, is_valid, size=12, bs=bs, presize=16, drop_last=False, on_error='skip', max_bad=0.5, **kw
    )
    torch.manual_seed(0)
    return tiny_learner([EMA(), *cbs], dls, tiny_model(2))


def rows(learn):
    return [{k: v for k, v in row.items() if k != 'time'} for row in learn.history]


@pytest.mark.parametrize('stop', [(0, 1), (1, 0), (1, 2)])
def test_a_run_that_goes_on(files, tmp_path, stop):
    spoil(files)
    whole = learner(files).fit(3)
    assert [row['skipped'] for row in whole.history] == [3, 3, 3]
    learner(files, StopAt(stop, tmp_path / 'stop.pt')).fit(3)
    again = learner(files).fit(3, resume=tmp_path / 'stop.pt')
    assert torch.equal(weights(again), weights(whole)) and rows(again) == rows(whole)
    assert again.cb('SkippedImages').files == whole.cb('SkippedImages').files


def test_the_list_at_the_end(files, capsys):
    spoil(files)
    learner(files).fit(1)
    said = capsys.readouterr().out
    assert 'SkippedImages: 3 could not be read and were left out:' in said and all(files[i] in said for i in BAD)


class AfterOneBatch(Callback):
    "What is known of bad images after the first batch of a fit"

    monitor = True

    def after_batch(self, learn):
        if learn.training and not learn.iter and not learn.epoch:
            self.found = learn.cb('SkippedImages').state_dict()['files']


def test_a_second_fit_counts_anew(files):
    good = [Path(file).read_bytes() for file in files]
    spoil(files)
    look = AfterOneBatch()
    learn = learner(files, look)
    learn.fit(1)
    for file, content in zip(files, good, strict=True):
        Path(file).write_bytes(content)
    learn.fit(1)
    assert look.found == {} and learn.history[-1]['skipped'] == 0


class Sizes(Callback):
    monitor = True

    def __init__(self):
        self.n = 0

    def before_batch(self, learn):
        self.n += len(learn.xb) * learn.training


def train(rank, files):
    sizes = Sizes()
    learn = learner(files, sizes, bs=4).fit(2)
    return [row['skipped'] for row in learn.history], sizes.n, weights(learn)


def test_two_processes_count_together(files, tmp_path):
    spoil(files)
    (skipped, n, end), (other_skipped, other_n, other_end) = on_ranks(2, tmp_path, train, files)
    assert skipped == other_skipped == [3, 3]
    # of eight training images two are bad
    assert n + other_n == 2 * 6
    assert torch.equal(end, other_end)


def test_files_that_are_named_are_never_left_out(files):
    spoil(files)
    learn = learner(files).fit(1)
    with pytest.raises(ImageError, match='not a readable image'):
        learn.get_preds(learn.dls.test_dl(files))


def test_a_decompression_bomb_is_named(files):
    # a few kB that become 200 MB
    Image.new('1', (20_000, 10_000)).save(files[5], 'png')
    dl = loader(files, 'memory')
    assert 5 not in torch.cat([idx for _, _, idx in dl]) and 'decompression bomb' in dl.store.bad[5]
    assert Path(files[5]).stat().st_size < 100_000 and files[5] in dl.store.bad[5]


def test_the_command(files, capsys):
    folder = str(Path(files[0]).parent)
    main(['check', folder])
    # of 20 x 20 pixels all are small
    assert '12 images looked at' in (said := capsys.readouterr().out) and '12 oddly shaped' in said
    spoil(files)
    with pytest.raises(SystemExit) as e:
        main(['check', folder])
    assert e.value.code == 1 and '3 cannot be decoded' in (said := capsys.readouterr().out) and files[3] in said
