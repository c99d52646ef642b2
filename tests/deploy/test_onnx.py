"What leaves for other programs: refusals in one line, eight bits beside their accuracy, what a report counts."

import math
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from trickbag.all import *
from trickbag.deploy.classifier import Classifier, ClassifierConfig
from trickbag.models.architectures import Architecture

CLASSES = ['ant', 'bee', 'wasp']


def classifier_of(model, activation='softmax'):
    return Classifier(model, ClassifierConfig(Architecture('own', 'small'), CLASSES, ImageSpec(16), activation))


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return classifier_of(nn.Sequential(*model, nn.Linear(8, 3)))


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    "Folders of classes"
    root = tmp_path_factory.mktemp('photographs')
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(6):
            Image.fromarray(generator.integers(0, 256, (20 + i, 24, 3), 'uint8')).save(root / name / f'{i}.png')
    return root


class Deciding(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 3) if x.sum() > 0 else torch.zeros(len(x), 3)


class Unknown(nn.Module):
    "torch.export follows it, ONNX has nothing like it"

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)).real[:, :3]


@pytest.mark.parametrize('model', [Deciding(), Unknown()], ids=['decides', 'unknown operation'])
def test_a_refusal_is_one_line(model, tmp_path, capfd, caplog):
    with pytest.raises(ValueError) as caught:
        classifier_of(model).to_onnx(tmp_path / 'a.onnx')
    message = str(caught.value)
    assert message.startswith(f'to_onnx: the exporter cannot follow {type(model).__name__} (')
    assert '\n' not in message and '\x1b' not in message and len(message) < 400
    assert caught.value.__cause__ is None
    shown = capfd.readouterr()
    assert 'def forward' not in shown.out + shown.err + caplog.text
    assert not list(tmp_path.iterdir())


def test_eight_bits_beside_their_accuracy(small, photographs, tmp_path):
    small.to_onnx(tmp_path / 'float.onnx')
    # a folder is all images in it, as for `predict`
    rows = small.quantize(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', str(photographs), labeled=photographs)
    expected = small.evaluate(photographs)
    assert rows[0]['accuracy'] == expected['accuracy']
    assert rows[0]['images'] == rows[1]['images'] == 18
    assert abs(rows[0]['loss'] - expected['loss']) < 1e-5
    for row, file in zip(rows, ('float.onnx', 'int8.onnx')):
        assert row['what'] == file
        assert row['megabytes'] == (tmp_path / file).stat().st_size / 2**20
    without = small.quantize(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', find_images(photographs))
    assert [list(row) for row in without] == [['what', 'megabytes']] * 2


def test_a_file_of_others_would_quantize_the_preprocessing(small, photographs, tmp_path):
    small.to_onnx(tmp_path / 'float.onnx')
    model = onnx.load(tmp_path / 'float.onnx')
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / 'other.onnx')
    with pytest.raises(ValueError, match='as to_onnx wrote it'):
        small.quantize(tmp_path / 'other.onnx', tmp_path / 'int8.onnx', photographs)
    with pytest.raises(ValueError, match='got none'):
        small.quantize(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', [])


def test_logits_have_no_loss(small, photographs):
    assert math.isnan(classifier_of(small.network.model, 'none').evaluate(photographs)['loss'])


def test_megabytes_are_those_of_the_weights(small, tmp_path):
    (row,) = small.latency((20, 24), (1,), (1,), seconds=0.01)
    written = (small.save(tmp_path) / 'model.safetensors').read_bytes()
    # the format: the header's length, the header, the numbers
    header = int.from_bytes(written[:8], 'little')
    assert row['megabytes'] * 2**20 == len(written) - 8 - header


def test_class_folders_without_images(small, tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match='no image file under'):
        small.evaluate(tmp_path)


def test_a_number_of_threads_is_measured_once(small):
    assert [row['threads'] for row in small.latency((20, 24), (1,), (1, 1, 2), seconds=0.01)] == [1, 2]


def test_folders_as_a_mac_names_them(small, photographs, tmp_path):
    # the same letter as one character, and as two
    names = ['é', 'bee', 'wasp']
    classifier = Classifier(small.network.model, replace(small.config, classes=names))
    for name, folder in zip(CLASSES, ['e\u0301', 'bee', 'wasp'], strict=True):
        shutil.copytree(photographs / name, tmp_path / folder)
    found = classifier.evaluate(tmp_path)
    expected = small.evaluate(photographs)
    assert found['accuracy'] == expected['accuracy'] and abs(found['loss'] - expected['loss']) < 1e-5
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        classifier.evaluate(tmp_path / 'nowhere')


def test_equal_classifiers_are_equal_files(small, tmp_path):
    files = [small.save(tmp_path / str(i)) / 'model.safetensors' for i in range(6)]
    assert len({file.read_bytes() for file in files}) == 1
    written = files[0].read_bytes()
    assert int.from_bytes(written[:8], 'little') % 8 == 0


def test_goals_of_eight_bits(small, photographs, tmp_path):
    small.to_onnx(tmp_path / 'small.onnx')
    content = (tmp_path / 'small.onnx').read_bytes()
    for source, goal, why in (
        ('small.onnx', 'small.onnx', 'is the float file itself'),
        ('small.onnx', 'small.bin', 'must end in .onnx'),
        ('other.onnx', 'int8.onnx', 'there is no file'),
    ):
        with pytest.raises((ValueError, OSError), match=why):
            small.quantize(tmp_path / source, tmp_path / goal, photographs)
    assert (tmp_path / 'small.onnx').read_bytes() == content
    small.quantize(tmp_path / 'small.onnx', tmp_path / 'int8.onnx', photographs)
    with pytest.raises(ValueError, match='has eight bits already'):
        small.quantize(tmp_path / 'int8.onnx', tmp_path / 'again.onnx', photographs)
    assert not (tmp_path / 'again.onnx').exists()


def test_images_beside_the_classes_are_said(small, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / 'all')
    shutil.copy(next((photographs / 'bee').iterdir()), tmp_path / 'all' / 'lost.png')
    with pytest.warns(UserWarning, match='1 images beside the folders'):
        assert small.evaluate(tmp_path / 'all')['images'] == 18


@pytest.mark.parametrize('how', [dict(size=64), dict(batches=(0,)), dict(threads=1)], ids=str)
def test_what_cannot_be_measured(small, how):
    with pytest.raises(ValueError, match='latency: .* is a tuple of numbers'):
        small.latency(**how)


def test_the_threshold_of_one_output_decides_in_evaluation_too(photographs, tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, math.log(0.4 / 0.6))
    for name in CLASSES[:2]:
        shutil.copytree(photographs / name, tmp_path / 'two' / name)
    (tmp_path / 'two' / 'ant' / '0.png').unlink()
    config = ClassifierConfig(Architecture('own', 'one'), CLASSES[:2], ImageSpec(8), 'sigmoid', thresholds=0.3)
    classifier = Classifier(model, config)
    labels = [found.label for found in classifier.predict(tmp_path / 'two')]
    assert labels == ['bee'] * 11
    assert abs(classifier.evaluate(tmp_path / 'two')['accuracy'] - 6 / 11) < 1e-6


def test_logits_of_a_folder(small, photographs):
    files = find_images(photographs)
    torch.testing.assert_close(small.logits(photographs), small.logits(files))
    assert small.logits(files[0]).shape == (1, 3)


def test_a_file_of_another_classifier(small, photographs, tmp_path):
    small.to_onnx(tmp_path / 'new folder' / 'small.onnx')
    other = Classifier(small.network.model, replace(small.config, classes=['x\ny', 'z', 'é']))
    with pytest.raises(ValueError, match='has other classes'):
        other._probabilities_of(find_images(photographs)[:1], tmp_path / 'new folder' / 'small.onnx', False)
    assert sorted(file.name for file in (tmp_path / 'new folder').iterdir()) == ['small.onnx']
