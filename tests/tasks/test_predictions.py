"""What a detector or a segmenter finds comes back in pixels of the photograph, whatever its shape: networks that find
bright rectangles, and what torch and torchvision say."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import trickbag.look.draw_scene  # noqa: F401  gives predictions their `draw`
from trickbag.all import Callback, Crop, Learner, Normalize
from trickbag.data.scene_loaders import detection_loaders, segmentation_loaders
from trickbag.data.scene_readers import voc_scenes
from trickbag.data.toy_scenes import toy_scenes
from trickbag.tasks.detection import Detection
from trickbag.tasks.predictions import class_map_in, view_of
from trickbag.tasks.segmentation import Segmentation
from trickbag.vision.preprocess import ImageSpec

SIZE = 96
# (width, height) of pictures, and x0, y0, x1, y1 of a bright rectangle in the center of each
PICTURES = [((200, 100), (80, 30, 125, 72)), ((75, 180), (20, 70, 61, 110)), ((96, 96), (30, 40, 70, 60))]
PICTURES += [((40, 37), (12, 11, 30, 26)), ((301, 300), (100, 99, 203, 190))]
FITS = ['pad', 'squash', 'crop']


def picture(size, box):
    one = Image.new('RGB', size, (60, 60, 60))
    one.paste((255, 255, 255), box)
    return one


class FindBright(nn.Module):
    "The box around what is brighter than half, as the only object, of class 2; its edges to a fraction of a pixel"

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        found = []
        for image in x:
            # the fraction of each pixel that is bright, by its level between both
            level = image[0] * 0.229 + 0.485
            share = ((level - 60 / 255) / (1 - 60 / 255)).clamp(0, 1)
            across = share.amax(0)
            down = share.amax(1)
            edges = []
            for line in (across, down):
                bright = (line > 0.5).nonzero()[:, 0]
                first, last = int(bright[0]), int(bright[-1])
                edges.append((first, last + 1))
            (x0, x1), (y0, y1) = edges
            box = torch.tensor([[float(x0), y0, x1, y1]]) + self.unused
            found.append(dict(boxes=box, labels=torch.tensor([2]), scores=torch.tensor([0.75])))
        return found


class SegmentBright(FindBright):
    "Class 1 where it is bright"

    def forward(self, x):
        level = x[:, :1] * 0.229 + 0.485 - (1 + 60 / 255) / 2
        nothing = torch.full_like(level, -9)
        return dict(out=torch.cat([-level, level, nothing], 1) + self.unused)


class Data:
    train = valid = None
    vocab = ['dark', 'bright']
    c = 2

    def __init__(self, task, crop):
        self.task = task
        self.train = []
        self.cbs = [crop, Normalize()]


def learner(task, fit, **kw):
    net = FindBright() if task == 'detect' else SegmentBright()
    task = Detection() if task == 'detect' else Segmentation()
    return Learner(Data(task, Crop(SIZE, fit=fit, **kw)), net, device='cpu')


@pytest.mark.parametrize('fit', FITS)
def test_boxes_come_back(fit):
    pictures = [picture(*one) for one in PICTURES]
    every = learner('detect', fit).predict(pictures)
    assert len(every) == len(pictures)
    for found, (size, box) in zip(every, PICTURES, strict=True):
        assert found.size == size[::-1]
        assert (found.names, found.labels.tolist(), found.scores.tolist()) == (['bright'], [1], [0.75])
        # half a pixel of the image that the network saw, and no less than that
        allowed = 0.5 * max(1, max(size) / SIZE) + 0.01
        assert (found.boxes[0] - torch.tensor(box)).abs().max() <= max(allowed, 1), (found, size, box)


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('kind', ['file', 'array', 'tensor'])
def test_one_image_of_each_kind(fit, kind, tmp_path):
    one = picture(*PICTURES[0])
    pixels = v2.functional.pil_to_tensor(one)
    one.save(tmp_path / 'one.png')
    item = dict(file=tmp_path / 'one.png', array=pixels.permute(1, 2, 0).numpy(), tensor=pixels)[kind]
    learn = learner('detect', fit)
    found = learn.predict(item)
    assert torch.equal(found.boxes, learn.predict(one).boxes)
    assert found.file == (str(tmp_path / 'one.png') if kind == 'file' else None)
    (again,) = learn.predict(tmp_path) if kind == 'file' else learn.predict([item])
    assert torch.equal(found.boxes, again.boxes)


@pytest.mark.parametrize('fit', FITS)
def test_class_maps_come_back(fit):
    pictures = [picture(*one) for one in PICTURES]
    for found, (size, box) in zip(learner('segment', fit).predict(pictures), PICTURES, strict=True):
        truth = torch.zeros(size[::-1], dtype=torch.uint8)
        x0, y0, x1, y1 = box
        truth[y0:y1, x0:x1] = 1
        assert found.size == size[::-1] and found.vocab == ['dark', 'bright']
        seen = found.classes != 255
        assert bool(seen.all()) == (fit != 'crop')
        # only pixels that share one of the network's with the border may be wrong
        border = max(1, max(size) // SIZE + 1)
        inner = torch.zeros_like(truth, dtype=torch.bool)
        inner[y0 - border : y1 + border, x0 - border : x1 + border] = True
        inner[y0 + border : y1 - border, x0 + border : x1 - border] = False
        assert not ((found.classes != truth) & seen & ~inner).any()


def test_what_is_not_seen_is_cut_off_at_the_center():
    "A square of 200 x 100 that is cut at .875: 87.5 pixels around the center"
    classes = learner('segment', 'crop').predict(picture(*PICTURES[0])).classes
    rows, columns = (classes != 255).nonzero().unbind(1)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (torch.stack(extent) - torch.tensor([56.25, 6.25, 143.75, 93.75])).abs().max() <= 1


@pytest.mark.parametrize('size', [(50, 70), (200, 90), (33, 300)])
def test_logits_are_enlarged_as_torch_does(size):
    logits = torch.randn(5, 64, 48, generator=torch.Generator().manual_seed(0))
    found = class_map_in(logits, view_of(size, ImageSpec((64, 48), 1.0, fit='squash')))
    expected = F.interpolate(logits[None].double(), size, mode='bilinear')[0].argmax(0)
    assert (found.classes == expected).float().mean() > 0.999


def test_a_photograph_in_parts():
    "Rows are enlarged in parts"
    logits = torch.randn(20, 32, 32, generator=torch.Generator().manual_seed(0))
    found = class_map_in(logits, view_of((600, 900), ImageSpec(32, 1.0, fit='squash')))
    expected = F.interpolate(logits[None].double(), (600, 900), mode='bilinear')[0].argmax(0)
    assert (found.classes == expected).float().mean() > 0.999


def test_a_batch_gives_what_its_images_give_alone():
    learn = learner('detect', 'pad')
    pictures = [picture(*one) for one in PICTURES * 4]
    alone = [learn.predict(one).boxes for one in pictures]
    assert all(torch.equal(one.boxes, other) for one, other in zip(learn.predict(pictures), alone, strict=True))


class Smaller(Callback):
    stage = 'augment'
    reads = writes = ('x',)
    geometry = 'moved'

    def before_batch(self, learn):
        learn.xb = learn.xb[..., ::2, ::2]


def test_refusals():
    learn = learner('detect', 'pad')
    learn.cbs = [Smaller()]
    with pytest.raises(ValueError, match='it is not known where things are') as e:
        learn.predict(picture(*PICTURES[0]))
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='leave act out'):
        learn.predict(picture(*PICTURES[0]), act=torch.sigmoid)
    with pytest.raises(ValueError, match='leave act out'):
        learn.get_preds([], act=torch.sigmoid)
    from trickbag.all import Interpretation

    with pytest.raises(ValueError, match="the task is 'detect'"):
        Interpretation(learn)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return toy_scenes(tmp_path_factory.mktemp('toy'), n_train=8, n_valid=5, n_classes=2, size=48)


class RightBoxes(nn.Module):
    "Says what the loader said, whose boxes it was given"

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        at = x.new_tensor([[1.0, 2, 3, 4]]) + self.unused
        return [dict(boxes=at + i, labels=torch.tensor([1]), scores=torch.tensor([0.5])) for i in range(len(x))]


@pytest.mark.filterwarnings('ignore:scenes')
def test_get_preds_of_a_detector(folder):
    dls = detection_loaders(voc_scenes(folder, 'detect'), size=32, bs=2, valid_bs=3)
    learn = Learner(dls, RightBoxes(), device='cpu')
    found, targets = learn.get_preds()
    assert [one['boxes'][0, 0].item() for one in found] == [1, 2, 3, 1, 2]
    assert targets.shape[0] == 5 and targets.shape[2] == 6
    # in pixels of the image of 32
    assert targets[..., :4].max() <= 32
    assert learn.get_preds(dls.test_dl(dls.scenes.files[:2]))[1] is None
    for train in (True, False):
        assert len(learn.show_batch(n=2, train=train).axes) == 2
        assert len(dls.show_batch(n=2, train=train).axes) == 2


def test_get_preds_of_a_segmenter(folder):
    dls = segmentation_loaders(voc_scenes(folder, 'segment'), size=32, bs=2, valid_bs=3)
    learn = Learner(dls, SegmentBright(), device='cpu')
    found, targets = learn.get_preds()
    assert found.dtype == torch.uint8 and found.shape == targets.shape == (5, 32, 32)
    xb = torch.cat([xb for xb, *_ in dls.valid])
    assert len(xb) == 5 and 0 < found.float().mean() < 1
    assert len(learn.show_batch(n=2).axes) == 2


def test_the_learner_is_as_found():
    learn = learner('detect', 'pad')
    learn.model.train()
    before = torch.random.get_rng_state()
    learn.predict(picture(*PICTURES[0]))
    assert learn.model.training and torch.equal(torch.random.get_rng_state(), before)
