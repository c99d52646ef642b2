"""What becomes of a photograph that is no square: accuracy of crop, squash and pad, in training and test.

    python -m tests.bench.fit --data FOLDER --weights FILE [--size 64] [--epochs 4] [--seeds 3] [--json FILE]
    python -m tests.bench.fit --table

FOLDER has `train` and `test` with a folder a class, FILE the weights of torchvision's MobileNetV2. Each run is
`vision_learner(...).fine_tune(epochs)` with `DataLoaders.from_folder(fit=...)`, all else the same: boxes of .35 to 1 of
what the fit shows, flips, batch 32. It is tested on the store, as in training, and on the originals, as a deployed
model is fed; the crop also with all of the shorter side (crop_pct 1). One JSON line a run; what is there is not run
again."""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / 'results' / 'fit.jsonl'
FITS = ('crop', 'squash', 'pad')


def weights_file(file: Path, folder: Path) -> Path:
    "The same weights as 32-bit floats"
    from safetensors.torch import load_file, save_file

    save_file({k: v.float() for k, v in load_file(file).items()}, folder / 'weights.safetensors')
    return folder / 'weights.safetensors'


def one_run(a, fit, seed, weights) -> dict:
    import torch

    from trickbag.all import DataLoaders, accuracy, vision_learner

    start = time.perf_counter()
    dls = DataLoaders.from_folder(a.data, valid='test', size=a.size, bs=32, fit=fit, threads=1)
    torch.manual_seed(seed)
    learn = vision_learner(dls, 'mobilenet_v2', pretrained=weights, metrics=accuracy, seed=seed)
    learn.fine_tune(a.epochs)
    row = dict(fit=fit, seed=seed, size=a.size, epochs=a.epochs, store=learn.history[-1]['accuracy'])
    row['originals'] = learn.validate(dls.originals())['accuracy']
    if fit == 'crop':
        row['originals_whole'] = learn.validate(dls.originals(crop_pct=1.0))['accuracy']
    return row | dict(seconds=round(time.perf_counter() - start), torch=torch.__version__)


def table(rows):
    print('fit        seeds  tested on its store   tested on originals')
    columns = [(fit, 'store', 'originals') for fit in FITS] + [('crop', None, 'originals_whole')]
    for fit, *names in columns:
        mine = [row for row in rows if row['fit'] == fit]
        if not mine:
            continue
        values = [[row[name] for row in mine] if name else None for name in names]
        texts = [f'{statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}' if v and len(v) > 1 else '-' for v in values]
        name = 'crop, 1' if names[0] is None else fit
        print(f'{name:10s} {len(mine):5d}  {texts[0]:20s}  {texts[1]}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path)
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--json', type=Path, default=RESULTS)
    parser.add_argument('--table', action='store_true')
    a = parser.parse_args()
    rows = [json.loads(line) for line in a.json.read_text().splitlines()] if a.json.exists() else []
    if a.table:
        return table(rows)
    done = {(row['fit'], row['seed'], row['size'], row['epochs']) for row in rows}
    with tempfile.TemporaryDirectory() as d:
        os.environ['TRICKBAG_CACHE'] = f'{d}/cache'
        weights = weights_file(a.weights, Path(d))
        for seed in range(a.seeds):
            for fit in FITS:
                if (fit, seed, a.size, a.epochs) in done:
                    continue
                row = one_run(a, fit, seed, weights)
                with open(a.json, 'a') as f:
                    f.write(json.dumps(row) + '\n')
                print(row, flush=True)


if __name__ == '__main__':
    main()
