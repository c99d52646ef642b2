"""Every trick of the bag on images with several labels: the targets that the loss gets are right, or it is refused
before the first step.

What is right is known from the same run on one class an image. A class k stands for the row M[k] of labels; what mixes
targets is linear, so it must give y @ M where it gives y for one class; what is not linear has its formula here."""

import warnings

import pytest
import torch
from torch import nn

from trickbag.callback import Callback, CancelFit
from trickbag.data.loaders import DataLoaders
from trickbag.testing.pairs import BAG, SmallImages, bag_opt, small_model
from trickbag.testing.proofs import tiny_learner, weights
from trickbag.vision.basic import Normalize
from trickbag.vision.crop import Crop

M = torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 1, 1]])
REFUSED = {  # trick -> what the error says
    'JensenShannon': 'one distribution over classes',
    'Distillation': 'one distribution over classes',
    'ClassWeights': 'says something else to',
    'LogitAdjustment': 'looks at each alone',
}
NOT_LINEAR = {
    # a yes or no of each label is mixed with one half
    'LabelSmoothing': lambda y, clean: clean @ M * 0.9 + 0.05,
    'BinaryTargets': lambda y, clean: (clean @ M > 0.2).float(),
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class SeveralLabels(SmallImages):
    "The same images, with a row of labels each"

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.labels = M[self.y]

    def __iter__(self):
        for x, _, idx in super().__iter__():
            yield x, self.labels[idx], idx


def learner(name, kind):
    trial = BAG[name]
    cbs = [Crop(12), Normalize()]
    data = DataLoaders(
        kind(21), kind(9, shuffle=False, seed=1), cbs=cbs, vocab=list('abcd'), multi_label=kind is SeveralLabels
    )
    model = (trial.model or small_model)()
    return tiny_learner([trial.make()], data, model, loss_func=nn.BCEWithLogitsLoss(), opt_func=trial.opt or bag_opt)


class FirstBatch(Callback):
    "What the loss of the first batch was given"

    stage = 'monitor'
    monitor = True
    seen = None

    def __init__(self, ends=False):
        self.ends = ends

    def after_loss(self, learn):
        if learn.training and self.seen is None:
            self.seen = learn.yb.clone(), learn.clean_yb.clone(), learn.idx.clone(), learn.loss.item()
            if self.ends:
                # no more is compared
                raise CancelFit


@pytest.mark.parametrize('name', [name for name in BAG if name not in REFUSED])
def test_right(name):
    learn = learner(name, SeveralLabels)
    learn.fit(1, cbs=(look := FirstBatch()))
    y, clean, idx, loss = look.seen
    assert weights(learn).isfinite().all() and loss == loss
    # metrics see the labels as they are
    assert torch.equal(clean, learn.dls.train.labels[idx])
    of_one = learner(name, SmallImages)
    of_one.fit(1, cbs=(look_one := FirstBatch(ends=True)))
    y_one, clean_one, idx_one, _ = look_one.seen
    if not torch.equal(idx, idx_one):
        # it chooses samples, by their loss or their labels
        assert {'drop samples', 'balance classes'} & {*BAG[name].make().does} and torch.equal(y, clean)
        return
    one_hot = nn.functional.one_hot(clean_one, 4).float()
    expected = NOT_LINEAR.get(name, lambda y, clean: y @ M)(y_one, one_hot)
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        probs, targets = learn.get_preds()
    right = nn.functional.binary_cross_entropy(probs, targets)
    assert learn.validate()['loss'] == pytest.approx(right.item(), rel=1e-4)


@pytest.mark.parametrize('name', REFUSED)
def test_refused_before_step_1(name):
    learn = learner(name, SeveralLabels)
    before = [parameter.detach().clone() for parameter in learn.model.parameters()]
    with pytest.raises(ValueError, match=REFUSED[name]) as e:
        learn.fit(1)
    assert learn.step == 0 and all(map(torch.equal, learn.model.parameters(), before))
    assert ';' in str(e.value).splitlines()[0]
