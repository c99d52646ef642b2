"Photographs of any shape, fitted in every way, from training to the exported classifier; gray, deep, many channels."

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import v2

import trickbag.deploy.export  # noqa: F401
from trickbag.all import *
from trickbag.data.decode import ImageError, ImageMode, decode, viewed
from trickbag.data.originals import OriginalsLoader  # noqa: F401  patches DataLoaders
from trickbag.vision.crop import canvases, center_boxes, from_canvas
from trickbag.vision.preprocess import height_width

# 16:9, 1:3, square: width, height
SHAPES = ((160, 90), (40, 120), (64, 64), (160, 90), (40, 120), (64, 64))
SIZES = (32, (24, 40))


def photographs(folder, shapes=SHAPES, mode='RGB'):
    "Smooth pictures as files, two classes"
    files = []
    for i, (width, height) in enumerate(shapes):
        small = np.random.default_rng(i).integers(60, 190, (6, 6, 3), dtype=np.uint8)
        file = folder / f'{i}.png'
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file)
        files.append(file)
    return files


def loaders(files, **kw):
    n = len(files)
    how = dict(is_valid=[i >= n // 2 for i in range(n)], bs=3, presize=64, flip=False) | kw
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return DataLoaders.from_lists(files, [str(i % 2) for i in range(n)], **how)


def theirs(image, size, fit, crop_pct, interpolation, fill=0):
    "What torchvision's and timm's transforms make of an image of Pillow's, from tensors"
    mode = v2.InterpolationMode(interpolation)
    scaled = [int(side / crop_pct + 1e-6) for side in height_width(size)]
    x = v2.functional.pil_to_tensor(image)
    if fit == 'squash':
        x = v2.functional.resize(x, scaled, mode, antialias=True)
    elif fit == 'crop' and isinstance(size, int):
        x = v2.functional.resize(x, scaled[:1], mode, antialias=True)
    else:
        # timm says which size; torchvision resizes, with the kernel that is used here
        resize = ResizeKeepRatio(scaled, longest=float(fit == 'pad'))
        new = resize.get_params(image, resize.size, resize.longest)
        x = v2.functional.resize(x, new, mode, antialias=True)
    if fill:
        return CenterCropOrPad(height_width(size), fill=fill)(x)
    return v2.functional.center_crop(x, list(height_width(size)))


@pytest.mark.parametrize('fit', ['crop', 'squash', 'pad'])
@pytest.mark.parametrize('size', SIZES)
def test_originals_and_classifier_are_as_torchvision_has_them(tmp_path, fit, size):
    files = photographs(tmp_path)
    for interpolation in ('bilinear', 'bicubic'):
        dls = loaders(files, size=size, fit=fit, interpolation=interpolation, fill=77)
        crop_pct = dls.cbs[0].crop_pct
        assert crop_pct == (0.875 if fit == 'crop' else 1)
        x = next(iter(dls.originals()))[0]
        expected = [theirs(Image.open(f), size, fit, crop_pct, interpolation, 77) for f in files[3 : 3 + len(x)]]
        assert torch.equal(x, torch.stack(expected))
        if interpolation != dict(crop='bicubic').get(fit, 'bilinear'):
            continue
        torch.manual_seed(0)
        learn = Learner(dls, xresnet18(n_out=2))
        classifier = learn.export(tmp_path / f'{fit}{interpolation}')
        again = load_classifier(tmp_path / f'{fit}{interpolation}')
        assert again.config.images == classifier.config.images and again.config.images.fit == fit
        assert again.config.images.size == size
        for file, pixels in zip(files[3:], expected, strict=False):
            spec = again.config.images
            mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
            difference = again.prepare(file)[0] - (pixels / 255 - mean) / std
            # theirs is rounded to whole levels, in both passes
            assert (difference * 255 * std).abs().max() < 2.1
        # and the probabilities are those of the learner on the originals
        found = again.probabilities(files[3:])
        assert torch.allclose(found, learn.get_preds(dls.originals())[0], atol=0.02)


class Look(Callback):
    stage = 'views'  # before Normalize
    monitor = True

    def before_fit(self, learn):
        self.seen = []

    def before_batch(self, learn):
        self.seen.append((learn.training, learn.idx, learn.xb.clone()))


@pytest.mark.parametrize('fit', ['crop', 'squash', 'pad'])
@pytest.mark.parametrize('size', SIZES)
def test_training_and_validation_from_the_store(tmp_path, fit, size):
    "The store is a picture of P x P; what is cut from it is what torchvision cuts from that picture"
    files = photographs(tmp_path)
    dls = loaders(files, size=size, fit=fit, scale=None, drop_last=False)
    learn = Learner(dls, xresnet18(n_out=2), cbs=Look()).fit(1)
    seen = learn.cb(Look).seen
    assert {training for training, _, _ in seen} == {True, False}
    height, width = height_width(size)
    for training, idx, x in seen:
        loader = dls.train if training else dls.valid
        assert x.shape[-2:] == (height, width)
        for i, pixels in zip(idx.tolist(), x, strict=True):
            stored = loader.store.source.get(i, 64)[0].permute(2, 0, 1)
            w, h = loader.wh[i].tolist()
            if fit == 'squash':
                expected = v2.functional.resize(stored, [height, width], antialias=True)
            elif fit == 'pad':
                new = min(height, round(h * width / w)), min(width, round(w * height / h))
                inner = v2.functional.resize(stored, list(new), antialias=True)
                expected = v2.functional.center_crop(inner, [height, width])
            else:
                box_w = min(w, h * width / height) * 0.875
                box_h = box_w * height / width
                left, top = round((w - box_w) / 2 * 64 / w), round((h - box_h) / 2 * 64 / h)
                right, bottom = round((w + box_w) / 2 * 64 / w), round((h + box_h) / 2 * 64 / h)
                box = stored[:, top:bottom, left:right]
                expected = v2.functional.resize(box, [height, width], antialias=True)
            assert (pixels.int() - expected.int()).abs().max() <= 1, (fit, size, i)


def test_random_boxes_are_drawn_on_what_evaluation_sees():
    "Of a squashed image a box of the target's aspect is one of the image's aspect; of a padded one it may lie beside"
    wh = torch.tensor([[160, 90], [40, 120]])
    for size in SIZES:
        height, width = height_width(size)
        canvas, place = canvases(wh, size, 'squash', 64)
        boxes = from_canvas(center_boxes(canvas, 1.0, aspect=width / height), canvas, place)
        assert torch.allclose(boxes[:, 2:], wh.double())
        canvas, place = canvases(wh, size, 'pad')
        assert torch.allclose(canvas[:, 0] / canvas[:, 1], torch.tensor([width / height] * 2).double())
        assert (canvas >= wh - 1e-6).all() and ((canvas - wh).abs() < 1e-6).any(1).all()
        boxes = from_canvas(center_boxes(canvas, 1.0, aspect=width / height), canvas, place)
        assert torch.allclose(boxes[:, :2] + boxes[:, 2:] / 2, wh.double() / 2)
        assert torch.equal(canvases(wh, size)[0], wh.double())


def test_a_fitted_run_resumes_and_tells_what_it_does(tmp_path):
    files = photographs(tmp_path)

    class Stop(Callback):
        stage = 'stop'
        on = False

        def after_batch(self, learn):
            if Stop.on and learn.training and (learn.epoch, learn.iter) == (1, 0):
                learn.save('half')
                raise KeyboardInterrupt

    def learner():
        torch.manual_seed(0)
        dls = loaders(files, size=(16, 24), fit='pad', fill=(9, 8, 7), bs=2, presize=32)
        return Learner(dls, xresnet18(n_out=2), path=tmp_path, cbs=Stop())

    whole = learner().fit(2)
    Stop.on = True
    with pytest.raises(KeyboardInterrupt):
        learner().fit(2)
    Stop.on = False
    resumed = learner()
    resumed.load('half')
    resumed.fit(2, resume=True)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_rectangles_through_what_changes_sizes(tmp_path):
    files = photographs(tmp_path)
    dls = loaders(files, size=(24, 40), drop_last=False)
    learn = Learner(dls, xresnet18(n_out=2), cbs=Look())
    learn.fit(4, cbs=ProgressiveResize(initial=20, step=10, start=0.2, end=0.7))
    assert [tuple(x.shape[-2:]) for training, _, x in learn.cb(Look).seen if training][0] == (12, 20)
    assert {tuple(x.shape[-2:]) for training, _, x in learn.cb(Look).seen if not training} == {(24, 40)}
    learn.fit(1, cbs=AtSize((36, 60)))
    assert {tuple(x.shape[-2:]) for _, _, x in learn.cb(Look).seen} == {(36, 60)}
    with pytest.raises(ValueError, match=r'give size=\(36, 60\)'):
        learn.fit(1, cbs=AtSize(60))
    with pytest.raises(ValueError, match='is a rectangle, and Crop cuts squares'):
        Learner(loaders(files, size=24), xresnet18(n_out=2)).fit(1, cbs=AtSize((36, 60)))
    learn.fix_res((36, 60), lr=0.1)
    plain, _ = learn.get_preds()
    for kw in (dict(), dict(crops=1), dict(sizes=(0.8, 1)), dict(sizes=(30, 40))):
        probabilities, _ = learn.tta(**kw)
        assert probabilities.shape == plain.shape
    center, _ = learn.tta(crops=1, flip=False, sizes=(1, 1))
    assert torch.allclose(center, plain, atol=1e-6)


def test_gray_images(tmp_path):
    files = photographs(tmp_path)
    dls = loaders(files, size=24, channels=1)
    assert dls.cbs[-1].mean == pytest.approx((0.449,), abs=1e-3)
    xb, _, _ = dls.one_batch()
    assert xb.shape == (3, 1, 64, 64) and dls.train.store.arrays.pixels.shape[-1] == 1
    gray = np.asarray(Image.open(files[0]).convert('L'))
    assert np.array_equal(viewed(files[0], mode=ImageMode(1))[:, :, 0].numpy(), gray)
    with pytest.raises(ValueError, match=r'images have 1 channels .* takes 3; give the loaders channels=3'):
        Learner(dls, xresnet18(n_out=2)).fit(1)
    learn = Learner(dls, xresnet18(c_in=1, n_out=2)).fit(1)
    classifier = learn.export(tmp_path / 'gray')
    assert torch.allclose(classifier.probabilities(files[3:]), learn.get_preds(dls.originals())[0], atol=0.02)
    assert classifier.predict(files[0]).index in (0, 1)
    with pytest.raises(ValueError, match='of images with 4 channels mean and deviation are not known; give mean='):
        loaders(files, channels=4)
    rgba = loaders(photographs(tmp_path, mode='RGBA'), channels=4, mean=(0.5,) * 4, std=(0.2,) * 4, size=24)
    Learner(rgba, xresnet18(c_in=4, n_out=2)).fit(1)


def test_many_channels():
    "Arrays of any number of channels come as they are: no channel is taken for alpha"
    rng = np.random.default_rng(0)
    for n in (2, 4, 6):
        items = [(rng.integers(0, 256, (30, 40, n), dtype=np.uint8), i % 2) for i in range(8)]
        pixels, size = decode(items[0][0], 16, mode=ImageMode(n))
        x = torch.from_numpy(items[0][0]).permute(2, 0, 1)
        expected = v2.functional.resize(x, [16, 16], antialias=True)
        assert (pixels.permute(2, 0, 1).int() - expected.int()).abs().max() <= 1 and size == (40, 30)
        how = dict(mean=(0.5,) * n, std=(0.2,) * n, size=16, bs=2, presize=24)
        dls = DataLoaders.from_dataset(items, channels=n, **how)
        Learner(dls, xresnet18(c_in=n, n_out=2)).fit(1)
        assert next(iter(dls.originals()))[0].shape[1] == n
    with pytest.raises(ImageError, match='has 6 channels, and 5 are asked for; give channels=6'):
        decode(items[0][0], 16, mode=ImageMode(5))


def test_deep_images_are_scaled_as_asked_not_wrapped(tmp_path):
    "12 bits in 16: a slope stays a slope, whatever holds it, and beyond the levels it is cut off"
    slope = np.linspace(0, 4095, 64)[None].repeat(64, 0).astype(np.uint16)
    Image.fromarray(slope).save(tmp_path / 'a.png')
    Image.fromarray(slope).save(tmp_path / 'a.tif')
    Image.fromarray(slope.astype(np.int32) - 1000).save(tmp_path / 'signed.tif')
    Image.fromarray(slope.astype(np.float32)).save(tmp_path / 'float.tif')
    expected = np.clip((slope.astype(float)) / 4095 * 255 + 0.5, 0, 255).astype(np.uint8)
    for channels in (1, 3):
        mode = ImageMode(channels, (0, 4095))
        for item in (tmp_path / 'a.png', tmp_path / 'a.tif', tmp_path / 'float.tif', slope, slope.astype(np.int32)):
            for values in (viewed(item, mode=mode), decode(item, 64, mode=mode)[0]):
                assert np.array_equal(values[:, :, 0].numpy(), expected) and values.shape[2] == channels
        signed = viewed(tmp_path / 'signed.tif', mode=ImageMode(channels, (-1000, 3095)))
        assert np.array_equal(signed[:, :, 0].numpy(), expected)
        assert np.array_equal(viewed(slope, mode=ImageMode(channels, 'image'))[:, :, 0].numpy(), expected)
        window = viewed(slope, mode=ImageMode(channels, (1000, 2000)))[0, :, 0].int()
        assert window[slope[0] <= 1000].max() == 0 and window[slope[0] >= 2000].min() == 255
        assert (window.diff() >= 0).all()
    # as before without them: 16 bits are 16 bits
    assert viewed(tmp_path / 'a.png').max() == 15
    with pytest.raises(ImageError, match=r'levels=\(black, white\)'):
        viewed(tmp_path / 'signed.tif')
    for wrong in ((5, 5), 'auto', (1, 2, 3)):
        with pytest.raises(ValueError, match='black < white'):
            ImageMode(1, wrong)
    files = [tmp_path / f'{i}.png' for i in range(6)]
    for i, file in enumerate(files):
        Image.fromarray(slope[:, :: 1 - 2 * (i % 2)].copy() // (1 + i)).save(file)
    dls = loaders(files, size=24, channels=1, levels=(0, 4095), fit='squash')
    learn = Learner(dls, xresnet18(c_in=1, n_out=2)).fit(1)
    learn.export(tmp_path / 'deep')
    classifier = load_classifier(tmp_path / 'deep')
    assert classifier.config.images.levels == (0, 4095)
    assert torch.allclose(classifier.probabilities(files[3:]), learn.get_preds(dls.originals())[0], atol=0.02)


def test_mistakes_are_named(tmp_path):
    files = photographs(tmp_path)
    for wrong, words in (
        (dict(size=(1, 2, 3)), r'a pair \(height, width\)'),
        (dict(fit='stretch'), "fit is one of"),
        (dict(fill=300), '0 to 255'),
        (dict(fill=(1, 2)), '2 levels for 3 channels'),
        (dict(mean=(0.5,), std=(0.5,)), '1 values for 3 channels'),
        (dict(resize_mode='pad'), 'write fit='),
        (dict(in_chans=1), 'write channels='),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            loaders(files, **wrong)
