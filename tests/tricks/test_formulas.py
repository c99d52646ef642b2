"What a trick computes is what its paper or its peer says."

import numpy as np
import pytest
import torch

from tests.helpers import small_learner
from trickbag.all import *
from trickbag.testing.pairs import SmallImages
from trickbag.testing.proofs import TinyData, tiny_learner
from trickbag.tricks.muon import split_hidden


def before_batch(cb, x, y, **more):
    "The learner after that callback's `before_batch` on these images"
    learn = tiny_learner([cb])
    learn.xb, learn.yb, learn.clean_yb, learn.idx = x, y, y, torch.arange(len(x))
    vars(learn).update(more)
    cb.before_batch(learn)
    return learn


def test_lambda_of_mixup_is_the_larger_part():
    mix = MixUp(0.4)
    before_batch(mix, torch.zeros(4096, 3, 4, 4), torch.zeros(4096, dtype=torch.long))
    lam = np.random.default_rng(0).beta(0.4, 0.4, 10**6)
    folded = np.maximum(lam, 1 - lam)
    assert mix.lam.min() >= 0.5
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(mix.lam.numpy(), q) - np.quantile(folded, q)) < 0.02


@pytest.mark.parametrize('norm_type', [1.0, 2.0, float('inf')])
def test_gradient_clip_takes_the_norm_it_is_given(norm_type):
    class Look(Callback):
        stage = 'gradient'

        def before_step(self, learn):
            self.norm = torch.nn.utils.get_total_norm([p.grad.clone() for p in learn.model.parameters()], norm_type)

    clip = GradientClip(0.1, norm_type)
    look = Look()
    tiny_learner([clip, look]).fit(1)
    assert torch.equal(clip.norm, look.norm)


def test_every_epoch_drops_samples_of_the_same_batches():
    "Five batches an epoch, every second one whole: as Composer counts, from the start of each epoch"

    class Sizes(Callback):
        stage = 'report'
        monitor = True

        def after_pred(self, learn):
            if learn.training:
                sizes.append(len(learn.xb))

    sizes = []
    tiny_learner([SelectiveBackprop(start=0, end=1, interrupt=2), Sizes()], TinyData(40)).fit(2)
    assert sizes == [4, 8, 4, 8, 4] * 2


def test_the_loss_gets_scores_in_float32():
    seen = []

    class Look(Callback):
        stage = 'report'

        def after_loss(self, learn):
            seen.append(learn.pred.dtype)

    tiny_learner([MixedPrecision('bf16'), Look()]).fit(1)
    assert set(seen) == {torch.float32}


def test_muon_gets_what_lies_inside_and_mixes_channels():
    "Keller Jordan's: hidden matrices only, neither the first nor the last; a depthwise filter is no matrix"
    convs = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8)
    params = [p for m in (*convs, torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)) for p in m.parameters()]
    hidden, rest = split_hidden(params)
    assert [id(p) for p in hidden] == [id(params[2]), id(params[6])]
    assert [id(p) for p in rest] == [id(p) for i, p in enumerate(params) if i not in (2, 6)]


def test_decay_only_with_steps_that_are_taken():
    "fp16 whose first steps overflow: the weights shrink once, not once a try"
    learn = small_learner(MixedPrecision('fp16', init_scale=2.0**40), DecoupledDecay(0.1), lr=1e-6)
    w = learn.model[0][0].weight
    was = w.detach().clone()
    learn.fit(2)
    assert learn.step == 0 and torch.allclose(w, was * 0.9, atol=1e-6)


def test_selective_backprop_counts_the_batches_that_arrive():
    class Sizes(Callback):
        stage = 'report'
        monitor = True

        def before_fit(self, learn):
            self.n = []

        def after_pred(self, learn):
            if learn.training:
                self.n.append(len(learn.xb))

    s = Sizes()
    learn = small_learner(
        ProgressiveResize(0.5, start=0.9, end=1.0, step=2, join=True), SelectiveBackprop(start=0, interrupt=2), s
    )
    learn.dls.train = SmallImages(128)
    learn.fit(1)
    assert s.n[:2] == [16, 32], s.n  # four small batches joined and thinned, then four whole


def test_ghost_chunks_of_vectors_have_two_samples_at_least():
    m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    tiny_learner([GhostBatchNorm(2)], model=m).fit(1)
