"""On a CPU with glibc, a step whose freed memory is kept asks the system for none. In a process of its own: other
threads have other heaps."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch

torch.set_num_threads(1)
from torch import nn
from trickbag.callback import Callback
from trickbag.speed.fast import Backends
from trickbag.testing.proofs import tiny_learner


class Faults(Callback):
    stage, monitor = 'stop', True

    def before_fit(self, learn):
        self.n = []

    def after_batch(self, learn):
        self.n.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def faults(heap, of_steps):
    f, xs = Faults(), [(torch.randn(8, 3, 256, 256), torch.zeros(8, dtype=torch.long))] * 12
    convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]
    m = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    from types import SimpleNamespace

    tiny_learner([f, Backends(heap=heap)], SimpleNamespace(train=xs, valid=None), m).fit(1)
    # of the steps after the first few
    return of_steps(after - before for before, after in zip(f.n[3:], f.n[4:]))


# the least with, for the system takes pages away from a process now and then; the most without, for it may leave them
# there as well
a, b = faults(True, min), faults(False, max)
print(f'{a} page faults a step with kept memory, {b} without')
assert a < b / 10 and b > 1000
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc only')
def test_kept_memory():
    r = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True)
    assert not r.returncode, r.stdout + r.stderr


PLAIN = """
import torch
from torch._dynamo.utils import counters
from trickbag.speed.fast import Fast
from trickbag.testing.proofs import tiny_learner

tiny_learner(Fast(compile=True, device='cpu')).fit(1)
assert not counters['stats']['unique_graphs']
"""


def test_no_compiler(tmp_path):
    "Where there is no compiler, one line says so, and training goes on without"
    r = subprocess.run(
        [sys.executable, '-c', PLAIN],
        capture_output=True,
        text=True,
        env={**os.environ, 'PATH': str(tmp_path), 'CXX': '', 'OMP_NUM_THREADS': '1'},
    )
    assert not r.returncode, r.stderr
    assert (
        [l for l in r.stdout.splitlines() if 'Compile' in l]
        == [l for l in r.stdout.splitlines() if l.endswith('Compile (there is no compiler)')]
        != []
    )
