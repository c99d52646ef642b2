"""The time of a step with 1, 2 and 4 processes, against a model: computing, bytes over bandwidth, and latency.

    python -m tests.bench.scaling [--steps 20] [--rounds 3] [--json FILE]

On CPUs, by gloo, one thread a process. Measured are
- `alone`: steps of so many processes that do not know each other: what computing takes where they share the cores;
- `together`: the same steps with the mean of the gradients, sent after the backward pass and during it;
- `messages`: the sum of a tensor over the processes, for sizes from 4 kB to 64 MB.
The latency and the bandwidth that explain the messages best give the time that the mean should take. One JSON line."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from tests.parallel.ranks import on_ranks

RESULTS = Path(__file__).parent / 'results' / 'scaling.json'
SIZES = [2**k for k in range(12, 27, 2)]  # bytes
BATCH = 16
SIDE = 64


def make_learner(average):
    from trickbag.all import DataLoaders, Learner, xresnet18
    from trickbag.parallel.gradients import AverageGradients

    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    y = torch.randint(0, 10, (BATCH,))
    learn = Learner(DataLoaders([], None), xresnet18(10), opt_func=torch.optim.SGD, lr=0.01, device='cpu')
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, AverageGradients)]
    if average is not None:
        learn.default_cbs.append(average)
    return learn, (x, y)


class Clock:
    "Made late, so that the module needs no trickbag in the first process"

    @staticmethod
    def callback():
        from trickbag.callback import Callback

        class StepClock(Callback):
            stage = 'stop'
            monitor = True

            def __init__(self):
                self.times = []

            def after_batch(self, learn):
                self.times.append(time.perf_counter())

        return StepClock()


def steps(rank, how, n_steps) -> float:
    "Seconds of a step, the median"
    from trickbag.parallel.gradients import AverageGradients

    average = dict(alone=None, after=AverageGradients(overlap=False), during=AverageGradients(overlap=True))[how]
    learn, batch = make_learner(average)
    world = learn.world
    learn.dls.train = [batch] * (n_steps * world)
    clock = Clock.callback()
    learn.fit(1, cbs=clock)
    return statistics.median(b - a for a, b in zip(clock.times[2:], clock.times[3:], strict=False))


def messages(rank, repeats=8) -> dict:
    "Bytes -> seconds, the median"
    found = {}
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        times = []
        for _ in range(repeats):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - start)
        found[size] = statistics.median(times[1:])
    return found


def fitted(found: dict, world: int) -> dict:
    "Latency of one of the 2 (n - 1) passes of a ring, and its bandwidth, by relative least squares"
    passes = 2 * (world - 1)
    part = {size: passes * size / world for size in found}
    # t = latency * passes + bytes / bandwidth, each equation divided by its time
    rows = torch.tensor([[passes / t, part[size] / t] for size, t in found.items()], dtype=torch.float64)
    latency, per_byte = torch.linalg.lstsq(rows, torch.ones(len(rows), 1, dtype=torch.float64)).solution[:, 0].tolist()
    return dict(latency=max(latency, 0.0), bandwidth=1 / per_byte)


def run(a):
    rows = []
    n_bytes = 4 * sum(p.numel() for p in make_learner(None)[0].model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2, 4):
            row: dict = dict(world=world)
            for how in ('alone', 'after', 'during') if world > 1 else ('alone',):
                rounds = [max(on_ranks(world, Path(folder), steps, how, a.steps)) for _ in range(a.rounds)]
                row[how] = rounds
            if world > 1:
                found = on_ranks(world, Path(folder), messages)[0]
                row |= dict(messages=found, **fitted(found, world))
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    result = dict(rows=rows, bytes=n_bytes, batch=BATCH, side=SIDE, torch=torch.__version__, steps=a.steps)
    print(json.dumps(result))
    if a.json:
        a.json.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path)
    run(parser.parse_args())
