"""From files to a trained classifier: every way in, what is refused, and that nothing about loading changes what is
trained."""

import csv
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import trickbag.data.store
from trickbag.all import *
from trickbag.data.image_loader import ImageLoader
from trickbag.data.loaders import DataLoaders
from trickbag.data.store import Store
from trickbag.testing.proofs import StopAt, weights

NAMES = ['circle', 'square', 'wedge']


def draw(i, k, size=(40, 30)):
    "A little picture of class k"
    from PIL import ImageDraw

    im = Image.new('RGB', size, (20 * i % 200, 60, 90))
    d = ImageDraw.Draw(im)
    b = (8, 6, 24, 22)
    (d.ellipse, d.rectangle, d.pieslice)[k](
        b, **({'start': 0, 'end': 120} if k == 2 else {}), fill=(250, 200, 10 * i % 255)
    )
    return im


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    rows = []
    for split, n in (('train', 8), ('valid', 4)):
        for k, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                f = root / split / name / f'{name}_{i}.jpg'
                draw(i + k, k).save(f, quality=90)
                rows.append(
                    dict(fname=str(f.relative_to(root)), kind=name, is_valid=split == 'valid', x0=8, y0=6, x1=24, y1=22)
                )
    with open(root / 'labels.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    return root


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def learner(dls, cbs=(), **kw):
    learn = Learner(dls, net(), metrics=accuracy, cbs=cbs, lr=1e-2, device='cpu', **kw)
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
    return learn


KW = dict(size=24, bs=5)
WAYS = dict(
    folder=lambda p: DataLoaders.from_folder(p, **KW),
    regex=lambda p: DataLoaders.from_folder(p, valid_pct=0.25, label=r'/([a-z]+)_\d+\.jpg$', **KW),
    function=lambda p: DataLoaders.from_folder(p, label=lambda f: f.stem.split('_')[0], **KW),
    csv=lambda p: DataLoaders.from_csv(p, valid_col='is_valid', **KW),
    boxes=lambda p: DataLoaders.from_csv(p, valid_col='is_valid', box_cols=['x0', 'y0', 'x1', 'y1'], **KW),
    df=lambda p: DataLoaders.from_df(pd.read_csv(p / 'labels.csv'), p, label_col='kind', valid_pct=0.3, **KW),
    lists=lambda p: DataLoaders.from_lists(
        sorted(p.glob('train/*/*.jpg')), [f.parent.name for f in sorted(p.glob('train/*/*.jpg'))], **KW
    ),
)


@pytest.mark.parametrize('way', WAYS)
def test_every_way_in_trains_and_predicts(way, folder):
    dls = WAYS[way](folder)
    assert dls.vocab == NAMES and dls.c == 3
    learn = learner(dls, cbs=[MixUp(), LabelSmoothing()]).fit(2)
    assert 0 <= learn.history[-1]['accuracy'] <= 1
    f = folder / 'train/square/square_0.jpg'
    a = learn.predict(f)
    b = learn.predict(str(f))
    c = learn.predict(Image.open(f))
    assert (
        a[0] in NAMES
        and a[0] == NAMES[a[1]]
        and torch.equal(a[2], b[2])
        and torch.equal(a[2], c[2])
        and a[2].sum() == pytest.approx(1)
    )
    probs, t = learn.get_preds(dls.test_dl([f] * 7))
    assert probs.shape == (7, 3) and t is None


def test_box_is_what_is_seen(folder):
    a = WAYS['csv'](folder)
    b = WAYS['boxes'](folder)
    for d in (a, b):
        next(iter(d.valid))
    assert (a.valid.wh[:4] == torch.tensor([40, 30])).all() and (b.valid.wh[:4] == 16).all()


def test_split_is_a_function_of_the_seed(folder):
    def files(seed):
        return DataLoaders.from_folder(folder, valid_pct=0.25, seed=seed, **KW).valid.store.source.files

    assert files(1) == files(1) != files(2)


def test_torchvision_dataset(tmp_path):
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / 'FashionMNIST/raw'
    raw.mkdir(parents=True)
    g = np.random.default_rng(0)
    for s, n in (('train', 60), ('t10k', 20)):  # a small set in the format of the real one
        (raw / f'{s}-images-idx3-ubyte').write_bytes(
            struct.pack('>IIII', 2051, n, 28, 28) + g.integers(0, 256, n * 784, dtype=np.uint8).tobytes()
        )
        (raw / f'{s}-labels-idx1-ubyte').write_bytes(
            struct.pack('>II', 2049, n) + (np.arange(n) % 10).astype(np.uint8).tobytes()
        )
    dls = DataLoaders.from_dataset(FashionMNIST(tmp_path), FashionMNIST(tmp_path, train=False), size=28, bs=16)
    assert dls.c == 10 and dls.vocab[0] == 'T-shirt/top'
    xb, yb, idx = next(iter(dls.valid))
    assert torch.equal(yb, idx % 10) and torch.equal(xb[:, 0], xb[:, 2])
    learn = Learner(dls, xresnet18(n_out=10, stem='small'), metrics=accuracy, device='cpu')
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
    learn.fit(1)
    assert len(learn.history) == 1


@pytest.mark.parametrize('large', [0, 1_500_000])  # batches are gathered ahead by a thread, or when they are needed
def test_kinds_of_store_and_threads_train_to_the_same_bits(folder, tmp_path, monkeypatch, large):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    monkeypatch.setattr(trickbag.data.store, 'LARGE', large)
    kinds = (('memory', 1), ('memory', 4), ('none', 3), ('disk', 2), ('disk', 2))  # the last: a second run, all there
    ws = [weights(learner(DataLoaders.from_folder(folder, keep=keep, threads=t, **KW)).fit(2)) for keep, t in kinds]
    assert all(torch.equal(ws[0], w) for w in ws[1:])


def disk(folder, tmp_path, monkeypatch, bs=5):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    return ImageLoader(
        Store(FileSource(sorted(folder.glob('train/*/*.jpg')), [i % 3 for i in range(24)]), 16, 'disk'), bs
    )


@pytest.mark.parametrize('large', [0, 1_500_000])
def test_a_run_goes_on_when_its_set_is_cleared(folder, tmp_path, monkeypatch, large):
    monkeypatch.setattr(trickbag.data.store, 'LARGE', large)
    want = [x for x, *_ in ImageLoader(Store(FileSource(sorted(folder.glob('train/*/*.jpg'))), 16, 'memory'), 5)]
    a = disk(folder, tmp_path, monkeypatch)
    it = iter(a)
    got = [next(it)[0]]
    clear_cache()
    other = disk(folder, tmp_path, monkeypatch)  # another run starts the same set anew
    got += [x for x, *_ in it]
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True)) and not a.store.left
    a.store.saved.result()
    assert not (other.store.arrays.folder / 'whole').exists()  # the first run says nothing of the second's files
    list(other)
    other.store.saved.result()
    assert (other.store.arrays.folder / 'whole').exists()


def test_a_set_cleared_while_it_is_made_safe_is_not_said_whole(folder, tmp_path, monkeypatch):
    a = disk(folder, tmp_path, monkeypatch)
    fsync = os.fsync
    other = []

    def slow(fd):
        "Another run clears the set, and begins it anew, between the disk's word and the mark"
        monkeypatch.setattr(os, 'fsync', fsync)
        fsync(fd)
        clear_cache()
        other.append(disk(folder, tmp_path, monkeypatch))

    monkeypatch.setattr(os, 'fsync', slow)
    list(a)
    a.store.saved.result()
    assert other
    assert not a.store.left and not (other[0].store.arrays.folder / 'whole').exists()
    list(other[0])
    other[0].store.saved.result()
    assert (other[0].store.arrays.folder / 'whole').exists()


def test_a_set_cleared_while_it_is_opened_is_made_anew(folder, tmp_path, monkeypatch):
    "Another run clears the folder between this one's look and its lock"
    first = disk(folder, tmp_path, monkeypatch)
    want = [x for x, *_ in first]
    # whatever it still writes would be in the way of the folder's removal
    first.store.saved.result()
    flock = fcntl.flock
    n = []

    def late(fd, how):
        if not n:
            n.append(1)
            shutil.rmtree(next(tmp_path.glob('store/*')))
        return flock(fd, how)

    monkeypatch.setattr(fcntl, 'flock', late)
    a = disk(folder, tmp_path, monkeypatch)
    for _ in range(2):
        assert all(torch.equal(x, y) for (x, *_), y in zip(a, want, strict=True))
    assert (
        n
        and os.path.samestat(os.fstat(a.store.arrays.fd), os.stat(a.store.arrays.folder / 'pixels'))
        and not a.store.left
    )


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='fork')
@pytest.mark.parametrize('large', [0, 1_500_000])
def test_a_forked_process_decodes_and_keeps_its_marks(folder, tmp_path, monkeypatch, large):
    monkeypatch.setattr(trickbag.data.store, 'LARGE', large)
    a = disk(folder, tmp_path, monkeypatch)
    a.store.submit(torch.arange(10))()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pid = os.fork()
    if not pid:
        signal.alarm(60)
        os._exit(0 if len(list(a)) == 5 and not a.store.left else 1)
    assert os.waitpid(pid, 0)[1] == 0 and a.store.left == 14 == (~a.store.ready).sum()
    list(a)
    assert not a.store.left


class Given(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return self.source.get(i, 16)[0], self.source.labels[i]


def test_a_source_travels_to_spawned_workers(folder, tmp_path, monkeypatch):
    s = disk(folder, tmp_path, monkeypatch).store.source
    dl = torch.utils.data.DataLoader(Given(s), 24, num_workers=1, multiprocessing_context='spawn')
    x, y = next(iter(dl))
    assert torch.equal(y, s.labels) and torch.equal(x[3], s.get(3, 16)[0])


def test_how_far_ahead_is_decoded_changes_nothing(folder):
    ws = []
    for ahead in (0, 1, 5):
        dls = DataLoaders.from_folder(folder, **KW)
        dls.train.ahead = ahead
        ws.append(weights(learner(dls, cbs=[CutMix()]).fit(2)))
    assert torch.equal(ws[0], ws[1]) and torch.equal(ws[0], ws[2])


def test_resume_with_images(folder, tmp_path):
    def new():
        return learner(WAYS['folder'](folder), cbs=[CutMix(), RandomErasing()])

    whole = new().fit(3)
    for at in ((0, 1), (1, 3), (2, 0)):
        new().fit(3, cbs=StopAt(at, tmp_path / 's.pt'))
        assert torch.equal(weights(whole), weights(new().fit(3, resume=tmp_path / 's.pt')))


def test_plain_torch_loader_draws_the_same_after_a_resume(folder, tmp_path):
    "Random transforms of a dataset too, because the loader's draws are a function of (seed, epoch, batch)"
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    t = v2.Compose(
        [v2.RandomResizedCrop(24), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    ev = v2.Compose([v2.Resize((24, 24)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def new(workers=0):
        dl = torch.utils.data.DataLoader
        return learner(
            DataLoaders(
                dl(ImageFolder(folder / 'train', t), 5, shuffle=True, num_workers=workers),
                dl(ImageFolder(folder / 'valid', ev), 5),
            )
        )

    for w in (0, 2):
        whole = new(w).fit(2)
        new(w).fit(2, cbs=StopAt((1, 1), tmp_path / 's.pt'))
        assert torch.equal(weights(whole), weights(new(w).fit(2, resume=tmp_path / 's.pt')))


def test_paths_labels_and_boxes_in_files_give_the_same_batches(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    files = sorted(folder.glob('train/*/*.jpg'))
    kw = dict(labels=[i % 3 for i in range(24)], boxes=[(i % 5, 2, 20 + i, 25.5) for i in range(24)])
    plain = FileSource(files, **kw)
    plain.files = files
    plain.boxes = torch.tensor(kw['boxes'])
    a = ImageLoader(Store(plain, 16, 'memory'), 5, shuffle=True)
    b = ImageLoader(Store(FileSource(files, **kw), 16, 'disk'), 5, shuffle=True)
    for start in (0, 2, 0):
        got = []
        for dl in (a, b):
            torch.manual_seed(start)
            got.append(list(dl.iter_from(start)))
        assert len(got[0]) == 5 - start and all(torch.equal(x, y) for xs, ys in zip(*got) for x, y in zip(xs, ys))
    b.store.saved.result()
    assert torch.equal(a.wh, b.wh) and b.store.source.files == [str(f) for f in files]
    # nothing left behind
    assert sorted(f.name for f in b.store.arrays.folder.iterdir()) == ['about.json', 'index', 'lock', 'pixels', 'whole']


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    from tests.bench.growth import make

    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    make(tmp_path)
    r = json.loads(
        subprocess.run(
            [sys.executable, '-m', 'tests.bench.growth', '--start', tmp_path, '200000'],
            check=True,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ).stdout
    )
    assert r['trimmed_mb'] < 8, r  # as lists of Python objects: 23 MB and more


def test_only_so_many_files_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr('trickbag.data.loaders.quick_check', seen.append)
    for n in (50_000, 50_001, 120_000):
        DataLoaders.from_lists([f'{i}.jpg' for i in range(n)], [i % 2 for i in range(n)], [False] * n, keep='none')
    DataLoaders.from_lists(
        [f'{i}.jpg' for i in range(n)], [i % 2 for i in range(n)], [False] * n, keep='none', verify=True
    )
    assert [len(o) for o in seen] == [50_000, 25_001, 40_000, 120_000] and seen[2][:2] == ['0.jpg', '3.jpg']


def said(f, *words, exc=(ValueError, FileNotFoundError)):
    with pytest.raises(exc) as e:
        f()
    s = str(e.value)
    assert '\n' not in s and all(w in s for w in words), s


def test_refusals(folder, tmp_path):
    def with_file(name, content):
        import shutil

        p = tmp_path / name
        shutil.copytree(folder, p)
        (p / 'train/wedge' / name).write_bytes(content)
        return p

    (tmp_path / 'empty').mkdir()
    said(lambda: DataLoaders.from_folder(tmp_path / 'empty'), 'there is no folder', 'train')
    said(lambda: DataLoaders.from_folder(tmp_path / 'empty', valid_pct=0.2), 'no image file')
    said(lambda: DataLoaders.from_folder(tmp_path / 'nowhere'), 'is the path right?')
    said(lambda: DataLoaders.from_folder(folder / 'train/wedge', valid_pct=0.2), 'only one class', 'wedge')
    with pytest.warns(UserWarning, match='8 files are in training and in validation'):
        DataLoaders.from_folder(folder, valid='train/wedge')
    jpg = (folder / 'train/wedge/wedge_0.jpg').read_bytes()
    said(
        lambda: DataLoaders.from_folder(with_file('text.jpg', b'I am text')),
        'text.jpg',
        'not a readable image',
        'remove',
    )
    said(lambda: DataLoaders.from_folder(with_file('cut.jpg', jpg[: len(jpg) // 2])), 'cut.jpg', 'remove')
    said(lambda: DataLoaders.from_folder(with_file('cut.png', b'\x89PNG')), 'cut.png')


def test_a_bad_file_that_was_not_looked_at_is_named_when_it_is_read(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / 'x')
    (tmp_path / 'x/train/wedge/bad.jpg').write_text('hm')
    learn = learner(DataLoaders.from_folder(tmp_path / 'x', verify=False, **KW))
    with pytest.raises(ImageError, match=r'bad\.jpg: not a readable image.*find_bad'):
        learn.fit(1)
    (tmp_path / 'x/train/wedge/bad.jpg').unlink()
    learn2 = learner(DataLoaders.from_folder(tmp_path / 'x', **KW))
    learn2.fit(1)


def test_unknown_label_in_validation_names_file_and_label(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / 'x')
    (tmp_path / 'x/valid/wedge').rename(tmp_path / 'x/valid/cone')
    said(lambda: DataLoaders.from_folder(tmp_path / 'x'), 'cone', 'wedge_0.jpg', 'move one over')


def test_a_model_with_too_few_outputs(folder):
    dls = WAYS['folder'](folder)
    learn = Learner(dls, xresnet18(n_out=2), device='cpu')
    said(lambda: learn.fit(1), 'n_out=3', '2 outputs', '3 classes')
    assert learn.step == 0


def test_small_data_is_not_eaten_by_drop_last(folder):
    dls = DataLoaders.from_folder(folder, size=24, bs=500)
    assert len(dls.train) == 1
    learn = learner(dls).fit(1)
    assert np.isfinite(learn.history[0]['train_loss'])


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
