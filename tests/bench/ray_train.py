"""A run under Ray Train in which a worker dies ends as one under torchrun.

    python -m tests.bench.ray_train [--json FILE]

Two workers on the CPU train four epochs; in the third one of them ends itself, Ray starts both again in a folder that
knows nothing, and they go on from the checkpoint that Ray kept. Compared with two processes under torchrun that
nothing happened to: the weights, to the bit, and the history. Ray has its own place, so `pip install 'trickbag[ray]'`
first. One JSON line."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parent / 'results' / 'ray_train.jsonl'
EPOCHS = 4


def digest(model) -> str:
    state = model.state_dict()
    return hashlib.sha256(b''.join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()[:16]


def train(config):
    "The training, in a worker of Ray as under torchrun"
    import torch
    from torch import nn

    torch.set_num_threads(1)
    from trickbag.all import EMA, Callback, Checkpoint, DataLoaders, LabelSmoothing, Learner, accuracy
    from trickbag.parallel.ray_train import RayReport, restore_from_ray

    folder = Path(config['folder'])
    # each attempt has a folder of its own, as on other machines
    path = folder / ('second' if (folder / 'died').exists() else 'first')
    cbs = [LabelSmoothing(), EMA()]
    if config['ray']:
        path = restore_from_ray(path)
        cbs.append(RayReport())

    class Dies(Callback):
        "One of the two ends itself once"

        stage = 'report'
        monitor = True

        def before_batch(self, learn):
            mark = folder / 'died'
            if learn.training and learn.rank == 1 and (learn.epoch, learn.iter) == (2, 1) and not mark.exists():
                mark.touch()
                os._exit(1)

    if config['ray']:
        cbs.append(Dies())
    dls = DataLoaders.from_folder(config['data'], size=32, bs=16)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(8, dls.c))
    learn = Learner(dls, net, metrics=accuracy, cbs=cbs, path=path, seed=0, device='cpu')
    learn.fit_one_cycle(EPOCHS, 0.01, cbs=Checkpoint(), resume='models/last')
    history = [{name: value for name, value in row.items() if name != 'time'} for row in learn.history]
    if not learn.rank:
        found = dict(weights=digest(learn.model), history=history)
        (folder / 'end.json').write_text(json.dumps(found))


def under_ray(data: Path, folder: Path) -> dict:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    root = str(Path(__file__).parents[2])
    env = dict(PYTHONPATH=root, OMP_NUM_THREADS='1')
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=2 * 10**8, runtime_env=dict(env_vars=env))
    trainer = TorchTrainer(
        train,
        train_loop_config=dict(data=str(data), folder=str(folder), ray=True),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder / 'kept'), failure_config=FailureConfig(max_failures=2)),
    )
    result = trainer.fit()
    with result.checkpoint.as_directory() as kept:
        files = sorted(f.name for f in Path(kept).iterdir())
    metrics = {name: value for name, value in result.metrics.items() if name != 'time'}
    return dict(metrics=metrics, files=files, ray=ray.__version__)


def main(a):
    from trickbag.data.toy import toy_set

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as tmp:
        data = toy_set(Path(tmp) / 'toy', n_train=256, n_valid=64)
        ends = {}
        for name in ('torchrun', 'ray'):
            folder = Path(tmp) / name
            folder.mkdir()
            if name == 'torchrun':
                command = ['torchrun', '--standalone', '--nproc-per-node=2', '-m', 'tests.bench.ray_train']
                command += ['--worker', json.dumps(dict(data=str(data), folder=str(folder), ray=False))]
                subprocess.run([sys.executable, '-m', 'torch.distributed.run', *command[1:]], check=True)
            else:
                told = under_ray(data, folder)
                assert (folder / 'died').exists()
            ends[name] = json.loads((folder / 'end.json').read_text())
    row = dict(
        equal_weights=ends['ray']['weights'] == ends['torchrun']['weights'],
        equal_history=ends['ray']['history'] == ends['torchrun']['history'],
        reported=told['metrics'] == ends['torchrun']['history'][-1],
        kept=told['files'],
        epochs=EPOCHS,
        workers=2,
        ray=told['ray'],
        seconds=round(time.perf_counter() - start),
    )
    print(json.dumps(row))
    if a.json:
        with a.json.open('a') as f:
            f.write(json.dumps(row) + '\n')
    return not (row['equal_weights'] and row['equal_history'] and row['reported'])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--worker', type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        train(asked.worker)
    else:
        sys.exit(main(asked))
