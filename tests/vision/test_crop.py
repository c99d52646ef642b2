"The crop: its boxes, its sizes and its views are torchvision's, and there is one of it."

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import ten_crop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from tests.helpers import Levels, one_line
from trickbag.all import *
from trickbag.data.image_loader import ImageLoader
from trickbag.data.store import Store
from trickbag.testing.proofs import TinyData, tiny_learner
from trickbag.vision.crop import random_boxes, tta_views


def test_a_second_crop_is_refused():
    class MyCrop(Crop):
        pass

    class OtherCrop(Callback):
        stage = 'crop'
        owns = ('crop',)

    dls = TinyData()
    dls.cbs = [Crop(8)]
    # by class a crop of another kind: nothing says which of them is meant
    one_line(lambda: tiny_learner([OtherCrop()], dls=dls).fit(1), 'Crop', 'OtherCrop', "'crop'")
    one_line(lambda: tiny_learner([Crop(8), MyCrop(8)]).fit(1), 'Crop', 'MyCrop', "'crop'")
    # a subclass takes the place of the data's own, as another Crop does
    learn = tiny_learner([MyCrop(8)], dls=dls)
    with learn.composed():
        assert [type(cb) for cb in learn.active if isinstance(cb, Crop)] == [MyCrop]


def test_views_are_those_of_torchvisions_ten_crop():
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tta_views(x, 6), torch.cat(ten_crop(x, 6)))


def test_evaluation_sees_its_own_size():
    class Look(Callback):
        stage = 'report'

        def after_pred(self, learn):
            seen.add((learn.training, tuple(learn.xb.shape[-2:])))

    class Named(Levels):
        labels = torch.arange(8) % 4

    source = Named(8)
    seen = set()
    source.free.set()
    loader = ImageLoader(Store(source, 16, keep='memory', threads=1), 4)
    tiny_learner([Look()], DataLoaders(loader, loader, [Crop(8, valid_size=12), Normalize()], list('abcd'))).fit(1)
    assert seen == {(True, (8, 8)), (False, (12, 12))}


@pytest.mark.parametrize('ratio', [(0.25, 0.5), (2.0, 3.0)])
def test_the_ratio_of_a_box_is_width_over_height(ratio):
    "As `RandomResizedCrop.get_params` of torchvision, which gives top, left, height, width"
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(torch.empty(1, 900, 900), [0.1, 0.2], list(ratio)) for _ in range(300)]
    ).double()
    ours = random_boxes(torch.tensor([[900, 900]]).expand(300, 2), (0.1, 0.2), ratio).double()
    a = theirs[:, 3] / theirs[:, 2]
    b = ours[:, 2] / ours[:, 3]
    assert ratio[0] * 0.99 <= b.min() and b.max() <= ratio[1] * 1.01 and (a.mean() - b.mean()).abs() < 0.06 * ratio[0]


def test_boxes_reach_the_last_row_and_column():
    "A box of 3 x 3 in an image of 4 x 4 has four places, as in torchvision"
    boxes = random_boxes(torch.full((400, 2), 4), (9 / 16, 9 / 16), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert {tuple(b) for b in boxes.tolist()} == {(x, y, 3, 3) for x in (0, 1) for y in (0, 1)}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_training_and_validation_are_resized_alike(training, interpolation):
    "Both cut central squares here, which torchvision cuts and resizes, too"

    class Look(Callback):
        stage = 'augment'

        def before_batch(self, learn):
            if learn.training == training:
                seen.append(learn.xb.clone())

    class Named(Levels):
        labels = torch.arange(8) % 4

        def get(self, i, P):
            return pixels[i], (P, P)

    seen = []
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = ImageLoader(Store(Named(8), 16, keep='memory', threads=1), 8)
    crop = Crop(10, scale=None, crop_pct=0.75, interpolation=interpolation)
    tiny_learner([Look()], DataLoaders(loader, loader, [crop, Normalize()], list('abcd'))).fit(1)
    assert len(seen) == 1
    expected = resized_crop(
        pixels.permute(0, 3, 1, 2), 2, 2, 12, 12, [10, 10], InterpolationMode(interpolation), antialias=True
    )
    assert (seen[0].int() - expected.int()).abs().max() <= 1
