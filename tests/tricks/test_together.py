"""Numbers that two tricks make together: what one reads is what the other wrote, phases and windows meet, and nothing
of a training pass leaks into another."""

import warnings

import pytest
import torch

from trickbag.all import *
from trickbag.callback import Callback, CancelValidate
from trickbag.testing.pairs import SmallImages, bag_opt, small_data, small_model
from trickbag.testing.proofs import StopAt, found, tiny_learner, tiny_model, weights


def small(*cbs, **kw):
    return tiny_learner(list(cbs), small_data(), small_model(), **{'opt_func': bag_opt, **kw})


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
        return small(GradientAccumulation(2), make())  # three batches an epoch

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = new().fit(3)
        new().fit(3, cbs=StopAt(at, tmp_path / 's.pt'))
        assert torch.equal(weights(whole), weights(new().fit(3, resume=tmp_path / 's.pt')))


class Rates(Callback):
    stage = 'report'
    monitor = True

    def before_fit(self, learn):
        self.lr = []
        self.told = []

    def after_step(self, learn):
        self.lr.append(learn.opt.param_groups[-1]['lr'])
        for cb in learn.active:
            if cb.name == 'DecoupledDecay':
                self.told.append(cb.fractions[-1])


def test_swa_rate_is_seen_by_those_that_read_it():
    r = Rates()
    small(DecoupledDecay(0.01), Cosine(), SWA(0.0, lr=0.01), r, lr=0.01).fit(2)
    assert r.lr == [0.01] * 6 and r.told == [0.01] * 6
    with_lamb = [weights(small(LAMB(), Cosine(), SWA(0.0, lr=lr)).fit(2)) for lr in (0.1, 0.001)]
    assert (with_lamb[0] - with_lamb[1]).abs().max() > 0.5


def test_statistics_pass_of_swa_compiles_nothing():
    torch._dynamo.reset()
    from torch._dynamo.utils import counters

    counters.clear()
    learn = small(SWA(0.0), Compile(backend='aot_eager'))
    learn.dls.train = SmallImages(90)
    learn.fit(2)
    assert counters['stats']['unique_graphs'] <= 3, dict(counters['stats'])


class Looks(Callback):
    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        self.names = {cb.name for cb in learn.active}
        self.lr = learn.opt.param_groups[0]['lr']


@pytest.mark.parametrize(
    'make',
    [lambda: LayerFreezing(0, 0.5), lambda: StochasticDepth(0.5), lambda: DropBlock(0.5), lambda: LinearScaling(4)],
)
def test_fix_res_is_a_fit_of_its_own(make):
    look = Looks()
    plain = Looks()
    small(make()).fix_res(16, cbs=look)
    small().fix_res(16, cbs=plain)
    assert look.names == plain.names and look.lr == plain.lr


def test_fix_res_with_another_kind_of_mirror():
    learn = small()
    learn.dls.cbs.append(AlternatingFlip())
    learn.fix_res(16)
    with pytest.raises(ValueError, match='features that the test never drops'):
        small(FixRes(16), DropBlock(0.5)).fit(1)


def test_decay_only_with_steps_that_are_taken():
    "fp16 whose first steps overflow: the weights shrink once, not once a try"
    learn = small(MixedPrecision('fp16', init_scale=2.0**40), DecoupledDecay(0.1), lr=1e-6)
    w = learn.model[0][0].weight
    was = w.detach().clone()
    learn.fit(2)
    assert learn.step == 0 and torch.allclose(w, was * 0.9, atol=1e-6)


def test_phase_within_a_window_is_refused():
    with pytest.raises(ValueError, match='phase of SAM'):
        small(During(SAM(), start=0.3), GradientAccumulation(2)).fit(1)
    small(During(SAM(), start=0.3)).fit(1)


def test_lookahead_that_begins_late_begins_where_the_weights_are():
    class Path(Callback):
        stage = 'report'
        monitor = True

        def before_fit(self, learn):
            self.w = []

        def after_batch(self, learn):
            if learn.training:
                self.w.append(weights(learn))

    late = Path()
    never = Path()
    tiny_learner([During(Lookahead(2), start=0.5), late]).fit(2)
    tiny_learner([never]).fit(2)
    a = torch.stack(late.w)
    b = torch.stack(never.w)
    assert torch.equal(a[:7], b[:7])  # its first cycle of two closes with the eighth batch
    k = 1 - torch.stack([torch.isclose(a[7], b[7])]).float().mean()
    assert k > 0.5
    ps = dict(tiny_model().named_parameters())
    n = sum(p.numel() for p in ps.values())
    # half-way back to the sixth, not to the start of the fit
    assert (a[7] - a[5]).abs().max() <= (b[7] - b[5]).abs().max() * 1.5


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
    learn = small(
        ProgressiveResize(0.5, start=0.9, end=1.0, step=2, join=True), SelectiveBackprop(start=0, interrupt=2), s
    )
    learn.dls.train = SmallImages(128)
    learn.fit(1)
    assert s.n[:2] == [16, 32], s.n  # four small batches joined and thinned, then four whole


def test_ghost_chunks_of_vectors_have_two_samples_at_least():
    m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    tiny_learner([GhostBatchNorm(2)], model=m).fit(1)


def test_the_lag_of_an_average_is_counted_in_steps():
    with pytest.warns(UserWarning, match='half-life is'):
        tiny_learner([EMA(0.94, warmup_power=0), GradientAccumulation(6)]).fit(
            10
        )  # 11 steps, of 10 steps in 60 batches
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tiny_learner([EMA(0.94, warmup_power=0)]).fit(10)


class Within(Callback):
    "Validates, or begins to, in the middle of a validation"

    stage = 'monitor'

    def __init__(self, stop=False):
        self.stop = stop
        self.seen = []
        self.busy = False

    def before_validate(self, learn):
        if self.busy and self.stop:
            raise CancelValidate

    def after_pred(self, learn):
        if learn.training or self.busy:
            return
        self.seen.append((next(learn.model.parameters()).detach().clone(), learn.model(learn.xb).detach().clone()))
        if learn.iter:
            return
        self.busy = True
        try:
            learn.validate(learn.dls.valid)
        finally:
            self.busy = False


class Early(Within):
    stage = 'surgery'


@pytest.mark.parametrize(
    'make',
    [lambda: MixedPrecision('bf16'), lambda: SqueezeExcite(4, 4), lambda: BlurPool(1)],
    ids=['MixedPrecision', 'SqueezeExcite', 'BlurPool'],
)
def test_a_validation_within_a_validation_ends_nothing_of_the_outer_one(make):
    a, b = (small(make(), w) for w in (Within(), Callback()))
    was = found(a)
    assert a.validate() == b.validate()
    assert found(a) == was
    a.fit(1)
    b.fit(1)
    assert a.history[0]['valid_loss'] == b.history[0]['valid_loss']


@pytest.mark.parametrize(
    'make', [Within, lambda: Within(True), lambda: Early(True)], ids=['whole', 'cancelled', 'cancelled before EMA']
)
def test_the_average_stays_through_a_validation_within_a_validation(make):
    a = small(EMA(0.5), w := make()).fit(2)
    b = small(EMA(0.5)).fit(2)
    assert [r['valid_loss'] for r in a.history] == [r['valid_loss'] for r in b.history] and torch.equal(
        weights(a), weights(b)
    )
    n = len(w.seen) // 2
    assert n > 1 and all(torch.equal(x, w.seen[i - i % n][0]) for i, (x, _) in enumerate(w.seen))
