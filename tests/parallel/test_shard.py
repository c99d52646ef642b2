"Models whose weights several processes share: the same numbers as without, less memory, nothing left behind."

from functools import partial

import pytest
import torch
from torch import nn

from tests.parallel.ranks import on_ranks
from tests.parallel.test_training import images, in_batches, plain_model
from trickbag.all import (
    AGC,
    EMA,
    LAMB,
    SAM,
    SWA,
    Callback,
    DataLoaders,
    GradientAccumulation,
    GradientCentralization,
    GradientClip,
    Learner,
    Lookahead,
    accuracy,
)
from trickbag.core.shares import is_shared, own_parts
from trickbag.parallel.shard import ShardModel
from trickbag.testing.pairs import BAG, SmallImages, pair_learner
from trickbag.testing.proofs import found, weights

# what needs whole weights, whole matrices or a forward pass of one process alone
REFUSED = {'FixRes', 'SelectiveBackprop', 'Whiten', 'Compile'}
NAMES = [name for name in BAG if name not in REFUSED]


class Watch(Callback):
    "What each process holds while it trains: bytes of weights and optimizer state, and how many weights are shared"

    stage = 'stop'
    monitor = True

    def after_batch(self, learn):
        if not learn.training:
            return
        params = [*learn.model.parameters()]
        state = [value for of_one in learn.opt.state.values() for value in of_one.values() if value.ndim]
        self.n_shared = sum(map(is_shared, params))
        self.n_bytes = sum(part.untyped_storage().nbytes() for part in own_parts([*params, *state]))


def shard(**kw):
    return ShardModel(**{'min_params': 60, **kw})


# Every trick, with and without


def train_each(rank, names):
    "The largest differences of weights, buffers and results between a fit that shares the model and one that does not"
    ends = {}
    for name in names:
        ends[name] = []
        for more in ([], [shard()]):
            torch.manual_seed(rank)
            learn = pair_learner(name)
            # of seven batches the two processes have three each
            learn.dls.train = SmallImages(53)
            learn.metrics = [accuracy]
            learn.cbs = [*learn.cbs, *more]
            was = found(learn)
            watch = Watch()
            learn.fit(2, cbs=watch)
            row = [value for key, value in learn.history[-1].items() if key != 'time']
            buffers = torch.cat([buffer.double().flatten() for buffer in learn.model.buffers()])
            ends[name].append((weights(learn), buffers, torch.tensor(row), found(learn) == was, bool(watch.n_shared)))
    return ends


@pytest.mark.parametrize('part', [0, 1, 2])
def test_every_trick_trains_the_same_where_the_model_is_shared(part, tmp_path):
    for ends in on_ranks(2, tmp_path, train_each, NAMES[part::3]):
        for name, (plain, shared) in ends.items():
            for a, b in zip(plain[:3], shared[:3], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f'{name}: {text}')
            assert shared[3] and shared[4] and not plain[4], name


def refusals(rank):
    texts = {}
    for name in sorted(REFUSED):
        learn = pair_learner(name)
        learn.cbs = [*learn.cbs, shard()]
        with pytest.raises(ValueError) as e:
            learn.fit(1)
        texts[name] = str(e.value), learn.step
    return texts


def test_who_does_not_work_on_parts_is_refused_before_the_first_step(tmp_path):
    for texts in on_ranks(2, tmp_path, refusals):
        for name, (text, step) in texts.items():
            assert f'ShardModel and {name}' in text and ';' in text and '\n' not in text and step == 0


# Against one process with the whole batch


class Uneven(nn.Module):
    "Seven rows for two processes, a tied weight, a frozen layer, one that nobody uses and one that only one uses"

    def __init__(self, rank=0):
        super().__init__()
        torch.manual_seed(3)
        self.rank = rank
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh())
        self.inner = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7))
        self.inner[2].weight = self.inner[0].weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.never = nn.Linear(7, 4)
        self.sometimes = nn.Linear(7, 4)
        self.head = nn.Linear(7, 4)
        self.double()

    def forward(self, x):
        x = self.frozen(self.inner(self.body(x)))
        return self.head(x) + (self.sometimes(x) if self.rank == 0 else 0)


adamw = partial(torch.optim.AdamW, weight_decay=0.1)


def weighted():
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4]).double(), ignore_index=-100)


def summed():
    return nn.CrossEntropyLoss(reduction='sum')


SETTINGS = dict(
    plain=(nn.CrossEntropyLoss, tuple),
    weighted=(weighted, tuple),
    summed=(summed, tuple),
    accumulating=(weighted, lambda: [GradientAccumulation(2), GradientClip(0.1)]),
    inf_norm=(nn.CrossEntropyLoss, lambda: [GradientClip(0.1, norm_type=float('inf'))]),
    by_value=(nn.CrossEntropyLoss, lambda: [GradientClip(0.01, mode='value')]),
    sum_accumulating=(summed, lambda: [GradientAccumulation(2)]),
    ascending=(weighted, lambda: [SAM(0.1), GradientAccumulation(2)]),
    adaptive=(nn.CrossEntropyLoss, lambda: [SAM(0.5, adaptive=True)]),
    units=(nn.CrossEntropyLoss, lambda: [AGC(), GradientCentralization(), Lookahead(2)]),
    trust=(nn.CrossEntropyLoss, lambda: [LAMB(always_adapt=True), EMA(0.5)]),
    # weights stay between the passes
    kept=(weighted, lambda: [SWA(0.3)]),
)


def uneven_learner(rank, sizes, setting, cbs=(), n_valid=41):
    make_loss, make_cbs = SETTINGS[setting]
    x, y = images(sum(sizes), 0)
    if setting == 'weighted':
        # the second process has a batch of which the loss sees nothing
        y[2:8] = -100
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    dls = DataLoaders(batches, in_batches(images(n_valid, 1), 5))
    all_cbs = [*make_cbs(), *cbs]
    return Learner(dls, Uneven(rank), make_loss(), adamw, lr=0.05, metrics=accuracy, cbs=all_cbs)


def train_uneven(rank, sizes, shared, names):
    ends = {}
    for name in names:
        cbs = [shard(min_params=50, reshard_after_forward=name != 'kept')] if shared else []
        learn = uneven_learner(rank, sizes, name, cbs)
        never = learn.model.never.weight.clone()
        learn.fit(2)
        # of two validation batches' worth of images one process has none
        few = uneven_learner(rank, sizes, name, cbs, n_valid=3).fit(1)
        rows = [list(learn.history[-1].values())[:-1], list(few.history[-1].values())[:-1]]
        ends[name] = weights(learn), rows, torch.equal(never, learn.model.never.weight)
    return ends


def test_batches_of_unequal_sizes_train_as_without(tmp_path):
    sizes = [2, 6, 5, 3, 4, 4, 1, 8]
    plain = on_ranks(2, tmp_path, train_uneven, sizes, False, list(SETTINGS))
    shared = on_ranks(2, tmp_path, train_uneven, sizes, True, list(SETTINGS))
    for name in SETTINGS:
        expected, expected_rows, _ = plain[0][name]
        for got, rows, is_left_alone in (shared[0][name], shared[1][name]):
            torch.testing.assert_close(
                got, expected, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f'{name}: {text}'
            )
            for row, other in zip(rows, expected_rows, strict=True):
                assert row == pytest.approx(other, rel=1e-6), name
            assert is_left_alone, name


def train_as_one(rank, sizes, shared):
    x, y = images(8, 0)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    learn = Learner(DataLoaders(batches, [(x, y)]), plain_model(), opt_func=torch.optim.SGD, lr=0.1)
    return weights(learn.fit(1, cbs=[shard()] if shared else []))


def test_processes_that_share_a_model_train_as_one_with_the_whole_batch(tmp_path):
    alone = train_as_one(0, [8], False)
    for world, sizes in ((2, [2, 6]), (3, [1, 2, 5])):
        for got in on_ranks(world, tmp_path, train_as_one, sizes, True):
            torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-12)
