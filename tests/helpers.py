"What several files of tests share: small labeled images, a learner on them, files of pictures, the form of a message."

import multiprocessing
import os
import re
import threading
import time
import warnings

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trickbag.all import DataLoaders, EarlyStopping, TerminateOnNaN
from trickbag.data.store import Store
from trickbag.monitors.roll_back import RollBack
from trickbag.testing.pairs import BAG, Trial, bag_opt, covering_sets, refused_pairs, small_data, small_model
from trickbag.testing.proofs import StopAt, tiny_learner, tiny_model

# All that generated tests try: the tricks of the bag, and monitors that must keep the promises as well
TRIALS = BAG | dict(
    EarlyStopping=Trial(lambda: EarlyStopping(patience=9)),
    RollBack=Trial(lambda: RollBack(every=2, look=1)),
    TerminateOnNaN=Trial(TerminateOnNaN),
)


def few_sets(names) -> list:
    "Sets of tricks of the bag that go together, as few as have every trick at least once"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        apart = {frozenset(pair) for pair, message in refused_pairs(list(names)).items() if message}
    sets = covering_sets(sorted(names), apart)
    chosen = []
    missing = set(names)
    while missing:
        chosen.append(max(sets, key=lambda together: len(missing.intersection(together))))
        missing.difference_update(chosen[-1])
    return chosen


class SaveAt(StopAt):
    "Save at several places of a run that goes on; the file of each is `files[at]`"

    def __init__(self, places, folder):
        self.files = {at: folder / f'{at}.pt' for at in places}

    def after_batch(self, learn):
        if learn.training:
            self._save(learn, (learn.epoch, learn.iter))

    def after_epoch(self, learn):
        self._save(learn, (learn.epoch, None))

    def _save(self, learn, at):
        if at in self.files:
            learn.save(self.files[at])


def check_line(error, *words):
    "A message is one line that begins with what speaks, `fit: ` or `Learner: `, and holds these words"
    text = str(error)
    assert '\n' not in text and re.match(r'[\w.() ]+: \S', text), text
    for word in words:
        assert word in text, text


def one_line(f, *words, exc=ValueError):
    "`f()` raises such an error, with a message as `check_line` wants it"
    with pytest.raises(exc) as e:
        f()
    check_line(e.value, *words)


# Labeled images


def labeled_images(n=22, n_classes=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=g), torch.randint(0, n_classes, (n,), generator=g)


x, y = labeled_images()
two = torch.randint(0, 2, (22,), generator=torch.Generator().manual_seed(1))


def batches(bs, x=x, y=y):
    return [(x[i : i + bs], y[i : i + bs]) for i in range(0, len(x), bs)]


def linear(n_out=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_out))


def learner(y=y, n_out=4, loss=None, cbs=(), bs=11, **kw):
    "The tiny model on `x` with these labels, for training and validation"
    dls = DataLoaders(batches(bs, y=y), batches(bs, y=y))
    return tiny_learner(list(cbs), dls, tiny_model(n_out), loss_func=loss, **kw)


def logits(n_out=4):
    "What that learner's model says of `x` before training"
    return tiny_model(n_out).eval()(x).detach()


def small_learner(*cbs, **kw):
    "A learner on small images, as the bag's trials have it"
    return tiny_learner(list(cbs), small_data(), small_model(), **{'opt_func': bag_opt, **kw})


# Pictures


def image_files(folder, n=8):
    "Paths of `n` small pictures in a folder, as texts"
    for i in range(n):
        Image.new('RGB', (9, 9), (9 * i, 0, 0)).save(folder / f'{i}.png')
    return [str(folder / f'{i}.png') for i in range(n)]


def class_folders(root):
    "train/ and valid/ with pictures of the classes a and b"
    for split, n in (('train', 6), ('valid', 3)):
        for k in 'ab':
            (root / split / k).mkdir(parents=True)
            for i in range(n):
                Image.new('RGB', (300 + i, 200), (40 * i, 60, 90)).save(root / split / k / f'{i}.jpg')
    return root


class Levels:
    "A source of one-colored images, image i of the level i; `get` waits until `free` is set"

    labels = None

    def __init__(self, n):
        self.n = n
        self.free = threading.Event()

    def __len__(self):
        return self.n

    def get(self, i, P):
        self.free.wait(10)
        return torch.full((P, P, 3), i, dtype=torch.uint8), (P, P)


def levels(n):
    source = Levels(n)
    source.free.set()
    return Store(source, 4, keep='memory', threads=1)


# Waiting for a device

# operations that need a value, or make a shape of one
WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal', '_unique2', 'repeat_interleave')


class NoWait(TorchDispatchMode):
    "Raise where an operation would need a value; count the rest"

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.n = self.n + 1
        if name in WAITS:
            raise AssertionError(f'{name} waits for the device')
        if name == 'index' and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise AssertionError('a boolean index waits for the device')
        return func(*args, **(kwargs or {}))


# Processes

# One that starts anew takes two to three seconds to load torch. These are forked from one that has imported what they
# need and has run nothing.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(
    [
        'tests.conftest',
        'nbdev.test',
        'matplotlib.pyplot',
        'pandas',
        'torchvision',
        'trickbag.all',
        'trickbag.testing.pairs',
        'timm',
        'torchmetrics',
        'sklearn.metrics',
        'tests.preload',
    ]
)


def start(code, output):
    "A process that runs `code` here and now, and writes what it prints, errors too, into the file `output`"
    process = processes.Process(target=_run, args=(code, output, os.getcwd(), dict(os.environ)))
    process.start()
    return process


def _run(code, output, folder, environment):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    exec(compile(code, 'code', 'exec'), {'__name__': '__main__'})


def wait_for(word, output, process, seconds=60):
    "Until a process has printed `word`"
    end = time.monotonic() + seconds
    while not (output.exists() and word in output.read_text()):
        assert process.is_alive() and time.monotonic() < end, output.exists() and output.read_text()
        time.sleep(0.002)
