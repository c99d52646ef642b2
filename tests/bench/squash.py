"""What does it cost accuracy that images are squashed to `presize` before they are cropped?

    python -m tests.bench.squash --data FOLDER [--sets clothing cars] [--seeds 42 43 44 45 46] [--ways ...]
        [--json FILE]
    python -m tests.bench.squash --table [--json FILE]

FOLDER holds `clothing-small` (photographs of many shapes, short side 224), `stanford-cars-160` (160 x 160) and
`weights` (torchvision's MobileNetV2 features). Each run fine-tunes MobileNetV2 from the same first weights on the
same random boxes, drawn from the same streams; only where their pixels come from differs:

- `1.0`, `1.25`, `1.5`, `2.0`: from the store, whose squares have that many times the training size;
- `1.25 Pillow`: the same store, decoded and squashed by Pillow alone;
- `originals`: cut from the decoded originals.

Each trained network is then tested in three ways: on the `store` it was trained with, on the `originals` (shorter
side resized to size/crop_pct, center cropped, as a deployed model is fed), and on those after a squash to its
presize (`squashed`). One JSON line a run; runs that are in the file already are not repeated. --table prints means
and deviations."""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from trickbag.core.threads import one_thread
from trickbag.data import decode as decoding
from trickbag.data.files import find_images
from trickbag.data.loaders import DataLoaders
from trickbag.learner import Learner
from trickbag.loop.metrics import accuracy
from trickbag.loop.schedule import OneCycle
from trickbag.vision.basic import Normalize
from trickbag.vision.crop import Crop, center_boxes, random_boxes
from trickbag.vision.ops import host_stream

RESULTS = Path(__file__).parent / 'results' / 'squash.jsonl'
WAYS = ('1.25', 'originals', '1.5', '2.0', '1.0', '1.25 Pillow')  # in the order in which they run
# folder, folders of training and of test, classes that are taken, every how manyth training image, epochs
SETS = dict(
    clothing=('clothing-small', 'train', ('val', 'test'), None, 2, 4),
    cars=('stanford-cars-160', 'train', ('test',), 20, 1, 6),
)
CROP_PCT = 0.875


def original(file):
    "The decoded pixels of a file, uint8, 3 x height x width"
    from PIL import Image, ImageOps

    im = ImageOps.exif_transpose(Image.open(file)).convert('RGB')
    return torch.frombuffer(bytearray(im.tobytes()), dtype=torch.uint8).view(im.size[1], im.size[0], 3).permute(2, 0, 1)


def resize(x, height, width):
    return F.interpolate(x[None], (height, width), mode='bilinear', antialias=True)[0]


def deployed(x, size):
    "As a deployed model is fed: the shorter side resized, the center cropped"
    _, height, width = x.shape
    short = round(size / CROP_PCT)
    new_height, new_width = (
        (short, round(short * width / height)) if height < width else (round(short * height / width), short)
    )
    x = resize(x, new_height, new_width)
    top = (new_height - size) // 2
    left = (new_width - size) // 2
    return x[:, top : top + size, left : left + size]


class CropOriginals(Crop):
    "`Crop`, whose boxes have the pixels of the originals, not of the store"

    name = 'Crop'  # takes its place and its random stream

    def __init__(self, files, size, scale):
        super().__init__(size, scale)
        self.images = [original(f) for f in files]

    def before_batch(self, learn):
        if not learn.training:
            return super().before_batch(learn)
        wh = learn.dl.wh[learn.idx].cpu()
        boxes = random_boxes(wh, self.scale, self.ratio, host_stream(learn.rng(self)))
        out = []
        with one_thread():
            for i, (x, y, w, h) in zip(learn.idx.tolist(), boxes.round().int().tolist()):
                out.append(resize(self.images[i][:, y : y + h, x : x + w], self.size, self.size))
        learn.xb = torch.stack(out)


def network(weights, n_classes):
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    body = mobilenet_v2().features
    sd = load_file(weights / 'mobilenet_v2_imagenet1k_features_fp16.safetensors')
    body.load_state_dict(
        {k.removeprefix('features.'): v.float() if v.is_floating_point() else v for k, v in sd.items()}
    )
    torch.manual_seed(0)
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, n_classes))
    return model.to(memory_format=torch.channels_last)


def files_of(a, name):
    folder, train, tests, n_classes, every, _ = SETS[name]
    root = a.data / folder
    classes = sorted(p.name for p in (root / train).iterdir() if p.is_dir())
    if n_classes:
        classes = classes[:: len(classes) // n_classes][:n_classes]
    kept = set(classes)

    def of(d):
        return [f for f in find_images(root / d) if os.path.basename(os.path.dirname(f)) in kept]

    return of(train)[::every], [f for d in tests for f in of(d)]


def score(learn, files, labels, prepare):
    "Accuracy on images that `prepare(file)` makes"
    norm = Normalize()
    hits = 0
    learn.model.eval()
    for i in range(0, len(files), 64):
        x = torch.stack([prepare(f) for f in files[i : i + 64]])
        x = (x.float() / 255 - torch.tensor(norm.mean)[:, None, None]) / torch.tensor(norm.std)[:, None, None]
        with torch.no_grad():
            hits += int((learn.model(x).argmax(1) == labels[i : i + 64]).sum())
    return hits / len(files)


def run(a, name, way, seed):
    train, test = files_of(a, name)
    factor = 1.25 if way == 'originals' else float(way.split()[0])
    presize = round(a.size * factor / 8) * 8
    fast = decoding._by_turbo
    if 'Pillow' in way:
        decoding._by_turbo = lambda data, frame, P: None
    try:
        labels = [os.path.basename(os.path.dirname(f)) for f in train + test]
        dls = DataLoaders.from_lists(
            train + test,
            labels,
            is_valid=[False] * len(train) + [True] * len(test),
            size=a.size,
            bs=32,
            presize=presize,
            keep='memory',
            flip=True,
            threads=1,
        )
        cbs = [OneCycle()]
        if way == 'originals':
            cbs.append(CropOriginals(dls.train.store.source.files, a.size, (0.35, 1.0)))
        learn = Learner(
            dls,
            network(a.data / 'weights', dls.c),
            metrics=accuracy,
            cbs=cbs,
            seed=seed,
            device='cpu',
            opt_func=partial(torch.optim.AdamW, weight_decay=0.01),
        )
        start = time.perf_counter()
        # tested once, at the end
        valid = dls.valid
        dls.valid = None
        learn.fit(SETS[name][-1], slice(a.lr / 5, a.lr))
        seconds = time.perf_counter() - start
        dls.valid = valid
        store = learn.validate()['accuracy']
    finally:
        decoding._by_turbo = fast
    files = list(dls.valid.store.source.files)
    targets = dls.valid.labels

    def squashed(f):
        # the squash, then the same central square as `Crop` cuts, from the squashed pixels
        x = original(f)
        wh = None
        y = resize(x, presize, presize)
        box = center_boxes(torch.tensor([[x.shape[2], x.shape[1]]]), CROP_PCT)[0] * torch.tensor(
            [presize / x.shape[2], presize / x.shape[1]] * 2
        )
        left, top, width, height = box.round().int().tolist()
        return resize(y[:, top : top + height, left : left + width], a.size, a.size)

    return dict(
        set=name,
        way=way,
        seed=seed,
        size=a.size,
        presize=presize,
        n_train=len(train),
        n_test=len(files),
        epochs=SETS[name][-1],
        store=store,
        originals=score(learn, files, targets, lambda f: deployed(original(f), a.size)),
        squashed=score(learn, files, targets, squashed),
        seconds=round(seconds),
        torch=torch.__version__,
        machine=f'{platform.machine()}, {os.cpu_count()} cores',
    )


def rows(file):
    return [json.loads(s) for s in file.read_text().splitlines()] if file.exists() else []


def table(rs):
    def said(v):
        return f'{statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}' if len(v) > 1 else f'{v[0]:.4f}'

    out = [('set', 'trained on', 'seeds', 'tested on its store', 'on originals', 'on originals, squashed before')]
    for name in SETS:
        for way in ('1.0', '1.25', '1.25 Pillow', '1.5', '2.0', 'originals'):
            of = [r for r in rs if (r['set'], r['way']) == (name, way)]
            if of:
                out.append(
                    (name, way, str(len(of)), *(said([r[k] for r in of]) for k in ('store', 'originals', 'squashed')))
                )
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path)
    ap.add_argument('--sets', nargs='+', default=list(SETS))
    ap.add_argument('--ways', nargs='+', default=list(WAYS))
    ap.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44, 45, 46])
    ap.add_argument('--size', type=int, default=96)
    ap.add_argument('--lr', type=float, default=5e-3)
    ap.add_argument('--json', type=Path, default=RESULTS)
    ap.add_argument('--table', action='store_true')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    if not a.table:
        done = {(r['set'], r['way'], r['seed'], r['size']) for r in rows(a.json)}
        for ways in (a.ways[:4], a.ways[4:]):  # the last two may be missing if time runs out
            for seed in a.seeds:
                for name, way in ((n, w) for n in a.sets for w in ways):
                    if (name, way, seed, a.size) in done:
                        continue
                    r = run(a, name, way, seed)
                    with open(a.json, 'a') as f:
                        f.write(json.dumps(r) + '\n')
                    print(r, flush=True)
    for r in table(rows(a.json)):
        print('  '.join(f'{c:24}' for c in r))


if __name__ == '__main__':
    main()
