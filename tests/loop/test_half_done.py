"""A batch, an epoch or a resume that is half done: what may be saved, what is put back, what events find."""

import pytest
import torch
from torch import nn

from trickbag.all import *
from trickbag.callback import CancelBatch, CancelEpoch, CancelTrain


def learner(cbs=(), n=24):
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 4, 4), torch.randint(0, 3, (8,))) for _ in range(n // 8)]
    return Learner(DataLoaders(data, data), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), cbs=cbs)


def test_a_validation_in_mid_batch_does_not_make_the_batch_whole(tmp_path):
    errors = []

    class Looks(Callback):
        def after_step(self, learn):
            learn.validate()
            try:
                learn.save(tmp_path / 'mid')
            except ValueError as e:
                errors.append(str(e))

    learner(Looks()).fit(1)
    assert len(errors) == 3
    assert all('half done' in error for error in errors)


@pytest.mark.parametrize('cancel', [CancelTrain, CancelEpoch])
def test_after_a_canceled_epoch_there_is_something_to_save(tmp_path, cancel):
    class Stops(Callback):
        def after_pred(self, learn):
            if learn.training:
                raise cancel

        def after_epoch(self, learn):
            learn.save(tmp_path / 'whole')

    learn = learner(Stops()).fit(2)
    assert (tmp_path / 'whole.pt').exists()
    assert learn.position == (2, 0)


def test_predictions_leave_out_a_batch_that_was_canceled():
    class Skips(Callback):
        def before_batch(self, learn):
            if learn.iter == 1:
                raise CancelBatch

    learn = learner()
    assert len(learn.get_preds(cbs=Skips())[0]) == 16


def test_an_event_that_is_called_by_hand_outside_a_run_calls_the_callbacks():
    seen = []

    class Sees(Callback):
        def after_epoch(self, learn):
            seen.append(learn)

    learn = learner(Sees())
    state = torch.random.get_rng_state()
    with learn.composed():
        learn._hooks = {'after_epoch': [learn.cbs[0].after_epoch]}
        learn('after_epoch')
    assert seen == [learn]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_refused_resume_leaves_the_counters(tmp_path):
    learner(Checkpoint(file=tmp_path / 'last')).fit(2)
    learn = learner()
    learn.lr = 0.5
    with pytest.raises(ValueError, match='saved in another fit'):
        learn.fit(5, resume=tmp_path / 'last')
    assert learn.n_epoch == 0


def test_a_canceled_epoch_takes_no_hours():
    class Skips(Callback):
        def before_epoch(self, learn):
            raise CancelEpoch

    learn = learner(Skips()).fit(1)
    assert learn.history[0]['time'] < 60


def test_tta_brings_what_it_calls():
    import subprocess
    import sys

    code = 'import trickbag.runs.tta; from trickbag.learner import Learner; assert Learner.get_preds'
    subprocess.run([sys.executable, '-c', code], check=True)
