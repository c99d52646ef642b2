"""A pretrained network fine-tuned on real photographs, beside the same fine-tuning in fastai, in one run.

    python -m tests.bench.fine_tune --data FOLDER [--size 80] [--seeds 3] [--json FILE]
    python -m tests.bench.fine_tune --table

FOLDER has clothing-small, stanford-cars-160 (the first `--car-classes` folders are taken) and weights/. Needs the
extra [bench] for fastai and timm. Two networks: EfficientNet-Lite0 (timm's tf_efficientnet_lite0) and MobileNetV2
(torchvision's), both with the weights of `weights/`. Both libraries get the same of everything that can be the same:
weights, a linear head on the pooled features, boxes of .35 to 1 of the image and flips, batch 32, Adam, fastai's
`fine_tune` (head first, then all with rates a hundred times lower at the first layers), the validation set once an
epoch. Each run is a process of its own; the two libraries take turns. One JSON line a run, and what is there is not
run again. `seconds` counts from the first look at the folder to the last validation, without the imports."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / 'results' / 'fine_tune.jsonl'
LIBRARIES = ('trickbag', 'fastai')
NETWORKS = dict(lite0='timm/tf_efficientnet_lite0', mobilenet='mobilenet_v2')
WEIGHTS = dict(lite0='efficientnet_lite0_imagenet1k_fp16', mobilenet='mobilenet_v2_imagenet1k_features_fp16')
# folder of validation images; epochs with the whole network, after one with the head alone
SETS = dict(clothing=('test', 1), cars=('test', 4))
MEAN_AND_STD = dict(lite0=((0.5,) * 3, (0.5,) * 3), mobilenet=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def data_folder(data: Path, name: str, car_classes: int, folder: Path) -> Path:
    "The set's folder; of the cars one of links to the classes that are taken"
    if name == 'clothing':
        return data / 'clothing-small'
    source = data / 'stanford-cars-160'
    for part in ('train', 'test'):
        (folder / part).mkdir()
        for class_folder in sorted((source / part).iterdir())[:car_classes]:
            (folder / part / class_folder.name).symlink_to(class_folder)
    return folder


def weights_file(data: Path, network: str, folder: Path) -> Path:
    "The weights under the names that the network's library gives them, as 32-bit floats"
    from safetensors.torch import load_file, save_file

    state = {k: v.float() for k, v in load_file(data / 'weights' / f'{WEIGHTS[network]}.safetensors').items()}
    if network == 'lite0':
        from .pretrained import timm_name

        state = {timm_name(k): v for k, v in state.items()}
    save_file(state, folder / 'weights.safetensors')
    return folder / 'weights.safetensors'


def with_trickbag(path, valid, weights, network, a):
    from trickbag.all import DataLoaders, accuracy, vision_learner

    dls = DataLoaders.from_folder(path, valid=valid, size=a.size, bs=32)
    learn = vision_learner(dls, NETWORKS[network], pretrained=weights, metrics=accuracy, seed=a.seed)
    learn.fine_tune(a.epochs, a.lr)
    return learn.history[-1]['accuracy'], learn.history[-1]['valid_loss']


def with_fastai(path, valid, weights, network, a):
    import torch
    from fastai.data.transforms import Normalize
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.vision.augment import Flip, RandomResizedCrop
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.learner import create_vision_model, default_split, vision_learner
    from safetensors.torch import load_file
    from torch import nn
    from torchvision.models import mobilenet_v2

    dls = ImageDataLoaders.from_folder(
        path,
        valid=valid,
        seed=a.seed,
        bs=32,
        item_tfms=RandomResizedCrop(a.size, min_scale=0.35),
        batch_tfms=[Flip(), Normalize.from_stats(*MEAN_AND_STD[network])],
    )
    torch.manual_seed(a.seed)
    features = 1280
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, dls.c))
    state = load_file(weights)
    if network == 'lite0':
        learn = vision_learner(
            dls, 'tf_efficientnet_lite0', pretrained=False, normalize=False, custom_head=head, metrics=accuracy
        )
        said = learn.model[0].model.load_state_dict(state, strict=False)
    else:
        # `vision_learner` looks for a layer that pools, which torchvision's MobileNetV2 does not have
        model = create_vision_model(mobilenet_v2, dls.c, pretrained=False, cut=-1, custom_head=head)
        said = model[0][0].load_state_dict({k.removeprefix('features.'): v for k, v in state.items()})
        learn = Learner(dls, model, splitter=default_split, metrics=accuracy)
    assert not said.missing_keys, said.missing_keys
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(a.epochs, a.lr)
    _, valid_loss, valid_accuracy = learn.recorder.values[-1]
    return float(valid_accuracy), float(valid_loss)


def child(a):
    "One run; its line is the last that it prints"
    with tempfile.TemporaryDirectory() as d:
        os.environ['TRICKBAG_CACHE'] = f'{d}/cache'
        import torch

        if a.library == 'fastai':
            import fastai.vision.all  # noqa: F401
            import timm  # noqa: F401
        else:
            import timm  # noqa: F401

            import trickbag.all  # noqa: F401
        folder = Path(d) / 'set'
        folder.mkdir()
        path = data_folder(a.data, a.set, a.car_classes, folder)
        valid, a.epochs = SETS[a.set]
        weights = weights_file(a.data, a.network, Path(d))
        run = dict(trickbag=with_trickbag, fastai=with_fastai)[a.library]
        start = time.perf_counter()
        accuracy, valid_loss = run(path, valid, weights, a.network, a)
        seconds = time.perf_counter() - start
    row = {name: getattr(a, name) for name in ('library', 'set', 'network', 'seed', 'size', 'epochs', 'lr')}
    row.update(accuracy=accuracy, valid_loss=valid_loss, seconds=round(seconds, 1))
    row.update(torch=torch.__version__, python=platform.python_version(), cores=os.cpu_count())
    print(json.dumps(row))


def table(rows):
    print('set       network    accuracy, mean and std        seconds, mean         trickbag / fastai')
    for name in SETS:
        for network in NETWORKS:
            of = {
                lib: [r for r in rows if (r['library'], r['set'], r['network']) == (lib, name, network)]
                for lib in LIBRARIES
            }
            if not all(len(found) > 1 for found in of.values()):
                continue
            said = []
            for key, form in (('accuracy', '.4f'), ('seconds', '.0f')):
                for lib in LIBRARIES:
                    values = [r[key] for r in of[lib]]
                    said.append(f'{statistics.mean(values):{form}}')
                    if key == 'accuracy':
                        said[-1] += f' ± {statistics.stdev(values):.4f}'
            ratio = sum(r['seconds'] for r in of['trickbag']) / sum(r['seconds'] for r in of['fastai'])
            print(f'{name:9} {network:10} ' + '  '.join(said) + f'   {ratio:.2f}')


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path)
    ap.add_argument('--size', type=int, default=80)
    ap.add_argument('--seeds', type=int, default=3)
    ap.add_argument('--lr', type=float, default=4e-3)
    ap.add_argument('--car-classes', type=int, default=20)
    ap.add_argument('--json', type=Path, default=RESULTS)
    ap.add_argument('--table', action='store_true')
    ap.add_argument('--library', choices=LIBRARIES, help='only this')
    ap.add_argument('--set', choices=SETS, help='only this')
    ap.add_argument('--network', choices=NETWORKS, help='only this')
    ap.add_argument('--seed', type=int, help='only this, in this process')
    a = ap.parse_args()
    if a.seed is not None:
        return child(a)
    rows = [json.loads(line) for line in a.json.read_text().splitlines()] if a.json.exists() else []
    if a.table:
        return table(rows)
    done = {(r['library'], r['set'], r['network'], r['seed']) for r in rows}
    todo = [
        (library, name, network, seed)
        for seed in range(a.seeds)
        for name in SETS
        for network in NETWORKS
        for library in LIBRARIES[:: 1 if seed % 2 else -1]
    ]
    for library, name, network, seed in todo:
        if (library, name, network, seed) in done or a.library not in (None, library):
            continue
        if a.set not in (None, name) or a.network not in (None, network):
            continue
        what = ['--library', library, '--set', name, '--network', network, '--seed', str(seed)]
        same = ['--data', str(a.data), '--size', str(a.size), '--lr', str(a.lr), '--car-classes', str(a.car_classes)]
        out = subprocess.run(
            [sys.executable, '-m', 'tests.bench.fine_tune', *what, *same], stdout=subprocess.PIPE, text=True, check=True
        )
        line = out.stdout.splitlines()[-1]
        print(line, flush=True)
        with a.json.open('a') as f:
            f.write(line + '\n')
        rows.append(json.loads(line))
    table(rows)


if __name__ == '__main__':
    main()
