"Names on a hub and weights of others, with a network, without one, and without the hub's library."

import sys
import types
import urllib.error

import pytest
import torch
from torch import nn

from trickbag.all import *
from trickbag.deploy.classifier import Classifier, ClassifierConfig
from trickbag.models.architectures import Architecture
from trickbag.models.pretrained import WeightsError, pretrained_model


@pytest.fixture
def classifier():
    config = ClassifierConfig(Architecture('own', 'flat'), ['ant', 'bee'], ImageSpec(4, 1.0))
    return Classifier(make(), config)


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


def hub(monkeypatch, download):
    "The hub's library, as far as it is used"
    module = types.ModuleType('huggingface_hub')
    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)


def test_a_name_on_the_hub(classifier, tmp_path, monkeypatch):
    classifier.save(tmp_path / 'snapshot')
    asked = []

    def download(name, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        return str(tmp_path / 'snapshot')

    hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    found = load_classifier('somebody/beetles', make=make)
    assert asked == [('somebody/beetles', ['config.json', 'model.safetensors'])]
    assert torch.equal(found.network.model[1].weight, classifier.network.model[1].weight)
    # a folder of that name goes first
    classifier.save('somebody/beetles')
    load_classifier('somebody/beetles', make=make)
    assert len(asked) == 1


@pytest.mark.parametrize('name', ['beetles', './somebody/beetles', '/somebody/beetles', '~/beetles', 'a/b/c'])
def test_a_path_is_not_asked_for(name, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise AssertionError('asked for')

    hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f'there is no folder {name}'):
        load_classifier(name)


@pytest.mark.parametrize(
    'e, reason',
    [
        (OSError('Network is unreachable\na long\ntraceback'), 'the hub says: Network is unreachable'),
        (ValueError('401 Client Error. (Request ID: 1)\n\nRepository Not Found'), 'the hub says: 401 Client Error'),
        (TimeoutError(), 'the hub says: TimeoutError'),
    ],
)
def test_a_hub_that_does_not_answer(e, reason, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise e

    hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        load_classifier('somebody/beetles')
    assert '\n' not in str(caught.value)


def test_without_the_hubs_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='pip install huggingface_hub'):
        load_classifier('somebody/beetles')


@pytest.mark.parametrize(
    'e, reason',
    [
        (urllib.error.URLError('Name or service not known'), 'Name or service not known'),
        (RuntimeError('invalid hash value (expected "f37072fd", got "deadbeef")'), 'invalid hash value'),
    ],
)
def test_weights_that_cannot_be_had(e, reason, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise e

    monkeypatch.setenv('TRICKBAG_DATA', str(tmp_path))
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', download)
    with pytest.raises(WeightsError, match=f'resnet18.*{reason}.*pretrained=False') as caught:
        pretrained_model('resnet18', 2)
    assert '\n' not in str(caught.value)


def test_weights_of_timm_that_cannot_be_had(tmp_path, monkeypatch):
    timm = pytest.importorskip('timm')
    create_model = timm.create_model

    def create(name, pretrained=False, **kwargs):
        if pretrained:
            raise urllib.error.URLError('Name or service not known')
        return create_model(name, **kwargs)

    monkeypatch.setenv('TRICKBAG_DATA', str(tmp_path))
    monkeypatch.setattr('timm.create_model', create)
    with pytest.raises(WeightsError, match='resnet18.*Name or service not known.*pretrained=False'):
        pretrained_model('timm/resnet18', 2)
