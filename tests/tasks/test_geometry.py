"Boxes and masks after each geometric trick are those of torchvision.transforms.v2 on tv_tensors."

from types import SimpleNamespace

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import trickbag.all as tb
from trickbag.tasks.detection import Detection
from trickbag.tasks.segmentation import Segmentation
from trickbag.vision.crop import box_sources
from trickbag.vision.moved_targets import IGNORED, move_boxes, move_masks
from trickbag.vision.ops import OPS

N, SIZE = 24, (36, 36)
F = v2.functional


def scenes(seed=0, size=SIZE):
    "Images, boxes and masks"
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (N, 3, *size), generator=g, dtype=torch.uint8)
    corner = torch.rand(N, 2, 2, generator=g) * (torch.tensor(size).flip(0) - 12)
    boxes = torch.cat([corner, corner + 2 + 10 * torch.rand(N, 2, 2, generator=g)], 2)
    label = torch.randint(0, 3, (N, 2, 1), generator=g).float()
    masks = torch.randint(0, 4, (N, *size), generator=g, dtype=torch.uint8)
    return x, torch.cat([boxes, label, torch.zeros(N, 2, 1)], 2), masks


def after(cb, task, y, x):
    "Targets after the callback's `before_batch`"
    g = torch.Generator().manual_seed(3)
    learn = SimpleNamespace(xb=x, yb=y, task=task, rng=lambda cb: g, training=True, idx=torch.arange(N), seed=0)
    learn.epochs_run = 0
    cb.before_batch(learn)
    assert learn.clean_yb is learn.yb
    return learn.yb


def check(cb, truth):
    "`truth(i, tv_tensor)` is what torchvision makes of the boxes or the mask of image i, after `cb` has drawn"
    x, boxes, masks = scenes()
    moved = after(cb, Detection(min_size=0), boxes, x)
    for i in range(N):
        expected = tv_tensors.BoundingBoxes(boxes[i, :, :4], format='XYXY', canvas_size=SIZE)
        expected = F.clamp_bounding_boxes(truth(i, expected)).as_subclass(torch.Tensor)
        torch.testing.assert_close(moved[i, :, :4], expected, rtol=0, atol=2e-3)
        assert torch.equal(moved[i, :, 4:], boxes[i, :, 4:])
    moved = after(cb, Segmentation(), masks, x)
    for i in range(N):
        expected = truth(i, tv_tensors.Mask(masks[i])).as_subclass(torch.Tensor)
        # in float32 a pixel whose source lies on the border of two may be the other one's
        assert (moved[i] != expected).float().mean() < 0.003


def test_flip():
    torch.manual_seed(3)
    mirrored = torch.rand(N, generator=torch.Generator().manual_seed(3)) < 0.5
    check(tb.Flip(), lambda i, t: F.horizontal_flip(t) if mirrored[i] else t)


def test_alternating_flip():
    cb = tb.AlternatingFlip()
    check(cb, lambda i, t: F.horizontal_flip(t) if cb.mirrored[i] else t)


def fill_of(t):
    return IGNORED if isinstance(t, tv_tensors.Mask) else 0


def test_pad_crop():
    cb = tb.PadCrop(4, mode='zero')

    def truth(i, t):
        dx, dy = (int(shift) for shift in cb.shifts[:, i])
        return F.crop(F.pad(t, [4, 4, 4, 4], fill=fill_of(t)), 4 + dy, 4 + dx, *SIZE)

    check(cb, truth)


def test_random_affine():
    cb = tb.RandomAffine(40, (0.2, 0.1), (0.7, 1.4), (-20, 20, -10, 10))

    def truth(i, t):
        d = {name: float(value[i]) for name, value in cb.drawn.items()}
        shear = [d['shear_x'], d['shear_y']]
        return F.affine(t, d['angle'], [d['tx'], d['ty']], d['scale'], shear, fill=fill_of(t))

    check(cb, truth)


def of_operation(name, mag, t):
    "What torchvision's policies do to images, done to boxes and masks"
    settings = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], fill=fill_of(t))
    degrees = float(torch.atan(torch.tensor(mag)).rad2deg())
    if name == 'Rotate':
        return F.rotate(t, mag, fill=fill_of(t))
    if name in ('TranslateX', 'TranslateY'):
        settings['translate'] = [int(mag), 0] if name == 'TranslateX' else [0, int(mag)]
    elif name in ('ShearX', 'ShearY'):
        settings['shear'] = [degrees, 0.0] if name == 'ShearX' else [0.0, degrees]
        settings['center'] = [0, 0]
    else:
        return t
    return F.affine(t, **settings)


def test_trivial_augment():
    cb = tb.TrivialAugment(translate=9)
    check(cb, lambda i, t: of_operation(OPS[cb.op[i]], float(cb.mag[i]), t))


@pytest.mark.parametrize('cb', [tb.RandAugment(n=1, p=1.0), tb.AutoAugment()], ids=['RandAugment', 'AutoAugment'])
def test_policies_of_several_operations(cb):
    def truth(i, t):
        for op, mag in zip(cb.op, cb.mag, strict=True):
            t = of_operation(OPS[op[i]], float(mag[i]), t)
            # what is beyond the border is cut off after each, as the image is
            t = F.clamp_bounding_boxes(t) if isinstance(t, tv_tensors.BoundingBoxes) else t
        return t

    check(cb, truth)


# with a fill the border of an image is rounded to a pixel of the result, so these have none within a pixel
CROPS = [(False, (24, 24)), (False, (18, 30)), (False, (72, 72)), (True, (24, 24)), (True, (48, 72))]


@pytest.mark.parametrize('padded, new', CROPS)
def test_crop(padded, new):
    "Whole pixels, as `Crop` rounds its boxes; with a fill they reach beyond the image"
    x, boxes, masks = scenes()
    g = torch.Generator().manual_seed(1)
    first = torch.randint(-12 if padded else 0, 12, (N, 2), generator=g)
    side = torch.tensor(new).flip(0).clamp(max=24).expand(N, 2)
    cuts = torch.cat([first, side], 1).double()
    sources = box_sources(cuts, SIZE, new, padded)
    moved = move_boxes(boxes, sources, SIZE, new, min_size=0)
    moved_masks = move_masks(masks, sources, new, straight=True)
    for i in range(N):
        (left, top), (width, height) = first[i].tolist(), side[i].tolist()

        def truth(t, where=(top + 12, left + 12, height, width)):
            return F.resized_crop(F.pad(t, [12, 12, 12, 12], fill=fill_of(t)), *where, list(new))

        box = tv_tensors.BoundingBoxes(boxes[i, :, :4], format='XYXY', canvas_size=SIZE)
        # torchvision's padded image is larger, so a box in the pad is not cut off; ours ends with the image
        expected = F.clamp_bounding_boxes(truth(box)).as_subclass(torch.Tensor)
        torch.testing.assert_close(moved[i, :, :4], expected, rtol=0, atol=1e-3)
        assert torch.equal(moved_masks[i], truth(tv_tensors.Mask(masks[i])).as_subclass(torch.Tensor))


def test_crop_moves_targets_with_images():
    "A bright object on a dark image is where its box and its mask say, whatever the crop"
    x = torch.zeros(N, 3, 48, 48, dtype=torch.uint8)
    boxes = torch.tensor([0.0, 0, 0, 0, -1, 0]).repeat(N, 1, 1)
    masks = torch.zeros(N, 48, 48, dtype=torch.uint8)
    g = torch.Generator().manual_seed(0)
    for i in range(N):
        left, top = torch.randint(4, 28, (2,), generator=g).tolist()
        x[i, :, top : top + 14, left : left + 12] = 255
        masks[i, top : top + 14, left : left + 12] = 1
        boxes[i, 0] = torch.tensor([left, top, left + 12, top + 14, 0, 0])
    wh = torch.randint(40, 90, (N, 2), generator=g)
    for fit in ('crop', 'squash', 'pad'):
        for y, task in ((boxes, Detection()), (masks, Segmentation())):
            learn = SimpleNamespace(xb=x, yb=y, task=task, training=True, idx=torch.arange(N), crop_settings={})
            learn.dl = SimpleNamespace(wh=wh)
            learn.rng = lambda cb: torch.Generator().manual_seed(5)
            tb.Crop(40, (0.5, 1.0), fit=fit).before_batch(learn)
            bright = learn.xb[:, 0] > 127
            if y is masks:
                # the nearest pixel, as torch chooses it, is up to half a pixel to the left and above
                assert ((learn.yb == 1) == bright).float().mean() > 0.98
                continue
            for i in range(N):
                if learn.yb[i, 0, 4] < 0:
                    assert bright[i].sum() <= 40
                    continue
                rows, columns = bright[i].nonzero().unbind(1)
                extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (learn.yb[i, 0, :4] - extent).abs().max() <= 1.01, (fit, i)
