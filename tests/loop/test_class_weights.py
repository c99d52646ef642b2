"""Weights of classes, whatever way a loss comes by them: torch's weighted cross entropy is the right value."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import batches, learner, logits, one_line, x, y
from trickbag.all import *
from trickbag.loop.read_loss import read_loss
from trickbag.testing.proofs import tiny_learner

w = torch.tensor([0.1, 1.0, 3.0, 7.0])


def taken(p, y):
    mine = w.take(y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def gathered(p, y):
    mine = w.gather(0, y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def one_hot(p, y):
    rows = F.one_hot(y, 4).float()
    return -(rows * p.log_softmax(1) * w).sum() / (rows @ w).sum()


def listed_weights(p, y):
    mine = torch.tensor([[0.1, 1.0, 3.0, 7.0][k] for k in y.tolist()])
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def first_is_free(p, y):
    mine = torch.tensor([0.0, 1.0, 2.0, 3.0]).take(y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


WEIGHTED = {taken: w, gathered: w, one_hot: w, listed_weights: w, first_is_free: torch.tensor([0.0, 1.0, 2.0, 3.0])}


@pytest.mark.parametrize('loss', WEIGHTED, ids=lambda f: f.__name__)
def test_the_mean_over_weights_is_found_by_values(loss):
    whole = F.cross_entropy(logits(), y, weight=WEIGHTED[loss]).item()
    assert [learner(loss=loss, bs=bs).validate()['loss'] for bs in (22, 7, 3)] == pytest.approx([whole] * 3, rel=1e-5)


@pytest.mark.parametrize('loss', WEIGHTED, ids=lambda f: f.__name__)
def test_accumulated_batches_are_the_big_batch(loss):
    def trained(bs, cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        tiny_learner(cbs, DataLoaders(batches(bs)), model, loss_func=loss, opt_func=torch.optim.SGD, lr=0.1).fit(1)
        return model[1].weight.detach()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    F.cross_entropy(model(x), y, weight=WEIGHTED[loss]).backward()
    right = (model[1].weight - 0.1 * model[1].weight.grad).detach()
    for got in (trained(22, []), trained(6, [GradientAccumulation(4)])):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


def test_weights_of_1000_classes_are_found():
    weight = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.1

    def loss(p, y):
        mine = weight.take(y)
        return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()

    facts = read_loss(loss, torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64))
    assert facts.reduction == 'mean'
    torch.testing.assert_close(facts.weight / facts.weight.sum(), weight / weight.sum(), rtol=1e-3, atol=1e-7)


def test_weights_that_change_are_found_anew():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def forward(self, p, y):
            mine = self.w.take(y)
            return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()

    loss = Moving()
    learn = learner(loss=loss, bs=5)
    for weight in (w, w, w.flip(0)):
        loss.w = weight
        assert learn.validate()['loss'] == pytest.approx(F.cross_entropy(logits(), y, weight=weight).item(), rel=1e-5)


# Weights that cannot be used


@pytest.mark.parametrize(
    'weight,word',
    [
        (torch.ones(3), '3 weights'),
        (torch.tensor([1, 2, 3, 4]), 'int64'),
        (torch.ones(4).double(), 'float64'),
        ([1.0, 2.0, 3.0, 4.0], 'torch.tensor(weight)'),
        (torch.zeros(4), 'not all 0'),
        (torch.tensor([1.0, -1, 1, 1]), '0 or more'),
        (torch.tensor([1.0, float('nan'), 1, 1]), 'finite'),
    ],
    ids=str,
)
def test_weights_that_cannot_be_used(weight, word):
    learn = learner(loss=partial(F.cross_entropy, weight=weight))
    one_line(lambda: learn.fit(1), 'Learner: ', word)
    assert learn.step == 0
