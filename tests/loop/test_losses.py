"What a loss divides by, which targets it takes and what it takes the logits for: against torch's own numbers"

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import learner
from trickbag.all import (
    OHEM,
    SAM,
    CutMix,
    DataLoaders,
    Distillation,
    FocalLoss,
    GradientAccumulation,
    LabelSmoothing,
    MixUp,
    Poly1Loss,
    RepeatedAugmentation,
    SelectiveBackprop,
    focal_loss,
    poly1_loss,
    soft_targets,
)
from trickbag.callback import Callback
from trickbag.loop.losses import feature_distance
from trickbag.loop.metrics import probabilities
from trickbag.loop.read_loss import read_loss
from trickbag.testing.proofs import tiny_learner, tiny_model

C = 4
SIZE = 4
WEIGHT = torch.tensor([1.0, 5.0, 0.5, 9.0])
KINDS = dict(
    plain={},
    weights=dict(weight=WEIGHT),
    ignored=dict(ignore_index=-100),
    class_2_ignored=dict(ignore_index=2),
    both=dict(weight=WEIGHT, ignore_index=-100),
    both_in_range=dict(weight=WEIGHT, ignore_index=2),
)


def images(n=22, dtype=torch.float32, ignored=False):
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, C, (n,), generator=g)
    if ignored:
        y[1::4] = -100
    return torch.randn(n, 3, SIZE, SIZE, generator=g).to(dtype), y


def batches(x, y, bs):
    return DataLoaders([(x[i : i + bs], y[i : i + bs]) for i in range(0, len(x), bs)])


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, C)).to(dtype)


# Ways to write one loss: wherever the weights stand, they must be seen


class Inside(nn.Module):
    def __init__(self, **kw):
        super().__init__()
        self.kw = kw

    def forward(self, p, y):
        return F.cross_entropy(p, y, **self.kw)


class Nested(nn.Module):
    def __init__(self, **kw):
        super().__init__()
        self.parts = nn.ModuleList([nn.CrossEntropyLoss(**kw)])

    def forward(self, p, y):
        return self.parts[0](p, y)


class Subclass(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return super().forward(input, target)


WAYS = dict(
    module=lambda **kw: nn.CrossEntropyLoss(**kw),
    partial=lambda **kw: partial(F.cross_entropy, **kw),
    function=lambda **kw: lambda p, y: F.cross_entropy(p, y, **kw),
    inside=lambda **kw: Inside(**kw),
    nested=lambda **kw: Nested(**kw),
    subclass=lambda **kw: Subclass(**kw),
    partial_of_partial=lambda **kw: partial(partial(F.cross_entropy, **kw), reduction='mean'),
)


class Look(Callback):
    "Keep loss, targets and gradients of each batch"

    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        self.rows = []

    def before_step(self, learn):
        grads = torch.cat([p.grad.flatten() for p in learn.model.parameters()])
        self.rows.append((learn.pred.detach(), learn.yb, learn.clean_yb, learn.loss.detach(), grads))


def mixed(lam):
    "Mix with the same partners and one weight in every batch"

    class Mix(Callback):
        stage = 'mix'
        owns = ('mix',)
        train_only = True
        reads = ('x', 'y')
        writes = ('x', 'y')

        def before_batch(self, learn):
            y = learn.soft_targets()
            learn.xb, learn.yb = torch.lerp(learn.xb.flip(0), learn.xb, lam), torch.lerp(y.flip(0), y, lam)

    return Mix()


def wanted(what, f, x, y, kw):
    "Torch's own number for one batch, as a function of the model"
    loss = partial(F.cross_entropy, **kw)
    if what == 'hard':
        return loss(f(x), y)
    if what == 'smoothed':
        return loss(f(x), y, label_smoothing=0.1)
    p = f(torch.lerp(x.flip(0), x, 0.7))
    return 0.7 * loss(p, y) + 0.3 * loss(p, y.flip(0))


TRICKS = dict(hard=lambda: [], smoothed=lambda: [LabelSmoothing(0.1)], mixed=lambda: [mixed(0.7)])

EACH = [(way, kind) for way in WAYS for kind in KINDS if way in ('module', 'function') or kind == 'both']


@pytest.mark.parametrize('what', TRICKS)
@pytest.mark.parametrize('way,kind', EACH)
def test_a_batch_has_torchs_loss_and_gradient(way, kind, what):
    x, y = images(ignored=KINDS[kind].get('ignore_index') == -100)
    net = model()
    ref = model()
    tiny_learner(
        [*TRICKS[what](), look := Look()], dls=batches(x, y, 22), model=net, loss_func=WAYS[way](**KINDS[kind]), lr=0.0
    ).fit(1)
    want = wanted(what, ref, x, y, KINDS[kind])
    want.backward()
    torch.testing.assert_close(look.rows[0][3], want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        look.rows[0][4], torch.cat([p.grad.flatten() for p in ref.parameters()]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('bs', (6, 5), ids=('odd last batch', 'even odder'))
@pytest.mark.parametrize('what', ('hard', 'smoothed'))
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('way', ('module',))
def test_accumulated_batches_are_the_big_batch(way, kind, what, bs):
    x, y = images(ignored=KINDS[kind].get('ignore_index') == -100)
    y[:bs] = KINDS[kind].get('ignore_index', y[:bs])  # in the first batch nothing counts
    ref = model()
    tiny_learner(
        [*TRICKS[what](), GradientAccumulation(9), look := Look()],
        dls=batches(x, y, bs),
        model=model(),
        loss_func=WAYS[way](**KINDS[kind]),
        lr=0.0,
    ).fit(1)
    wanted(what, ref, x, y, KINDS[kind]).backward()
    torch.testing.assert_close(
        look.rows[-1][4], torch.cat([p.grad.flatten() for p in ref.parameters()]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('kind', KINDS)
def test_accumulated_mixing_is_the_mean_over_all_clean_labels(kind):
    x, y = images(ignored=KINDS[kind].get('ignore_index') == -100)
    kw = KINDS[kind]
    ref = model()
    tiny_learner(
        [mixed(0.7), GradientAccumulation(9), look := Look()],
        dls=batches(x, y, 6),
        model=model(),
        loss_func=nn.CrossEntropyLoss(**kw),
        lr=0.0,
    ).fit(1)
    total = sum(
        0.7 * F.cross_entropy(p, b, reduction='sum', **kw) + 0.3 * F.cross_entropy(p, b.flip(0), reduction='sum', **kw)
        for a, b in zip(x.split(6), y.split(6))
        for p in [ref(torch.lerp(a.flip(0), a, 0.7))]
    )
    w = kw.get('weight', torch.ones(C))
    i = kw.get('ignore_index')
    (total / w[y[y != i] if i is not None else y].sum()).backward()
    torch.testing.assert_close(
        look.rows[-1][4], torch.cat([p.grad.flatten() for p in ref.parameters()]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('way,kind', EACH)
def test_validation_and_train_loss_do_not_depend_on_the_batches(way, kind):
    x, y = images(ignored=KINDS[kind].get('ignore_index') == -100)
    y[:5] = KINDS[kind].get('ignore_index', y[:5])  # a batch of which nothing counts
    kw = KINDS[kind]
    net = model()
    want = F.cross_entropy(net(x), y, **kw).item()
    for bs in (22, 5):
        d = batches(x, y, bs)
        learn = tiny_learner(dls=DataLoaders(d.train, d.train), model=model(), loss_func=WAYS[way](**kw), lr=0.0).fit(1)
        assert learn.history[0]['valid_loss'] == pytest.approx(want, rel=1e-5)
        assert learn.history[0]['train_loss'] == pytest.approx(want, rel=1e-5)


def test_float64_and_its_weights():
    x, y = images(dtype=torch.float64)
    w = torch.full((C,), 100.0).double()
    want = F.cross_entropy(model(torch.float64)(x), y, weight=w).item()
    for loss in (nn.CrossEntropyLoss(weight=w), partial(F.cross_entropy, weight=w), Inside(weight=w)):
        for cbs in ([], [LabelSmoothing(1e-9)]):
            learn = tiny_learner(cbs, dls=batches(x, y, 22), model=model(torch.float64), loss_func=loss, lr=0.0).fit(1)
            assert learn.history[0]['train_loss'] == pytest.approx(want, rel=1e-5)
    tiny_learner(
        [SelectiveBackprop(start=0)],
        dls=batches(x, y, 22),
        model=model(torch.float64),
        loss_func=nn.CrossEntropyLoss(weight=w),
    ).fit(1)


def test_soft_targets_of_the_loader_keep_torchs_own_number():
    x, y = images()
    soft = torch.rand(len(y), C, generator=torch.Generator().manual_seed(1)).softmax(1)
    for bs in (22, 5):
        learn = tiny_learner(
            dls=batches(x, soft, bs), model=model(), loss_func=nn.CrossEntropyLoss(weight=WEIGHT), lr=0.0
        ).fit(1)
        assert learn.history[0]['train_loss'] == pytest.approx(
            F.cross_entropy(model()(x), soft, weight=WEIGHT).item(), rel=1e-5
        )


# Other losses: the number of the whole set, by the loss itself


def one_hot(y):
    return F.one_hot(y, C).float()


class ByHand(nn.Module):
    "Weights looked up by the user, and a mean over them"

    def __init__(self):
        super().__init__()
        self.register_buffer('w', WEIGHT)

    def forward(self, p, y):
        each = self.w[y]
        return (F.cross_entropy(p, y, reduction='none') * each).sum() / each.sum()


def masked(p, y):
    kept = y != 2
    return F.cross_entropy(p, y, reduction='none')[kept].mean()


def factors(p, y):
    return F.cross_entropy(p, y, weight=WEIGHT, reduction='none').mean()


def asserts_width(p, y):
    assert p.shape[1] == C
    return F.cross_entropy(p, y)


OTHERS = dict(
    nll=lambda p, y: F.nll_loss(p.log_softmax(1), y, WEIGHT),
    margin=nn.MultiMarginLoss(weight=WEIGHT),
    by_hand=ByHand(),
    masked=masked,
    factors=factors,
    focal=FocalLoss(weight=WEIGHT),
    poly1=Poly1Loss(2.0, weight=WEIGHT),
    asserts_width=asserts_width,
    smoothing=nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
)


@pytest.mark.parametrize('name', OTHERS)
def test_other_losses_are_averaged_as_they_average(name):
    x, y = images()
    loss = OTHERS[name]
    net = model()
    want = loss(net(x), y)
    want.backward()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = tiny_learner(
            [GradientAccumulation(9), look := Look()], dls=batches(x, y, 5), model=model(), loss_func=loss, lr=0.0
        ).fit(1)
    assert learn.history[0]['train_loss'] == pytest.approx(want.item(), rel=1e-5)
    assert learn.validate([(x[:9], y[:9]), (x[9:], y[9:])])['loss'] == pytest.approx(want.item(), rel=1e-5)
    torch.testing.assert_close(
        look.rows[-1][4], torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    'loss',
    (
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        nn.BCEWithLogitsLoss(weight=WEIGHT),
        nn.MSELoss(),
    ),
)
def test_losses_on_probabilities(loss):
    x, y = images()
    net = model()
    want = loss(net(x), one_hot(y))
    want.backward()
    learn = tiny_learner(
        [GradientAccumulation(9), look := Look()], dls=batches(x, y, 5), model=model(), loss_func=loss, lr=0.0
    ).fit(1)
    assert learn.history[0]['train_loss'] == pytest.approx(want.item(), rel=1e-5)
    torch.testing.assert_close(
        look.rows[-1][4], torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=1e-4, atol=1e-6
    )


def test_a_sum_stays_a_sum_and_is_reported_by_sample():
    x, y = images()
    for loss in (nn.CrossEntropyLoss(reduction='sum'), lambda p, y: F.cross_entropy(p, y, reduction='none').sum()):
        net = model()
        want = loss(net(x), y)
        want.backward()
        learn = tiny_learner(
            [GradientAccumulation(9), look := Look()], dls=batches(x, y, 5), model=model(), loss_func=loss, lr=0.0
        ).fit(1)
        torch.testing.assert_close(
            look.rows[-1][4], torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=1e-4, atol=1e-6
        )
        assert learn.history[0]['train_loss'] == pytest.approx(want.item() / 22, rel=1e-5)
        assert learn.validate([(x[:9], y[:9]), (x[9:], y[9:])])['loss'] == pytest.approx(want.item() / 22, rel=1e-5)


def test_what_cannot_be_told_is_said():
    x, y = images()

    def hardest_half(p, y):
        return F.cross_entropy(p, y, reduction='none').topk(len(y) // 2)[0].mean()

    def fit(loss, cbs=()):
        return tiny_learner(cbs, dls=batches(x, y, 5), model=model(), loss_func=loss).fit(1)

    with pytest.warns(UserWarning, match='hardest_half of a batch is neither the mean nor the sum'):
        fit(hardest_half)
    with pytest.raises(ValueError, match="gives a loss for each sample; .* reduction='mean'"):
        fit(nn.CrossEntropyLoss(reduction='none'))
    with pytest.raises(ValueError, match='MixUp and the loss: .* NLLLoss does not take'):
        fit(nn.NLLLoss(), [MixUp()])

    def other(p, y):
        return F.cross_entropy(p, y) if y.ndim == 1 else 3 * F.cross_entropy(p, y)

    with pytest.warns(UserWarning, match='MixUp and the loss: .* other says something else of one-hot targets'):
        fit(other, [MixUp()])
    with pytest.raises(ValueError, match='Distillation and GradientAccumulation: the loss is divided by'):
        fit(nn.CrossEntropyLoss(weight=WEIGHT), [Distillation(model()), GradientAccumulation(2)])


def test_a_loss_may_declare_what_it_divides_by():
    x, y = images()

    def odd(p, y):
        return F.cross_entropy(p, y, reduction='none').sum() / (3 * (y == 1).sum() + len(y))

    odd.denominator = lambda y: 3 * (y == 1).sum() + len(y)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = tiny_learner(dls=batches(x, y, 5), model=model(), loss_func=odd, lr=0.0).fit(1)
    assert learn.history[0]['train_loss'] == pytest.approx(odd(model()(x), y).item(), rel=1e-5)


def test_hard_samples_have_the_loss_of_a_batch_of_their_own():
    x, y = images()
    tiny_learner(
        [OHEM(0.5), look := Look()],
        dls=batches(x, y, 22),
        model=model(),
        loss_func=nn.CrossEntropyLoss(weight=WEIGHT),
        lr=0.0,
    ).fit(1)
    p = model()(x)
    top = F.cross_entropy(p, y, weight=WEIGHT, reduction='none').topk(11)[1]
    torch.testing.assert_close(look.rows[0][3], F.cross_entropy(p[top], y[top], weight=WEIGHT).detach())


def test_the_second_pass_of_sam_weighs_batches_alike():
    x, y = images()
    loss = nn.CrossEntropyLoss(weight=WEIGHT)

    def run(bs, cbs):
        return (
            tiny_learner(cbs, dls=batches(x, y, bs), model=model(), loss_func=loss, lr=0.5, opt_func=torch.optim.SGD)
            .fit(1)
            .model[1]
            .weight.detach()
        )

    torch.testing.assert_close(run(6, [SAM(0.5), GradientAccumulation(9)]), run(22, [SAM(0.5)]), rtol=1e-4, atol=1e-5)


def test_copies_of_samples_count_as_samples():
    x, y = images()
    kw = dict(model=model(), loss_func=nn.CrossEntropyLoss(weight=WEIGHT), lr=0.0)
    learn = tiny_learner([RepeatedAugmentation(2, grow=True)], dls=batches(x, y, 5), **kw).fit(1)
    assert learn.history[0]['train_loss'] == pytest.approx(
        F.cross_entropy(model()(x), y, weight=WEIGHT).item(), rel=1e-5
    )


def test_ignored_rows_of_soft_targets_stay_zero():
    y = torch.tensor([0, -100, 2])
    assert soft_targets(y, 3, 0.9, 0.05, ignore=-100).tolist() == [
        pytest.approx([0.9, 0.05, 0.05]),
        [0, 0, 0],
        pytest.approx([0.05, 0.05, 0.9]),
    ]
    x, t = images(ignored=True)
    for cb in (LabelSmoothing(), MixUp(), CutMix()):
        tiny_learner([cb, look := Look()], dls=batches(x, t, 22), model=model()).fit(1)
        rows = look.rows[0][1].sum(1)
        assert rows.max() <= 1 + 1e-6 and math.isfinite(look.rows[0][3])
        if isinstance(cb, LabelSmoothing):
            assert torch.equal(rows == 0, t == -100)


def test_a_loss_that_is_no_mean_is_said_in_validation_too():
    def half(p, y):
        return F.cross_entropy(p, y, weight=WEIGHT) + F.cross_entropy(p, y)

    with pytest.warns(UserWarning, match='neither the mean nor the sum'):
        learner(loss=half).validate()


def test_attention_maps_are_of_squares():
    "Zagoruyko and Komodakis 2017 in numpy: squares over channels, as vectors of length 1"
    g = np.random.default_rng(0)
    s = g.normal(size=(2, 3, 4, 5))
    t = g.normal(size=(2, 6, 4, 5))
    a, b = ((o**2).mean(1).reshape(2, -1) for o in (s, t))
    a, b = (o / np.linalg.norm(o, axis=1, keepdims=True) for o in (a, b))
    ours = feature_distance(torch.tensor(s), torch.tensor(t), 'attention')
    assert abs(ours.item() - ((a - b) ** 2).mean()) < 1e-7


# What a loss takes the logits for


class Asymmetric(nn.Module):
    def forward(self, p, y):
        s = p.sigmoid()
        return -(y * s.log() + (1 - y) * (1 - s).log() * s**2).mean()


def sigmoid_by_hand(p, y):
    q = 1 / (1 + torch.exp(-p))
    return -(y * q.log() + (1 - y) * (1 - q).log()).mean()


def softmax_by_hand(p, y):
    e = (p - p.amax(1, keepdim=True)).exp()
    return -(e / e.sum(1, keepdim=True)).log()[range(len(y)), y].mean()


class Wrapped(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, p, y):
        return self.loss(p, y)


ACTS = [
    (nn.CrossEntropyLoss(), 'softmax'),
    (nn.BCEWithLogitsLoss(), 'sigmoid'),
    (nn.BCELoss(), 'identity'),
    (nn.NLLLoss(), 'exp'),
    (nn.MSELoss(), 'identity'),
    (nn.L1Loss(), 'identity'),
    (nn.HuberLoss(), 'identity'),
    (nn.MultiLabelSoftMarginLoss(), 'sigmoid'),
    (F.binary_cross_entropy, 'identity'),
    (Asymmetric(), 'sigmoid'),
    (sigmoid_by_hand, 'sigmoid'),
    (softmax_by_hand, 'softmax'),
    (Wrapped(nn.BCEWithLogitsLoss()), 'sigmoid'),
    (lambda p, y: F.binary_cross_entropy_with_logits(p, y), 'sigmoid'),
    (lambda p, y: F.nll_loss(p, y), 'exp'),
    (lambda p, y: ((p - y) ** 2).mean(), 'identity'),
    (lambda p, y: F.mse_loss(p.softmax(1), y), 'softmax'),
    (partial(F.cross_entropy, weight=torch.ones(5).double()), 'softmax'),
    (focal_loss, 'softmax'),
    (poly1_loss, 'softmax'),
    (Poly1Loss(2.0), 'softmax'),
    (partial(focal_loss, gamma=1.0), 'softmax'),
    (FocalLoss(sigmoid=True), 'sigmoid'),
    (lambda p, y: F.softplus(-p * (2 * y - 1)).mean(), None),
    (nn.MultiMarginLoss(), None),
    (lambda p, y: F.cross_entropy(p / 2, y), None),
    (nn.HingeEmbeddingLoss(), None),
]


@pytest.mark.parametrize('loss,name', ACTS, ids=[f'{i}' for i in range(len(ACTS))])
def test_activation(loss, name):
    p = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    want = dict(softmax=p.softmax(1), sigmoid=p.sigmoid(), exp=p.exp(), identity=p).get(name)
    if name is None:
        with pytest.raises(ValueError, match='nothing says .* act=torch.sigmoid'):
            probabilities(loss, p)
    else:
        torch.testing.assert_close(probabilities(loss, p)(p), want)


def test_predictions_take_an_act_where_none_can_be_told():
    x, y = images()
    learn = tiny_learner(dls=batches(x, y, 9), model=model(), loss_func=nn.MultiMarginLoss())
    data = [(x, y)]
    logits = model()(x).detach()
    for call in (
        lambda **kw: learn.get_preds(data, **kw)[0],
        lambda **kw: learn.tta(data, crops=1, **kw)[0],
        lambda **kw: learn.predict(x[0], **kw)[2][None],
    ):
        with pytest.raises(ValueError, match='nothing says what MultiMarginLoss'):
            call()
        assert call(act=torch.sigmoid).shape[1] == C
    torch.testing.assert_close(learn.get_preds(data, act=torch.sigmoid)[0], logits.sigmoid())
    learn.loss_func.activation = torch.sigmoid
    torch.testing.assert_close(learn.get_preds(data)[0], logits.sigmoid())


def test_views_are_averaged_as_the_loss_says():
    x, y = images()
    learn = tiny_learner(dls=batches(x, one_hot(y), 9), model=model(), loss_func=Asymmetric())
    want = (model()(x).sigmoid() + model()(x.flip(-1)).sigmoid()) / 2
    torch.testing.assert_close(learn.tta([(x, one_hot(y))], crops=1)[0], want.detach())


def test_reading_a_loss_leaves_no_trace():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('calls', torch.zeros(()))

        def forward(self, p, y):
            self.calls += 1
            return F.cross_entropy(p + 0 * torch.rand(()), y)

    loss = Counting()
    state = torch.get_rng_state()
    assert read_loss(loss, torch.zeros(2, C)).reduction == 'mean'
    assert loss.calls == 0 and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    'loss,f',
    [
        (partial(F.binary_cross_entropy_with_logits), torch.sigmoid),
        (nn.BCELoss(), lambda p: p),
        (nn.MultiLabelSoftMarginLoss(), torch.sigmoid),
    ],
)
def test_probabilities(loss, f):
    p = torch.rand(3, 4)
    assert torch.equal(probabilities(loss)(p), f(p))


def test_losses_that_broadcast_get_probabilities():
    "MSE takes N indices beside N x N logits; the learner must not let it"
    dls = DataLoaders([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))])
    dls.c = 2
    learn = tiny_learner(dls=dls, model=tiny_model(2), loss_func=nn.MSELoss())
    seen = {}

    class Look(Callback):
        stage = 'stop'

        def after_loss(self, learn):
            seen[0] = learn.yb

    learn.fit(1, cbs=Look())
    assert seen[0].shape == (4, 2)
