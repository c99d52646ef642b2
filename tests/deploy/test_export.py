"An export is refused where the classifier would see other images than the learner did."

import copy

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from trickbag.all import *
from trickbag.models.xresnet import XResNet
from trickbag.testing.proofs import tiny_learner
from trickbag.vision.basic import imagenet_mean, imagenet_std


@pytest.fixture(scope='module')
def dls():
    data = toy_set(n_classes=3, n_train=24, n_valid=12)
    return DataLoaders.from_folder(data, valid='valid', size=32, bs=12)


def learner(dls, *cbs):
    torch.manual_seed(0)
    return Learner(dls, XResNet(1, [1, 1], n_out=3, widen=0.25), cbs=cbs)


class Negative(Callback):
    stage = 'augment'
    reads = writes = ('x',)

    def before_batch(self, learn):
        learn.xb = 255 - learn.xb


class Undeclared(Negative):
    reads = writes = ()


class ForTraining(Negative):
    train_only = True


class BlackBorder(Normalize):
    def before_batch(self, learn):
        super().before_batch(learn)
        learn.xb[..., :3, :] = 0


@pytest.mark.parametrize(
    'cb, message',
    [
        (lambda: Negative(), 'Negative changes images in validation'),
        (lambda: Undeclared(), 'of 255 levels'),
        (lambda: BlackBorder(), 'of 255 levels'),
    ],
)
def test_what_changes_images_in_validation(dls, cb, message, tmp_path):
    learn = learner(dls, cb())
    with pytest.raises(ValueError, match=message):
        learn.export(tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert learn.export(None, images=ImageSpec(32)).config.images == ImageSpec(32)


@pytest.mark.parametrize('cbs', [[], [ForTraining()], [AtSize(40)], [ChannelsLast()], [TTA(crops=1, sizes=[1.25, 1])]])
def test_what_the_network_is_given(dls, cbs):
    learn = learner(dls, *cbs)
    classifier = learn.export(None)
    size = 40 if cbs and isinstance(cbs[0], AtSize) else 32
    assert classifier.config.images == ImageSpec(size)
    assert learn.cbs == cbs
    if not any(isinstance(cb, TTA) for cb in cbs):
        expected, _ = learn.get_preds(dls.originals(size=size))
        found = classifier.probabilities([dls.valid.name(i) for i in range(12)])
        assert (found - expected).abs().max() < 0.02


def test_a_bicubic_crop_is_bicubic_in_use(tmp_path):
    "In the configuration, in what is checked at the export, and in what predicts from files"
    data = toy_set(tmp_path / 'toy', n_classes=3, n_train=24, n_valid=12)
    dls = DataLoaders.from_folder(data, valid='valid', size=32, bs=12, presize=64, interpolation='bicubic')
    learn = learner(dls)
    learn.export(tmp_path / 'out')
    again = load_classifier(tmp_path / 'out')
    assert again.config.images == ImageSpec(32, interpolation='bicubic')
    assert dls.originals().interpolation == 'bicubic'
    expected, _ = learn.get_preds(dls.originals())
    found = again.probabilities([dls.valid.name(i) for i in range(12)])
    bilinear, _ = learn.get_preds(dls.originals(interpolation='bilinear'))
    assert (found - expected).abs().max() < (found - bilinear).abs().max() / 3
    # the prepared image is the one that torchvision makes of the file
    photograph = v2.functional.pil_to_tensor(Image.open(dls.valid.name(0)))
    resize = v2.Compose([v2.Resize(36, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(32)])
    shown = again.prepare(photograph) * torch.tensor(imagenet_std)[:, None, None]
    shown = (shown + torch.tensor(imagenet_mean)[:, None, None]) * 255
    assert (shown - resize(photograph).float()).abs().max() <= 1.5


def test_files_that_are_gone(tmp_path):
    data = toy_set(tmp_path / 'toy', n_classes=3, n_train=24, n_valid=12)
    dls = DataLoaders.from_folder(data, valid='valid', size=32, bs=12)
    learn = learner(dls)
    learn.validate()
    for file in find_images(data):
        (data / file).unlink()
    assert learn.export(None).config.images == ImageSpec(32)


def test_the_learners_own_network_is_not_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    learn = tiny_learner(model=model).fit(1)
    with pytest.raises(ValueError, match="the learner's own network"):
        learn.export(None, make=lambda: model, classes=list("abcd"))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_that_diverged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    learn = tiny_learner(model=model)
    nn.init.constant_(model[3].bias, float('nan'))
    with pytest.raises(ValueError, match='diverged'):
        learn.export(None, make=lambda: copy.deepcopy(model), classes=list("abcd"))


def test_exporting_draws_nothing(dls):
    "Also where layers that a trick added are built again"
    learn = learner(dls, SqueezeExcite(min_channels=8))
    learn.validate()
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        if states:
            learn.export(None)
        else:
            learn.validate()
        states.append(torch.rand(4))
    assert torch.equal(*states)
