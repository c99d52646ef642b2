"ONNX files of detectors and segmenters give what the networks give, on images that the export did not see."

import json

import pytest
import torch

pytest.importorskip('onnxruntime')

from trickbag.data.fitted import FittedImages
from trickbag.deploy import onnx_scenes
from trickbag.deploy.onnx import onnx_session
from trickbag.deploy.scenes import Detector, SceneConfig, Segmenter
from trickbag.models.xresnet import xresnet18
from trickbag.tasks.detectors import KINDS, detector
from trickbag.tasks.predictions import objects_in, view_of
from trickbag.tasks.segmenters import segmenter
from trickbag.vision.preprocess import ImageSpec

SPEC = ImageSpec((64, 96), 1.0, fit='pad')


def made(task, kind):
    torch.manual_seed(0)
    body = xresnet18(n_out=2, widen=0.25)
    if task == 'segment':
        net = segmenter(body, 3, stride=16)
        return Segmenter(net, SceneConfig('segment', net.architecture, ['none', 'bee', 'ant'], SPEC))
    box = 'box_' if kind == 'fasterrcnn' else ''
    how = {f'{box}score_thresh': 0.0, f'{box}detections_per_img': 6}
    net = detector(body, 2, kind, channels=64, **how)
    # scores that are not all about the same
    if kind != 'fasterrcnn':
        torch.nn.init.normal_(net.head.classification_head.cls_logits.weight, std=0.5)
    return Detector(net, SceneConfig('detect', net.architecture, ['bee', 'ant'], SPEC))


def picture(seed):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 8, generator=g)
    return (torch.nn.functional.interpolate(coarse, (50, 80))[0] * 255).byte()


@pytest.mark.parametrize('kind', KINDS)
def test_detectors(kind, tmp_path):
    model = made('detect', kind)
    assert model.to_onnx(tmp_path / 'model.onnx') <= 1e-3
    session = onnx_session(tmp_path / 'model.onnx')
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes']) == ['bee', 'ant'] and ImageSpec(**json.loads(about['images'])) == SPEC
    n_found = 0
    for seed in range(3):
        expected = model.predict(picture(seed))
        ((xb, _, _),) = FittedImages([picture(seed)], SPEC)
        boxes, labels, scores = map(torch.from_numpy, session.run(None, dict(images=xb.numpy())))
        found = objects_in(dict(boxes=boxes, labels=labels + 1, scores=scores), view_of((50, 80), SPEC), model.classes)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
        assert found.names == expected.names
        n_found += len(found)
    assert n_found


def test_segmenters(tmp_path):
    model = made('segment', 'fcn')
    assert model.to_onnx(tmp_path / 'model.onnx') <= 1e-3
    pictures = [picture(seed) for seed in range(3)]
    ((xb, _, _),) = FittedImages(pictures, SPEC)
    (logits,) = onnx_session(tmp_path / 'model.onnx').run(None, dict(images=xb.numpy()))
    with torch.inference_mode():
        expected = model.model((xb - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None])
    torch.testing.assert_close(torch.from_numpy(logits), expected['out'], rtol=0, atol=1e-4)


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    model = made('detect', 'fcos')
    with pytest.raises(ValueError, match='ends in .onnx'):
        model.to_onnx(tmp_path / 'model.pt')
    export = onnx_scenes._exported

    def of_another(onnx, network, *others):
        written = export(onnx, network, *others)
        with torch.no_grad():
            network.model.head.classification_head.cls_logits.bias += 1
        return written

    monkeypatch.setattr(onnx_scenes, '_exported', of_another)
    with pytest.raises(ValueError, match='the file is not kept'):
        model.to_onnx(tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())
