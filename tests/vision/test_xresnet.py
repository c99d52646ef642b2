"""XResNet against fastai (its parameter counts, names, shapes and outputs, kept here as facts), torchvision and timm.

`python tests/vision/test_xresnet.py` prints the facts from the fastai that is installed."""

import copy
import hashlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from trickbag.models import xresnet as X

# fastai 2.8.12: parameters with 1000 outputs, with 10, and the digest of names and shapes
FASTAI = dict(
    xresnet18=(11708744, 11200874, '83daa33517cf56cc'),
    xresnet34=(21816904, 21309034, '71b45eca4180b848'),
    xresnet50=(25576264, 23547754, '2e57e0da03660198'),
    xresnet101=(44568392, 42539882, '49b21ad6587fe26c'),
    xresnet152=(60212040, 58183530, 'c0ff4fd84f1d5ebb'),
    xresnet18_deep=(14535496, 14281066, '0b1632a6fe36d615'),
    xresnet34_deep=(24643656, 24389226, '5b9055abdabc3878'),
    xresnet50_deep=(29147976, 28133226, '526254cff1e353a0'),
    xresnet18_deeper=(10995528, 10741098, 'a61a433d10a3afd7'),
    xresnet34_deeper=(27005000, 26750570, '960dbb7b41e5c34e'),
    xresnet50_deeper=(31382344, 30367594, '6dee9687bf0354c9'),
    xresnext18=(13555784, 13047914, '7d2b905a5dcc8670'),
    xresnext34=(23983304, 23475434, '6bc4f6ac245346e7'),
    xresnext50=(25048136, 23019626, '4c9d5e3a0cb4fc3e'),
    xresnext101=(44196936, 42168426, '2e21a8943930eeca'),
    xse_resnet18=(11798856, 11290986, 'a97a25460097436f'),
    xse_resnet34=(21979648, 21471778, 'a6881b594d4a56b4'),
    xse_resnext18=(13645896, 13138026, '8f271e19d2007f6f'),
    xse_resnext34=(24146048, 23638178, 'e8120864c837a253'),
    xse_resnext50=(27579128, 25550618, '12ecd9f25acb9ca9'),
    xse_resnext101=(48974648, 46946138, 'e61a6941e9768831'),
    xse_resnext18_deep=(16011368, 15756938, 'a2ea1cef2d69ac03'),
    xse_resnext34_deep=(26511520, 26257090, '3f4a7f6691d88b1f'),
    xse_resnext50_deep=(31695736, 30680986, 'abab866470f5d6ce'),
    xse_resnext18_deeper=(12335448, 12081018, 'bd27137ff617123b'),
    xse_resnext34_deeper=(22835600, 22581170, 'a722058e9186ecba'),
    xse_resnext50_deeper=(27930424, 26915674, '3d4c30bb998a175e'),
)
# what fastai 2.8.12 gives for the weights of `filled` and `images()`, first 3 each: logits in training, gradient,
# logits in evaluation
OUTPUTS = dict(
    xresnet18=[
        [-2.8370993, -2.05038, -1.1201536],
        [-0.092358063, -0.072600964, -0.01128686],
        [-3.4630619, -2.5452925, -1.4511444],
    ],
    xresnet50=[
        [-6.742107, -0.34416062, 6.4030789],
        [-15814.2, -9973.3739, -1130.5914],
        [-5.9161293, -0.075460641, 5.8520352],
    ],
    xresnet50_deep=[
        [-4.2976771, -2.1068802, 0.65504186],
        [941829.8, 825928.68, 299251.2],
        [-0.10127156, 5.5761923, 9.8174663],
    ],
    xresnext50=[
        [-7.6995009, -1.5293182, 6.1478187],
        [-1185.874, -1302.525, -517.77765],
        [-7.2691986, -1.057849, 6.199924],
    ],
    xse_resnext50=[
        [-0.93807398, 0.41340232, 1.4112156],
        [-13.876609, -5.9420793, -1.8321727],
        [-0.86648108, 0.48426289, 1.4121273],
    ],
)
ATTENTION = [10479.908, 15160.001, 12710.109]  # and of its `SimpleSelfAttention(3)` in evaluation
NAMES = [n for n in X.__all__ if n.startswith('x')]


def meta(f, *args, **kw):
    with torch.device('meta'):
        return f(*args, **kw)


def count(m):
    return sum(p.numel() for p in m.parameters())


def digest(m):
    return hashlib.sha256('\n'.join(f'{k} {tuple(v.shape)}' for k, v in m.state_dict().items()).encode()).hexdigest()[
        :16
    ]


def wave(n, phase):
    return torch.cos(torch.arange(n, dtype=torch.float64) * 0.7 + phase)


def images(bs=3, h=64, w=75):
    return wave(bs * 3 * h * w, 0).view(bs, 3, h, w)


@torch.no_grad()
def filled(model):
    "`model` in double precision with weights that are a function of their place in the state dict"
    for i, (k, v) in enumerate(model.double().state_dict().items()):
        if not v.is_floating_point():
            continue
        t = wave(v.numel(), i).view(v.shape)
        v.copy_(
            t * (4 / v[0].numel()) ** 0.5 if v.ndim > 1 else 1 + 0.1 * t if k.endswith(('.weight', '_var')) else 0.1 * t
        )
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0  # one pass in training makes the running statistics fit
    return model


def outputs(model, x):
    "Logits in training (whose pass also moves the running statistics), the stem's gradient, and logits in evaluation"
    model.zero_grad()
    y = model.train()(x)
    y.square().mean().backward()
    with torch.no_grad():
        return y.detach(), next(model.parameters()).grad.clone(), model.eval()(x)


def same(ours, theirs, size=(64, 75), tol=1e-9):
    "In double precision, with the same weights: equal logits in both modes, equal gradients"
    filled(ours).load_state_dict(dict(zip(ours.state_dict(), filled(theirs).state_dict().values(), strict=True)))
    x = images(3, *size)
    for a, b in zip(outputs(ours, x), outputs(theirs, x), strict=True):
        assert (a - b).abs().max() <= tol * b.abs().max()


def facts():
    from fastai.vision.models import xresnet as fx

    print(
        'FASTAI',
        {
            n: (count(meta(getattr(fx, n))), count(meta(getattr(fx, n), n_out=10)), digest(meta(getattr(fx, n))))
            for n in FASTAI
        },
    )
    first = lambda y: [float(f'{o:.8g}') for o in y[0, :3].tolist()]
    for n in OUTPUTS:
        y, g, z = outputs(filled(getattr(fx, n)(n_out=10)), images())
        print(n, [first(y), first(g.flatten(1)), first(z)])
    from fastai.layers import SimpleSelfAttention

    print('SA', first(filled(SimpleSelfAttention(3)).eval()(images(1, 4, 5)).flatten(1)))


@pytest.mark.parametrize('name', NAMES)
def test_parameters(name):
    """Counts, names and shapes are fastai's, except where fastai's widths are wrong: there they are timm's plus the
    deep stem"""
    f = getattr(X, name)
    stem = 19232
    if name in FASTAI:
        n, n10, d = FASTAI[name]
        assert (count(meta(f)), count(meta(f, 10)), digest(meta(f))) == (n, n10, d)
    else:
        assert (
            count(meta(f)) == dict(xse_resnet50=28088024, xse_resnet101=49326872, xse_resnet152=66821848)[name] + stem
        )
    says = f"{count(meta(f)) / 1e6:.1f} M parameters"
    assert says in f.__doc__


def test_every_fastai_name_is_here():
    assert set(FASTAI) | {'xse_resnet50', 'xse_resnet101', 'xse_resnet152'} == set(NAMES)


@pytest.mark.parametrize('name', OUTPUTS)
def test_outputs_are_fastais(name):
    y, g, z = outputs(filled(getattr(X, name)(10)), images())
    for ours, theirs in zip((y, g.flatten(1), z), OUTPUTS[name]):
        assert ours[0, :3].tolist() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    'name', ['xresnet18', 'xresnet34', 'xresnet50', 'xresnet50_deep', 'xresnext50', 'xse_resnext50', 'xse_resnet18']
)
def test_fastai_itself(name):
    fx = pytest.importorskip('fastai.vision.models.xresnet')
    theirs = filled(getattr(fx, name)(n_out=10))
    for size in (32, 64, 97) if 'deep' not in name else (96, 129):
        ours = filled(getattr(X, name)(10))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        x = images(3, size, size + 5)
        for a, b in zip(outputs(ours, x), outputs(copy.deepcopy(theirs), x), strict=True):
            assert torch.equal(a, b)


def test_initial_weights_are_distributed_as_fastais():
    """Kaiming normal with fan in for convolutions and the linear layer, biases 0, norms 1 and 0, the last of each
    block 0"""
    m = X.xse_resnext50(10, sa=True)
    last = {id(o) for o in X.last_norms(m)}
    for n, o in m.named_modules():
        if isinstance(o, (nn.Conv2d, nn.Linear)):
            w = o.weight
            assert w.std().item() == pytest.approx((2 / w[0].numel()) ** 0.5, rel=8 / (2 * w.numel()) ** 0.5), n
            assert abs(w.mean()) < 5 * w.std() / w.numel() ** 0.5
            if o.bias is not None:
                assert not o.bias.any()
        elif isinstance(o, nn.BatchNorm2d):
            assert (o.weight == (0 if id(o) in last else 1)).all() and not o.bias.any()
        elif isinstance(o, X.SimpleSelfAttention):
            assert not o.gamma.any()
    assert len(last) == 16


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_torchvision(name):
    same(
        getattr(X, 'x' + name)(10, stem='7x7', shortcut='B'),
        getattr(torchvision.models, name)(num_classes=10),
        (33, 49),
        tol=1e-7,
    )


@pytest.mark.parametrize(
    'name,f',
    [
        ('resnet18d', X.xresnet18),
        ('resnet34d', X.xresnet34),
        ('resnet50d', X.xresnet50),
        ('resnext50d_32x4d', X.xresnext50),
        ('resnet50', partial(X.xresnet50, stem='7x7', shortcut='C')),
        ('seresnet50', partial(X.xse_resnet50, stem='7x7', shortcut='B')),
        ('resnetblur50d', partial(X.xresnet50, blur_pool=True)),
    ],
)
def test_timm(name, f):
    timm = pytest.importorskip('timm')
    same(f(10), timm.create_model(name, num_classes=10), (33, 49), tol=1e-7)


def test_timm_activation():
    timm = pytest.importorskip('timm')
    same(
        X.xresnet18(10, act=nn.SiLU),
        timm.create_model('resnet18d', num_classes=10, act_layer=nn.SiLU),
        (33, 49),
        tol=1e-7,
    )


def test_small_stem_is_the_usual_cifar_resnet():
    assert count(meta(X.xresnet18, 10, stem='small', shortcut='B')) == 11173962  # kuangliu/pytorch-cifar's ResNet18
    m = X.xresnet18(10, stem='small', widen=0.25).eval()
    with torch.no_grad():
        assert m[:4](torch.rand(1, 3, 32, 32)).shape[-2:] == (32, 32) and m[:8](torch.rand(1, 3, 32, 32)).shape[
            -2:
        ] == (4, 4)


# blur pool


@pytest.mark.parametrize('size', [(8, 8), (7, 10), (3, 2), (2, 2)])
def test_blur_pool_is_timms(size):
    layers = pytest.importorskip('timm.layers')
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    torch.testing.assert_close(X.BlurPool2d()(x), layers.BlurPool2d(5).double()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    'kw,all_seen', [(dict(shortcut='B'), False), (dict(shortcut='B', blur_pool=True), True), (dict(shortcut='D'), True)]
)
def test_which_pixels_a_shortcut_sees(kw, all_seen):
    b = X.ResBlock(8, 16, 1, stride=2, **kw).eval()
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    b.idpath(x).square().sum().backward()
    seen = x.grad.abs().sum(1)[0] > 0
    assert seen.all() == all_seen and seen[::2, ::2].all()


def test_blur_pool_moves_every_stride_but_the_first():
    m = X.xresnet18(blur_pool=True, shortcut='B')
    assert sum(isinstance(o, X.BlurPool2d) for o in m.modules()) == 1 + 2 * 3
    assert [n for n, o in m.named_modules() if getattr(o, 'stride', 1) in (2, (2, 2))] == ['0.0']
    assert X.xresnet18(blur_pool=True).state_dict().keys() == X.xresnet18().state_dict().keys()


def test_blur_pool_makes_shifts_matter_less():
    """Features of an image and of the same image a pixel on, in a new network: the blur brings them nearer (Zhang's
    point)"""
    x = F.interpolate(torch.randn(4, 3, 24, 24), scale_factor=4, mode='bilinear')
    d = {}
    for blur in (False, True):
        torch.manual_seed(0)
        m = X.xresnet18(blur_pool=blur, zero_gamma=False, stem='7x7', shortcut='B')
        with torch.no_grad():
            # 2 px: what the stem's own stride does not see
            a, b = (m[:9](x[..., i : 64 + i, i : 64 + i]).flatten(1) for i in (8, 10))
        d[blur] = ((a - b).norm() / a.norm()).item()
    assert d[True] < 0.9 * d[False], d


# stochastic depth


def test_drop_path_in_a_block():
    b = X.ResBlock(8, 8, 1, zero_gamma=False, drop_path=0.5).train()
    x = torch.randn(64, 8, 4, 4)
    bs = copy.deepcopy(b)
    bs.drop_path = nn.Identity()
    torch.manual_seed(3)
    y = b(x)
    torch.manual_seed(3)
    path = torchvision.ops.stochastic_depth(bs.convpath(x), 0.5, mode='row')
    assert torch.equal(y, F.relu(path + x))
    dropped = (y == F.relu(x)).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    assert torch.equal(b.eval()(x), bs.eval()(x))


def test_drop_path_rises_linearly_as_timms():
    timm = pytest.importorskip('timm')
    blocks = [m for m in timm.create_model('resnet50d', drop_path_rate=0.3).modules() if hasattr(m, 'drop_path')]
    theirs = [getattr(m.drop_path, 'drop_prob', 0.0) for m in blocks]
    ours = [m.drop_path.p for m in X.xresnet50(drop_path=0.3).modules() if isinstance(m, X.ResBlock)]
    assert ours == pytest.approx(theirs) and len(ours) == 16


def test_no_random_number_is_drawn_unless_asked_for():
    m = X.xresnet18(10, widen=0.25)
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    m.train()(x)
    m.eval()(x)
    a = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(a, torch.rand(1))


# attention


def test_self_attention_is_fastais():
    assert count(meta(X.xresnet50, sa=True)) == 25576264 + 65537
    assert [n for n, m in X.xresnet50(sa=True).named_modules() if isinstance(m, X.SimpleSelfAttention)] == [
        '4.2.convpath.3'
    ]
    assert [n for n, m in X.xresnet18_deep(sa=True).named_modules() if isinstance(m, X.SimpleSelfAttention)] == [
        '6.1.convpath.2'
    ]
    with torch.no_grad():
        y = filled(X.SimpleSelfAttention(3)).eval()(images(1, 4, 5))
    assert y.flatten(1)[0, :3].tolist() == pytest.approx(ATTENTION, rel=1e-6)


def test_self_attention_can_be_copied_and_saved(tmp_path):
    m = X.xresnet18(10, sa=True, widen=0.25)
    x = torch.randn(2, 3, 32, 32)
    m(x).sum().backward()
    torch.save(copy.deepcopy(m).state_dict(), tmp_path / 'm.pt')
    m2 = X.xresnet18(10, sa=True, widen=0.25)
    m2.load_state_dict(torch.load(tmp_path / 'm.pt', weights_only=True))
    with torch.no_grad():
        assert torch.equal(m.eval()(x), m2.eval()(x))


# nothing in place


class View(torch.autograd.Function):
    "Gives a view of what it gets, as SyncBatchNorm does: torch refuses to change such an output in place"

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    'kw', [{}, dict(se=True, sa=True, blur_pool=True, drop_path=0.1), dict(stem='7x7', shortcut='B', act=nn.SiLU)]
)
def test_norms_that_return_views(kw):
    m = X.xresnet18(10, widen=0.25, **kw)
    x = torch.randn(2, 3, 32, 32)
    for o in m.modules():
        if isinstance(o, nn.BatchNorm2d):
            o.register_forward_hook(lambda o, i, y: View.apply(y))
    m(x).sum().backward()
    for o in m.modules():
        if hasattr(o, 'inplace'):
            o.inplace = True
    if any(hasattr(o, 'inplace') for o in m.modules()):
        with pytest.raises(RuntimeError, match='inplace'):
            m(x).sum().backward()  # so the check above can fail


# last norms


@pytest.mark.parametrize(
    'f', [X.xresnet18, X.xresnet50, X.xse_resnext50_deep, partial(X.xresnet50, sa=True, blur_pool=True, drop_path=0.1)]
)
def test_last_norms(f):
    m = f(10)
    ns = X.last_norms(m)
    assert len(ns) == sum(len(s) for s in m[4:-4])
    assert all(isinstance(o, nn.BatchNorm2d) and not o.weight.any() for o in ns)
    assert {id(o) for o in ns} == {id(o) for o in m.modules() if isinstance(o, nn.BatchNorm2d) and not o.weight.any()}
    s = nn.SyncBatchNorm.convert_sync_batchnorm(m)
    assert len(X.last_norms(s)) == len(ns)
    assert all(isinstance(o, nn.SyncBatchNorm) and not o.weight.any() for o in X.last_norms(nn.DataParallel(s)))


@pytest.mark.parametrize(
    'name', ['resnet18', 'resnet50', 'resnet50d', 'seresnet50', 'resnetblur50d', 'res2net50d', 'ecaresnet50d']
)
def test_last_norms_of_timm(name):
    timm = pytest.importorskip('timm')
    m = timm.create_model(name)  # zero gamma is its default
    zeros = [o for o in m.modules() if isinstance(o, nn.BatchNorm2d) and not o.weight.any()]
    assert [id(o) for o in X.last_norms(m)] == [id(o) for o in zeros] and zeros


def test_last_norms_finds_nothing_to_do():
    for m in (nn.Linear(2, 2), torchvision.models.vgg11_bn(init_weights=False)):
        with pytest.raises(ValueError, match='no residual block'):
            X.last_norms(m)


# the container


def test_slices():
    m = X.xresnet18(10, widen=0.25).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(m[8:](m[:8](x)), m(x)) and torch.equal(m[-4:](m[:-4](x)), m(x))
    assert type(m[:8]) is nn.Sequential and m[:8][4] is m[4] and list(m[4:6].state_dict())[0].startswith('4.')
    assert type(copy.deepcopy(m)) is X.XResNet and len(m) == 12 and len(list(m)) == 12


@pytest.mark.parametrize('kw', [{}, dict(blur_pool=True, se=True), dict(stem='small', shortcut='B', sa=True)])
def test_channels_last_and_half_precision(kw):
    m = X.xresnet18(10, widen=0.25, **kw).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = m(x)
        cl = m.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(cl, y, rtol=1e-4, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16):
            assert (m(x).float() - y).abs().max() < 0.1 * y.abs().max()
        assert m.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_batch_of_one_pixel_maps_in_evaluation():
    with torch.no_grad():
        for f in (X.xresnet18, X.xresnet18_deeper):
            assert f(10, widen=0.25, blur_pool=True).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    'err,msg,kw',
    [
        (ValueError, "'deep', '7x7' or 'small', not 'tiny'", dict(stem='tiny')),
        (ValueError, "'B', 'C' or 'D', not 'A'", dict(shortcut='A')),
        (TypeError, 'give ReLU', dict(act=nn.ReLU())),
        (ValueError, 'probability', dict(drop_path=1.5)),
        (ValueError, 'too few', dict(widen=0.01)),
        (TypeError, 'pretrained', dict(pretrained=True)),
    ],
)
def test_errors(err, msg, kw):
    with pytest.raises(err, match=msg):
        X.xresnet18(10, **kw)


if __name__ == '__main__':
    facts()
