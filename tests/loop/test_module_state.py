"""What modules and optimizers hold beside parameters: modes, forwards, buffers, groups. Right values come from torch
and timm."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trickbag.all import *
from trickbag.core.modules import wrap_forward
from trickbag.models.batchnorm import last_batchnorm, update_bn
from trickbag.speed.compile import compile_call
from trickbag.speed.fast import has_compiler
from trickbag.testing.pairs import bag_opt, small_data, small_model
from trickbag.testing.proofs import StopAt, TinyData, prove_resume, tiny_learner, tiny_model, weights
from trickbag.tricks.ghost_batch_norm import ghost_chunks

sgd = partial(torch.optim.SGD, momentum=0.9)

# Frozen modules


class FreezesItself(nn.Module):
    "Its train() leaves the norm in eval mode"

    def __init__(self):
        super().__init__()
        self.m = tiny_model()
        self.m[1].requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.m[1].eval()
        return self

    def forward(self, x):
        return self.m(x)


def frozen_by_eval():
    m = tiny_model()
    m[1].requires_grad_(False).eval()
    return m


def norm_of(m):
    return next(o for o in m.modules() if isinstance(o, nn.BatchNorm2d))


@pytest.mark.parametrize(
    'cbs',
    [list, lambda: [SWA(start=0.0)], lambda: [GhostBatchNorm(4)], lambda: [EMA(0.9)], lambda: [LayerFreezing(0, 0.5)]],
)
@pytest.mark.parametrize('make', [frozen_by_eval, FreezesItself])
def test_a_frozen_norm_keeps_its_statistics(make, cbs):
    m = make()
    was = norm_of(m).running_mean.clone()
    learn = tiny_learner(cbs(), model=m)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(2)
    update_bn(learn)
    assert torch.equal(norm_of(m).running_mean, was)


def test_a_model_in_eval_mode_trains_as_a_whole():
    a = tiny_learner().fit(1)
    b = tiny_learner(model=tiny_model().eval()).fit(1)
    wrapped = tiny_learner(model=nn.Sequential(tiny_model().eval())).fit(1)
    assert torch.equal(weights(a), weights(b)) and torch.equal(weights(a), weights(wrapped))
    assert not b.model.training


def test_frozen_dropout_drops_nothing():
    m = tiny_model()
    m[3].eval()
    none = tiny_model()
    none[3] = nn.Identity()
    with pytest.warns(UserWarning, match='in eval mode'):
        a = tiny_learner(model=m).fit(1)
    assert torch.equal(weights(a), weights(tiny_learner(model=none).fit(1)))


def test_what_is_frozen_is_said_once():
    learn = tiny_learner(model=frozen_by_eval())
    with pytest.warns(UserWarning, match='taken as frozen: 1;'):
        learn.fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1)


def test_frozen_weights_with_moving_statistics_are_said():
    m = tiny_model()
    m[1].requires_grad_(False)
    with pytest.warns(UserWarning, match='running statistics will move: 1;'):
        tiny_learner(model=m).fit(1)


def test_fix_res_refuses_a_frozen_norm():
    m = small_model()
    last_batchnorm(m).eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = tiny_learner(dls=small_data(), model=m, opt_func=bag_opt)
        with pytest.raises(ValueError, match='frozen in eval mode'):
            learn.fix_res(16, lr=0.01)


# Parameters that the optimizer must know


def trainable_only(ps, lr):
    return torch.optim.SGD([p for p in ps if p.requires_grad], lr=lr, momentum=0.9)


def test_an_added_layer_trains_and_the_others_keep_their_momentum():
    learn = tiny_learner(opt_func=sgd).fit(1)
    opt = learn.opt
    w = learn.model[0].weight
    buf = opt.state[w]['momentum_buffer'].clone()
    learn.model.append(nn.Linear(4, 4))
    assert learn.make_opt() is not opt and torch.equal(learn.opt.state[w]['momentum_buffer'], buf)
    was = learn.model[-1].weight.detach().clone()
    learn.fit(1)
    assert not torch.equal(learn.model[-1].weight, was)


def test_unfrozen_parameters_train():
    learn = tiny_learner(opt_func=trainable_only)
    learn.freeze()
    learn.fit(1)
    learn.unfreeze()
    was = learn.model[0].weight.detach().clone()
    learn.fit(1)
    assert not torch.equal(learn.model[0].weight, was)


def test_another_opt_func_makes_another_optimizer():
    learn = tiny_learner(opt_func=sgd).fit(1)
    learn.opt_func = torch.optim.Adam
    assert type(learn.fit(1).opt) is torch.optim.Adam


def test_what_opt_func_leaves_out_is_said():
    learn = tiny_learner(opt_func=lambda ps, lr: torch.optim.SGD(ps[1:], lr=lr))
    with pytest.warns(UserWarning, match=r'leaves out 0.weight \(1 parameters\)'):
        learn.fit(1)
    opt = learn.opt
    assert learn.make_opt() is opt


def test_parameters_that_a_callback_adds_are_refused_before_step_1():
    class Adds(Callback):
        def before_fit(self, learn):
            learn.model.append(nn.Linear(4, 4))

    learn = tiny_learner([Adds()])
    with pytest.raises(ValueError, match='7.weight'):
        learn.fit(1)
    assert learn.step == 0


def test_parameters_that_a_callback_unfreezes_later_are_said():
    class Unfreezes(Callback):
        def before_train(self, learn):
            if learn.epoch:
                learn.model.requires_grad_(True)

    learn = tiny_learner([Unfreezes()], opt_func=trainable_only)
    learn.freeze()
    with pytest.warns(UserWarning, match='came in a callback'):
        learn.fit(2)


class CenterLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, pred, y):
        if torch.is_grad_enabled():
            self.seen += 1
        return F.cross_entropy(pred * self.scale, y)


def test_a_loss_with_parameters_is_said_and_its_buffers_are_carried(tmp_path):
    learn = tiny_learner(loss_func=CenterLoss(), path=tmp_path)
    with pytest.warns(UserWarning, match='parameters that will not train: scale'):
        learn.fit(1)
    seen = learn.loss_func.seen.item()
    learn.lr_find(num_it=20, show_plot=False)
    assert learn.loss_func.seen.item() == seen > 0
    learn.save('a')
    assert tiny_learner(loss_func=CenterLoss(), path=tmp_path).load('a').loss_func.seen.item() == seen


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError, match='no shape yet'):
        tiny_learner(model=nn.Sequential(nn.Flatten(), nn.LazyLinear(4))).fit(1)


def test_a_new_head_trains_and_can_be_saved(tmp_path):
    learn = tiny_learner([MixUp()]).fit(1)
    learn.model[-1] = nn.Linear(6, 9)
    w = learn.model[-1].weight.clone()
    learn.fit(1)
    assert not torch.equal(w, learn.model[-1].weight) and learn.n_out == 9
    learn.save(tmp_path / 'x')


# What optimizers keep


class Bare:
    "The same batches and steps without trickbag"

    def __init__(self, make, n):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
        torch.manual_seed(0)
        for p in self.model.parameters():
            nn.init.normal_(p, std=0.05)
        self.start = copy.deepcopy(self.model)
        opt = make(list(self.model.parameters()), lr=1e-2)
        self.dls = data()
        for _ in range(n):
            for x, y in self.dls.train:
                F.cross_entropy(self.model(x), y).backward()
                opt.step()
                opt.zero_grad()


def data():
    dls = TinyData(24)
    x, y = dls.train.dataset.tensors
    batches = [(x[i : i + 8].double(), y[i : i + 8]) for i in range(0, 24, 8)]
    return DataLoaders(batches, None)


def timm_opts():
    optim = pytest.importorskip('timm.optim')
    names = (
        'adan',
        'adamp',
        'lamb',
        'lion',
        'nadamw',
        'radam',
        'madgrad',
        'novograd',
        'laprop',
        'adopt',
        'mars',
        'sgdw',
        'lars',
        'adabelief',
        'lookahead_adan',
        'adafactor',
    )
    return names, lambda n: lambda ps, lr: optim.create_optimizer_v2(ps, opt=n, lr=lr, weight_decay=0.01)


@pytest.mark.parametrize('name', timm_opts()[0])
def test_a_second_fit_goes_on_where_the_first_ended(name, tmp_path):
    make = timm_opts()[1](name)
    bare = Bare(make, 4)
    learn = tiny_learner(dls=bare.dls, model=copy.deepcopy(bare.start), opt_func=make, path=tmp_path)
    learn.fit(2).save('half')
    torch.testing.assert_close(weights(learn.fit(2)), weights(bare), rtol=0, atol=0)
    again = tiny_learner(dls=bare.dls, model=copy.deepcopy(bare.start), opt_func=make, path=tmp_path).load('half')
    torch.testing.assert_close(weights(again.fit(2)), weights(bare), rtol=0, atol=0)


class Counts(torch.optim.SGD):
    "Writes into its groups, as Prodigy does"

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            g['k'] = g.get('k', 0) + 1
            for p in g['params']:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-g['lr'] / g['k'])


@pytest.mark.parametrize('lr', [1e-2, slice(1e-3, 1e-2)])
def test_hyper_parameters_are_put_back_and_counts_are_not(lr):
    learn = tiny_learner([NoBiasDecay()], opt_func=partial(Counts, weight_decay=0.1))
    learn.fit_one_cycle(1, lr, moms=None)
    assert [(g['k'], g['lr'], g['weight_decay']) for g in learn.opt.param_groups] == [(6, 1e-2, 0.1)]
    learn.fit(1, lr)
    assert learn.opt.param_groups[0]['k'] == 12
    learn.lr_find(num_it=20, show_plot=False)
    assert learn.opt.param_groups[0]['k'] == 12


def test_layer_wise_rates_of_timm():
    optim = pytest.importorskip('timm.optim')
    timm = pytest.importorskip('timm')
    m = timm.create_model('resnet10t', num_classes=4)

    def opt_func(ps, lr):
        return torch.optim.SGD(optim.param_groups_layer_decay(m, layer_decay=0.5), lr=lr)

    seen = []

    class See(Callback):
        def before_step(self, learn):
            seen.append([(g['lr'], g['lr_scale']) for g in learn.opt.param_groups])

    dls = TinyData(8, size=32)
    dls.valid = None
    learn = tiny_learner([See()], dls=dls, model=m, opt_func=opt_func)
    learn.fit(1, 1e-2)
    assert len({s for _, s in seen[0]}) > 2 and seen[0] == [(pytest.approx(1e-2 * s), s) for _, s in seen[0]]
    assert {g['lr'] for g in learn.opt.param_groups} == {1e-2}


SCHEDULES = {
    'constant': lambda learn: learn.fit(2, 1e-2),
    'one cycle': lambda learn: learn.fit_one_cycle(2, 1e-2, moms=None),
    'flat': lambda learn: learn.fit_flat_cos(2, 1e-2),
    'cosine': lambda learn: learn.fit(2, 1e-2, cbs=Cosine(warmup='20%')),
    'scaled': lambda learn: learn.fit(2, 1e-2, cbs=[LinearScaling(4), StepDecay(['50%'])]),
}


@pytest.mark.parametrize('how', SCHEDULES)
def test_lr_scale_is_a_factor_on_what_a_schedule_gives(how):
    "With the key in half of the parameters' group, and without it"
    seen = []

    class See(Callback):
        stage = 'stop'

        def before_step(self, learn):
            seen[-1].append([g['lr'] for g in learn.opt.param_groups])

    for scale in ({}, {'lr_scale': 0.25}):
        seen.append([])
        m = tiny_model()
        groups = [dict(params=list(m[:3].parameters()), **scale), dict(params=list(m[3:].parameters()))]
        SCHEDULES[how](tiny_learner([See()], model=m, opt_func=lambda ps, lr, g=groups: torch.optim.SGD(g, lr=lr)))
    plain, scaled = torch.tensor(seen[0]), torch.tensor(seen[1])
    assert len(plain) == 12 and torch.equal(plain[:, 1], scaled[:, 1])
    torch.testing.assert_close(scaled[:, 0], plain[:, 0] * 0.25)


def test_a_fit_with_another_lr_scale_is_another_fit(tmp_path):
    def learner(scale):
        m = tiny_model()
        groups = [dict(params=list(m[:3].parameters()), lr_scale=scale), dict(params=list(m[3:].parameters()))]
        return tiny_learner(model=m, opt_func=lambda ps, lr: torch.optim.SGD(groups, lr=lr))

    file = tmp_path / 'model.pt'
    learner(0.5).fit(2, cbs=StopAt((0, 3), file))
    with pytest.raises(ValueError, match='lr_scale'):
        learner(0.25).fit(2, resume=file)
    learner(0.5).fit(2, resume=file)


def test_an_lr_scale_does_not_outlive_its_fit_or_its_opt_func():
    learn = tiny_learner([LayerDecay(0.5)], opt_func=sgd)
    learn.fit(1)
    assert all('lr_scale' not in g for g in learn.opt.param_groups)
    m = learn.model
    groups = [dict(params=list(m.parameters()), lr_scale=0.5)]
    learn = tiny_learner(model=m, opt_func=lambda ps, lr: torch.optim.SGD(groups, lr=lr)).fit(1)
    learn.opt_func = sgd
    learn.fit(1)
    assert all('lr_scale' not in g for g in learn.opt.param_groups)


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024), written from the paper's formulas: z steps, x averages, gradients are
    taken at y"""

    def __init__(self, params, lr=1e-2, beta=0.9):
        super().__init__(params, dict(lr=lr, beta=beta))

    def _to(self, train):
        for g in self.param_groups:
            if g.get('train_mode', False) == train:
                continue
            for p in g['params']:
                if not (s := self.state[p]):
                    continue
                w = 1 - g['beta'] if train else 1 - 1 / g['beta']
                p.data.lerp_(s['z'], w)
            g['train_mode'] = train

    def train(self):
        self._to(True)

    def eval(self):
        self._to(False)

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            if not g.get('train_mode'):
                raise RuntimeError('not in train mode')
            g['k'] = g.get('k', 0) + 1
            for p in g['params']:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s['z'] = p.clone()
                x = p.lerp(s['z'], 1 - 1 / g['beta'])
                s['z'].sub_(p.grad, alpha=g['lr'])
                x.lerp_(s['z'], 1 / g['k'])
                p.copy_(x.lerp(s['z'], 1 - g['beta']))


def test_optimizers_with_two_sets_of_weights():
    bare = Bare(lambda ps, lr: Trained(ps, lr=lr), 3)
    dls = DataLoaders(bare.dls.train, bare.dls.train)
    seen = []

    class See(Callback):
        def after_validate(self, learn):
            seen.append(weights(learn))

    learn = tiny_learner([See()], dls=dls, model=copy.deepcopy(bare.start), opt_func=ScheduleFree).fit(3)
    assert torch.equal(seen[-1], weights(learn)) and learn.opt.param_groups[0]['k'] == 9
    y = torch.cat([p.lerp(learn.opt.state[p]['z'], 0.1).detach().flatten() for p in learn.model.parameters()])
    torch.testing.assert_close(y, weights(bare))
    with pytest.raises(ValueError, match='averages weights by itself'):
        learn.fit(1, cbs=EMA())


class Trained(ScheduleFree):
    "In training mode from the start"

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.train()


def test_optimizers_with_two_sets_of_weights_resume():
    prove_resume(list, opt_func=ScheduleFree, at=((0, 3), (0, None), (1, 2)))


# State that no state dict has


class Stateful(nn.Module):
    "Every kind of state that a module can have"

    def __init__(self):
        super().__init__()
        self.m = tiny_model()
        self.register_buffer('hidden', torch.zeros(()), persistent=False)
        self.register_buffer('anew', torch.zeros(()))
        self.count = 0

    def forward(self, x):
        if self.training:
            self.hidden += x.detach().mean()
            self.anew = 0.9 * self.anew + x.detach().std()
            self.count += 1
        return self.m(x) * (1 + self.hidden.sigmoid() + self.anew / 10)

    def get_extra_state(self):
        return dict(count=self.count)

    def set_extra_state(self, o):
        self.count = o['count']


@pytest.mark.parametrize('cbs', [list, lambda: [EMA(0.5)], lambda: [SWA(0.0)]])
def test_hidden_buffers_and_extra_state_resume(cbs):
    prove_resume(cbs, model=Stateful, at=((0, 3), (1, 2)))


def test_hidden_buffers_and_extra_state_are_left_as_found():
    learn = tiny_learner(model=Stateful()).fit(1)

    def state():
        return learn.model.hidden.item(), learn.model.anew.item(), learn.model.count

    was = state()
    learn.lr_find(num_it=20, show_plot=False)
    assert state() == was


def test_an_average_follows_a_buffer_that_is_assigned_anew():
    learn = tiny_learner([e := EMA(0.5, warmup_power=0)], model=Stateful())
    mean = None
    values = []

    class See(Callback):
        stage = 'report'

        def after_step(self, learn):
            values.append(learn.model.anew.item())

    learn.fit(1, cbs=See())
    for v in values:
        mean = v if mean is None else 0.5 * mean + 0.5 * v
    assert learn.model.anew.item() == pytest.approx(mean, rel=1e-5)


# Forwards on objects, norms that compute more, compiled models


@pytest.mark.parametrize('make', [lambda: GhostBatchNorm(4), lambda: GradientCheckpointing(['4.0*'])])
def test_a_patched_forward_is_called_and_stays(make):
    def run(patched):
        m = small_model()
        calls = []
        for o in m.modules():
            if patched and isinstance(o, nn.BatchNorm2d):

                def forward(*args, o=o):
                    calls.append(1)
                    return nn.BatchNorm2d.forward(o, *args)

                o.forward = forward
        own = [vars(o).get('forward') for o in m.modules()]
        learn = tiny_learner([make()], small_data(), m, opt_func=bag_opt).fit(1)
        assert [vars(o).get('forward') for o in m.modules()] == own and bool(calls) == patched
        return weights(learn)

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


def test_two_tricks_at_one_module():
    a, b = (
        weights(tiny_learner(cbs, model=tiny_model()).fit(1))
        for cbs in ([GhostBatchNorm(4)], [GhostBatchNorm(4), GradientCheckpointing(['1'])])
    )
    assert torch.equal(a, b)


def test_ghost_norm_keeps_the_activation_of_timms_norms():
    layers = pytest.importorskip('timm.layers')
    bn = layers.BatchNormAct2d(3)
    x = torch.randn(8, 3, 4, 4)
    learn = tiny_learner(
        [GhostBatchNorm(4)], model=nn.Sequential(bn, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    )
    outs = []

    class See(Callback):
        def before_fit(self, learn):
            outs.append(bn(x))

    parts = copy.deepcopy(bn)
    learn.fit(0, cbs=See())
    torch.testing.assert_close(outs[0], torch.cat([parts(o) for o in x.split(4)]))
    mean = sum(o.mean((0, 2, 3)) for o in x.split(4)) / 2
    torch.testing.assert_close(bn.running_mean, 0.1 * mean)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize('n', range(2, 20))
def test_ghost_chunks_are_no_larger_than_said(n):
    assert max(len(o) for o in ghost_chunks(torch.zeros(n, 1, 2, 2), 2)) <= 2


SURGERY = [
    lambda: GhostBatchNorm(4),
    lambda: StochasticDepth(0.5),
    lambda: BlurPool(min_channels=8),
    lambda: SqueezeExcite(8, 4),
    lambda: DropBlock(0.5),
    lambda: GradientCheckpointing(),
    lambda: Im2Col(0, 0),
]


def wrapped(m):
    return torch.compile(m, backend='eager')


def itself(m):
    m.compile(backend='eager')
    return m


def a_part(m):
    m[4].compile(backend='eager')
    return m


def its_forward(m):
    m.forward = torch.compile(m.forward, backend='eager')
    return m


@pytest.mark.parametrize('how', [wrapped, itself, a_part, its_forward])
@pytest.mark.parametrize('make', SURGERY)
def test_surgery_on_a_compiled_model_is_refused(make, how):
    learn = tiny_learner([make()], small_data(), how(small_model()), opt_func=bag_opt)
    with pytest.raises(ValueError, match=f'{make().name} and the model: .*compiled before'):
        learn.fit(1)
    assert learn.step == 0


def test_checkpointing_in_a_compiled_model_is_said_and_changes_no_weight():
    def run(*cbs):
        return weights(
            tiny_learner([GradientCheckpointing(), *cbs], small_data(), small_model(), opt_func=bag_opt).fit(2)
        )

    with pytest.warns(UserWarning, match='GradientCheckpointing and Compile: .*the compiler decides'):
        compiled = run(Compile(backend='eager'))
    torch.testing.assert_close(compiled, run(), rtol=1e-5, atol=1e-6)


def test_what_inductor_draws_is_what_is_drawn_uncompiled():
    if not has_compiler(torch.device('cpu')):
        pytest.skip('no C++ compiler')
    m = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5))
    x = torch.ones(8, 6)
    run = compile_call(m, backend='inductor', mode=None, dynamic=False)
    outs = []
    for f in (m, run):
        torch.manual_seed(0)
        with torch.no_grad():
            outs.append(f(x))
    torch.testing.assert_close(*outs)


def test_drop_block_in_checkpointed_blocks_under_inductor():
    "Against the same steps uncompiled: DropBlock draws the same squares"
    if not has_compiler(torch.device('cpu')):
        pytest.skip('no C++ compiler')

    def run(*cbs):
        dls = TinyData(16)
        dls.valid = None
        torch.manual_seed(0)
        model = XResNet(1, [1], 4, stem='small', widen=0.125, zero_gamma=False)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return tiny_learner([GradientCheckpointing(), *cbs], dls, model, opt_func=torch.optim.SGD).fit(2, 0.1)

    compiled = run(DropBlock(0.5), c := Compile())
    assert c.compiled == 1
    torch.testing.assert_close(weights(compiled), weights(run(DropBlock(0.5))), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(weights(compiled), weights(run()), rtol=1e-3, atol=1e-4)


def test_new_statistics_leave_the_momentum_of_norms():
    learn = tiny_learner()
    update_bn(learn)
    assert learn.model[1].momentum == torch.nn.BatchNorm2d(6).momentum


def test_wrappers_are_taken_off_in_any_order():
    m = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = m(x)
    first = wrap_forward(m, lambda m, forward, x: forward(x) + 1)
    second = wrap_forward(m, lambda m, forward, x: forward(x) * 2)
    assert torch.equal(m(x), (plain + 1) * 2)
    first()
    assert torch.equal(m(x), plain * 2)
    second()
    assert torch.equal(m(x), plain) and 'forward' not in vars(m)
