"Exported detectors and segmenters predict what the learner did, to the bit, and are refused where they could not."

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from trickbag.all import EMA, BlurPool, Learner, load_classifier, xresnet18
from trickbag.data.scene_loaders import detection_loaders, segmentation_loaders
from trickbag.data.scene_readers import voc_scenes
from trickbag.data.toy_scenes import toy_scenes
from trickbag.deploy.scenes import load_detector, load_segmenter
from trickbag.models.architectures import Architecture, build
from trickbag.tasks.detectors import KINDS, detector
from trickbag.tasks.segmenters import segmenter
from trickbag.vision.preprocess import ImageSpec

pytestmark = pytest.mark.filterwarnings('ignore:scenes')
SIZE = 64
LOAD = dict(detect=load_detector, segment=load_segmenter)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return toy_scenes(tmp_path_factory.mktemp('toy'), n_train=4, n_valid=3, n_classes=2, size=48)


def body():
    return xresnet18(n_out=2, widen=0.25)


def network(task, kind=None, body=body, **kw):
    torch.manual_seed(0)
    if task == 'segment':
        return segmenter(body(), 3, kind or 'fcn', stride=16, **kw)
    kind = kind or 'fcos'
    # so that an untrained one finds something
    low = dict(box_score_thresh=0.0, box_detections_per_img=4) if kind == 'fasterrcnn' else dict(score_thresh=0.0)
    more = {} if kind == 'fasterrcnn' else dict(detections_per_img=4)
    return detector(body(), 2, kind, channels=64, **low, **more, **kw)


def learner(folder, task, net=None, cbs=(), fit='pad'):
    make = detection_loaders if task == 'detect' else segmentation_loaders
    dls = make(voc_scenes(folder, task), size=SIZE, bs=2, fit=fit)
    return Learner(dls, net or network(task), device='cpu', cbs=cbs)


def pictures():
    "Of several shapes"
    g = torch.Generator().manual_seed(0)
    # 8 x 8 large pixels, so that there is something to find
    return [
        Image.fromarray(torch.randint(0, 256, (8, 8, 3), generator=g, dtype=torch.uint8).numpy()).resize(size)
        for size in ((70, 50), (40, 100), (64, 64), (301, 123))
    ]


def assert_same(found, expected):
    "To the bit, and something is found"
    assert len(found) == len(expected)
    assert sum(len(one) for one in expected if hasattr(one, 'boxes')) or hasattr(expected[0], 'classes')
    for one, other in zip(found, expected, strict=True):
        if hasattr(one, 'classes'):
            assert torch.equal(one.classes, other.classes) and one.vocab == other.vocab
            continue
        assert one.names == other.names
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)


KINDS_OF = [*(('detect', kind) for kind in KINDS), ('segment', 'fcn'), ('segment', 'deeplabv3')]


@pytest.mark.parametrize('task, kind', KINDS_OF)
def test_the_same_to_the_bit(folder, tmp_path, task, kind):
    learn = learner(folder, task, network(task, kind), fit='squash' if kind == 'retinanet' else 'pad')
    # statistics of BatchNorm that are not those of a new network
    learn.model.train()
    with torch.no_grad():
        learn.model.backbone(torch.randn(4, 3, SIZE, SIZE))
    expected = learn.predict(pictures())
    made = learn.export(tmp_path / 'out')
    assert_same(made.predict(pictures()), expected)
    assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == ['config.json', 'model.safetensors']
    loaded = LOAD[task](tmp_path / 'out')
    assert_same(loaded.predict(pictures()), expected)
    # from a file, and saved once more
    pictures()[0].save(tmp_path / 'one.png')
    assert loaded.predict(tmp_path / 'one.png').file.endswith('one.png')
    loaded.save(tmp_path / 'again')
    assert_same(LOAD[task](tmp_path / 'again').predict(pictures()), expected)


@pytest.mark.parametrize('task', ['detect', 'segment'])
def test_after_training_with_tricks(folder, tmp_path, task):
    "Averaged weights, and layers that a trick has put in"
    learn = learner(folder, task, cbs=[EMA(0.5), BlurPool()])
    learn.fit(1, 1e-3)
    expected = learn.predict(pictures())
    learn.export(tmp_path / 'out')
    assert_same(LOAD[task](tmp_path / 'out').predict(pictures()), expected)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert 'blur_pool' in config['changes'] and config['classes'] == [str(name) for name in learn.dls.vocab]


def test_a_backbone_of_torchvision(folder, tmp_path):
    make = lambda: build(Architecture('torchvision', 'resnet18'))
    learn = learner(folder, 'detect', network('detect', body=make))
    learn.export(tmp_path / 'out')
    assert_same(load_detector(tmp_path / 'out').predict(pictures()), learn.predict(pictures()))


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.last(self.conv(x).relu())


def test_a_network_of_ones_own(folder, tmp_path):
    learn = learner(folder, 'segment', Own(4))
    with pytest.raises(ValueError, match='give make='):
        learn.export(tmp_path / 'out')
    learn.export(tmp_path / 'out', make=Own, args=dict(width=4))
    assert_same(load_segmenter(tmp_path / 'out', make=Own).predict(pictures()), learn.predict(pictures()))
    with pytest.raises(ValueError, match='give make='):
        load_segmenter(tmp_path / 'out')
    with pytest.raises(ValueError, match="learner's own network"):
        learn.export(None, make=lambda: learn.model)


def test_refused_exports(folder, tmp_path):
    learn = learner(folder, 'detect')
    with pytest.raises(ValueError, match='for classifiers'):
        learn.export(tmp_path / 'out', temperature=2.0)
    with pytest.raises(ValueError, match='3 class names for a network of 2'):
        learn.export(tmp_path / 'out', classes=['a', 'b', 'c'])
    # a layer that the description does not have
    learn.model.head.classification_head.cls_logits.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(ValueError, match='predicts otherwise than the learner'):
        learn.export(tmp_path / 'out')
    learn = learner(folder, 'segment')
    with torch.no_grad():
        next(learn.model.parameters())[0] = float('nan')
    with pytest.raises(ValueError, match='the training diverged'):
        learn.export(tmp_path / 'out')
    learn = learner(folder, 'segment')
    learn.dls.cbs = []
    learn.dls.valid = [(torch.rand(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, dtype=torch.uint8))]
    with pytest.raises(ValueError, match='give images=ImageSpec'):
        learn.export(tmp_path / 'out')
    assert learn.export(None, images=ImageSpec(SIZE, 1.0, fit='pad')).predict(pictures()[0]).size == (50, 70)
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def exported(folder, tmp_path_factory):
    goal = tmp_path_factory.mktemp('exported') / 'detector'
    learner(folder, 'detect').export(goal)
    return goal


def change_config(folder, **changes):
    file = folder / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename_weights(folder):
    state = load_file(folder / 'model.safetensors')
    state['further'] = state.pop(next(iter(state)))
    save_file(state, folder / 'model.safetensors')


@pytest.mark.parametrize(
    'damage, kind, message',
    [
        (lambda f: change_config(f, format=99), ValueError, 'install a newer one'),
        (lambda f: change_config(f, task='draw'), ValueError, "task is one of detect, segment, got 'draw'"),
        (lambda f: change_config(f, task='segment'), ValueError, 'load_segmenter reads it'),
        (lambda f: change_config(f, classes=['a', 'a']), ValueError, "two classes are called 'a'"),
        (lambda f: change_config(f, architecture=dict(library='trickbag', name='os')), ValueError, 'no network can be'),
        (lambda f: change_config(f, changes=dict(magic={})), ValueError, 'does not know'),
        (lambda f: (f / 'config.json').write_text('{'), ValueError, "no detector's configuration"),
        (lambda f: (f / 'config.json').unlink(), FileNotFoundError, 'folder of an exported detector'),
        (lambda f: (f / 'model.safetensors').unlink(), FileNotFoundError, 'model.safetensors'),
        (rename_weights, ValueError, 'do not belong together'),
        (lambda f: shutil.rmtree(f), FileNotFoundError, 'load_detector: there is no folder'),
    ],
)
def test_refused_folders(exported, tmp_path, damage, kind, message):
    copy = tmp_path / 'copy'
    shutil.copytree(exported, copy)
    damage(copy)
    with pytest.raises(kind, match=message) as e:
        load_detector(copy)
    assert '\n' not in str(e.value)


def test_loaders_name_each_other(exported):
    with pytest.raises(ValueError, match='load_detector reads it'):
        load_classifier(exported)
    with pytest.raises(ValueError, match='load_detector reads it'):
        load_segmenter(exported)


def test_another_process_needs_neither_data_nor_training(exported, tmp_path):
    pictures()[0].save(tmp_path / 'one.png')
    code = f"""
import sys, json
from trickbag.deploy.scenes import load_detector
found = load_detector({str(exported)!r}).predict({str(tmp_path / 'one.png')!r})
rooms = ('trickbag.loop', 'trickbag.learner', 'trickbag.monitors', 'trickbag.runs', 'trickbag.look')
print(json.dumps([found.boxes.tolist(), [name for name in sys.modules if name.startswith(rooms)]]))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    boxes, modules = json.loads(done.stdout)
    assert boxes == load_detector(exported).predict(tmp_path / 'one.png').boxes.tolist()
    assert not modules
