"""Every draw is a function of (seed, rank, epoch, batch, who): whoever draws, a resumed run ends with the same bits,
and no trace is left."""

import pickle
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler

import trickbag.loop.randomness
from trickbag.all import *
from trickbag.callback import EVENTS
from trickbag.core.draws import Draws, SeededWorkers
from trickbag.core.streams import name_key
from trickbag.core.threads import preserve_rng
from trickbag.testing.proofs import StopAt, TinyData, tiny_learner, tiny_model, weights

GLOBAL_RNG = np.random.default_rng(0)
warns_of_workers = pytest.mark.filterwarnings('ignore:.*persistent_workers')


def scale_by_global(x):
    return x * (1 + 0.1 * GLOBAL_RNG.random())


class Scaled(nn.Module):
    "A model whose logits are scaled by a random number"

    class_rng = random.Random(0)

    def __init__(self, kind, first=0):
        super().__init__()
        self.m = tiny_model()
        self.kind = kind
        self.first = first
        self.calls = []
        self.numpy_rng = np.random.default_rng(0)
        self.old_rng = np.random.RandomState(0)
        self.nested = {'a': [torch.Generator().manual_seed(0)]}
        local = random.Random(0)
        self.draw = {
            'numpy': np.random.rand,
            'random': random.random,
            'numpy generator': self.numpy_rng.random,
            'RandomState': self.old_rng.rand,
            'torch generator': lambda: float(torch.rand(1, generator=self.nested['a'][0])),
            'class attribute': self.class_rng.random,
            'closure': lambda: local.random(),
            'bound': local.random,
            'gauss': lambda: np.random.randn() + random.gauss(0, 1),
        }.get(kind)

    def forward(self, x):
        p = self.m(x)
        if not self.training:
            return p
        self.calls.append(0)
        if len(self.calls) <= self.first:
            return p
        return scale_by_global(p) if self.kind == 'global' else p * (1 + 0.1 * self.draw())


KINDS = [
    'numpy',
    'random',
    'gauss',
    'numpy generator',
    'RandomState',
    'torch generator',
    'class attribute',
    'closure',
    'bound',
    'global',
]


def resumed_equals_whole(new, at, tmp_path, n=2, whole=None):
    """Whether a run that was stopped at `at` ends as the whole one; give `whole`, its weights, to try several stops of
    one run"""
    if whole is None:
        whole = weights(new().fit(n))
    new().fit(n, cbs=StopAt(at, tmp_path / 's.pt'))
    for rng in (np.random.seed, random.seed, torch.manual_seed):  # the outside has no say
        rng(3)
    return torch.equal(whole, weights(new().fit(n, resume=tmp_path / 's.pt')))


@pytest.fixture(scope='module')
def plain():
    "The weights of a run in which nobody draws"
    return weights(tiny_learner().fit(2))


@pytest.fixture(scope='module')
def plain_sgd():
    return weights(tiny_learner(opt_func=torch.optim.SGD).fit(2))


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_that_draws(kind, plain, tmp_path):
    def new():
        return tiny_learner(model=Scaled(kind))

    whole = weights(new().fit(2))
    assert not torch.equal(whole, plain)
    for at in ((0, 0), (1, 2)):
        GLOBAL_RNG.random()
        Scaled.class_rng.random()
        assert resumed_equals_whole(new, at, tmp_path, whole=whole), at


@pytest.mark.parametrize('kind', ['numpy', 'gauss'])
def test_a_model_that_begins_to_draw_later(kind, tmp_path):
    "The calls are counted from a resumed run's start, so here the stop lies before the first draw and after it"

    class Late(Scaled):
        def forward(self, x):
            if self.training:
                self.m[1].num_batches_tracked.add_(0)
                self.calls = [0] * int(self.m[1].num_batches_tracked)
            return super().forward(x)

    def new():
        return tiny_learner(model=Late(kind, first=3))

    whole = weights(new().fit(2))
    for at in ((0, 1), (0, 4)):
        assert resumed_equals_whole(new, at, tmp_path, whole=whole), at


class Picky(Callback):
    "Draws at one event, from all there is, and scales the gradients by it from then on"

    state = ('scale',)

    def __init__(self):
        self.rng, self.own, self.scale = np.random.default_rng(1), random.Random(2), 1.0

    def act(self, learn):
        drawn = np.random.rand() + random.random() + float(torch.rand(1)) + self.rng.random() + self.own.random()
        self.scale = 1 + drawn + float(torch.rand(1, generator=learn.rng(self)))

    def before_step(self, learn):
        for p in learn.model.parameters():
            p.grad.mul_(self.scale)


def picky(event):
    def method(self, learn):
        self.act(learn)
        if event == 'before_step':
            Picky.before_step(self, learn)

    return type('Picky', (Picky,), {event: method})()


@pytest.mark.parametrize('event', [e for e in EVENTS if e not in ('after_fit', 'cleanup_fit')])
def test_a_callback_that_draws_at_any_event(event, plain_sgd, tmp_path):
    def new():
        return tiny_learner([picky(event)], opt_func=torch.optim.SGD)

    whole = weights(new().fit(2))
    assert not torch.equal(whole, plain_sgd)
    for at in ((0, 2), (0, None)):
        assert resumed_equals_whole(new, at, tmp_path, whole=whole), at


def test_before_fit_draws_the_same_in_a_resumed_run(tmp_path):
    drawn = []

    class Look(Callback):
        def before_fit(self, learn):
            drawn.append(
                [
                    float(torch.rand(1, generator=learn.rng(self))),
                    float(torch.rand(1)),
                    random.random(),
                    np.random.rand(),
                ]
            )

    tiny_learner([Look()]).fit(2, cbs=StopAt((1, 2), tmp_path / 's.pt'))
    tiny_learner([Look()]).fit(2, resume=tmp_path / 's.pt')
    assert drawn[0][0] == drawn[1][0]


def test_a_generator_made_in_before_fit(tmp_path):
    class Late(Callback):
        def before_fit(self, learn):
            self.rng = np.random.default_rng(0)

        def after_backward(self, learn):
            learn.model[6].bias.grad.mul_(1 + self.rng.random())

    assert resumed_equals_whole(lambda: tiny_learner([Late()]), (1, 2), tmp_path)


def test_a_loss_that_draws(tmp_path):
    class Loss(nn.CrossEntropyLoss):
        rng = np.random.default_rng(0)

        def forward(self, p, y):
            return super().forward(p, y) * (1 + self.rng.random())

    assert resumed_equals_whole(lambda: tiny_learner(loss_func=Loss()), (1, 2), tmp_path)


def test_who_draws_nothing_costs_nothing(monkeypatch):
    "numpy and random are seeded a few times an epoch, not for each batch"
    seeds = []
    monkeypatch.setattr(trickbag.loop.randomness, 'seed_all', seeds.append)
    x = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))] * 40
    tiny_learner(dls=DataLoaders(x)).fit(1)
    assert len(seeds) < 12
    seeds.clear()
    tiny_learner(dls=DataLoaders(x), model=Scaled('numpy')).fit(1)
    assert len(seeds) > 39


# Data


class Noisy(Dataset):
    "Items that are random: from the generator that `kind` names"

    def __init__(self, kind='numpy generator', n=32):
        self.kind = kind
        self.n = n
        self.rng, self.torch_rng, self.old = np.random.default_rng(0), torch.Generator(), random.Random(0)
        self.epoch = None

    def __len__(self):
        return self.n

    def noise(self):
        return {
            'numpy generator': lambda: self.rng.random(),
            'torch generator': lambda: float(torch.rand(1, generator=self.torch_rng)),
            'Random': self.old.random,
            'numpy': np.random.rand,
            'random': random.random,
            'torch': lambda: float(torch.rand(1)),
        }[self.kind]()

    def __getitem__(self, i):
        return torch.full((3, 8, 8), self.noise()), i % 4


class Stream(IterableDataset):
    "The same, one after another; each worker gives its own"

    def __init__(self, kind, n=32):
        self.items = Noisy(kind, n)

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        for i in range(info.id if info else 0, 32, info.num_workers if info else 1):
            yield self.items[i]


def plain_dls(train, valid=None):
    d = DataLoaders(train, valid)
    d.c = 4
    return d


@pytest.mark.parametrize('kind', ['numpy generator', 'torch generator', 'Random', 'numpy', 'random', 'torch'])
def test_random_items_in_the_main_process(kind, tmp_path):
    def new():
        return tiny_learner(dls=plain_dls(DataLoader(Noisy(kind), 8, shuffle=True)))

    whole = weights(new().fit(2))
    for at in ((1, 1), (0, None)):
        assert resumed_equals_whole(new, at, tmp_path, whole=whole), at


@warns_of_workers
@pytest.mark.parametrize(
    'make,kw',
    [(Noisy, dict(persistent_workers=True)), (Noisy, dict(shuffle=True)), (Stream, dict(persistent_workers=True))],
)
def test_random_items_in_workers(make, kw, tmp_path):
    def new():
        data = make('numpy generator')
        return tiny_learner(dls=plain_dls(DataLoader(data, 8, num_workers=2, **kw)))

    assert resumed_equals_whole(new, (1, 1), tmp_path)


@warns_of_workers
def test_workers_draw_different_numbers_each_epoch_anew():
    seen = []

    class Look(Callback):
        def before_batch(self, learn):
            seen.extend(learn.xb[:, 0, 0, 0].tolist())

    dl = DataLoader(Noisy(n=16), 4, num_workers=2, persistent_workers=True)
    tiny_learner([Look()], plain_dls(dl)).fit(2)
    assert len(set(seen)) == len(seen) == 32
    first = list(seen)
    seen.clear()
    tiny_learner([Look()], plain_dls(dl)).fit(2)
    assert seen == first


def test_persistent_workers_are_said_once_and_kept_for_the_user():
    dl = DataLoader(Noisy('torch', n=8), 4, num_workers=1, persistent_workers=True)
    next(iter(dl))
    mine = dl._iterator
    with pytest.warns(UserWarning, match='train has persistent_workers=True.*leave it out'):
        learn = tiny_learner(dls=plain_dls(dl)).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1)
    assert dl.persistent_workers and dl._iterator is mine and dl.worker_init_fn is None


def test_the_users_worker_init_fn_runs_last():
    calls = []
    g = np.random.default_rng(0)
    SeededWorkers([('a', g)], calls.append)(3)
    assert calls == [3]
    # as for spawned workers: the dataset's own generator
    again = pickle.loads(pickle.dumps((SeededWorkers([('a', g)]), g)))
    assert again[0].generators[0][1] is again[1]


def test_lr_find_leaves_no_trace_in_random_items():
    learn = tiny_learner(dls=plain_dls(DataLoader(Noisy(), 8, shuffle=True)), model=Scaled('numpy generator'))
    ref = weights(
        tiny_learner(dls=plain_dls(DataLoader(Noisy(), 8, shuffle=True)), model=Scaled('numpy generator')).fit(2)
    )
    was = learn.dls.train.dataset.rng.bit_generator.state, learn.model.numpy_rng.bit_generator.state
    for f in (
        partial(learn.lr_find, num_it=20, show_plot=False),
        learn.summary,
        lambda: learn.validate(learn.dls.train),
    ):
        f()
        assert (learn.dls.train.dataset.rng.bit_generator.state, learn.model.numpy_rng.bit_generator.state) == was
    assert torch.equal(weights(learn.fit(2)), ref)
    assert (learn.dls.train.dataset.rng.bit_generator.state, learn.model.numpy_rng.bit_generator.state) == was


def test_an_error_gives_generators_back():
    class Bomb(Callback):
        def after_loss(self, learn):
            raise ZeroDivisionError

    dl = DataLoader(Noisy(), 8, sampler=DistributedSampler(range(32), 1, 0))
    learn = tiny_learner([Bomb()], plain_dls(dl), Scaled('RandomState'))
    was = (
        str(dl.dataset.rng.bit_generator.state),
        str(learn.model.old_rng.get_state()),
        dl.sampler.epoch,
        random.getstate(),
    )
    learn.epochs_run = 5
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert (
        str(dl.dataset.rng.bit_generator.state),
        str(learn.model.old_rng.get_state()),
        dl.sampler.epoch,
        random.getstate(),
    ) == was


# Orders


class Shuffle(Sampler):
    "An order from a generator of its own, drawn as it goes"

    def __init__(self, n, rng):
        self.n = n
        self.rng = rng

    def __len__(self):
        return self.n

    def __iter__(self):
        left = list(range(self.n))
        while left:
            yield left.pop(
                int(torch.randint(len(left), (), generator=self.rng))
                if isinstance(self.rng, torch.Generator)
                else self.rng.randrange(len(left))
                if isinstance(self.rng, random.Random)
                else self.rng.integers(len(left))
            )


class Around:
    "A loader in a class of the user's"

    def __init__(self, dl):
        self.inner = dl

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        yield from self.inner


@pytest.mark.parametrize(
    'rng',
    [torch.Generator, partial(np.random.default_rng, 0), partial(random.Random, 0)],
    ids=['torch', 'numpy', 'random'],
)
@pytest.mark.parametrize('wrap', ['sampler', 'batch_sampler', 'around'])
def test_samplers_with_generators_of_their_own(rng, wrap, tmp_path):
    data = TinyData().train.dataset

    def new():
        s = Shuffle(len(data), rng())
        dl = (
            DataLoader(data, batch_sampler=BatchSampler(s, 8, False))
            if wrap == 'batch_sampler'
            else DataLoader(data, 8, sampler=s)
        )
        return tiny_learner(dls=plain_dls(Around(dl) if wrap == 'around' else dl))

    assert resumed_equals_whole(new, (1, 2), tmp_path)
    assert not torch.equal(weights(new().fit(2)), weights(tiny_learner(dls=plain_dls(DataLoader(data, 8))).fit(2)))


def test_a_nested_sampler_of_torchs_own(tmp_path):
    data = TinyData().train.dataset

    def new():
        s = BatchSampler(RandomSampler(data, replacement=True, num_samples=45, generator=torch.Generator()), 8, False)
        return tiny_learner(dls=plain_dls(DataLoader(data, batch_sampler=s)))

    assert resumed_equals_whole(new, (1, 2), tmp_path)


class Orders(Callback):
    "The order of the samples, which carry their numbers"

    def __init__(self):
        self.of = {}

    def before_batch(self, learn):
        if learn.training:
            self.of.setdefault(learn.epoch, []).extend(learn.xb[:, 0, 0, 0].int().tolist())


class Numbered(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        return torch.full((3, 8, 8), float(i)), i % 4


def as_batch_sampler(s):
    return DataLoader(Numbered(), batch_sampler=BatchSampler(s, 8, False))


@pytest.mark.parametrize(
    'make',
    [
        lambda s: DataLoader(Numbered(), 8, sampler=s),
        as_batch_sampler,
        lambda s: Around(DataLoader(Numbered(), 8, sampler=s)),
    ],
    ids=['sampler', 'batch sampler', 'wrapped'],
)
def test_set_epoch_gives_the_orders_of_torchs_own_loop(make, tmp_path):
    want = {}
    for epoch in range(3):
        s = DistributedSampler(Numbered(), 1, 0, seed=7)
        s.set_epoch(epoch)
        want[epoch] = list(s)
    assert want[0] != want[1]

    def new():
        return tiny_learner([Orders()], plain_dls(make(DistributedSampler(Numbered(), 1, 0, seed=7))))

    whole = new().fit(3)
    assert whole.cb(Orders).of == want
    new().fit(3, cbs=StopAt((1, 0), tmp_path / 's.pt'))
    rest = new().fit(3, resume=tmp_path / 's.pt')
    assert rest.cb(Orders).of[2] == want[2] and torch.equal(weights(rest), weights(whole))


def test_set_epoch_goes_on_in_a_second_fit_and_is_taken_back():
    s = DistributedSampler(Numbered(), 1, 0)
    s.set_epoch(9)
    learn = tiny_learner([Orders()], plain_dls(DataLoader(Numbered(), 8, sampler=s))).fit(1)
    first = learn.cb(Orders).of[0]
    learn.lr_find(num_it=20, show_plot=False)
    assert s.epoch == 9
    learn.cb(Orders).of.clear()
    learn.fit(1)
    assert s.epoch == 9 and learn.cb(Orders).of[0] != first


def test_set_epoch_of_a_dataset_that_notes_it_in_a_shared_tensor():
    class Shared(Numbered):
        def __init__(self):
            self.epoch = torch.tensor(0).share_memory_()
            self.told = []

        def set_epoch(self, e):
            self.epoch += e - self.epoch
            self.told.append(e)

    data = Shared()
    tiny_learner(dls=plain_dls(DataLoader(data, 8))).fit(3)
    assert data.told == [0, 1, 2] and int(data.epoch) == 0


def test_what_no_seed_fixes_is_said():
    dl = DataLoader(Noisy(n=8), 4, num_workers=1, in_order=False)
    with pytest.warns(UserWarning, match='in_order=False'):
        tiny_learner(dls=plain_dls(dl)).fit(1)

    class Endless:
        def __init__(self, dl):
            self.dl, self.running = dl, iter(dl)

        def __len__(self):
            return 2

        def __iter__(self):
            for _ in range(2):
                yield next(self.running)

    with pytest.warns(UserWarning, match='train.running is an iterator that goes on'):
        tiny_learner(dls=plain_dls(Endless(DataLoader(Noisy(), 8)))).fit(1)
    model = tiny_model()
    model.rng = random.SystemRandom()
    with pytest.warns(UserWarning, match='model.rng is a SystemRandom'):
        tiny_learner(model=model).fit(1)


def test_global_generators_are_not_taken_for_ones_own():
    model = tiny_model()
    model.a = torch.default_generator
    model.b = np.random.mtrand._rand
    model.c = random.random
    d = Draws({}, lambda: {'model': model})
    d.find()
    assert not d.own
    assert torch.equal(weights(tiny_learner(model=model).fit(1)), weights(tiny_learner().fit(1)))


class OwnGenerator(TinyData):
    def __init__(self):
        super().__init__()
        ds = self.train.dataset
        self.train = torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(1))


def test_loaders_with_a_generator_of_their_own(tmp_path):
    def new():
        return tiny_learner([MixUp()], dls=OwnGenerator())

    a = new()
    b = new()
    s = b.dls.train.generator.get_state()
    b.summary()
    b.lr_find(num_it=20, show_plot=False)
    a.fit(2)
    b.fit(2)
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(s, b.dls.train.generator.get_state())
    new().fit(2, cbs=StopAt((1, 2), tmp_path / 's.pt'))
    assert torch.equal(weights(a), weights(new().fit(2, resume=tmp_path / 's.pt')))


def test_the_order_of_samples_does_not_depend_on_workers():
    class D(TinyData):
        def __init__(self, n):
            super().__init__()
            self.train = torch.utils.data.DataLoader(self.train.dataset, 8, shuffle=True, num_workers=n)

    assert torch.equal(*(weights(tiny_learner(dls=D(n)).fit(1)) for n in (0, 1)))


# Threads


@pytest.mark.filterwarnings('ignore:.*running in another thread')
def test_fits_in_threads_end_as_one_after_another():
    torch.manual_seed(0)
    was = torch.get_rng_state(), random.getstate()
    ref = weights(tiny_learner().fit(2))
    learns = [tiny_learner() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda l: l.fit(2), learns))
    assert all(torch.equal(weights(l), ref) for l in learns)
    assert torch.equal(torch.get_rng_state(), was[0]) and random.getstate() == was[1]


def test_a_second_thread_waits_and_says_so():
    ref = weights(tiny_learner().fit(3))
    other = tiny_learner()
    results = []
    x = next(iter(other.dls.valid))[0][0]

    class Start(Callback):
        def after_train(self, learn):
            if learn.epoch:
                return
            jobs = (
                other.validate,
                other.get_preds,
                lambda: other.predict(x),
                lambda: other.lr_find(num_it=20, show_plot=False),
                learn.validate,
            )
            self.threads = [threading.Thread(target=lambda f=f: results.append(f())) for f in jobs]
            for t in self.threads:
                t.start()

    learn = tiny_learner([start := Start()])
    with pytest.warns(UserWarning, match='running in another thread, and this one waits'):
        learn.fit(3)
        for t in start.threads:
            t.join()
    assert torch.equal(weights(learn), ref) and len(results) == 5
    assert learn.validate() in results and other.validate() in results


@pytest.mark.filterwarnings('ignore:.*running in another thread')
@pytest.mark.parametrize('how', ['thread', 'pool'])
def test_two_that_would_wait_for_each_other_are_told(how):
    errors = []

    def validate():
        try:
            tiny_learner().validate()
        except RuntimeError as e:
            errors.append(str(e))

    class Wait(Callback):
        def after_epoch(self, learn):
            if how == 'pool':
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(validate).result()
            else:
                t = threading.Thread(target=validate)
                t.start()
                t.join()

    tiny_learner([Wait()]).fit(1)
    assert len(errors) == 1 and 'call this one in the same thread' in errors[0]


def test_keep_rng_keeps_another_devices_state(monkeypatch):
    state = [torch.zeros(3)]

    class Module:
        get_rng_state = staticmethod(lambda: state[0].clone())
        set_rng_state = staticmethod(lambda s: state.__setitem__(0, s))

    monkeypatch.setattr(torch, 'get_device_module', lambda device: Module)
    with preserve_rng(torch.device('mps')):
        state[0] = torch.ones(3)
    assert torch.equal(state[0], torch.zeros(3))


# What is valid when


class Journal(Callback):
    "What the learner says of itself at each event"

    stage = 'surgery'
    monitor = True

    def __init__(self):
        self.rows = []

    def note(self, learn, event):
        r = torch.rand(1, generator=learn.rng(self)).item()
        again = torch.rand(1, generator=learn.rng(self)).item()
        assert r == again
        self.rows.append(
            (
                event,
                learn.epoch,
                learn.iter,
                learn.training,
                learn.fitting,
                learn.xb is None,
                bool(learn.results),
                learn.dl is learn.dls.train,
                r,
            )
        )


for e in EVENTS:
    setattr(Journal, e, lambda self, learn, e=e: self.note(learn, e))


def journal(**kw):
    j = Journal()
    tiny_learner([j]).fit(3, **kw)
    return j.rows


def test_training_and_iter_at_each_event():
    n = 6
    n_valid = 3
    where = {}
    for event, epoch, i, training, fitting, no_batch, results, train_dl, _ in journal():
        where.setdefault((event, training), []).append((epoch, i))
        if event in ('before_fit', 'before_epoch', 'before_train'):
            assert i == 0 and training and fitting and no_batch and not results and train_dl, (event, epoch)
        elif event in ('after_train', 'after_epoch', 'after_fit'):
            assert i == n - 1 and training and fitting and train_dl, (event, epoch)
        elif event == 'before_validate':
            assert i == 0 and no_batch and not results and not training and not train_dl
        elif event in ('after_validate', 'cleanup_validate'):
            assert i == n_valid - 1 and not training and results
        elif event == 'cleanup_fit':
            assert not training and not fitting
        if event in ('after_epoch', 'after_fit'):
            assert results
    batch = [e for e in EVENTS if e.split('_')[1] in ('batch', 'pred', 'loss', 'backward', 'step')]
    for e in batch:
        assert where[e, True] == [(k, i) for k in range(3) for i in range(n)], e
    for e in ('before_batch', 'after_pred', 'after_loss', 'after_batch'):
        assert where[e, False] == [(k, i) for k in range(3) for i in range(n_valid)], e
    assert {e for e, _ in where} == set(EVENTS)


def test_a_validation_alone():
    j = Journal()
    learn = tiny_learner([j])
    for _ in range(2):
        learn.validate()
    first = j.rows[: len(j.rows) // 2]
    second = j.rows[len(j.rows) // 2 :]
    assert first == second and not any(r[3] or r[4] for r in first)


@pytest.mark.parametrize('at', [(0, None), (1, 0), (1, 3), (1, 5), (2, None)])
def test_a_resumed_run_says_the_same_of_itself(at, tmp_path):
    whole = journal()
    stopped = Journal()
    tiny_learner([stopped]).fit(3, cbs=StopAt(at, tmp_path / 's.pt'))
    rest = journal(resume=tmp_path / 's.pt')
    epoch, batch = at
    assert rest[0] == whole[0]

    def after(rows):
        "What comes after the stop, `before_epoch` and `before_train` of its epoch included"
        first = epoch + 1 if batch is None else epoch
        return [
            r
            for r in rows[1:]
            if r[1] > first
            or (
                r[1] == first
                and (
                    r[0] in ('before_epoch', 'before_train')
                    or batch is None
                    or not r[3]
                    or r[2] > batch
                    or r[0] in ('after_train', 'after_epoch', 'after_fit', 'cleanup_fit')
                )
            )
        ]

    def known(row, i):
        "Of a run taken up after an epoch's last batch, the batch itself is not there any more"
        return row if row[0] != 'after_train' else (*row[:5], *row[6:])

    got = [known(r, 0) for r in rest[1:]]
    want = [known(r, 0) for r in after(whole)]
    if at == (2, None):
        want = [known(r, 0) for r in whole if r[0] in ('after_fit', 'cleanup_fit')]
    assert [r[:4] for r in got] == [r[:4] for r in want]
    if at != (2, None):
        assert got == want
    assert [r[-1] for r in got] == [r[-1] for r in want]


def test_no_two_events_share_a_stream_by_accident():
    "Within a batch all events have one stream, as documented; before, between and after batches each has its own"
    streams = {}
    for event, epoch, i, training, *_, r in journal():
        # `after_train` belongs to the last batch
        inside = event == 'after_train' or event.split('_')[1] in ('batch', 'pred', 'loss', 'backward', 'step')
        streams.setdefault(r, set()).add((epoch, i, training) if inside else (event, epoch))
    assert all(len(s) == 1 for s in streams.values())


class KeepsDraws(Callback):
    "Keeps what it draws, and the labels in the order in which they come"

    def __init__(self):
        self.drawn = []
        self.came = []

    def before_batch(self, learn):
        if not learn.training:
            return
        self.drawn.append(torch.rand(4, generator=learn.rng(self)))
        self.came.append(learn.yb.tolist())


def test_a_second_fit_goes_on_with_the_streams():
    "A fit of two epochs draws what two fits of one epoch draw, and nothing twice"
    once = KeepsDraws()
    twice = KeepsDraws()
    tiny_learner([once]).fit(2)
    tiny_learner([twice]).fit(1).fit(1)
    drawn = torch.stack(twice.drawn)
    assert torch.equal(drawn, torch.stack(once.drawn)) and len(drawn.unique(dim=0)) == len(drawn)
    assert twice.came == once.came and twice.came[:6] != twice.came[6:]


def test_a_name_has_one_number_in_every_process():
    "CRC-32; of these digits the standards give 0xCBF43926"
    assert name_key('123456789') == 0xCBF43926
