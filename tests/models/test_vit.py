"Vision transformers, tiny and random: from weights of another size to a classifier, its file and ONNX."

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torchvision.models import ViT_B_16_Weights, _api
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from trickbag.all import *
from trickbag.models.pretrained import pretrained_model
from trickbag.models.resnet_d import resnet_d

SMALL = dict(depth=2, embed_dim=24, num_heads=2)
NAMES = ['timm/vit_tiny_patch16_224', 'vit_tiny_for_tests']


def vit_tiny_for_tests(*, weights: ViT_B_16_Weights | None = None, progress=True, **kw):
    return VisionTransformer(
        **{**dict(image_size=224), **kw}, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48
    )


@pytest.fixture(scope='module', autouse=True)
def registered():
    "torchvision's smallest ViT has 86 M parameters"
    vit_tiny_for_tests.__module__ = 'torchvision.models.vit_tiny_for_tests'
    _api.register_model()(vit_tiny_for_tests)
    yield
    del _api.BUILTIN_MODELS['vit_tiny_for_tests']


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    path = toy_set(tmp_path_factory.mktemp('toy'), n_classes=3, n_train=24, n_valid=12)
    return DataLoaders.from_folder(path, valid='valid', size=32, bs=12)


def depth(name):
    "Layers of torchvision's ViT, which does not say how deep they lie"
    if name.startswith('heads'):
        return 3
    return int(name.split('encoder_layer_')[1][0]) + 1 if 'encoder_layer_' in name else 0


def args_of(name):
    return dict(SMALL) if name.startswith('timm/') else {}


@pytest.mark.parametrize('name', NAMES)
def test_from_weights_to_a_classifier(name, dls, tmp_path):
    torch.manual_seed(0)
    published, _ = pretrained_model(name, None, False, size=64, **args_of(name))
    file = tmp_path / 'published.pth'
    torch.save(published.state_dict(), file)
    learn = vision_learner(
        dls,
        name,
        file,
        model_args=args_of(name),
        metrics=accuracy,
        path=tmp_path,
        cbs=LayerDecay(0.7, depth=None if name.startswith('timm/') else depth),
    )
    body = 'blocks.0.mlp.fc1.weight' if name.startswith('timm/') else 'encoder.layers.encoder_layer_0.mlp.0.weight'
    assert torch.equal(learn.model.state_dict()[body], published.state_dict()[body])
    # rates rise towards the head
    scales = []

    class Look(Callback):
        stage = 'monitor'
        monitor = True

        def before_batch(self, learn):
            scales.append([group.get('lr_scale', 1) for group in learn.opt.param_groups])

    learn.fine_tune(1, freeze_epochs=1, cbs=Look())
    assert min(scales[-1]) < 0.5 and max(scales[-1]) == 1
    assert not torch.equal(learn.model.state_dict()[body], published.state_dict()[body])
    probabilities, _ = learn.get_preds()
    classifier = learn.export(tmp_path / 'vit')
    again = load_classifier(tmp_path / 'vit')
    images = [torch.randint(0, 256, (3, 40, 50)).byte()]
    assert torch.equal(again.probabilities(images), classifier.probabilities(images))
    with torch.inference_mode():
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(again.network.model(x), classifier.network.model(x))
    assert probabilities.shape == (12, 3)
    assert classifier.to_onnx(tmp_path / 'vit.onnx') < 1e-4


def test_positions_as_the_libraries_make_them(tmp_path):
    for name, key in zip(NAMES, ('pos_embed', 'encoder.pos_embedding'), strict=True):
        published, _ = pretrained_model(name, None, False, size=64, **args_of(name))
        state = published.state_dict()
        torch.save(state, tmp_path / 'vit.pth')
        model, _ = pretrained_model(name, 3, tmp_path / 'vit.pth', size=96, **args_of(name))
        if key == 'pos_embed':
            wanted = resample_abs_pos_embed(state[key], [6, 6], num_prefix_tokens=1)
        else:
            wanted = interpolate_embeddings(96, 16, dict(state))[key]
        assert torch.equal(model.state_dict()[key], wanted)


def test_positions_without_one_for_the_class(tmp_path):
    name = 'timm/deit3_small_patch16_224'
    published, _ = pretrained_model(name, None, False, size=64, **SMALL)
    state = published.state_dict()
    torch.save(state, tmp_path / 'deit.pth')
    model, _ = pretrained_model(name, 3, tmp_path / 'deit.pth', size=96, **SMALL)
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(state['pos_embed'], [6, 6], num_prefix_tokens=0))


@pytest.mark.parametrize('name', ['vit_tiny_patch16_384', 'swin_tiny_patch4_window7_224'])
def test_random_weights_at_any_size(name):
    small = SMALL if name.startswith('vit') else dict(depths=(1, 1, 1, 1), embed_dim=12, num_heads=(1, 1, 1, 1))
    own = timm.get_pretrained_cfg(name).input_size[-1]
    model, spec = pretrained_model(name, 3, False, **small)
    assert spec.size == own
    model, spec = pretrained_model(name, 3, False, size=448 if 'swin' in name else 32, **small)
    assert model(torch.zeros(1, 3, spec.size, spec.size)).shape == (1, 3)


def test_a_resnet_d_is_exported_as_one(dls, tmp_path):
    small = dict(channels=[8, 8, 16, 16])
    learn = vision_learner(dls, 'timm/resnet18', pretrained=False, model_args=small, path=tmp_path)
    resnet_d(learn.model)
    classifier = learn.export(tmp_path / 'd')
    again = load_classifier(tmp_path / 'd')
    assert again.config.architecture.d_variant
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again.network.model(x), classifier.network.model(x))


def test_gray_networks_on_colored_data_are_refused_before(dls):
    with pytest.raises(ValueError, match='leave n_in out'):
        vision_learner(dls, 'timm/resnet18', pretrained=False, n_in=1)


def test_a_crop_unlike_that_of_the_weights_is_said(dls, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRICKBAG_DATA', str(tmp_path))
    (tmp_path / 'weights').mkdir()
    published = timm.create_model('vit_tiny_patch16_224', img_size=32, **SMALL)
    torch.save(published.state_dict(), tmp_path / 'weights' / 'vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth')
    vision_learner(dls, 'vit_tiny_patch16_224', model_args=dict(SMALL))
    said = capsys.readouterr().out
    assert 'central 0.875 of the shorter side, the weights were published with 0.9' in said and 'bicubic' in said
    assert 'Normalize: mean (0.5, 0.5, 0.5)' in said and 'does not say how' not in said
