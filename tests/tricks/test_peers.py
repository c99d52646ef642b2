"""What the pages say of other libraries, against timm and torchvision where they are at hand and their formulas where
not"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from trickbag import all as tb
from trickbag.loop.schedule import sched_poly, schedule_values
from trickbag.recipes.calls import callback_names, from_text, optimizer_names
from trickbag.recipes.published import RECIPES
from trickbag.testing.proofs import tiny_learner, tiny_model
from trickbag.tricks.blur_pool import blur_pool, strided
from trickbag.tricks.ema import ema_decay
from trickbag.tricks.progressive_resize import growing_sizes, size_at
from trickbag.tricks.selective_backprop import pick_hard
from trickbag.tricks.stochastic_depth import branch_ends, drop_rates
from trickbag.vision.ops import OPS
from trickbag.vision.rand_augment import rand_ops

NBS = Path(__file__).parents[2] / 'nbs'


def cells(page):
    "(kind, text) of each cell of a page"
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads((NBS / page).read_text())['cells']]


def tricks_of(recipe):
    "The callbacks of a published recipe, by name"
    names = callback_names() | dict(teacher=tiny_model())
    return named([cb for call in RECIPES[recipe].tricks for cb in from_text(call, names, recipe)])


def named(cbs):
    return {cb.name: cb for cb in cbs}


# schedules


def test_polynomial_decay_in_both_forms():
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    sched = torch.optim.lr_scheduler.PolynomialLR(opt, 10, power=2)
    ref = []
    for _ in range(11):
        ref.append(opt.param_groups[0]['lr'])
        opt.step()
        sched.step()
    rest = sched_poly(1, 0, 2, rest=True)
    done = sched_poly(1, 0, 2)
    assert [rest(i / 10) for i in range(11)] == pytest.approx(ref, abs=1e-6)
    assert [done(i / 10) for i in range(11)] == pytest.approx([1 - (i / 10) ** 2 for i in range(11)])
    assert sched_poly(0.3, 0.1, 2, rest=True)(0.5) == pytest.approx(0.1 + 0.2 * 0.25)


def test_cosine_under_its_warm_up_is_timms_default():
    CosineLRScheduler = pytest.importorskip('timm.scheduler').CosineLRScheduler
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    kw = dict(t_initial=1000, warmup_t=50, warmup_lr_init=0.02, t_in_epochs=False)
    for prefix in (False, True):
        # with a prefix timm's wave is cut at the end of the run; only the default form is compared beyond the ramp
        timm = CosineLRScheduler(opt, warmup_prefix=prefix, **kw)
        ours = schedule_values(tb.Cosine(warmup=5, warmup_start=0.02, warmup_prefix=prefix), 100, 10)['lr']
        upto = 50 if prefix else 1000
        for i in range(0, upto, 7):
            assert ours[i] == pytest.approx(timm._get_lr(i)[0], abs=2e-3), (prefix, i)


def test_a_line_under_its_warm_up():
    ours = schedule_values(tb.Linear(warmup=2, warmup_start=0.0, warmup_prefix=False), 10, 10)['lr']
    assert ours[10] == pytest.approx(0.5, abs=0.01) and ours[50] == pytest.approx(1 - 50 / 99) and ours[-1] == 0


# averages of weights


@pytest.mark.parametrize(
    'n_epoch,kw,want',
    [
        (4, dict(start=0.5), [6, 9, 12]),
        (4, dict(start=0.5, every=3), [6, 9, 12]),
        (4, dict(start=2 / 3, every=2), [8, 10, 12]),
        (1, dict(start=0.5, every=1), [2, 3]),
    ],
)
def test_snapshots_fall_on_start_and_every_so_many_steps(n_epoch, kw, want):
    class Steps(tb.SWA):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.seen = []

        def _take(self):
            super()._take()
            self.seen.append(self.learn.step)

        def after_step(self, learn):
            self.learn = learn
            super().after_step(learn)

    learn = tiny_learner(cb := Steps(**kw))
    learn.dls.train = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))] * 3
    learn.fit(n_epoch)
    assert cb.seen == want


def test_torchvisions_average_begins_after_the_warm_up_and_has_its_decay_from_the_start():
    assert ema_decay(600 * 1251 - 1, 0.99997) < 0.9999  # with the default warm-up the page's decay is never reached
    cb = tb.During(tb.EMA(decay=0.9, warmup_power=0), start=0.5)

    class Look(tb.Callback):
        stage = 'monitor'
        monitor = True

        def before_fit(self, learn):
            self.weights = []
            self.used = []

        def after_step(self, learn):
            self.weights.append(learn.model[0].weight.detach().clone())
            self.used.append(learn.cb('EMA').decay_used)

    learn = tiny_learner([cb, look := Look()]).fit(2)
    half = len(look.weights) // 2
    assert look.used == [None] * half + [0] + [0.9] * (half - 1)
    avg = look.weights[half]
    for w in look.weights[half + 1 :]:
        avg = 0.9 * avg + 0.1 * w
    torch.testing.assert_close(learn.model[0].weight.detach(), avg)


# which parameters decay


class Odd(nn.Module):
    "A bias of four dimensions"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.shift = nn.Module()
        self.shift.bias = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head((self.conv(x) + self.shift.bias).mean((2, 3)))


def not_decayed(cb, model):
    learn = tiny_learner([cb], model=model, opt_func=partial(torch.optim.SGD, weight_decay=0.1))
    learn.make_opt()
    cb.before_fit(learn)
    return {id(p) for g in learn.opt.param_groups if not g['weight_decay'] for p in g['params']}


@pytest.mark.parametrize('make', [Odd, lambda: pytest.importorskip('torchvision').models.resnet18(num_classes=4)])
def test_no_decay_goes_by_dimensions_and_name_as_in_timm(make):
    optim = pytest.importorskip('timm.optim')
    model = make()
    ref = optim.param_groups_weight_decay(model, 0.1)
    want = {id(p) for g in ref if not g['weight_decay'] for p in g['params']}
    assert not_decayed(tb.NoBiasDecay(), model) == want


def test_norms_only_is_torchvisions_split():
    from torchvision.models import resnet18
    from torchvision.ops._utils import split_normalization_params

    model = resnet18(num_classes=4)
    norms, _ = split_normalization_params(model)
    got = not_decayed(tb.NoBiasDecay(norms_only=True), model)
    assert got == set(map(id, norms)) and id(model.fc.bias) not in got


# surgery


def test_rates_of_stochastic_depth_are_those_of_efficientnets():
    import torchvision

    tv = [m.p for m in torchvision.models.efficientnet_b0().modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert drop_rates(len(tv), 0.2, 'efficientnet') == pytest.approx(tv) and tv[-1] == pytest.approx(0.1875)
    timm = pytest.importorskip('timm')
    model = timm.create_model('efficientnet_b0', drop_path_rate=0.2)
    ti = [getattr(m[0], 'drop_prob', 0.0) for m in branch_ends(model)]
    assert drop_rates(len(ti), 0.2, 'efficientnet') == pytest.approx(ti)
    ti = [
        b.drop_path.drop_prob if b.drop_path else 0.0
        for n, b in timm.create_model('resnet18', drop_path_rate=0.2).named_modules()
        if hasattr(b, 'drop_path')
    ]
    assert drop_rates(len(ti), 0.2) == pytest.approx(ti)


def test_rates_of_stochastic_depth_by_the_papers_rule():
    assert drop_rates(16, 0.1, 'paper') == pytest.approx([0.1 * (i + 1) / 16 for i in range(16)])
    with pytest.raises(ValueError, match='StochasticDepth: rule'):
        tb.StochasticDepth(0.1, rule='composer')


def test_blur_goes_by_the_channels_in_and_takes_pools_that_round_up():
    narrow = nn.Conv2d(32, 8, 3, stride=2)
    stem = nn.Conv2d(3, 64, 3, stride=2)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    assert strided(nn.Sequential(stem, narrow, pool)) == [narrow, pool]
    x = torch.randn(2, 5, 12, 13)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(5, 1, 3, 3)
    want = nn.functional.conv2d(
        nn.functional.max_pool2d(x, 3, 1, ceil_mode=True), kernel, stride=2, padding=1, groups=5
    )
    blur_pool(pool)
    torch.testing.assert_close(pool(x), want)


def test_ffcvs_blur_is_of_convolutions_alone():
    from torchvision.models import resnet50

    model = resnet50()
    want = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 and m.in_channels >= 16]
    assert strided(model, maxpools=False) == want and len(want) == 6


@pytest.mark.parametrize('latent,want', [(4, 4), (4.0, 4), (0.5, 8), (0.125, 2), (0.01, 1)])
def test_latent_is_a_number_of_channels_or_a_fraction(latent, want):
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    learn = tiny_learner([cb := tb.SqueezeExcite(min_channels=16, latent=latent)], model=model)
    learn.dls.train = learn.dls.valid = [(torch.randn(4, 16, 8, 8), torch.tensor([0, 1, 2, 3]))]
    learn.fit(1)
    assert [len(g.w1) for g in cb.gates.values()] == [want]


@pytest.mark.parametrize('latent', [0, -0.5, 1.5, -3, float('nan')])
def test_a_latent_that_is_neither_is_refused(latent):
    with pytest.raises(ValueError, match='SqueezeExcite: latent'):
        tb.SqueezeExcite(latent=latent)


# data and samples


@pytest.mark.parametrize('mstd', [float('inf'), 1000])
def test_a_boundless_deviation_draws_strengths_evenly_as_in_timm(mstd):
    op, mag = rand_ops(1, 60_000, 64, 64, torch.Generator().manual_seed(0), 8.0, mstd, True, 1.0)
    ours = (mag[op == OPS.index('Rotate')] / 3).abs()  # a level of 10 is 30 degrees
    assert 0 <= ours.min() and ours.max() <= 8
    aa = pytest.importorskip('timm.data.auto_augment')
    timm = aa.AugmentOp('Rotate', 1.0, 8, dict(magnitude_std=float('inf')))
    levels = []
    timm.level_fn = lambda level, hparams: levels.append(level) or (0.0,)
    timm.aug_fn = lambda img, *args, **kw: img
    for _ in range(len(ours)):
        timm(None)
    at = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(
        ours.quantile(at), torch.tensor(levels, dtype=torch.float64).quantile(at), atol=0.4, rtol=0
    )


def test_a_deviation_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match='mstd'):
        tb.RandAugment(mstd=float('nan'))


@pytest.mark.parametrize('n,keep', [(1, 0.5), (5, 0.5), (15, 0.5), (16, 0.5), (10, 0.33), (64, 0.7)])
def test_as_many_samples_are_kept_as_in_composer(n, keep):
    assert len(pick_hard(torch.rand(n), keep, torch.Generator().manual_seed(0))) == max(int(keep * n), 1)


@pytest.mark.parametrize(
    'epochs,first,last', [(16, 11, 13), (24, 17, 20), (32, 23, 27), (40, 29, 34), (56, 41, 48), (88, 65, 76)]
)
def test_ffcvs_size_changes_where_its_line_passes_the_middle(epochs, first, last):
    "Start and end of the ramps are those of FFCV's configurations"
    sizes = growing_sizes(192, 160 / 192)
    n_iter = 10

    def ours(e):
        return size_at(e * n_iter / (epochs * n_iter - 1), sizes, 0.74, 0.805)

    def ffcv(e):
        line = 160 + 32 * min(max((e - first) / (last - first), 0), 1)
        return round(line / 32) * 32

    differ = [e for e in range(epochs) if ours(e) != ffcv(e)]
    assert len(differ) <= 1 and (epochs != 88 or not differ), differ


# views


def test_tta_on_logits():
    class Two(nn.Module):
        "One answer for an image, another for its mirror image"

        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            mirrored = (x[:, 0, 0, 0] < x[:, 0, 0, -1])[:, None]
            return torch.where(mirrored, torch.tensor([6.0, 6, 0]), torch.tensor([0.0, 2, 6])) + 0 * self.one

    x = torch.zeros(2, 3, 4, 4)
    x[..., 0] = 1
    learn = tiny_learner(model=Two())
    dl = [(x, torch.tensor([1, 1]))]
    logits, _ = learn.tta(dl, crops=1, on='logits')
    torch.testing.assert_close(logits, torch.tensor([3.0, 4, 3]).softmax(0).expand(2, 3))
    assert learn.tta(dl, crops=1)[0].argmax(1).tolist() == [2, 2]
    with pytest.raises(ValueError, match="on must be 'probabilities' or 'logits'"):
        tb.TTA(on='scores')


# published recipes


def test_mosaics_loss_is_the_sum_over_classes():
    assert all(RECIPES[name].loss == 'bce_sum' for name in ('mosaic_mild', 'mosaic_medium', 'mosaic_hot'))
    logits = torch.zeros(2, 1000)
    y = torch.tensor([3, 7])
    assert tb.bce_sum(logits, y).item() == pytest.approx(1000 * math.log(2), rel=1e-5)


def test_mosaics_lists():
    for name in ('mosaic_mild', 'mosaic_medium', 'mosaic_hot'):
        cbs = tricks_of(name)
        assert 'NoBiasDecay' not in cbs and cbs['Cosine'].warmup_start == 0
    hot = tricks_of('mosaic_hot')
    assert hot['StochasticDepth'].rule == 'paper'
    assert hot['RandAugment'].p == 1 and hot['RandAugment'].mstd == float('inf')


def test_torchvisions_list():
    cbs = tricks_of('torchvision_v2')
    assert cbs['NoBiasDecay'].norms_only and cbs['TrivialAugment'].mode == 'bilinear'
    assert cbs['EMA'].warmup_power == 0


def test_ffcvs_list():
    cbs = tricks_of('ffcv_rn50_88')
    assert not cbs['BlurPool'].maxpools and cbs['NoBiasDecay'].norms_only
    assert cbs['TTA'].on == 'logits' and cbs['TTA'].crops == 1
    lrs = schedule_values(cbs['Linear'], 88, 10)['lr']
    assert (lrs[0], lrs[-1]) == (1e-4, 0) and lrs[20] == pytest.approx(1, abs=0.01)


def test_rsbs_and_bag_of_tricks_warm_up():
    for name in ('rsb_a1', 'rsb_a2', 'rsb_a3'):
        assert not tricks_of(name)['Cosine'].warmup_prefix
    v = schedule_values(tricks_of('rsb_a1')['Cosine'], 100, 10)['lr']
    assert [round(v[i], 3) for i in (0, 250, 500, 750)] == [0.02, 0.853, 0.499, 0.146]
    assert tricks_of('bag_of_tricks')['Cosine'].warmup_start == 0


def test_airbenchs_lists():
    (opt_func,) = from_text(RECIPES['airbench94'].opt, optimizer_names(), 'airbench94')
    learn = tiny_learner(model=tb.XResNet(1, [1, 1], 4, stem='small', widen=0.25), opt_func=opt_func, lr=0.24)
    learn.make_opt()
    muon, rest = learn.opt.param_groups[:2]
    assert (muon['momentum'], muon['ns_steps'], muon['weight_decay']) == (0.6, 3, 0)
    assert (rest['momentum'], rest['nesterov']) == (0.85, True)
    v = schedule_values(tricks_of('airbench94_legacy')['Linear'], 10, 100)['lr']
    assert (v[0], max(v), v[-1]) == (pytest.approx(0.2), pytest.approx(1, abs=1e-3), pytest.approx(0.07))
    assert v.index(max(v)) / 1000 == pytest.approx(0.23, abs=0.002)
