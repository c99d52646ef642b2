"""The tricks on images of the batch: nothing waits for the device, no loop over samples, no global draws, any memory
layout, batches left as they came."""

import pytest
import torch

from tests.helpers import TRIALS, NoWait
from trickbag.testing.proofs import tiny_learner
from trickbag.vision.color_jitter import ColorJitter
from trickbag.vision.cutout import CutOut
from trickbag.vision.gaussian_blur import GaussianBlur
from trickbag.vision.pad_crop import PadCrop
from trickbag.vision.pca_lighting import PCALighting
from trickbag.vision.random_affine import RandomAffine
from trickbag.vision.repeated_augmentation import RepeatedAugmentation

IN_BAG = 'CutOut', 'ColOut', 'AlternatingFlip', 'RepeatedAugmentation', 'PCALighting', 'Grayscale'
MAKES = {n: TRIALS[n].make for n in IN_BAG} | dict(
    CutOut2=lambda: CutOut(3, 2, 0.5),
    PadCrop=PadCrop,
    PadCrop0=lambda: PadCrop(2, 'zero'),
    grow=lambda: RepeatedAugmentation(2, grow=True),
    ColorJitter=lambda: ColorJitter(hue=0.2, p=0.8),
    GaussianBlur=GaussianBlur,
    RandomAffine=lambda: RandomAffine(30, (0.1, 0.1), (0.8, 1.2), 10, p=0.8),
    bilinear=lambda: RandomAffine(30, mode='bilinear', fill=(9, 99, 199)),
)


def batch(cb, n=8, size=(9, 12)):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=g)
    return (x / 255 if isinstance(cb, PCALighting) else x), torch.randint(0, 4, (n,), generator=g), torch.arange(n)


def ran(cb, x, y, idx):
    learn = tiny_learner([cb])
    learn.xb = x
    learn.yb = y
    learn.clean_yb = y
    learn.idx = idx
    cb.before_batch(learn)
    return learn


def ops(cb, n):
    b = batch(cb, n)
    with NoWait() as m:
        ran(cb, *b)
    return m.n


@pytest.mark.parametrize('name', MAKES)
def test_no_wait_and_no_loop(name, monkeypatch):
    # `flip` copies image by image where nothing waits, on a CPU: here its other way, as on a GPU
    from trickbag.vision import alternating_flip

    monkeypatch.setattr(alternating_flip, 'flip', lambda x, mask: torch.where(mask[:, None, None, None], x.flip(3), x))
    assert ops(MAKES[name](), 8) == ops(MAKES[name](), 64) > 0


@pytest.mark.parametrize('name', MAKES)
def test_the_batch_that_came_stays(name):
    cb = MAKES[name]()
    b = batch(cb)
    was = [o.clone() for o in b]
    rng = torch.get_rng_state()
    learn = ran(cb, *b)
    assert all(torch.equal(o, w) for o, w in zip(b, was)) and torch.equal(torch.get_rng_state(), rng)
    assert not torch.equal(learn.xb, was[0]) and learn.xb.dtype == was[0].dtype
    assert torch.equal(learn.xb, ran(MAKES[name](), *b).xb)  # the same draws for the same seed, epoch and batch


@pytest.mark.parametrize('name', MAKES)
def test_any_layout(name):
    cb = MAKES[name]()
    x, y, idx = batch(cb)
    ref = ran(cb, x, y, idx).xb
    wide = torch.zeros(8, 3, 9, 20, dtype=x.dtype)
    wide[..., 4:16] = x
    for o in (
        x.to(memory_format=torch.channels_last),
        wide[..., 4:16],
        x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    ):
        torch.testing.assert_close(
            ran(MAKES[name](), o, y, idx).xb.contiguous(), ref, atol=0 if ref.dtype == torch.uint8 else 1e-6, rtol=0
        )


@pytest.mark.parametrize('name', MAKES)
def test_tells(name):
    cb = MAKES[name]()
    assert all(hasattr(cb, o) for o in cb.traced)
    ran(cb, *batch(cb))
    assert all(getattr(cb, o) is not None and getattr(cb, o) != {} for o in cb.traced)


@pytest.mark.parametrize('name', MAKES)
def test_a_batch_of_one(name):
    cb = MAKES[name]()
    x = ran(cb, *batch(cb, 1)).xb
    assert x.ndim == 4 and x.float().isfinite().all()
