"""Images with objects against torchvision, pycocotools, Pillow and torch: what the toy scenes hold, what the readers
read, what the loaders give."""

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import VOCDetection, VOCSegmentation

from tests.helpers import one_line, start
from trickbag.core.threads import preserve_rng
from trickbag.data.scene_loaders import BoxTable, detection_loaders, segmentation_loaders
from trickbag.data.scene_readers import ade20k_scenes, coco_scenes, voc_scenes
from trickbag.data.scenes import list_scenes
from trickbag.data.store import cached_sets
from trickbag.data.toy_scenes import toy_scenes, voc_palette
from trickbag.loop.loading import own_batches

# small sets may lack a species
pytestmark = pytest.mark.filterwarnings('ignore:scenes. .* have no object in training images')

KNOBS = dict(n_train=14, n_valid=5, n_classes=4, size=48, n_beetles=(0, 6), scale=(0.3, 0.7))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return toy_scenes(tmp_path_factory.mktemp('toy') / 'VOCdevkit/VOC2012', **KNOBS)


def torchvisions(folder):
    "The same folder as torchvision's datasets of training images"
    root = folder.parent.parent
    return VOCDetection(root, image_set='train'), VOCSegmentation(root, image_set='train')


def values(file):
    "The numbers in a mask"
    return np.array(Image.open(file))


# The toy scenes


def test_boxes_are_the_extent_of_visible_pixels(folder):
    n_boxes = 0
    for image, truth in torchvisions(folder)[0]:
        annotation = truth['annotation']
        name = annotation['filename'].removesuffix('.jpg')
        objects = values(folder / f'SegmentationObject/{name}.png')
        assert image.size == (int(annotation['size']['width']), int(annotation['size']['height']))
        assert objects.shape == image.size[::-1]
        assert sorted(np.unique(objects)) == list(range(len(annotation['object']) + 1))
        for number, item in enumerate(annotation['object'], 1):
            rows, columns = np.nonzero(objects == number)
            box = [int(item['bndbox'][edge]) - 1 for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
            assert box == [columns.min(), rows.min(), columns.max(), rows.max()]
            n_boxes += 1
    assert n_boxes > 20


def test_masks_of_classes_are_those_of_objects(folder):
    detection, segmentation = torchvisions(folder)
    names = (folder / 'classes.txt').read_text().split()
    n_border = n_within = 0
    for (_, truth), (_, mask) in zip(detection, segmentation):
        name = truth['annotation']['filename'].removesuffix('.jpg')
        objects = values(folder / f'SegmentationObject/{name}.png')
        classes = np.array(mask)
        of_object = np.array([0] + [names.index(o['name']) + 1 for o in truth['annotation']['object']])
        border = classes == 255
        assert (classes == of_object[objects])[~border].all()
        n_border += border.sum()
        # a border is where things meet, and nowhere within one: beside it is another object, or a limb thinner than a
        # pixel, which has no pixels of its own
        whole = torch.tensor(objects)[None].float()
        inside = F.max_pool2d(whole, 5, 1, 2)[0] == -F.max_pool2d(-whole, 5, 1, 2)[0]
        n_within += (inside & (whole[0] > 0))[torch.tensor(border)].sum()
    assert n_border > 100 and n_within < 0.02 * n_border


def test_less_than_a_fraction_seen_is_difficult(tmp_path):
    knobs = dict(n_train=6, n_valid=1, size=48, n_beetles=(6, 6), scale=(0.5, 0.7))
    texts = []
    for min_seen in (0, 0.3, 0.9):
        path = toy_scenes(tmp_path / f'{min_seen}', min_seen=min_seen, **knobs)
        texts.append(''.join(file.read_text() for file in sorted(path.glob('Annotations/*.xml'))))
    counts = [text.count('<difficult>1') for text in texts]
    assert counts[0] == 0 < counts[1] < counts[2]
    # nothing else changes
    assert len({text.replace('<difficult>1', '<difficult>0') for text in texts}) == 1


def test_palette_is_pascal_vocs():
    # https://host.robots.ox.ac.uk/pascal/VOC: aeroplane, bicycle, bird, ..., tvmonitor, and the border
    colors = np.array(voc_palette()).reshape(256, 3).tolist()
    assert colors[1] == [128, 0, 0] and colors[7] == [128, 128, 128] and colors[8] == [64, 0, 0]
    assert colors[15] == [192, 128, 128] and colors[20] == [0, 64, 128] and colors[255] == [224, 224, 192]
    assert len({tuple(color) for color in colors}) == 256


def test_killed_while_drawing(tmp_path):
    path = tmp_path / 'a'
    output = tmp_path / 'output'
    code = (
        f'from trickbag.data.toy_scenes import toy_scenes\ntoy_scenes({str(path)!r}, **{KNOBS | dict(n_train=4000)!r})'
    )
    process = start(code, output)
    try:
        end = time.time() + 120
        while sum(1 for _ in tmp_path.glob('.a-*/new/SegmentationObject/*.png')) < 5:
            assert process.is_alive() and time.time() < end, output.read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert not path.exists()
    toy_scenes(path, **KNOBS)


# Readers


def test_voc_boxes_are_torchvisions(folder):
    scenes = voc_scenes(folder, 'detect')
    assert int((~scenes.is_valid).sum()) == KNOBS['n_train'] and len(scenes) == KNOBS['n_train'] + KNOBS['n_valid']
    n_ignored = n_empty = 0
    for i, (image, truth) in enumerate(torchvisions(folder)[0]):
        boxes, labels, ignored = scenes.objects(i)
        items = truth['annotation']['object']
        edges = [[float(item['bndbox'][edge]) for edge in ('xmin', 'ymin', 'xmax', 'ymax')] for item in items]
        # the first pixel is 1 there, and both corners belong to the box
        assert torch.equal(boxes, torch.tensor(edges).view(-1, 4) - torch.tensor([1.0, 1, 0, 0]))
        assert [scenes.vocab[label] for label in labels] == [item['name'] for item in items]
        assert ignored.tolist() == [item['difficult'] == '1' for item in items]
        assert scenes.wh[i].tolist() == list(image.size)
        n_ignored += int(ignored.sum())
        n_empty += not len(boxes)
    assert n_ignored and n_empty


def test_voc_counted_from_0(tmp_path):
    # beetles that nothing hides: a box of one pixel would have no area
    path = toy_scenes(tmp_path / 'clear', n_train=12, n_valid=1, size=48, n_beetles=(1, 1), occlusion=0)
    one = voc_scenes(path, 'detect')
    zero = voc_scenes(path, 'detect', first_pixel=0)
    assert torch.equal(zero.boxes[:, :2], one.boxes[:, :2] + 1) and torch.equal(zero.boxes[:, 2:], one.boxes[:, 2:])


def write_coco(folder, place, **crowd):
    "The toy scenes as COCO has them: ids with gaps, images in another order than annotations"
    scenes = voc_scenes(folder, 'detect')
    ids = {i: 11 + 3 * i for i in range(len(scenes.vocab))}
    sides = {}
    for side, validates in (('train', False), ('val', True)):
        numbers = [i for i in range(len(scenes)) if bool(scenes.is_valid[i]) == validates]
        images = [
            dict(id=1000 - i, file_name=Path(scenes.files[i]).name, width=int(w), height=int(h))
            for i, (w, h) in ((i, scenes.wh[i]) for i in numbers)
        ]
        annotations = []
        for i in reversed(numbers):
            for (x0, y0, x1, y1), label, ignored in zip(*(values.tolist() for values in scenes.objects(i))):
                about = dict(id=len(annotations) + 1, image_id=1000 - i, category_id=ids[label], iscrowd=int(ignored))
                annotations.append(about | dict(bbox=[x0, y0, x1 - x0, y1 - y0], area=(x1 - x0) * (y1 - y0)))
        categories = [dict(id=ids[i], name=name) for i, name in enumerate(scenes.vocab)][::-1]
        file = place / f'{side}.json'
        file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
        sides[side] = file
    return sides


def test_coco_boxes_are_pycocotools(folder, tmp_path):
    from pycocotools.coco import COCO

    sides = write_coco(folder, tmp_path)
    images = folder / 'JPEGImages'
    scenes = coco_scenes(sides['train'], images, sides['val'], images)
    first = 0
    for side in ('train', 'val'):
        coco = COCO(sides[side])
        categories = coco.loadCats(sorted(coco.getCatIds()))
        assert scenes.vocab == [category['name'] for category in categories]
        number = {category['id']: i for i, category in enumerate(categories)}
        listed = coco.dataset['images']
        for i, image in enumerate(listed, first):
            assert Path(scenes.files[i]).name == image['file_name'] and bool(scenes.is_valid[i]) == (side == 'val')
            annotations = coco.loadAnns(coco.getAnnIds(image['id']))
            boxes, labels, ignored = scenes.objects(i)
            theirs = torch.tensor([annotation['bbox'] for annotation in annotations]).view(-1, 4)
            assert torch.allclose(torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1), theirs)
            assert labels.tolist() == [number[annotation['category_id']] for annotation in annotations]
            assert ignored.tolist() == [bool(annotation['iscrowd']) for annotation in annotations]
        first += len(listed)
    assert first == len(scenes) and scenes.ignored.any()


def test_coco_split_at_random(folder, tmp_path):
    sides = write_coco(folder, tmp_path)
    splits = [coco_scenes(sides['train'], folder / 'JPEGImages', valid_pct=0.3, seed=s).is_valid for s in (1, 1, 2)]
    assert torch.equal(splits[0], splits[1]) and not torch.equal(splits[0], splits[2])
    assert int(splits[0].sum()) == round(0.3 * KNOBS['n_train'])


def test_two_sets_as_one(folder, tmp_path):
    other = toy_scenes(tmp_path / 'other', **KNOBS | dict(seed=1))
    both = voc_scenes(folder, 'detect') + voc_scenes(other, 'detect', 'trainval', None)
    n = KNOBS['n_train'] + KNOBS['n_valid']
    assert len(both) == 2 * n and int(both.is_valid.sum()) == KNOBS['n_valid']
    alone = voc_scenes(other, 'detect', 'trainval', None)
    for i in range(n):
        for mine, theirs in zip(both.objects(n + i), alone.objects(i)):
            assert torch.equal(mine, theirs)


def test_what_is_wrong_is_one_line(folder, tmp_path):
    images = sorted((folder / 'JPEGImages').glob('train_*.jpg'))[:2]
    masks = [folder / f'SegmentationClass/{file.stem}.png' for file in images]
    box = [[(1, 1, 5, 5)]] * 2
    labels = [['a']] * 2
    kw = dict(is_valid=[False, True])
    one_line(lambda: list_scenes(images, [[(1, 1, 500, 5)], []], [['a'], []], **kw), 'lies outside', images[0].name)
    one_line(lambda: list_scenes(images, [[(1, 1, 1, 5)], []], [['a'], []], **kw), 'has no area', images[0].name)
    one_line(lambda: list_scenes(images, box, labels, vocab=['b', 'c'], **kw), "'a' is not in vocab")
    one_line(lambda: list_scenes([images[0], tmp_path / 'no.jpg'], box, labels, **kw), 'no.jpg: no such file')
    one_line(lambda: list_scenes(images, masks=[masks[0], tmp_path / 'no.png'], vocab=5, **kw), 'no.png: no such file')
    one_line(lambda: list_scenes(images, masks=masks, **kw), 'vocab=[...]')
    one_line(lambda: voc_scenes(folder, 'detect', 'all'), 'lists there', exc=FileNotFoundError)
    one_line(lambda: voc_scenes(folder.parent.parent, 'detect'), 'give that folder', exc=FileNotFoundError)
    # fewer classes than the masks have: found when the loaders are made
    few = list_scenes(images, masks=masks, vocab=2, **kw)
    one_line(lambda: segmentation_loaders(few, 32), 'it has the value', 'give vocab more names')


# Loaders


@pytest.mark.parametrize('P', (32, 75))
def test_masks_are_torchs_nearest(folder, P):
    dls = segmentation_loaders(voc_scenes(folder, 'segment'), size=32, presize=P, bs=4)
    for loader, name in ((dls.train.ordered_view(), 'train'), (dls.valid, 'val')):
        files = (folder / f'ImageSets/Segmentation/{name}.txt').read_text().split()
        for xb, yb, idx in loader:
            assert yb.dtype == torch.uint8 and yb.shape == (len(idx), P, P) and xb.shape == (len(idx), 3, P, P)
            for target, i in zip(yb, idx.tolist()):
                whole = torch.tensor(values(folder / f'SegmentationClass/{files[i]}.png'))
                assert torch.equal(target, F.interpolate(whole[None, None], (P, P), mode='nearest')[0, 0])


def test_ade20k_counts_from_1(folder, tmp_path):
    for split, list_name in (('training', 'train'), ('validation', 'val')):
        for kind, source, suffix in (('images', 'JPEGImages', 'jpg'), ('annotations', 'SegmentationClass', 'png')):
            (tmp_path / kind / split).mkdir(parents=True)
            for file in (folder / source).glob(f'{list_name}_*.{suffix}'):
                os.link(file, tmp_path / kind / split / file.name)
    # in the toy set's masks 0 is background and 1..4 are beetles
    dls = segmentation_loaders(ade20k_scenes(tmp_path, vocab=4), size=32, bs=4)
    for _, yb, idx in dls.train.ordered_view():
        for target, i in zip(yb, idx.tolist()):
            file = Path(dls.train.name(i))
            whole = values(folder / f'SegmentationClass/{file.stem}.png').astype(int)
            shifted = np.where((whole == 0) | (whole == 255), 255, whole - 1).astype(np.uint8)
            expected = F.interpolate(torch.tensor(shifted)[None, None], tuple(yb.shape[1:]), mode='nearest')[0, 0]
            assert torch.equal(target, expected)
    assert dls.c == 4


def test_boxes_are_a_plain_loops(folder):
    scenes = voc_scenes(folder, 'detect')
    P = 48
    dls = detection_loaders(scenes, size=32, bs=4)
    most = max(len(scenes.objects(i)[0]) for i in range(len(scenes)))
    for loader, first in ((dls.train.ordered_view(), 0), (dls.valid, KNOBS['n_train'])):
        for xb, yb, idx in loader:
            assert xb.shape[2:] == (P, P) and yb.shape == (len(idx), most, 6) and yb.dtype == torch.float32
            for rows, i in zip(yb.tolist(), idx.tolist()):
                width, height = Image.open(loader.name(i)).size
                boxes, labels, ignored = (values.tolist() for values in scenes.objects(first + i))
                for row, box, label, mark in zip(rows, boxes, labels, ignored):
                    scaled = [box[0] * P / width, box[1] * P / height, box[2] * P / width, box[3] * P / height]
                    assert row[:4] == pytest.approx(scaled, abs=1e-4) and row[4:] == [label, mark]
                assert all(row == [0, 0, 0, 0, -1, 0] for row in rows[len(boxes) :])
                # the box of what is seen lies in the squashed picture
                assert all(
                    0 <= row[0] < row[2] <= P + 1e-4 and 0 <= row[1] < row[3] <= P + 1e-4 for row in rows[: len(boxes)]
                )


def test_images_are_a_classifiers(folder):
    "The pixels of `xb` do not depend on what an image's target is"
    from trickbag.data.loaders import DataLoaders

    scenes = voc_scenes(folder, 'detect')
    labels = [i % 2 for i in range(len(scenes))]
    usual = DataLoaders.from_lists(scenes.files, labels, is_valid=scenes.is_valid.tolist(), size=32, bs=4)
    mine = detection_loaders(scenes, size=32, bs=4)
    with preserve_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            theirs = list(usual.train)
            torch.manual_seed(seed)
            ours = list(mine.train)
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
    assert torch.equal(mine.train.wh, usual.train.wh)


@pytest.mark.parametrize('task', ('detect', 'segment'))
@pytest.mark.parametrize('drop_last', (False, True))
def test_shares_of_processes_are_one_pass(folder, task, drop_last):
    make = dict(detect=detection_loaders, segment=segmentation_loaders)[task]
    train = make(voc_scenes(folder, task), size=32, bs=4, drop_last=drop_last).train

    def passed(iterator):
        return [(xb.clone(), yb.clone(), idx.clone()) for xb, yb, idx in iterator]

    with preserve_rng():
        torch.manual_seed(5)
        whole = passed(train)
        assert len(whole) == len(train) == (3 if drop_last else 4)
        shares = []
        for rank in range(2):
            torch.manual_seed(5)
            shares.append(passed(own_batches(train, 0, rank, 2, even=False)))
        for first in range(len(train)):
            torch.manual_seed(5)
            later = passed(train.iter_from(first))
            assert len(later) == len(whole) - first
            for a, b in zip(later, whole[first:]):
                assert all(torch.equal(x, y) for x, y in zip(a, b))
    for number, batch in enumerate(whole):
        share = shares[number % 2][number // 2]
        assert all(torch.equal(x, y) for x, y in zip(share, batch))


def test_a_store_on_disk_is_used_again(folder, tmp_path, monkeypatch):
    import trickbag.data.masks as masks

    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    scenes = voc_scenes(folder, 'segment')
    first = [yb for _, yb, _ in segmentation_loaders(scenes, 32, bs=4, keep='disk').valid]
    n_sets = len(cached_sets())
    n_read = []
    read = masks.read_mask
    monkeypatch.setattr(masks, 'read_mask', lambda file: n_read.append(file) or read(file))
    again = [yb for _, yb, _ in segmentation_loaders(scenes, 32, bs=4, keep='disk').valid]
    assert not n_read and len(cached_sets()) == n_sets
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # another meaning of the numbers, or a changed file, is looked at
    with_more = list_scenes(scenes.files, masks=scenes.masks, vocab=9, is_valid=scenes.is_valid.tolist())
    segmentation_loaders(with_more, 32, bs=4, keep='disk')
    assert len(n_read) == len(scenes)
    wrong = values(scenes.masks[3])
    wrong[:] = 7
    kept = Path(scenes.masks[3]).read_bytes()
    try:
        Image.fromarray(wrong).save(scenes.masks[3])
        one_line(lambda: segmentation_loaders(scenes, 32, bs=4, keep='disk'), 'it has the value 7')
    finally:
        Path(scenes.masks[3]).write_bytes(kept)


def test_no_room_to_keep(folder):
    scenes = voc_scenes(folder, 'segment')
    kept = [batch for batch in segmentation_loaders(scenes, 32, bs=4, keep='memory').valid]
    anew = [batch for batch in segmentation_loaders(scenes, 32, bs=4, keep='none').valid]
    for a, b in zip(kept, anew, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_skipped_image_takes_its_target_with_it(folder, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    for task, make in (('detect', detection_loaders), ('segment', segmentation_loaders)):
        dls = make(voc_scenes(copy, task), 32, bs=4, drop_last=False, on_error='skip', max_bad=0.2, keep='memory')
        good = {
            i: y
            for _, yb, idx in make(voc_scenes(copy, task), 32, bs=4).train.ordered_view()
            for y, i in zip(yb, idx.tolist())
        }
        file = copy / 'JPEGImages/train_00005.jpg'
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        seen = {}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for xb, yb, idx in dls.train:
                assert len(xb) == len(yb) == len(idx)
                seen |= dict(zip(idx.tolist(), yb))
        file.write_bytes(data)
        assert sorted(seen) == [i for i in range(KNOBS['n_train']) if i != 5]
        assert all(torch.equal(seen[i], good[i]) for i in seen)


def test_rows_of_any_choice_of_images(folder):
    "The gather against a loop, for numbers in any order and more than once"
    scenes = voc_scenes(folder, 'detect')
    table = BoxTable(scenes, 64)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        idx = torch.randint(0, len(scenes), (7,), generator=g)
        rows = table[idx]
        for row, i in zip(rows, idx.tolist()):
            boxes, labels, ignored = scenes.objects(i)
            n = len(boxes)
            scale = (64 / scenes.wh[i].float()).repeat(2)
            assert torch.allclose(row[:n, :4], boxes * scale, atol=1e-4)
            assert torch.equal(row[:n, 4].long(), labels) and torch.equal(row[:n, 5].bool(), ignored)
            assert (row[n:, 4] == -1).all()


@pytest.mark.parametrize('crowded', ('train', 'valid'))
def test_rows_are_as_many_on_both_sides(folder, crowded):
    scenes = voc_scenes(folder, 'detect', 'trainval', None)
    counts = torch.bincount(scenes.image, minlength=len(scenes))
    scenes.is_valid = counts < 3 if crowded == 'train' else counts >= 3
    dls = detection_loaders(scenes, 32, bs=4)
    assert {dls.one_batch(train)[1].shape[1] for train in (True, False)} == {int(counts.max())}
    assert len({int(counts[scenes.is_valid == side].max()) for side in (True, False)}) == 2
