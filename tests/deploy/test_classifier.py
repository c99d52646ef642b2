"""A classifier that stands alone gives what its learner gave: in another process, in onnxruntime, for any image."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from trickbag.all import *
from trickbag.deploy.calibration import fit_temperature, threshold_for
from trickbag.deploy.classifier import Classifier, ClassifierConfig
from trickbag.deploy.onnx import onnx_session, run_onnx
from trickbag.models.architectures import Architecture, build

CLASSES = ['ant', 'bee', 'wasp']


def trained_norms(model, n_in=3):
    "Statistics that are not those of a new network"
    model.train()
    for _ in range(3):
        model(torch.randn(8, n_in, 32, 32))
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


MODES = ['RGB', 'L', 'CMYK', 'RGBA', 'P', '1', 'I;16', 'LA']
SHAPES = [(40, 60), (60, 40), (1, 50), (50, 1), (20, 100), (100, 20), (33, 33), (7, 5), (151, 150)]


def pictures(place, n=24):
    "Files of unusual shapes and modes, turned by EXIF; each with what Pillow shows, where its rules leave no choice"
    generator = np.random.default_rng(0)
    files = {}
    for i in range(n):
        height, width = SHAPES[generator.integers(len(SHAPES))]
        rgb = Image.fromarray(generator.integers(0, 256, (height, width, 3), 'uint8'))
        mode = MODES[i % len(MODES)]
        image = rgb.convert('L').convert('I;16') if mode == 'I;16' else rgb.convert(mode)
        suffix = 'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'
        exif = Image.Exif()
        exif[0x0112] = int(generator.integers(1, 9))  # the orientation
        file = place / f'{i:03}.{suffix}'
        image.save(file, exif=exif)
        shown = ImageOps.exif_transpose(Image.open(file)).convert('RGB')
        files[file] = np.array(shown) if mode in ('RGB', 'L', 'P', '1') else None
    return files


def test_onnxruntime_gives_the_same_for_photographs_of_every_shape_and_mode(classifier, folder, tmp_path):
    files = pictures(tmp_path, 200)
    session = onnx_session(folder / 'model.onnx')
    probabilities = classifier.probabilities(list(files))
    for (file, shown), expected in zip(files.items(), probabilities):
        image = decoded(file) if shown is None else torch.from_numpy(shown).permute(2, 0, 1)
        assert (run_onnx(session, image[None])[0] - expected).abs().max() < 1e-4, file


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
    files = list(map(str, pictures(tmp_path)))
    code = f"""
import sys, json
from trickbag.deploy.classifier import load_classifier
found = load_classifier({str(folder)!r}).predict({files!r})
rooms = ('trickbag.loop', 'trickbag.learner', 'trickbag.monitors', 'trickbag.runs', 'trickbag.look')
modules = [name for name in sys.modules if name.startswith(rooms)]
data = [name for name in sys.modules if name.startswith('trickbag.data.')]
print(json.dumps([[one.probabilities.tolist() for one in found], modules, data]))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    probabilities, modules, data = json.loads(done.stdout)
    assert np.abs(np.array(probabilities) - classifier.probabilities(files).numpy()).max() < 1e-6
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
    one = classifier.predict(torch.full((3, 4, 4), 2.0))
    assert abs(one.probability - 1 / (1 + np.exp(-2))) < 1e-6
    assert one.sure and one.labels == ['yes']
    # one number, as `threshold_for` gives it for one output, is the threshold of the second class
    strict = classifier.with_(thresholds=threshold_for([0.2, 0.95], [0, 1], precision=0.9))
    assert strict.config.thresholds == [0.5, 0.95]
    one = strict.predict(torch.full((3, 4, 4), 2.0))
    assert (one.label, one.labels, one.sure) == ('yes', [], False)
    # a low one decides, and excludes the other class
    loose = classifier.with_(thresholds=[0.5, 0.1])
    assert [loose.predict(torch.full((3, 4, 4), logit)).labels for logit in (-1.0, -3.0)] == [['yes'], ['no']]
    with pytest.raises(ValueError, match='one threshold for 3 classes'):
        replace(config, classes=CLASSES, thresholds=0.5)


def test_files_of_two_exports_do_not_load(tmp_path):
    torch.manual_seed(0)
    one = Classifier(
        xresnet18(n_out=2),
        ClassifierConfig(Architecture('trickbag', 'xresnet18', dict(n_out=2)), ['a', 'b'], ImageSpec(32)),
    )
    other = Classifier(xresnet18(n_out=2), replace(one.config, images=ImageSpec(48), temperature=3.0))
    one.save(tmp_path / 'one')
    other.save(tmp_path / 'other')
    assert load_classifier(tmp_path / 'one').config == one.config
    # as a kill between the two files would leave it
    shutil.copy(tmp_path / 'other' / 'model.safetensors', tmp_path / 'one')
    with pytest.raises(ValueError, match='not written by the same export'):
        load_classifier(tmp_path / 'one')


def test_reading_a_classifier_draws_nothing(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_classifier(folder)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    'path, value, why',
    [
        ('architecture.n_in', 0, 'n_in is a number of channels'),
        ('architecture.library', 'torchvision', 'did you mean|no network'),
        ('classes', [1, 2, 3], 'names of classes are texts'),
        ('classes', ['a', 'a', 'b'], "two classes are called 'a'"),
        ('images.mean', [float('nan')] * 3, 'finite value'),
        ('images.size', True, 'size is a number'),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_configuration_is_said_with_its_name(folder, tmp_path, path, value, why):
    shutil.copytree(folder, tmp_path / 'copy')
    config = json.loads((folder / 'config.json').read_text())
    place = config
    *outer, last = path.split('.')
    for name in outer:
        place = place[name]
    place[last] = value
    (tmp_path / 'copy' / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=why) as e:
        load_classifier(tmp_path / 'copy')
    assert 'config.json' in str(e.value) and '\n' not in str(e.value)


def test_the_same_temperature_keeps_the_thresholds():
    config = ClassifierConfig(Architecture('own', 'given'), CLASSES, None, thresholds=[0.4, 0.4, 0.4])
    classifier = Classifier(Given(), config)
    assert classifier.with_(temperature=1.0).config == config
    with pytest.raises(ValueError, match='give thresholds= for the new one'):
        classifier.with_(temperature=2.0)


# thresholds and temperature


class Given(nn.Module):
    "A network whose logits are its input"

    def forward(self, x):
        return x


def given(logits, **config):
    "Predictions of a classifier with these logits"
    classifier = Classifier(Given(), ClassifierConfig(Architecture('own', 'given'), CLASSES, None, **config))
    return classifier.predict(list(torch.tensor(logits)))


def test_softmax_has_one_label_and_only_if_it_is_sure():
    logits = np.log([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert [one.labels for one in given(logits)] == [['ant'], ['ant']]
    found = given(logits, thresholds=np.array([0.5, 0.1, np.inf], 'float32'))
    assert [(one.label, one.sure, one.labels) for one in found] == [('ant', True, ['ant']), ('ant', False, [])]
    (never,) = given(np.log([[0.01, 0.01, 0.98]]), thresholds=[0.5, 0.1, None])
    assert (never.label, never.sure, never.labels) == ('wasp', False, [])


def test_sigmoid_has_every_label_that_reaches_its_threshold():
    logits = [[0.1, -0.1, 3.0], [-1.0, -2.0, -3.0], [2.0, 1.0, 0.5]]
    assert [one.labels for one in given(logits, activation='sigmoid')] == [['ant', 'wasp'], [], CLASSES]
    thresholds = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
    expected = [
        [name for name, p, t in zip(CLASSES, 1 / (1 + np.exp(-np.array(row))), thresholds.tolist()) if p >= t]
        for row in logits
    ]
    assert [one.labels for one in given(logits, activation='sigmoid', thresholds=thresholds)] == expected
    assert [one.sure for one in given(logits, activation='sigmoid')] == [True, False, True]


def test_what_calibration_gives_survives_export_and_load(tmp_path):
    learn = small_learner([], tmp_path)
    files = [learn.dls.valid.name(i) for i in range(30)]
    plain = learn.export(None)
    logits = plain.logits(files)
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]
    temperature = torch.tensor(fit_temperature(logits, labels))
    calibrated = plain.with_(temperature=temperature)
    thresholds = threshold_for(calibrated.probabilities(files), labels, precision=0.9, unreachable=math.inf)
    learn.export(tmp_path / 'out', temperature=temperature, thresholds=thresholds)

    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    json.loads((tmp_path / 'out' / 'config.json').read_text(), parse_constant=refuse)
    again = load_classifier(tmp_path / 'out')
    assert again.config == calibrated.with_(thresholds=thresholds).config
    assert plain.config.temperature == 1
    scaled = np.exp(logits.double().numpy() / float(temperature))
    expected = scaled / scaled.sum(1, keepdims=True)
    assert np.abs(again.probabilities(files).numpy() - expected).max() < 1e-6
    sure = expected.max(1) >= thresholds.numpy()[expected.argmax(1)] + 1e-6
    assert {one.sure for one, it_is in zip(again.predict(files), sure) if it_is} <= {True}
    with pytest.raises(ValueError, match='temperature'):
        again.with_(temperature=2.0)


@pytest.mark.parametrize(
    'wrong', [dict(temperature=math.inf), dict(temperature=0), dict(thresholds=[0, 0, math.nan]), dict(thresholds=[0])]
)
def test_numbers_that_no_classifier_can_have(wrong):
    with pytest.raises(ValueError, match='^config: '):
        ClassifierConfig(Architecture('own', 'given'), CLASSES, None, **wrong)


def test_a_classifier_that_cannot_be_written_leaves_what_was_there(classifier, folder, tmp_path, monkeypatch):
    config = ClassifierConfig(Architecture('own', 'given', dict(act=nn.SiLU)), CLASSES, None)
    with pytest.raises(ValueError, match='SiLU.*numbers, text and lists'):
        Classifier(Given(), config).save(tmp_path)
    assert not list(tmp_path.iterdir())
    before = classifier.save(tmp_path) / 'config.json'
    text = before.read_text()

    def disk_is_full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('trickbag.deploy.classifier.write_weights', disk_is_full)
    with pytest.raises(OSError):
        classifier.with_(temperature=9.0).save(tmp_path)
    assert before.read_text() == text


# channels, and images that are prepared already


def gray_classifier():
    torch.manual_seed(0)
    arguments = dict(expansion=1, layers=[1, 1], n_out=3, widen=0.25)
    architecture = Architecture('trickbag', 'XResNet', arguments, n_in=1)
    spec = ImageSpec(32, mean=(0.5,), std=(0.25,))
    return Classifier(trained_norms(build(architecture), 1), ClassifierConfig(architecture, CLASSES, spec))


def test_one_channel_is_the_luminance_of_pillow(tmp_path):
    gray = gray_classifier()
    folders = tmp_path / 'images'
    for name in CLASSES:
        (folders / name).mkdir(parents=True)
    files = pictures(tmp_path)
    for file, shown in files.items():
        if shown is None:
            continue
        luminance = torch.from_numpy(np.array(Image.fromarray(shown).convert('L')))[None]
        expected = gray.predict(luminance).probabilities
        for same in (file, Image.fromarray(shown), shown):
            assert torch.equal(gray.predict(same).probabilities, expected), file
        file.rename(folders / CLASSES[int(file.stem) % 3] / file.name)
    with pytest.raises(ValueError, match='uint8'):
        gray.predict(torch.rand(1, 40, 40))
    gray.to_onnx(tmp_path / 'gray.onnx')
    rows = gray.quantize(tmp_path / 'gray.onnx', tmp_path / 'int8.onnx', str(folders), folders)
    expected = gray.evaluate(folders)
    assert rows[0]['images'] == rows[1]['images'] == expected['images'] > 3
    assert abs(rows[0]['loss'] - expected['loss']) < 1e-5


def test_other_channels_are_given_as_tensors():
    config = ClassifierConfig(Architecture('own', 'mean'), CLASSES[:2], ImageSpec(8, mean=(0.5,) * 2, std=(1.0,) * 2))
    classifier = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), config)
    image = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 9, 9)
    assert torch.allclose(classifier.logits([image]), torch.tensor([[-0.5, 0.5]]))
    for wrong in (image / 255, image[:1], np.zeros((9, 9, 3), 'uint8')):
        with pytest.raises(ImageError, match='must be uint8|and 2 are asked for'):
            classifier.predict(wrong)


def test_squash_is_pillows_resize(tmp_path):
    spec = ImageSpec(32, 1.0, fit='squash')
    config = ClassifierConfig(Architecture('own', 'corner'), CLASSES, spec)
    corner = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))
    classifier = Classifier(corner, config)
    classifier.to_onnx(tmp_path / 'squash.onnx')
    session = onnx_session(tmp_path / 'squash.onnx')
    mean = torch.tensor(spec.mean)[:, None, None]
    std = torch.tensor(spec.std)[:, None, None]
    for file, shown in pictures(tmp_path).items():
        if shown is None or min(shown.shape[:2]) < 5:
            continue
        small = np.array(Image.fromarray(shown).resize((32, 32), Image.Resampling.BILINEAR))
        found = classifier.prepare(file)[0] * std + mean
        # Pillow rounds to whole levels twice
        assert (found * 255 - torch.from_numpy(small).permute(2, 0, 1)).abs().max() < 1.01
        image = torch.from_numpy(shown).permute(2, 0, 1)[None]
        assert (run_onnx(session, image)[0] - classifier.predict(file).probabilities).abs().max() < 1e-5


def test_without_a_preparation_there_are_tensors_only(tmp_path):
    torch.manual_seed(0)
    batch = (torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2]))
    learn = Learner(DataLoaders([batch], [batch]), XResNet(1, [1, 1], n_out=3), path=tmp_path)
    with pytest.warns(UserWarning, match='prepared tensors C x H x W, and no files'):
        learn.export(tmp_path / 'out', classes=CLASSES)
    classifier = load_classifier(tmp_path / 'out')
    expected, _ = learn.get_preds()
    assert (classifier.probabilities(list(batch[0])) - expected).abs().max() < 1e-6
    assert (classifier.predict(batch[0][0].numpy()).probabilities - expected[0]).abs().max() < 1e-6
    for wrong in ('a.jpg', Image.new('RGB', (9, 9))):
        with pytest.raises(TypeError, match='prepared tensors C x H x W, got a .*images=ImageSpec'):
            classifier.predict(wrong)
    elsewhere = Classifier(nn.Flatten(), classifier.config, 'meta')
    assert elsewhere.prepare(batch[0][0]).device.type == 'meta'
    for f in (classifier.latency, lambda: classifier.to_onnx(tmp_path / 'x.onnx')):
        with pytest.raises(ValueError, match='images=ImageSpec'):
            f()


def edited(folder, tmp_path, **changes):
    "A copy of a classifier's folder with other entries in config.json"
    copy = tmp_path / 'edited'
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    content = json.loads((copy / 'config.json').read_text())
    (copy / 'config.json').write_text(json.dumps(content | changes))
    return copy


def test_config_of_another_classifier(classifier, folder, tmp_path):
    with pytest.raises(ValueError, match='do not belong together'):
        load_classifier(edited(folder, tmp_path, classes=list(classifier.classes)[::-1]))


@pytest.mark.parametrize('changes', [['x'], {'squeeze_excite': {'nope': 8}}])
def test_config_that_describes_no_network(folder, tmp_path, changes):
    with pytest.raises(ValueError, match='config.json: no network can be built'):
        load_classifier(edited(folder, tmp_path, changes=changes))


def test_weights_that_are_not_finite(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(model[2].bias, math.nan)
    config = ClassifierConfig(Architecture('own', 'make'), ['a', 'b'], ImageSpec(8))
    Classifier(model, config).save(tmp_path)
    with pytest.raises(ValueError, match='NaN or infinite'):
        load_classifier(tmp_path, make=lambda: model)


def test_a_threshold_decides_between_two_classes_of_one_output():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, math.log(0.4 / 0.6))
    image = np.zeros((8, 8, 3), 'uint8')
    for threshold, label in ((0.3, 'b'), (0.45, 'a')):
        config = ClassifierConfig(
            Architecture('own', 'make'), ['a', 'b'], ImageSpec(8), 'sigmoid', thresholds=threshold
        )
        one = Classifier(model, config).predict(image)
        assert (one.label, one.labels, one.sure) == (label, [label], True)


def test_thresholds_by_name_are_refused():
    with pytest.raises(TypeError, match='a list of numbers in the order'):
        ClassifierConfig(Architecture('own', 'make'), ['a', 'b'], None, thresholds={'a': 0.9, 'b': 0.8})
