"""A classifier that stands alone gives what its learner gave: in another process, in onnxruntime, for any image."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trickbag.all import *
from trickbag.deploy.classifier import Classifier, ClassifierConfig
from trickbag.deploy.onnx import onnx_session, run_onnx
from trickbag.models.architectures import Architecture, build

CLASSES = ['ant', 'bee', 'wasp']


def trained_norms(model):
    "Statistics that are not those of a new network"
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope='module')
def classifier():
    torch.manual_seed(0)
    architecture = Architecture('trickbag', 'XResNet', dict(expansion=1, layers=[1, 1], n_out=3, widen=0.25))
    config = ClassifierConfig(architecture, CLASSES, ImageSpec(32, interpolation='bicubic'), temperature=1.5)
    return Classifier(trained_norms(build(architecture)), config)


@pytest.fixture(scope='module')
def folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp('classifier')
    classifier.save(folder)
    classifier.to_onnx(folder / 'model.onnx')
    return folder


def pictures(place):
    "Files of odd shapes and modes"
    generator = np.random.default_rng(0)
    shapes = [(40, 60), (60, 40), (1, 50), (50, 1), (20, 100), (100, 20), (33, 33), (7, 5), (301, 300)]
    files = []
    for i, (height, width) in enumerate(shapes * 3):
        rgb = Image.fromarray(generator.integers(0, 256, (height, width, 3), 'uint8'))
        mode = ['RGB', 'L', 'CMYK', 'RGBA', 'P', '1', 'I;16', 'LA'][i % 8]
        image = rgb if mode == 'RGB' else rgb.convert('L').convert('I;16') if mode == 'I;16' else rgb.convert(mode)
        suffix = 'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8  # the orientation
        files.append(place / f'{i}.{suffix}')
        image.save(files[-1], exif=exif)
    return files


def test_onnxruntime_gives_the_same_for_images_of_every_shape_and_mode(classifier, folder, tmp_path):
    session = onnx_session(folder / 'model.onnx')
    for file in pictures(tmp_path):
        image = decoded(file)
        expected = classifier.predict(file).probabilities
        found = run_onnx(session, image[None])[0]
        assert (found - expected).abs().max() < 1e-4, file


def decoded(file):
    from trickbag.data.decode import viewed

    return viewed(file).permute(2, 0, 1)


def test_a_batch_gives_what_its_images_give_alone(classifier, folder):
    session = onnx_session(folder / 'model.onnx')
    images = torch.randint(0, 256, (5, 3, 47, 61), dtype=torch.uint8)
    together = run_onnx(session, images)
    alone = torch.cat([run_onnx(session, image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)


def test_another_process_needs_neither_data_nor_training(classifier, folder, tmp_path):
    file = pictures(tmp_path)[0]
    code = f"""
import sys, json
from trickbag.deploy.classifier import load_classifier
found = load_classifier({str(folder)!r}).predict({str(file)!r})
rooms = ('trickbag.loop', 'trickbag.learner', 'trickbag.monitors', 'trickbag.runs', 'trickbag.look')
modules = [name for name in sys.modules if name.startswith(rooms)]
data = [name for name in sys.modules if name.startswith('trickbag.data.')]
print(json.dumps([found.probabilities.tolist(), modules, data]))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    probabilities, modules, data = json.loads(done.stdout)
    assert np.abs(np.array(probabilities) - classifier.predict(file).probabilities.numpy()).max() < 1e-6
    assert not modules
    # what opens and finds images, and nothing that trains on them
    assert set(data) <= {'trickbag.data.decode', 'trickbag.data.jpeg', 'trickbag.data.files'}


def small_learner(cbs, path):
    torch.manual_seed(0)
    data = toy_set(n_classes=3, n_train=60, n_valid=30)
    dls = DataLoaders.from_folder(data, valid='valid', size=32, bs=20)
    model = XResNet(1, [1, 1], n_out=3)
    return Learner(dls, model, cbs=cbs, path=path)


@pytest.mark.parametrize(
    'tricks',
    [
        lambda: [EMA(half_life=0.2)],
        lambda: [SWA(start=0.5)],
        lambda: [SqueezeExcite(min_channels=64), BlurPool()],
        lambda: [Compile(backend='eager')],
        lambda: [StochasticDepth(0.5), DropBlock(keep_prob=0.8), LabelSmoothing()],
        lambda: [ChannelsLast(), MixedPrecision()],
    ],
    ids=['EMA', 'SWA', 'SqueezeExcite BlurPool', 'Compile', 'StochasticDepth DropBlock', 'ChannelsLast MixedPrecision'],
)
def test_what_is_exported_is_what_predicts(tmp_path, tricks):
    learn = small_learner(tricks(), tmp_path)
    learn.fit(1)
    learn.export(tmp_path / 'out')
    again = load_classifier(tmp_path / 'out')
    files = [learn.dls.valid.name(i) for i in range(30)]
    expected, _ = learn.get_preds(learn.dls.originals())
    # the learner's originals are rounded to whole levels, and mixed precision rounds as well
    assert (again.probabilities(files) - expected).abs().max() < 0.02


def test_a_flipped_byte_is_found(folder, tmp_path):
    weights = (folder / 'model.safetensors').read_bytes()
    at = len(weights) - 100
    (tmp_path / 'model.safetensors').write_bytes(weights[:at] + bytes([weights[at] ^ 8]) + weights[at + 1 :])
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    with pytest.raises(ValueError, match='damaged'):
        load_classifier(tmp_path)


def test_nothing_in_a_configuration_is_called(folder, tmp_path):
    (tmp_path / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
    config = json.loads((folder / 'config.json').read_text())
    config['architecture'] = dict(library='own', name='os:system', args=dict(command='true'), n_in=3, head=None)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='give make='):
        load_classifier(tmp_path)
    config['architecture'] = dict(library='trickbag', name='nn', args={}, n_in=3, head=None)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError):
        load_classifier(tmp_path)


def test_one_output_means_two_classes(tmp_path):
    config = ClassifierConfig(Architecture('own', 'one'), ['no', 'yes'], None, 'sigmoid')

    class One(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None]

    classifier = Classifier(One(), config)
    assert classifier.predict(torch.full((3, 4, 4), 2.0)).label == 'yes'
    assert classifier.predict(torch.full((3, 4, 4), -2.0)).label == 'no'
    probability = classifier.predict(torch.full((3, 4, 4), 2.0)).probability
    assert abs(probability - torch.sigmoid(torch.tensor(2.0)).item()) < 1e-6
