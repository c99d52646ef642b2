"One core a worker, no network, and the same state of the process at the start of every test."

import gc
import os
import random
import signal
import socket

for o in 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS':
    os.environ[o] = '1'
import numpy as np
import pytest
import torch

pytest.register_assert_rewrite('tests.helpers')


def collect_seldom():
    "Let the garbage collector look at little, and seldom"
    # what torch and the library have made lives to the end: a collection that passes it by takes a fifth off a proof
    gc.collect()
    gc.freeze()
    # what a test makes is mostly freed without a collection: with one at every 700th object, as is Python's default,
    # they take 8 % of a proof of a pair
    gc.set_threshold(20_000, 20, 20)


def pytest_configure(config):
    import trickbag.testing.pairs  # noqa: F401

    torch.set_num_threads(1)
    collect_seldom()
    # a shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests that take ten seconds or more begin first: with several workers, none is left alone with one of them at the end
LONG = (
    'test_from_photographs_to_onnx',
    'test_terminal',
    'test_kernel',
    'test_ipython_in_a_terminal',
    'test_notebook[models/02_xresnet.ipynb]',
    'test_notebook[speed/04_compile.ipynb]',
    'test_compiles_without_a_break[all]',
    'test_kept_memory',
    'test_pipe',
    'test_two_processes_in_one_folder',
)


def pytest_collection_modifyitems(items):
    # workers that collect tests of other names run none: an address in a name differs from one to the next
    with_address = [item.nodeid for item in items if ' at 0x' in item.nodeid]
    assert not with_address, f'give these tests ids that hold no address: {with_address[:3]}'
    items.sort(key=_begins)


def _begins(item):
    "The long ones first, then notebooks, which take seconds each, then the others as they stand"
    # a file whose tests share what takes seconds to make stays together
    if item.name in LONG or item.path.name == 'test_ablation.py':
        return 0
    return 1 if item.name.startswith('test_notebook[') else 2


def fresh():
    "Undo what a test or notebook may have set for the whole process"
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    # the call alone, whatever it sets, imports torch's compiler, which takes two seconds in each new process
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    if plt := __import__('sys').modules.get('matplotlib.pyplot'):
        plt.close('all')
        plt.rcdefaults()


def no_network(connect):
    "A socket's `connect` that refuses other machines"

    def local(self, address):
        if (
            isinstance(address, tuple)
            and address[0] not in ('localhost', '::1')
            and not str(address[0]).startswith('127.')
        ):
            raise OSError(f'tests use no network, and this one connects to {address[0]}')
        return connect(self, address)

    return local


@pytest.fixture(autouse=True)
def same_start(monkeypatch):
    cwd = os.getcwd()
    env = dict(os.environ)
    sigint = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(socket.socket, 'connect', no_network(socket.socket.connect))
    fresh()
    yield
    os.chdir(cwd)
    signal.signal(signal.SIGINT, sigint)
    for k in os.environ.keys() - env.keys():
        del os.environ[k]
    os.environ.update(env)
    fresh()
