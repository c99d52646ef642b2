"Going back to the last good snapshot is as if the batches since had not been there, for all tricks with a state."

import math

import pytest
import torch

from tests.helpers import SaveAt
from tests.parallel.ranks import on_ranks
from trickbag.all import Callback, CancelBatch, GradientAccumulation
from trickbag.monitors.roll_back import RollBack
from trickbag.testing.pairs import BAG, pair_learner
from trickbag.testing.proofs import tiny_learner, tiny_model, weights

# those that hold something of their own from batch to batch, or change what a snapshot must hold
TRICKS = '''
EMA SWA Lookahead ScheduleFree SAM L2SP DecoupledDecay Whiten SelectiveBackprop SqueezeExcite GradientAccumulation
LayerFreezing OneCycle StepDecay MixedPrecision ProgressiveResize GhostBatchNorm LARS LAMB MixUp
'''.split()


class Bad(Callback):
    "The loss of the last batch of the second epoch is no number"

    stage = 'target'

    def after_loss(self, learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 1):
            learn.loss = learn.loss * math.nan


class LeftOut(Callback):
    "As if that batch were not there"

    stage = 'surgery'

    def before_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 1):
            raise CancelBatch


def end(name, *cbs, epochs=3, **kw):
    learn = pair_learner(name)
    learn.cbs += cbs
    learn.fit(epochs, **kw)
    return weights(learn), learn


def back(**kw):
    return RollBack(**dict(every=1, look=1, factor=1) | kw)


@pytest.mark.parametrize('name', TRICKS)
def test_as_if_the_batch_had_not_been_there(name):
    got, learn = end(name, back(), Bad())
    expected, other = end(name, LeftOut())
    assert learn.cb(RollBack).n == 1
    # their own count of batches is not that of the loop
    assert torch.equal(got, expected) and learn.step == other.step, name


def test_others_go_back_as_well():
    failed = []
    # a sample: all are tried in seconds each
    for name in sorted(BAG.keys() - {*TRICKS, 'Compile', 'JensenShannon'})[::6]:
        got, learn = end(name, back(), Bad(), epochs=2)
        if learn.cb(RollBack).n != 1 or not got.isfinite().all():
            failed.append(name)
    assert not failed


def test_resume_before_and_after_is_to_the_bit(tmp_path):
    def run(**kw):
        learn = pair_learner('EMA')
        learn.cbs += [RollBack(every=2, look=2, spike=50), Bad(), GradientAccumulation(2)]
        return learn.fit(4, **kw)

    saves = SaveAt([(0, 1), (1, 0), (1, 1), (2, 0), (1, None)], tmp_path)
    whole = run(cbs=saves)
    assert whole.cb(RollBack).n == 1
    for at, file in saves.files.items():
        rest = run(resume=file)
        assert torch.equal(weights(rest), weights(whole)), at
        assert rest.cb(RollBack).n == 1 and rest.step == whole.step


class Counting(torch.nn.Module):
    "Its output depends on how often it was called, which no state dict has"

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x * (1 + 0.01 * self.calls)


def test_hidden_buffers_and_the_parameters_of_a_loss_go_back():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('scale', torch.ones(()))

        def forward(self, pred, y):
            self.scale += 0.01
            return self.scale * torch.nn.functional.cross_entropy(pred, y)

    def run(*cbs):
        model = torch.nn.Sequential(tiny_model(), Counting())
        return tiny_learner([*cbs], model=model, loss_func=Scaled()).fit(3)

    a, b = run(back(), Bad()), run(LeftOut())
    assert torch.equal(a.model[1].calls, b.model[1].calls) and a.loss_func.scale == b.loss_func.scale
    assert torch.equal(weights(a), weights(b))


class Spike(Callback):
    stage = 'target'

    def __init__(self, at):
        self.at = at

    def after_loss(self, learn):
        if learn.training and (learn.epoch, learn.iter) == self.at:
            learn.loss = learn.loss * 30


def test_a_spike_is_what_is_so_many_times_the_mean():
    "The mean by a formula: of the losses so far, each weighs 0.98 of the next"
    for spike, goes_back in ((20, True), (40, False)):
        cb = RollBack(every=1, look=1, spike=spike)
        learn = tiny_learner([cb, Spike((4, 1))]).fit(6)
        *before, last = learn.cb('Recorder').losses[: 4 * learn.n_iter + 2]
        assert len(before) >= 20
        powers = [0.98**i for i in reversed(range(len(before)))]
        mean = sum(loss * power for loss, power in zip(before, powers, strict=True)) / sum(powers)
        assert (last > spike * mean) == goes_back and cb.n == goes_back


def test_an_older_snapshot_where_the_newest_did_not_help():
    class BadTwice(Callback):
        stage = 'target'

        def after_loss(self, learn):
            if learn.training and learn.epoch == 1 and learn.iter in (2, 3):
                learn.loss = learn.loss * math.nan

    steps = []

    class Steps(Callback):
        stage = 'report'
        monitor = True

        def after_batch(self, learn):
            if learn.training:
                steps.append(learn.step)

    tiny_learner([RollBack(every=3, look=1), BadTwice(), Steps()]).fit(2)
    n = len(steps) // 2
    newest = (n + 2) // 3 * 3
    # back to the newest snapshot, and then, as that was no good, to the one before
    assert steps[n + 2] == newest and steps[n + 3] == newest - 3


def on_each(rank):
    class BadOnOne(Callback):
        stage = 'target'

        def after_loss(self, learn):
            if learn.training and learn.rank == 1 and (learn.epoch, learn.iter) == (1, 1):
                learn.loss = learn.loss * math.nan

    learn = tiny_learner([RollBack(every=1, look=1), BadOnOne()]).fit(3)
    other = tiny_learner([RollBack(every=1, look=2), BadOnOne()]).fit(3)
    return [(weights(one), one.cb(RollBack).n, one.step) for one in (learn, other)]


def test_all_processes_go_back_together(tmp_path):
    first, second = on_ranks(2, tmp_path, on_each)
    for mine, others in zip(first, second, strict=True):
        assert torch.equal(mine[0], others[0]) and mine[1:] == others[1:]
        assert mine[1] == 1 and mine[0].isfinite().all()
