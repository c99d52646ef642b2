"Losses and models that are not what they are taken for are said before step 1, and right ones are not."

import warnings

import pytest
import torch.nn.functional as F
from torch import nn

from tests.helpers import batches, learner, one_line, y
from trickbag.all import *
from trickbag.testing.proofs import tiny_learner, tiny_model


def test_scores_come_first():
    for f in (lambda y, p: F.cross_entropy(p, y), lambda y, p: F.nll_loss(p, y)):
        one_line(lambda: learner(loss=f).fit(1), 'logits come first')
    many = F.one_hot(y, 4).float()
    one_line(
        lambda: learner(many, loss=lambda y, p: F.binary_cross_entropy_with_logits(p, y)).fit(1), 'logits come first'
    )


class Ended(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body = tiny_model(4)
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


@pytest.mark.parametrize(
    'end,loss,says',
    [
        (nn.Softmax(1), nn.CrossEntropyLoss(), 'softmax of them once more'),
        (nn.Identity(), nn.NLLLoss(), 'logarithms of probabilities'),
    ],
)
def test_a_softmax_too_many_or_too_few_is_said(end, loss, says):
    with pytest.warns(UserWarning, match=says):
        tiny_learner([], DataLoaders(batches(11)), Ended(end), loss_func=loss).fit(1)


@pytest.mark.parametrize(
    'end,loss',
    [
        (nn.Identity(), nn.CrossEntropyLoss()),
        (nn.LogSoftmax(1), nn.NLLLoss()),
        (nn.LogSoftmax(1), nn.CrossEntropyLoss()),
    ],
)
def test_right_ends_are_not_warned_of(end, loss):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tiny_learner([], DataLoaders(batches(11)), Ended(end), loss_func=loss).fit(1)


@pytest.mark.parametrize(
    'loss,word',
    [
        (lambda p: p.mean(), 'loss_func(pred, y)'),
        (lambda p, y, z: p.mean(), 'loss_func(pred, y)'),
        (nn.BCELoss(), 'BCEWithLogitsLoss'),
        (nn.MultiLabelMarginLoss(), 'loss_func fails'),
        (nn.TripletMarginLoss(), 'loss_func(pred, y)'),
        (lambda p, y: None, 'None'),
    ],
)
def test_losses_that_cannot_be_called(loss, word):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        one_line(lambda: learner(loss=loss).fit(1), 'Learner: ', word, exc=(ValueError, TypeError, RuntimeError))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny_model(4)

    def forward(self, x, z):
        return self.body(x)


def test_a_model_of_two_arguments():
    one_line(lambda: tiny_learner([], DataLoaders(batches(11)), Two()).fit(1), 'model(images)', "'z'")
