"Weights and heads: what is found, what is refused, and what a library's own function would have built."

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from trickbag.all import EMA, SWA, Checkpoint, wise_ft
from trickbag.models.architectures import find_head, find_library, replace_head
from trickbag.models.pretrained import (
    WeightsError,
    find_weights,
    image_spec,
    local_weights,
    pretrained_model,
    read_state,
)
from trickbag.testing.proofs import tiny_learner, tiny_model
from trickbag.vision.preprocess import ImageSpec

TINY_VIT = dict(depth=2, embed_dim=24, num_heads=2)


def one_line(error, *words):
    assert '\n' not in str(error.value), error.value
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'])
def test_no_layer_of_the_body_is_taken_for_the_head(name):
    features = dict(num_classes=0) if name.startswith('vit') else {}
    model = timm.create_model(name, img_size=32, **TINY_VIT, **features)
    with pytest.raises(ValueError) as e:
        replace_head(model, 3, size=32)
    one_line(e, 'gives features, joins several heads')


def test_features_of_timm_get_a_head():
    model, _ = pretrained_model('timm/vit_small_patch14_dinov2', 3, False, size=28, **TINY_VIT)
    assert model.head_name == 'head'
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 3)


def test_a_head_that_is_all_zeros_is_found():
    model = torchvision.models.resnet18()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert find_head(model, 32) == 'fc'


class Scaled(nn.Module):
    "Logits that are changed after the head"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return 3 * self.fc(self.conv(x).mean((2, 3)))


def test_a_refused_model_stays_as_it_was():
    # the last pool is the one before the head, others are in the gates
    model = torchvision.models.get_model('regnet_y_400mf').eval()
    assert replace_head(model, 5, 'concat', size=64) == 'fc'
    assert type(model.avgpool).__name__ == 'ConcatPool'
    model = Scaled()
    fc = model.fc
    with pytest.raises(ValueError, match='changes the logits'):
        replace_head(model, 2, size=16)
    assert model.fc is fc
    model = timm.create_model('vgg11', num_classes=10)
    layers = dict(model.named_modules())
    with pytest.raises(ValueError, match="kind='linear'"):
        replace_head(model, 2, 'concat', size=64)
    assert dict(model.named_modules()) == layers


def test_dropout_before_a_convolutional_head():
    model = torchvision.models.squeezenet1_1()
    replace_head(model, 5, dropout=0.4, size=64)
    assert [type(m).__name__ for m in model.classifier[1]] == ['Dropout', 'Conv2d']
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize('name', ['inception_v3', 'googlenet'])
def test_inceptions_as_torchvision_builds_them(name, monkeypatch):
    torch.manual_seed(0)
    published = torchvision.models.get_model(name, aux_logits=True, init_weights=False)
    for value in published.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), 'get_state_dict', lambda self, *args, **kw: dict(published.state_dict()))
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    ours, spec = pretrained_model(name)
    assert spec.size == (299 if name == 'inception_v3' else 224)
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs(x))
    # one tensor in training, too
    ours, _ = pretrained_model(name, 3, False, size=128)
    assert ours.train()(torch.randn(2, 3, 128, 128)).shape == (2, 3)


def weights_folder(tmp_path, monkeypatch, *files):
    for file in files:
        (tmp_path / 'weights' / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'weights' / file).write_bytes(b'')
    monkeypatch.setenv('HOME', str(tmp_path.parent))
    monkeypatch.setenv('TRICKBAG_DATA', f'~/{tmp_path.name}')


def test_files_of_weights_are_those_that_were_asked_for(tmp_path, monkeypatch):
    weights_folder(tmp_path, monkeypatch, 'resnet50.pth', 'timm/resnet50.a1_in1k.safetensors', 'resnet34.a1_in1k.pt')
    assert local_weights('resnet50').name == 'resnet50.pth'
    found = find_weights('resnet50')
    assert found.file.name == 'resnet50.pth' and not found.is_known
    assert 'does not say how' in str(found) and 'IMAGENET1K_V2' in str(found)
    # named weights are not those of any file
    found = find_weights('resnet50', 'IMAGENET1K_V1')
    assert found.file is None and found.is_known and 'IMAGENET1K_V1' in str(found)
    # torchvision's file is not timm's
    assert find_weights('timm/resnet50', 'a2_in1k').file is None
    found = find_weights('timm/resnet50')
    assert found.file.parent.name == 'timm' and found.is_known
    assert find_weights('resnet34.a1_in1k').file.name == 'resnet34.a1_in1k.pt'
    images = ImageSpec(96, 1.0)
    found = find_weights('resnet50', images=images)
    assert found.is_known and found.spec == images


def test_a_picture_is_no_file_of_weights(tmp_path):
    photograph = tmp_path / 'photograph.jpg'
    Image.new('RGB', (8, 8)).save(photograph)
    with pytest.raises(WeightsError) as e:
        pretrained_model('resnet18', 3, photograph)
    one_line(e, 'no file of weights')
    # torch advises to switch its check off
    assert 'weights_only' not in str(e.value)


def test_weights_of_another_architecture_are_named(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / 'resnet34.pt')
    with pytest.raises(WeightsError) as e:
        pretrained_model('resnet18', 3, tmp_path / 'resnet34.pt')
    one_line(e, 'are not of this network', 'are they of another architecture?')


def test_how_timm_prepares_images():
    assert image_spec('timm/dm_nfnet_f0').fit == 'squash'
    assert image_spec('timm/dm_nfnet_f0').crop_fraction == 0.9
    bordered = [n for n in timm.list_pretrained() if timm.get_pretrained_cfg(n).crop_mode == 'border']
    spec = image_spec(bordered[0])
    assert spec.fit == 'pad' and spec.fill == tuple(round(255 * value) for value in spec.mean)
    assert find_weights(bordered[0], images=ImageSpec(64)).spec == ImageSpec(64)


def test_wrong_names_are_one_line_with_the_remedy():
    for name, word in (('timm/resnet51', "'timm/resnet50'"), ('fasterrcnn_resnet50_fpn', 'not known')):
        with pytest.raises(ValueError) as e:
            find_library(name)
        one_line(e, word)
    with pytest.raises(ValueError, match='not known'):
        find_library('torchvision/fasterrcnn_resnet50_fpn')
    with pytest.raises(WeightsError) as e:
        pretrained_model('timm/resnet50', 3, 'nosuch', size=64)
    one_line(e, "'nosuch'", 'a1_in1k')
    with pytest.raises(ValueError) as e:
        pretrained_model('vit_b_32', 3, False, size=32, image_size=64)
    one_line(e, '3 x 32 x 32', 'give the size')


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError) as e:
        pretrained_model('timm/resnet50', 3)
    one_line(e, 'pip install timm')


def test_weights_of_a_run_with_an_average_are_those_that_it_ends_with(tmp_path):
    for callback in (EMA(0.5), SWA(0.5)):
        learn = tiny_learner([callback, Checkpoint(file='last.pt')], path=tmp_path).fit(3)
        found, _ = read_state(tmp_path / 'last.pt')
        expected = learn.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_weights_that_are_not_finite_do_not_go_into_a_soup():
    good = tiny_model().state_dict()
    bad = dict(good, **{next(iter(good)): torch.full_like(next(iter(good.values())), float('nan'))})
    with pytest.raises(ValueError, match='NaN or infinite'):
        wise_ft(good, bad)
