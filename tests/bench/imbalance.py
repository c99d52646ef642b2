"""Which of the ways to make up for classes of unequal size does what?

    python -m tests.bench.imbalance [--data FOLDER] [--sets toy clothing] [--seeds 0 1 2 3 4] [--json FILE]
    python -m tests.bench.imbalance --table [--json FILE]

Two sets, both tested on images that training has not seen, with the mean of the classes' recalls (macro recall)
and with the accuracy:

- `toy`: 600 drawn beetles of ten species, in poses and light that vary little, of the first thirty times as many as of
  the last; 300 others, as many of
  each, test a small network that is trained from nothing;
- `clothing`: the photographs of FOLDER/clothing-small, 112 to 795 a class (FOLDER/weights holds torchvision's
  MobileNetV2). What the network makes of them is computed once; a dropout and a linear layer are trained on it. Its
  own val and test folders test it.

Each way has the same network, images, learning rate, schedule and seeds; the defaults of each way are not tuned.
One JSON line a run, and what is in the file is not run again. --table prints means and deviations over seeds."""

import argparse
import json
import platform
import statistics
import time
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import nn

from trickbag.data.class_counts import loader_labels
from trickbag.data.files import find_images
from trickbag.data.loaders import DataLoaders
from trickbag.data.toy import toy_set
from trickbag.learner import Learner
from trickbag.loop.losses import FocalLoss, LDAMLoss
from trickbag.loop.phase import During
from trickbag.loop.schedule import OneCycle
from trickbag.models.xresnet import XResNet
from trickbag.monitors.progress import Progress
from trickbag.runs import predictions  # noqa: F401  gives the learner get_preds
from trickbag.tricks.balanced_sampler import BalancedSampler
from trickbag.tricks.class_weights import ClassWeights
from trickbag.tricks.logit_adjustment import LogitAdjustment

RESULTS = Path(__file__).parent / 'results' / 'imbalance.jsonl'
LONG_TAIL = 30
EPOCHS = dict(toy=12, clothing=8)
LR = dict(toy=8e-3, clothing=2e-3)


def late_weights():
    return [During(ClassWeights('effective'), start=0.8)]


WAYS = {  # name -> (callbacks, loss of the training counts)
    'plain': (list, None),
    'class weights': (lambda: [ClassWeights('balanced')], None),
    'balanced sampler': (lambda: [BalancedSampler()], None),
    'logit adjustment': (lambda: [LogitAdjustment()], None),
    'LDAM': (list, LDAMLoss),
    'LDAM, weights late': (late_weights, LDAMLoss),
    'focal loss': (list, lambda counts: FocalLoss()),
}


def toy_data(a):
    path = toy_set(n_train=600, n_valid=300, size=32, nuisance=0.2, long_tail=LONG_TAIL)
    return DataLoaders.from_folder(path, size=24, bs=32, presize=32, scale=(0.5, 1.0))


@cache
def clothing_features(data: Path):
    "Pooled features of all photographs, their classes and the classes' names"
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    file = Path(a.cache) / 'clothing_features.pt'
    if file.exists():
        return torch.load(file, weights_only=True)
    root = data / 'clothing-small'
    body = mobilenet_v2().features
    state = load_file(data / 'weights' / 'mobilenet_v2_imagenet1k_features_fp16.safetensors')
    state = {k.removeprefix('features.'): v.float() if v.is_floating_point() else v for k, v in state.items()}
    body.load_state_dict(state)
    files = [f for part in ('train', 'val', 'test') for f in find_images(root / part)]
    names = [Path(f).parent.name for f in files]
    is_valid = [Path(f).parent.parent.name != 'train' for f in files]
    dls = DataLoaders.from_lists(files, names, is_valid=is_valid, size=96, bs=64, keep=False)
    found = {}
    learn = Learner(dls, nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), device='cpu')
    for part, loader in dict(train=dls.train.ordered_view(), valid=dls.valid).items():
        found[part] = learn.get_preds(loader, act=lambda features: features)
    found['vocab'] = dls.vocab
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, file)
    return found


def clothing_data(a):
    found = clothing_features(a.data)

    def loader(part, **kw):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*found[part]), **kw)

    train = loader('train', batch_size=64, shuffle=True)
    return DataLoaders(train, loader('valid', batch_size=256), vocab=found['vocab'])


def network(name):
    if name == 'toy':
        return XResNet(1, [1, 1, 1], 10, stem='small', widen=0.25)
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 10))


def recalls(learn):
    probs, y = learn.get_preds()
    right = (probs.argmax(1) == y).float()
    return [right[y == k].mean().item() for k in range(10)], right.mean().item()


def run(a, name, way, seed):
    dls = dict(toy=toy_data, clothing=clothing_data)[name](a)
    counts = torch.bincount(loader_labels(dls.train), minlength=10)
    make_cbs, make_loss = WAYS[way]
    torch.manual_seed(seed)
    learn = Learner(
        dls,
        network(name),
        loss_func=make_loss and make_loss(counts),
        cbs=[OneCycle(LR[name]), *make_cbs()],
        seed=seed,
        device='cpu',
    )
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, Progress)]
    learn.dls = DataLoaders(dls.train, None, dls.cbs, dls.vocab)  # no validation on the way
    start = time.process_time()
    learn.fit(EPOCHS[name])
    seconds = time.process_time() - start
    learn.dls = dls
    of_class, accuracy = recalls(learn)
    by_size = counts.argsort()
    return dict(
        set=name,
        way=way,
        seed=seed,
        macro_recall=round(statistics.mean(of_class), 4),
        accuracy=round(accuracy, 4),
        # the three classes with the fewest training images
        rare_recall=round(statistics.mean(of_class[int(k)] for k in by_size[:3]), 4),
        recalls=[round(value, 3) for value in of_class],
        counts=counts.tolist(),
        cpu_seconds=round(seconds, 1),
        torch=torch.__version__,
        machine=platform.machine(),
    )


def lines(file) -> list:
    return [json.loads(line) for line in Path(file).read_text().splitlines()] if Path(file).exists() else []


def table(rows):
    for name in EPOCHS:
        print(f'\n{name}')
        for way in WAYS:
            mine = [row for row in rows if (row['set'], row['way']) == (name, way)]
            if len(mine) < 2:
                continue
            cells = []
            for key in ('macro_recall', 'rare_recall', 'accuracy'):
                values = [100 * row[key] for row in mine]
                cells.append(f'{key} {statistics.mean(values):5.1f} ± {statistics.stdev(values):3.1f}')
            print(f'{way:28}', '   '.join(cells), f'  {len(mine)} seeds')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path)
    parser.add_argument('--cache', default='.')
    parser.add_argument('--sets', nargs='+', default=['clothing', 'toy'], choices=list(EPOCHS))
    parser.add_argument('--seeds', nargs='+', type=int, default=list(range(5)))
    parser.add_argument('--json', default=RESULTS)
    parser.add_argument('--table', action='store_true')
    a = parser.parse_args()
    if a.table:
        table(lines(a.json))
        raise SystemExit
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    for seed in a.seeds:
        for name in a.sets:
            for way in WAYS:
                if any((row['set'], row['way'], row['seed']) == (name, way, seed) for row in lines(a.json)):
                    continue
                row = run(a, name, way, seed)
                with open(a.json, 'a') as f:
                    f.write(json.dumps(row) + '\n')
                print(json.dumps(row), flush=True)
