"One output for two classes: losses, probabilities, tricks and metrics, in every form of targets."

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import learner, logits, one_line, two, x
from trickbag.all import *


class Spy(Callback):
    "Keep the targets of the first batch as the loss gets them"

    stage = 'monitor'
    reads = ('y',)
    y = None

    def after_pred(self, learn):
        if learn.training and self.y is None:
            self.y = learn.yb.clone()


FLAT = dict(
    column=(two.float()[:, None], nn.BCEWithLogitsLoss()),
    floats=(two.float(), lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y)),
    indices=(two, lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y.float())),
    indices_plain=(two, nn.BCEWithLogitsLoss()),
)


@pytest.mark.parametrize('kind', FLAT)
def test_one_output_in_every_form_of_targets(kind):
    targets, loss = FLAT[kind]
    learn = learner(targets, 1, loss, metrics=partial(accuracy, threshold=0.0), bs=22)
    right = F.binary_cross_entropy_with_logits(logits(1)[:, 0], two.float()).item()
    res = learn.validate()
    assert res['loss'] == pytest.approx(right, rel=1e-5)
    assert res['accuracy'] == pytest.approx(((logits(1)[:, 0] > 0) == two.bool()).float().mean().item())
    torch.testing.assert_close(learn.get_preds()[0], logits(1).sigmoid())
    torch.testing.assert_close(learn.predict(x[0])[2], logits(1).sigmoid()[0], rtol=1e-4, atol=1e-5)
    learn.fit(1)


@pytest.mark.parametrize('kind', ['column', 'indices_plain'])
def test_smoothing_of_one_output_is_towards_a_half(kind):
    spy = Spy()
    learner(*FLAT[kind][:1], 1, FLAT[kind][1], [LabelSmoothing(0.2), spy], bs=22).fit(1)
    # as Keras' BinaryCrossentropy(label_smoothing=.2)
    torch.testing.assert_close(spy.y, two.float()[:, None] * 0.8 + 0.1)


@pytest.mark.parametrize('trick', [MixUp, CutMix, FMix, ResizeMix, MixOrCut])
def test_one_output_is_mixed(trick):
    spy = Spy()
    learner(two.float()[:, None], 1, nn.BCEWithLogitsLoss(), [trick(), spy], bs=22).fit(1)
    assert spy.y.shape == (22, 1) and 0 <= spy.y.min() and spy.y.max() <= 1


def test_softmax_over_one_output_is_refused():
    one_line(lambda: learner(two, 1, nn.CrossEntropyLoss()).fit(1), 'class index 1', 'n_out=2')


def test_numbers_are_no_classes():
    far = 7 * two.float()[:, None]
    learn = learner(far, 1, nn.MSELoss())
    one_line(lambda: Interpretation(learn), 'one output')
    with torch.no_grad():
        learn.model[-1].bias.fill_(-9.0)
    one_line(lambda: learn.predict(x[0]), 'none of them is a class')
    one_line(lambda: learn.predict(x[0], act=lambda pred: pred), 'no probability')
    for trick in (LabelSmoothing(), BinaryTargets()):
        one_line(lambda: learner(far, 1, nn.MSELoss(), [trick]).fit(1), 'from 0 to 7')
