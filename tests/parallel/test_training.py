"Several processes train as one: the same weights in all, and those that one process would have."

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.parallel.ranks import on_ranks
from trickbag.all import (
    SAM,
    Callback,
    CancelBackward,
    DataLoaders,
    GradientAccumulation,
    GradientClip,
    Learner,
    accuracy,
)
from trickbag.core.processes import all_say, copy_from_first, first_says, mean_of_all, place, sum_of_all
from trickbag.parallel import gradients
from trickbag.parallel.gradients import AverageGradients, average_gradients
from trickbag.testing.pairs import BAG, pair_learner
from trickbag.testing.proofs import found, weights

NAMES = [name for name in BAG if name != 'Compile']


def numbers(rank):
    tensor = torch.tensor([1.0, rank])
    whole = torch.tensor([rank])
    own = [torch.full((2, 2), float(rank)), torch.full((3,), float(10 * rank), dtype=torch.float64)]
    mean_of_all(own, weight=rank + 1)
    first = torch.tensor([rank + 5])
    copy_from_first([first])
    return dict(
        place=place()[:2],
        sum=sum_of_all(tensor).tolist(),
        whole=sum_of_all(whole).tolist(),
        means=[own[0].tolist(), own[1].tolist()],
        first=first.tolist(),
        said=all_say(f'rank {rank}'),
        of_first=first_says(rank),
    )


def test_what_processes_tell_each_other(tmp_path):
    for rank, got in enumerate(on_ranks(3, tmp_path, numbers)):
        # weights 1, 2 and 3 of the values 0, 1 and 2
        mean = (0 * 1 + 1 * 2 + 2 * 3) / 6
        assert got == dict(
            place=(rank, 3),
            sum=[3.0, 3.0],
            whole=[3],
            means=[[[pytest.approx(mean)] * 2] * 2, [pytest.approx(10 * mean)] * 3],
            first=[5],
            said=['rank 0', 'rank 1', 'rank 2'],
            of_first=0,
        )


def train_each(rank, names):
    ends = {}
    for name in names:
        # layers that a trick adds are drawn in each process for itself
        torch.manual_seed(rank)
        learn = pair_learner(name)
        learn.metrics = [accuracy]
        was = found(learn)
        learn.fit(2)
        row = {key: value for key, value in learn.history[-1].items() if key != 'time'}
        buffers = [buffer.tolist() for buffer in learn.model.buffers()]
        ends[name] = dict(weights=weights(learn).tolist(), buffers=buffers, row=row, undone=found(learn) == was)
    return ends


def test_every_trick_ends_with_the_same_weights_in_both_processes(tmp_path):
    first, second = on_ranks(2, tmp_path, train_each, NAMES)
    differ = {name: [key for key in first[name] if first[name][key] != second[name][key]] for name in NAMES}
    assert not {name: keys for name, keys in differ.items() if keys}
    assert all(first[name]['undone'] for name in NAMES)


# A network without BatchNorm, whose batches would be of other images


def plain_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 2, 2, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (n,), generator=generator)


def in_batches(data, bs):
    return [(x, y) for x, y in zip(*(part.split(bs) for part in data), strict=True)]


def plain_learner(bs, n_train=48, n_valid=41, cbs=()):
    dls = DataLoaders(in_batches(images(n_train, 0), bs), in_batches(images(n_valid, 1), 5))
    return Learner(dls, plain_model(), metrics=accuracy, cbs=list(cbs), opt_func=torch.optim.SGD, lr=0.1)


def train_plain(rank, bs, make_cbs=tuple):
    learn = plain_learner(bs, cbs=make_cbs())
    learn.fit(2)
    return weights(learn), [{**row, 'time': 0} for row in learn.history], learn.step


def accumulating():
    return [GradientAccumulation(2), GradientClip(0.1)]


@pytest.mark.parametrize('make_cbs', [tuple, accumulating])
@pytest.mark.parametrize('world', [2, 3])
def test_several_processes_train_as_one_with_a_larger_batch(make_cbs, world, tmp_path):
    alone, rows, steps = train_plain(0, 12, make_cbs)
    for got, got_rows, got_steps in on_ranks(world, tmp_path, train_plain, 12 // world, make_cbs):
        torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-12)
        assert got_steps == steps
        for row, expected in zip(got_rows, rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-9)


class Branches(nn.Module):
    "In the second process one layer has no gradient, in both another one has none"

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh())
        self.sometimes = nn.Linear(8, 4)
        self.never = nn.Linear(8, 4)
        self.head = nn.Linear(8, 4)
        self.double()

    def forward(self, x):
        x = self.body(x)
        return self.head(x) + (self.sometimes(x) if place().rank == 0 else 0)


class FreezeLater(Callback):
    "The body learns in the first epoch only; a canceled backward pass is of no sample"

    def before_epoch(self, learn):
        learn.model.body.requires_grad_(learn.epoch == 0)

    def before_backward(self, learn):
        if learn.epoch == 1 and learn.iter < 2 and (learn.iter == 0 or learn.rank):
            raise CancelBackward


def train_overlapped(rank, overlap, n_bytes, more):
    gradients.PARCEL_BYTES = n_bytes
    learn = plain_learner(4, cbs=[FreezeLater(), *more()])
    learn.model = Branches()
    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, AverageGradients)]
    average = AverageGradients(overlap)
    learn.fit(2, cbs=average)
    return weights(learn), average._overlaps


def test_gradients_that_travel_during_the_backward_pass_are_the_same(tmp_path):
    (plain, no), (plain_2, _) = on_ranks(2, tmp_path, train_overlapped, False, 1, tuple)
    assert torch.equal(plain, plain_2) and plain.isfinite().all() and not no
    # parcels of one tensor each, of a few, and all in one
    for n_bytes in (1, 200, 2**20):
        for got, yes in on_ranks(2, tmp_path, train_overlapped, True, n_bytes, tuple):
            assert torch.equal(got, plain) and yes
    # where a callback would be in between, they wait
    for make in (accumulating, sharpened):
        (expected, _), _ = on_ranks(2, tmp_path, train_overlapped, False, 1, make)
        for got, no in on_ranks(2, tmp_path, train_overlapped, True, 1, make):
            assert torch.equal(got, expected) and not no


def sharpened():
    return [SAM()]


def test_parcels_are_full_in_the_order_of_the_backward_pass():
    params = [torch.empty(n) for n in (8, 4, 1, 2)] + [torch.empty(3, dtype=torch.float64)]
    parcels = gradients.in_parcels(params, 24)
    assert [[param.numel() for param in parcel] for parcel in parcels] == [[3], [2, 1, 4], [8]]


def gradients_of_unequal(rank):
    "The second process has another gradient, of three times the samples, and one where the first has none"
    params = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]
    params[0].grad = torch.tensor([1.0, 2.0], dtype=torch.float64) * (rank + 1)
    if rank:
        params[1].grad = torch.full((2,), 8.0, dtype=torch.float64)
    average_gradients(params, [], 1 + 2 * rank)
    return [None if param.grad is None else param.grad.tolist() for param in params]


def test_the_mean_gradient_is_over_samples_and_whoever_has_one(tmp_path):
    for got in on_ranks(2, tmp_path, gradients_of_unequal):
        assert got == [
            [pytest.approx((1 + 3 * 2) / 4), pytest.approx(2 * (1 + 3 * 2) / 4)],
            [pytest.approx(6)] * 2,
            None,
        ]


def train_batches(rank, sizes):
    "An epoch of batches of these sizes, which the processes share"
    x, y = images(8, 0)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    learn = Learner(DataLoaders(batches, [(x, y)]), plain_model(), opt_func=torch.optim.SGD, lr=0.1)
    return weights(learn.fit(1))


def test_batches_of_unequal_sizes_train_as_one(tmp_path):
    alone = train_batches(0, [8])
    for got in on_ranks(2, tmp_path, train_batches, [2, 6]):
        torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-12)


def validate_plain(rank, n):
    return plain_learner(5, n_valid=n).validate()


@pytest.mark.parametrize('n', [41, 3])
def test_each_validation_sample_counts_once(n, tmp_path):
    "Of 41 samples in batches of 5 three processes have three batches each; of 3 two of them have none"
    expected = validate_plain(0, n)
    for got in on_ranks(3, tmp_path, validate_plain, n):
        assert got == pytest.approx(expected, rel=1e-12)


def predict_plain(rank, n):
    return plain_learner(5, n_valid=n).get_preds()


@pytest.mark.parametrize('n', [41, 3])
def test_predictions_are_of_all_images_in_order_in_each_process(n, tmp_path):
    probs, targets = predict_plain(0, n)
    for got, got_targets in on_ranks(3, tmp_path, predict_plain, n):
        assert torch.equal(got, probs) and torch.equal(got_targets, targets)


def warnings_and_errors(rank):
    "Of a loader without shares, and of one that is too small"
    data = TensorDataset(*images(24, 0))
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for loader in (DataLoader(data, 4), DataLoader(data, 4, sampler=DistributedSampler(data, shuffle=False))):
            learn = Learner(DataLoaders(loader, None), plain_model(), opt_func=torch.optim.SGD, lr=0.1).fit(1)
            said.append((learn.step, [str(w.message) for w in caught if 'DistributedSampler' in str(w.message)]))
            caught.clear()
    try:
        Learner(DataLoaders(in_batches(images(4, 0), 4), None), plain_model()).fit(1)
    except ValueError as e:
        said.append(str(e))
    return said


def test_who_cannot_share_is_told(tmp_path):
    (plain, sampled, error), other = on_ranks(2, tmp_path, warnings_and_errors)
    assert plain[0] == sampled[0] == 3
    assert len(plain[1]) == 1 and not sampled[1] and '\n' not in plain[1][0]
    assert '1 batches for 2 processes' in error
    # the first process speaks
    assert not other[0][1] and other[2] == error
