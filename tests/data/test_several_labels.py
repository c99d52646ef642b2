"""Several labels an image, from every way in to every way out: a table, lists, a tensor and folders of links give the
same items; they train, resume to the bit in mid-epoch, predict, and stand alone after an export."""

import csv
import json
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trickbag.deploy.export  # noqa: F401  methods of the learner
import trickbag.runs.predictions  # noqa: F401
from tests.helpers import SaveAt, one_line
from trickbag import commands
from trickbag.data.loaders import DataLoaders
from trickbag.deploy.calibration import threshold_for
from trickbag.deploy.classifier import load_classifier
from trickbag.look.interpret import Interpretation
from trickbag.look.interpret_labels import LabelInterpretation
from trickbag.loop.class_metrics import LabelScores
from trickbag.models.xresnet import XResNet
from trickbag.testing.proofs import tiny_learner, weights
from trickbag.tricks.balanced_sampler import BalancedSampler
from trickbag.tricks.label_smoothing import LabelSmoothing
from trickbag.tricks.mixup import MixUp

NAMES = ['blue', 'green', 'red']
N = 40


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "A folder of pictures whose colors are their labels, and the labels"
    folder = tmp_path_factory.mktemp('colors')
    rng = np.random.default_rng(0)
    rows = rng.random((N, 3)) < 0.4
    rows[np.arange(N), rng.integers(0, 3, N)] = True
    for i, row in enumerate(rows):
        pixels = rng.integers(0, 60, (20, 24, 3)) + 180 * row[::-1]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i:02}.png')
    return folder, torch.tensor(rows).float()


@pytest.fixture(scope='module')
def is_valid():
    return [i % 4 == 0 for i in range(N)]


def loaders(images, is_valid, kind, tmp_path=None):
    folder, rows = images
    kw = dict(size=16, bs=8, keep='memory')
    files = sorted(str(file) for file in folder.glob('*.png'))
    lists = [[name for name, there in zip(NAMES, row, strict=True) if there] for row in rows.tolist()]
    if kind == 'lists':
        return DataLoaders.from_lists(files, lists, is_valid=is_valid, multi_label=True, **kw)
    if kind == 'tensor':
        return DataLoaders.from_lists(files, rows, is_valid=is_valid, multi_label=True, vocab=NAMES, **kw)
    if kind == 'rows of one label':
        pairs = [(f, label, v) for f, labels, v in zip(files, lists, is_valid, strict=True) for label in labels]
        files, labels, marks = map(list, zip(*pairs, strict=True))
        return DataLoaders.from_lists(files, [[label] for label in labels], is_valid=marks, multi_label=True, **kw)
    if kind == 'csv':
        table = ['file,labels,is_valid']
        table += [
            f"{os.path.basename(f)},{' ; '.join(labels)},{int(v)}"
            for f, labels, v in zip(files, lists, is_valid, strict=True)
        ]
        (tmp_path / 'labels.csv').write_text('\n'.join(table))
        return DataLoaders.from_csv(folder, str(tmp_path / 'labels.csv'), label_delim=';', **kw)
    link = os.symlink if kind == 'symbolic links' else os.link
    for file, labels, held_out in zip(files, lists, is_valid, strict=True):
        for label in labels:
            class_folder = tmp_path / ('valid' if held_out else 'train') / label
            class_folder.mkdir(parents=True, exist_ok=True)
            link(file, class_folder / os.path.basename(file))
    return DataLoaders.from_folder(tmp_path, multi_label=True, **kw)


@pytest.mark.parametrize('kind', ['lists', 'tensor', 'rows of one label', 'csv', 'symbolic links', 'hard links'])
def test_every_way_in_gives_the_same_items(images, is_valid, kind, tmp_path):
    dls = loaders(images, is_valid, kind, tmp_path)
    assert dls.multi_label and list(map(str, dls.vocab)) == NAMES
    rows = images[1]
    for loader, side in ((dls.train, False), (dls.valid, True)):
        numbers = [i for i in range(N) if is_valid[i] is side]
        names = [os.path.basename(loader.name(i)) for i in range(len(loader.store))]
        found = dict(zip(names, loader.labels.tolist(), strict=True))
        assert found == {f'{i:02}.png': rows[i].tolist() for i in numbers}
    x, y, idx = next(iter(dls.valid))
    assert y.dtype == torch.float32 and torch.equal(y, dls.valid.labels[idx])
    assert sum(dls.counts().values()) == int(dls.train.labels.sum())


def test_a_random_split_has_the_same_share_of_each_label(images):
    folder, rows = images
    files = sorted(map(str, folder.glob('*.png')))
    dls = DataLoaders.from_lists(files, rows, multi_label=True, valid_pct=0.25, size=16, keep='memory')
    assert (dls.valid.labels.sum(0) - rows.sum(0) / 4).abs().max() < 2


def learner(dls, cbs=(), **kw):
    torch.manual_seed(0)
    model = XResNet(1, [1], 3, stem='small', widen=0.125)
    return tiny_learner(cbs, dls, model, lr=2e-2, **kw)


def test_trains_resumes_predicts_exports(images, is_valid, tmp_path, capsys):
    dls = loaders(images, is_valid, 'lists')

    def new():
        return learner(dls, [MixUp(), LabelSmoothing(), BalancedSampler(0.5)], metrics=LabelScores(3))

    whole = new()
    assert type(whole.loss_func) is nn.BCEWithLogitsLoss
    saves = SaveAt([(1, 1)], tmp_path / 'points')
    whole.fit(3, cbs=saves)
    (file,) = saves.files.values()
    torch.manual_seed(99)
    rest = new().fit(3, resume=file)
    assert torch.equal(weights(whole), weights(rest)) and whole.history[-1]['mAP'] == rest.history[-1]['mAP']
    learn = learner(dls, metrics=LabelScores(3))
    learn.fit(12)
    assert learn.history[-1]['mAP'] > 0.8, learn.history[-1]
    probs, y = learn.get_preds()
    files = [dls.valid.name(i) for i in range(len(y))]
    for threshold in (0.0, 0.3, torch.tensor([0.0, 1.1, 0.0])):
        names, numbers, p = learn.predict(files[0], threshold=threshold)
        assert names == [NAMES[i] for i in numbers] and numbers == (p >= threshold).nonzero()[:, 0].tolist()
    assert names == ['blue', 'red']
    torch.testing.assert_close(p, probs[0], rtol=1e-3, atol=1e-3)
    with_labels = dls.test_dl(files, [[name for name, t in zip(NAMES, row, strict=True) if t] for row in y.tolist()])
    assert learn.validate(with_labels)['mAP'] == pytest.approx(learn.validate()['mAP'], abs=1e-6)
    thresholds = threshold_for(probs, y, recall=0.9)
    learn.export(tmp_path / 'out', thresholds=thresholds)
    classifier = load_classifier(tmp_path / 'out')
    assert classifier.config.thresholds == pytest.approx(thresholds.tolist())
    for prediction, mine in zip(classifier.predict(files), probs, strict=True):
        torch.testing.assert_close(prediction.probabilities, mine, rtol=0.1, atol=0.05)
        reached = (prediction.probabilities >= thresholds).nonzero()[:, 0].tolist()
        assert prediction.labels == [NAMES[i] for i in reached]
    said = [prediction.labels for prediction in classifier.predict(files)]
    assert max(map(len, said)) > 1
    # in tables, too, here and in the shell
    assert classifier.predict_df(files)['labels'].tolist() == said
    capsys.readouterr()
    commands.predict(tmp_path / 'out', files, 'csv')
    assert [row['labels'].split(';') for row in csv.DictReader(capsys.readouterr().out.splitlines())] == [
        labels or [''] for labels in said
    ]
    commands.predict(tmp_path / 'out', files, 'json')
    assert [json.loads(line)['labels'] for line in capsys.readouterr().out.splitlines()] == said
    one_line(lambda: dls.test_dl(files[:1], [[9]]), '9 is no class')
    seen = LabelInterpretation(learn)
    assert [row[0] for row in seen.report().rows] == NAMES
    seen.plot_co_occurrence()
    seen.plot_top_losses(4, 'red')
    one_line(lambda: Interpretation(learn), 'use LabelInterpretation(learn)')


def test_what_is_not_declared_or_does_not_fit_is_refused(images, is_valid):
    folder, rows = images
    files = sorted(map(str, folder.glob('*.png')))
    lists = [['red']] * N
    one_line(lambda: DataLoaders.from_lists(files, lists, size=16), 'multi_label=True')
    one_line(lambda: DataLoaders.from_lists(files, ['red;blue'] * N, multi_label=True, size=16), 'label_delim=')
    one_line(lambda: DataLoaders.from_folder(folder, label_delim=';'), 'multi_label=True', exc=TypeError)
    dls = loaders(images, is_valid, 'lists')
    for loss in (nn.CrossEntropyLoss(), lambda p, y: nn.functional.cross_entropy(p, y)):
        one_line(lambda loss=loss: learner(dls, loss_func=loss).fit(1), 'takes one class an image')
    plain = DataLoaders([(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))], multi_label=True)
    one_line(lambda: learner(plain).fit(1), 'let the loader give a floating row')
