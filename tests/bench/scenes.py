"""Detection and segmentation of the toy set's scenes from scratch: a `Learner` beside a plain loop of torchvision.

    python -m tests.bench.scenes --data FOLDER --json FILE [--seeds 3] [--task detect|segment] [--epochs N]

FOLDER is where the scenes are drawn. 400 training images, 100 for validation, five species, a picture's shorter side
96 pixels and the network's input 96 x 96. FCOS or FCN (maps of stride 16) on an xresnet18 of a quarter of the width,
AdamW with a one-cycle of the rate, batch 16; random crops of .5 to 1 of the area and mirrorings. The plain loop is as
in torchvision's references: `VOCDetection` or `VOCSegmentation`, `transforms.v2` on tv_tensors in the loader's
workers, the same network, optimizer, rates and number of steps, no trickbag in it but the network. Scores are of
torchmetrics, on images that are squashed to the square in both. One line a run: score, seconds of training, images a
second of that."""

import argparse
import time
from pathlib import Path

import torch

from .evidence.lines import Lines

SIZE = 96
BATCH = 16
N_TRAIN, N_VALID, CLASSES = 400, 100, 5
EPOCHS = dict(detect=40, segment=20)
LR = dict(detect=2e-3, segment=4e-3)
SCALE = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)


def scenes_folder(folder: Path) -> Path:
    from trickbag.data.toy_scenes import toy_scenes

    return toy_scenes(folder / 'scenes', n_train=N_TRAIN, n_valid=N_VALID, n_classes=CLASSES, size=SIZE)


def network(task: str):
    "The same network for both loops"
    from trickbag.models.xresnet import xresnet18
    from trickbag.tasks.detectors import detector
    from trickbag.tasks.segmenters import segmenter

    body = xresnet18(n_out=2, widen=0.25)
    if task == 'detect':
        return detector(body, CLASSES, channels=64, score_thresh=0.05)
    return segmenter(body, CLASSES + 1, stride=16)


def learner_of(task: str, folder: Path, seed: int):
    import trickbag.all as tb
    from trickbag.data.scene_loaders import detection_loaders, segmentation_loaders
    from trickbag.data.scene_readers import voc_scenes
    from trickbag.tasks.detection import MeanAP
    from trickbag.tasks.segmentation import PixelScores

    scenes = voc_scenes(folder, task)
    make = detection_loaders if task == 'detect' else segmentation_loaders
    dls = make(scenes, size=SIZE, bs=BATCH, fit='squash', scale=SCALE)
    torch.manual_seed(seed)
    metric = MeanAP() if task == 'detect' else PixelScores()
    return tb.Learner(dls, network(task), metrics=metric, seed=seed, cbs=[LastOnly()])


def LastOnly():
    "Both loops validate after the last epoch only"
    import trickbag.all as tb
    from trickbag.callback import CancelValidate

    class ValidateLast(tb.Callback):
        stage = 'monitor'
        monitor = True

        def before_validate(self, learn):
            # when the training was over, after the last epoch
            self.trained = time.perf_counter()
            if learn.epoch < learn.n_epoch - 1:
                raise CancelValidate

    return ValidateLast()


def with_trickbag(task: str, folder: Path, seed: int, epochs: int) -> dict:
    import trickbag.all as tb

    learn = learner_of(task, folder, seed)
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, tb.Progress)]
    start = time.perf_counter()
    learn.fit_one_cycle(epochs, LR[task])
    last = learn.history[-1]
    scores = {name: last[name] for name in ('mAP', 'mAP50', 'pixel_accuracy', 'mIoU') if name in last}
    return scores | dict(train_seconds=learn.cb('ValidateLast').trained - start)


def plain_loaders(task: str, folder: Path):
    "torchvision's datasets and transforms"
    from torchvision import tv_tensors
    from torchvision.datasets import VOCSegmentation, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    names = (folder / 'classes.txt').read_text().split('\n')
    names = [name.strip() for name in names if name.strip()]
    norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    train = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
            *([v2.SanitizeBoundingBoxes()] if task == 'detect' else []),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, 'others': None}, scale=True),
            norm,
        ]
    )
    test = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((SIZE, SIZE), antialias=True),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, 'others': None}, scale=True),
            norm,
        ]
    )
    sets = []
    for part, transform in (('train', train), ('val', test)):
        if task == 'detect':
            sets.append(_VOCBoxes(folder, part, names, transform))
        else:
            data = VOCSegmentation.__new__(VOCSegmentation)
            data.root, data.transforms, data.transform, data.target_transform = str(folder), None, None, None
            listed = (folder / 'ImageSets' / 'Segmentation' / f'{part}.txt').read_text().split()
            data.images = [str(_picture(folder, name)) for name in listed]
            data.targets = [str(folder / 'SegmentationClass' / f'{name}.png') for name in listed]
            data.transforms = transform
            sets.append(wrap_dataset_for_transforms_v2(data))
    return sets


def _picture(folder, name):
    return next((folder / 'JPEGImages').glob(f'{name}.*'))


class _VOCBoxes(torch.utils.data.Dataset):
    "VOC's XML read with torchvision's own parser, as boxes and labels from 1"

    def __init__(self, folder, part, names, transform):
        listed = (folder / 'ImageSets' / 'Main' / f'{part}.txt').read_text().split()
        self.items = [(_picture(folder, name), folder / 'Annotations' / f'{name}.xml') for name in listed]
        self.names = names
        self.transform = transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        from xml.etree.ElementTree import parse

        from PIL import Image
        from torchvision import tv_tensors
        from torchvision.datasets import VOCDetection

        picture, annotation = self.items[i]
        found = VOCDetection.parse_voc_xml(parse(annotation).getroot())['annotation']['object']
        found = [one for one in found if one['difficult'] == '0']
        image = Image.open(picture).convert('RGB')
        corners = [[float(one['bndbox'][k]) for k in ('xmin', 'ymin', 'xmax', 'ymax')] for one in found]
        # the first pixel is 1, and the last one belongs to the box
        boxes = torch.tensor(corners).view(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        boxes = tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=image.size[::-1])
        labels = torch.tensor([self.names.index(one['name']) + 1 for one in found], dtype=torch.int64)
        return self.transform(image, dict(boxes=boxes, labels=labels))


def _together(batch):
    images, targets = zip(*batch, strict=True)
    return images, targets


def plain(task: str, folder: Path, seed: int, epochs: int) -> dict:
    "As torchvision's references train"
    train, valid = plain_loaders(task, folder)
    generator = torch.Generator().manual_seed(seed)
    collate = _together if task == 'detect' else None
    settings = dict(num_workers=1, persistent_workers=True, collate_fn=collate)
    loader = torch.utils.data.DataLoader(train, BATCH, shuffle=True, drop_last=True, generator=generator, **settings)
    torch.manual_seed(seed)
    net = network(task)
    opt = torch.optim.AdamW(net.parameters(), lr=LR[task], weight_decay=0.01)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, LR[task], total_steps=steps, pct_start=0.25)
    start = time.perf_counter()
    net.train()
    for _ in range(epochs):
        for images, targets in loader:
            if task == 'detect':
                losses = net(list(images), [dict(target) for target in targets])
                loss = sum(losses.values())
            else:
                out = net(images)
                loss = sum(
                    weight * torch.nn.functional.cross_entropy(out[name], targets.squeeze(1), ignore_index=255)
                    for name, weight in (('out', 1.0), ('aux', 0.5))
                )
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
    train_seconds = time.perf_counter() - start
    return _plain_scores(task, net, valid) | dict(train_seconds=train_seconds)


@torch.no_grad()
def _plain_scores(task, net, valid) -> dict:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
    from torchmetrics.detection import MeanAveragePrecision

    net.eval()
    loader = torch.utils.data.DataLoader(valid, 2 * BATCH, collate_fn=_together)
    if task == 'detect':
        metric = MeanAveragePrecision()
        for images, targets in loader:
            metric.update(net(list(images)), [dict(boxes=t['boxes'], labels=t['labels']) for t in targets])
        found = metric.compute()
        return dict(mAP=found['map'].item(), mAP50=found['map_50'].item())
    n = CLASSES + 1
    accuracy = MulticlassAccuracy(n, average='micro', ignore_index=255)
    iou = MulticlassJaccardIndex(n, ignore_index=255)
    for images, targets in loader:
        out = net(torch.stack(images))['out']
        target = torch.stack(targets).squeeze(1)
        accuracy.update(out, target)
        iou.update(out, target)
    return dict(pixel_accuracy=accuracy.compute().item(), mIoU=iou.compute().item())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--task', choices=list(EPOCHS))
    parser.add_argument('--epochs', type=int, help='fewer, to try the script')
    a = parser.parse_args()
    torch.set_num_threads(1)
    folder = scenes_folder(a.data)
    lines = Lines(a.json, ('task', 'loop', 'seed'))
    tasks = [a.task] if a.task else list(EPOCHS)
    runs = [dict(task=task, loop=loop, seed=seed) for seed in range(a.seeds) for task in tasks for loop in LOOPS]
    for run in lines.missing(runs):
        epochs = a.epochs or EPOCHS[run['task']]
        cpu_start = time.process_time()
        found = LOOPS[run['loop']](run['task'], folder, run['seed'], epochs)
        images = epochs * (N_TRAIN // BATCH) * BATCH
        found['images_per_second'] = images / found['train_seconds']
        found['cpu_seconds'] = time.process_time() - cpu_start
        lines.add(run | dict(epochs=epochs) | {name: round(value, 5) for name, value in found.items()})


LOOPS = dict(trickbag=with_trickbag, torchvision=plain)


if __name__ == '__main__':
    main()
