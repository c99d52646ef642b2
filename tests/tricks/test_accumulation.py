"Windows of gradient accumulation: resumed at their ends, and with what counts in steps."

import warnings

import pytest
import torch

from tests.helpers import small_learner
from trickbag.all import *
from trickbag.testing.proofs import StopAt, tiny_learner, weights


@pytest.mark.parametrize(
    'make',
    [
        lambda: EMA(half_life=0.3, warmup_power=0),
        lambda: Lookahead(1, alpha_end=1.0),
        lambda: During(GradientClip(0.01), start=0.4),
        lambda: DecoupledDecay(0.01),
    ],
)
@pytest.mark.parametrize('at', [(0, 2), (1, 2)])
def test_resumed_after_the_last_batch_before_the_window_is_flushed(make, at, tmp_path):
    def new():
        return small_learner(GradientAccumulation(2), make())  # three batches an epoch

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = new().fit(3)
        new().fit(3, cbs=StopAt(at, tmp_path / 's.pt'))
        assert torch.equal(weights(whole), weights(new().fit(3, resume=tmp_path / 's.pt')))


def test_phase_within_a_window_is_refused():
    with pytest.raises(ValueError, match='phase of SAM'):
        small_learner(During(SAM(), start=0.3), GradientAccumulation(2)).fit(1)
    small_learner(During(SAM(), start=0.3)).fit(1)


def test_the_lag_of_an_average_is_counted_in_steps():
    with pytest.warns(UserWarning, match='half-life is'):
        tiny_learner([EMA(0.94, warmup_power=0), GradientAccumulation(6)]).fit(
            10
        )  # 11 steps, of 10 steps in 60 batches
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tiny_learner([EMA(0.94, warmup_power=0)]).fit(10)
