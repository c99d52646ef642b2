"Averages of weights: begun, read and put back at the right moment."

from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers import small_learner
from trickbag.all import *
from trickbag.callback import Callback, CancelValidate
from trickbag.testing.pairs import SmallImages
from trickbag.testing.proofs import found, tiny_learner, tiny_model, weights


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
    small_learner(DecoupledDecay(0.01), Cosine(), SWA(0.0, lr=0.01), r, lr=0.01).fit(2)
    assert r.lr == [0.01] * 6 and r.told == [0.01] * 6
    with_lamb = [weights(small_learner(LAMB(), Cosine(), SWA(0.0, lr=lr)).fit(2)) for lr in (0.1, 0.001)]
    assert (with_lamb[0] - with_lamb[1]).abs().max() > 0.5


def test_statistics_pass_of_swa_compiles_nothing():
    torch._dynamo.reset()
    from torch._dynamo.utils import counters

    counters.clear()
    learn = small_learner(SWA(0.0), Compile(backend='aot_eager'))
    learn.dls.train = SmallImages(90)
    learn.fit(2)
    assert counters['stats']['unique_graphs'] <= 3, dict(counters['stats'])


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


# A validation within a validation


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
    a, b = (small_learner(make(), w) for w in (Within(), Callback()))
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
    a = small_learner(EMA(0.5), w := make()).fit(2)
    b = small_learner(EMA(0.5)).fit(2)
    assert [r['valid_loss'] for r in a.history] == [r['valid_loss'] for r in b.history] and torch.equal(
        weights(a), weights(b)
    )
    n = len(w.seen) // 2
    assert n > 1 and all(torch.equal(x, w.seen[i - i % n][0]) for i, (x, _) in enumerate(w.seen))


# without a schedule


@pytest.mark.parametrize('reference', ['', 'Reference'])
@pytest.mark.parametrize('kind', ['SGD', 'AdamW'])
@pytest.mark.parametrize('warm', [0, 5])
def test_schedule_free_is_the_packages(kind, reference, warm):
    schedulefree = pytest.importorskip('schedulefree')
    images = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 3, 8, 8, generator=images), torch.randint(0, 4, (8,), generator=images)) for _ in range(10)
    ]

    def model():
        m = tiny_model()
        m[3] = nn.Identity()
        return m

    lr, opt, kw = {
        'SGD': (0.5, torch.optim.SGD, dict(momentum=0.9, weight_decay=0.01)),
        'AdamW': (0.01, torch.optim.AdamW, dict(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)),
    }[kind]
    theirs = model()
    their_opt = getattr(schedulefree, f'{kind}ScheduleFree{reference}')(
        theirs.parameters(), lr=lr, warmup_steps=warm, **kw
    )
    their_opt.train()
    for x, y in batches:
        nn.functional.cross_entropy(theirs(x), y).backward()
        their_opt.step()
        their_opt.zero_grad()
    their_opt.eval()
    # their warm-up goes from 1/5 of the rate in the first step to all of it in the fifth
    warmup = [Warmup(0.4, warmup_start=0.2)] if warm else []
    learn = tiny_learner([ScheduleFree(), *warmup], model=model(), opt_func=partial(opt, **kw), lr=lr)
    learn.dls.train = batches
    learn.dls.valid = None
    learn.fit(1)
    for a, b in zip(theirs.parameters(), learn.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
