"What goes wrong in a user's first tries is right, or one line that says who, what and the remedy, before step 1."

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import check_line, one_line
from trickbag.all import *
from trickbag.testing.proofs import tiny_learner, tiny_model, weights

nan = float('nan')
inf = float('inf')


BAD_RATES = [
    nan,
    inf,
    -inf,
    -0.1,
    '1e-3',
    b'1',
    None,
    True,
    1j,
    [],
    [nan],
    ['a'],
    slice(nan),
    slice(0, 0.1),
    slice(1e-3, inf),
    slice(None),
    slice('a', 'b'),
    slice(1, 2, 3),
    torch.tensor(nan),
    np.float64('nan'),
    np.zeros((2, 2)),
    np.array(['a']),
    {},
]


@pytest.mark.parametrize('lr', BAD_RATES, ids=repr)
def test_bad_rates_are_refused_wherever_a_rate_is_given(lr):
    with pytest.raises(ValueError) as e:
        tiny_learner(lr=lr)
    check_line(e.value, 'Learner: ', 'lr')
    if lr is None:
        return  # for a fit: the learner's own
    for fit in (
        lambda learn: learn.fit(1, lr),
        lambda learn: learn.fit_one_cycle(1, lr),
        lambda learn: learn.fit_flat_cos(1, lr),
    ):
        learn = tiny_learner()
        with pytest.raises(ValueError) as e:
            fit(learn)
        check_line(e.value, 'fit: ', 'lr')
        assert learn.step == 0 and not learn.fitting
    learn = tiny_learner()
    learn.lr = lr
    with pytest.raises(ValueError, match='^fit: .*lr'):
        learn.fit(1)


@pytest.mark.parametrize(
    'lr', [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), [0.5, np.float64(0.5)], np.array([0.5, 0.5])], ids=repr
)
def test_numbers_of_numpy_and_torch_train_as_plain_ones(lr):
    ref = tiny_learner(lr=0.5).fit(1)
    learn = tiny_learner(lr=lr).fit(1)
    assert torch.equal(weights(learn), weights(ref))
    rates = learn.lr if isinstance(learn.lr, list) else [learn.lr]
    assert [type(r) for r in rates] == [float] * len(rates)


def test_a_rate_of_0_moves_only_buffers():
    learn = tiny_learner(opt_func=torch.optim.SGD, lr=0)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))


def test_as_many_rates_as_groups():
    with pytest.raises(ValueError, match='^lr: 3 values for 2 parameter groups; give'):
        tiny_learner().fit(1, [0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match='^lr: 3 values for 2 parameter groups; give'):
        tiny_learner(lr=[0.1, 0.1, 0.1]).fit(1)


@pytest.mark.parametrize('n', [1.5, 2.0, nan, -1, '2', None, True, [1], torch.tensor(2.0)], ids=repr)
def test_epochs_are_whole_numbers(n):
    for f in (
        lambda l: l.fit(n),
        lambda l: l.fit_one_cycle(n),
        lambda l: l.fine_tune(n),
        lambda l: l.fine_tune(1, freeze_epochs=n),
    ):
        learn = tiny_learner()
        with pytest.raises(ValueError) as e:
            f(learn)
        check_line(e.value, 'whole number >= 0', 'epoch')
        assert learn.step == 0 and all(p.requires_grad for p in learn.model.parameters())


@pytest.mark.parametrize('n', [1, np.int64(1), torch.tensor(1)], ids=repr)
def test_whole_numbers_of_any_kind(n):
    assert tiny_learner().fit(n).step == 6


def test_no_epoch_is_no_error():
    assert tiny_learner().fit(0).step == tiny_learner().fit_one_cycle(0).step == 0


@pytest.mark.parametrize(
    'kw,says',
    [
        *((dict(seed=s), 'seed must be a whole number') for s in ('1', 1.5, None, 2**64, True, [1])),
        (dict(metrics='accuracy'), 'give accuracy'),
        (dict(metrics=[nn.Linear]), 'is a class'),
        (dict(cbs='MixUp'), 'not a Callback'),
        (dict(cbs=[None]), 'not a Callback'),
        (dict(cbs=MixUp), 'write MixUp()'),
        (dict(device='gpu'), "write 'cuda'"),
        (dict(device=''), "write 'cuda'"),
        (dict(device=1.5), "write 'cuda'"),
        (dict(path=3), 'path'),
        (dict(path=None), 'path'),
        (dict(loss_func='ce'), 'nn.CrossEntropyLoss()'),
        (dict(loss_func=nn.CrossEntropyLoss), 'nn.CrossEntropyLoss()'),
        (dict(loss_func=torch.ones(3)), 'nn.CrossEntropyLoss()'),
        (dict(opt_func='adam'), 'torch.optim.SGD'),
        (dict(opt_func=None), 'torch.optim.SGD'),
        (dict(opt_func=torch.optim.SGD([torch.zeros(1)], 0.1)), 'torch.optim.SGD'),
        (dict(splitter=[1]), 'splitter'),
        (dict(dls=[1]), 'DataLoaders(train, valid)'),
        (dict(model=xresnet18), 'call the function'),
    ],
    ids=lambda o: o if isinstance(o, str) else ' '.join(o),
)
def test_arguments_of_the_learner(kw, says):
    with pytest.raises((ValueError, TypeError)) as e:
        tiny_learner(**kw)
    check_line(e.value, says)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device', ['cuda', 0, 'cuda:3'])
def test_a_gpu_that_is_not_there(device):
    with pytest.raises(ValueError) as e:
        tiny_learner(device=device)
    check_line(e.value, 'no CUDA device', 'leave device out')


def test_none_is_no_metric_and_no_callback():
    learn = tiny_learner(cbs=None, metrics=None)
    assert learn.fit(1, cbs=None).step == 6 and learn.cbs == learn.metrics == []


@pytest.mark.parametrize('seed', [-1, np.int64(3), 2**62])
def test_any_seed_of_64_bits(seed):
    learn = tiny_learner(seed=seed).fit(1)
    assert type(learn.seed) is int and learn.step == 6


@pytest.mark.parametrize(
    'opt_func,says',
    [
        (lambda params, lr: None, 'gives None, not an optimizer'),
        (lambda params: torch.optim.SGD(params, 0.1), 'does not take'),
        (lambda: None, 'does not take'),
    ],
    ids=['none', 'no lr', 'nothing'],
)
def test_what_makes_no_optimizer(opt_func, says):
    with pytest.raises(TypeError) as e:
        tiny_learner(opt_func=opt_func).fit(1)
    check_line(e.value, 'Learner: ', says)


@pytest.mark.parametrize(
    'make',
    [
        lambda v: Cosine(warmup=v),
        lambda v: Cosine(end=v),
        lambda v: Cosine(cycles=v),
        lambda v: Cosine(cycles=2, cycle_mult=v),
        lambda v: Cosine(cycles=2, cycle_decay=v),
        lambda v: Cooldown(v),
        lambda v: Cooldown(end=v),
        lambda v: Linear(end=v),
        lambda v: Warmup(warmup_start=v),
        lambda v: StepDecay(1, gamma=v),
        lambda v: StepDecay([v]),
        lambda v: FlatCos(pct_start=v),
        lambda v: FlatCos(div_final=v),
        lambda v: OneCycle(pct_start=v),
        lambda v: OneCycle(div=v),
        lambda v: OneCycle(div_final=v),
        lambda v: OneCycle(moms=(0.9, v, 0.9)),
        lambda v: tiny_learner().lr_find(v),
        lambda v: tiny_learner().lr_find(end_lr=v),
        lambda v: tiny_learner().lr_find(num_it=v),
        lambda v: tiny_learner().fine_tune(1, v),
        lambda v: tiny_learner().fine_tune(1, lr_mult=v),
        lambda v: tiny_learner(Schedule(lambda p: v)).fit(1),
    ],
)
@pytest.mark.parametrize('value', [nan, 'a', None, -1.0], ids=repr)
def test_arguments_of_schedules(make, value):
    with pytest.raises(ValueError) as e:
        make(value)
    check_line(e.value)


def test_files_are_paths():
    for f in (tiny_learner().save, tiny_learner().load):
        with pytest.raises(TypeError) as e:
            f(3)
        check_line(e.value, 'file must be a path')
    with pytest.raises(FileNotFoundError, match='there is no'):
        tiny_learner().load('nowhere')


# Batches, outputs, losses

x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
y = torch.arange(4)


class Out(nn.Module):
    "The tiny model, its logits made into something else"

    def __init__(self, f):
        super().__init__()
        self.m = tiny_model()
        self.f = f

    def forward(self, x):
        return self.f(self.m(x), self.training)


def refused(says, *batches, cbs=(), step=0, valid=None, **kw):
    learn = tiny_learner(list(cbs), dls=DataLoaders(list(batches) or [(x, y)], valid), **kw)
    with pytest.raises((ValueError, TypeError)) as e:
        learn.fit(1)
    check_line(e.value, says)
    assert learn.step == step and not learn.fitting


@pytest.mark.parametrize(
    'batch,says',
    [
        (((x, x), y), 'several inputs'),
        (dict(image=x, label=y), "batch['image']"),
        ((x,), '(images, targets)'),
        (x, '(images, targets)'),
        ('ab', 'a str'),
        ((x.tolist(), y), 'ToTensor'),
        ((x.numpy(), y.numpy()), 'as_tensor'),
        ((x.numpy(), y), 'ndarray'),
        ((x.byte(), y), 'Normalize()'),
        (('a', 'b'), '(str, str)'),
        ((x, [0, 1, 2, 3]), 'as_tensor(y)'),
        ((x, y[:3]), '4 images but 3 targets'),
        ((x, y[:, None]), 'y.squeeze(1)'),
        ((x, y - 1), 'class index -1'),
        ((x, y + 1), 'class index 4'),
        *(((x, y.to(d)), '.long()') for d in (torch.int32, torch.uint8, torch.bool, torch.float32)),
        ((x, torch.eye(4) * 3), 'from 0 to 3'),
        ((x, torch.eye(4) - 1), 'probabilities'),
        ((x.half(), y), 'x.to(torch.float32)'),
        ((x.double(), y), 'x.to(torch.float32)'),
        ((x.long(), y), '.float()/255'),
        ((x * nan, y), 'nan or infinity'),
        ((x.permute(0, 2, 3, 1), y), 'permute(0, 3, 1, 2)'),
        ((x[:, 0], y), 'x[:, None]'),
        ((x[:, :1], y), 'takes 3'),
        ((x[..., :2], y), 'too small'),
        ((x[:0], y[:0]), 'no images'),
    ],
    ids=lambda o: o if isinstance(o, str) else 'batch',
)
def test_batches(batch, says):
    refused(says, batch)


@pytest.mark.parametrize(
    'cb',
    [None, MixUp, LabelSmoothing, lambda: SelectiveBackprop(start=0, interrupt=0)],
    ids=['none', 'mixup', 'smooth', 'select'],
)
def test_tricks_do_not_hide_what_is_wrong(cb):
    cbs = [cb()] if cb else []
    refused('add Normalize()', (x.byte(), y), cbs=cbs)
    refused('x.to(torch.float32)', (x.double(), y), cbs=cbs)
    refused('4 images but 3 targets', (x, y[:3]), cbs=cbs)
    refused('nan or infinity', (x * nan, y), cbs=cbs)


@pytest.mark.parametrize('cbs', [(), [MixUp()], [LabelSmoothing()]], ids=['none', 'mixup', 'smooth'])
@pytest.mark.parametrize(
    'shift,says', [(4, 'batch 1 of epoch 0 has the class index 4'), (-1, 'batch 1 of epoch 0 has the class index -1')]
)
def test_a_class_that_is_none_in_a_later_batch(cbs, shift, says):
    refused(says, (x, y), (x, y + shift), cbs=cbs, step=1)


def test_a_class_that_is_none_in_validation():
    learn = tiny_learner(dls=DataLoaders([(x, y)], [(x, y), (x, y + 4)]))
    with pytest.raises(ValueError, match='^Learner: batch 1 of epoch 0 in validation has the class index 4'):
        learn.validate()


def test_labels_that_the_loss_ignores_are_right():
    learn = tiny_learner(dls=DataLoaders([(x, y - 1)], None), loss_func=nn.CrossEntropyLoss(ignore_index=-1)).fit(1)
    assert learn.step == 1


@pytest.mark.parametrize(
    'f,says',
    [
        (lambda p, t: (p, p), 'gives a tuple'),
        (lambda p, t: (p, p) if t else p, 'aux_logits=False'),
        (lambda p, t: [p], 'gives a list'),
        (lambda p, t: {'logits': p}, "'logits'"),
        (lambda p, t: None, 'gives None'),
        (lambda p, t: p[:, :, None, None], '4 x 4 x 1 x 1'),
    ],
)
def test_outputs(f, says):
    refused(says, model=Out(f))


@pytest.mark.parametrize(
    'f,says',
    [
        (lambda p, y: float(nn.functional.cross_entropy(p, y)), 'gives a float'),
        (lambda p, y: None, 'gives None'),
        (lambda p, y: 1, 'gives a int'),
        (nn.CrossEntropyLoss(reduction='none'), "reduction='mean'"),
        (lambda p, y: nn.functional.cross_entropy(p, y)[None], "reduction='mean'"),
        (lambda p, y: (p.mean(), 1), 'gives a tuple'),
        (lambda p, y: {'loss': p.mean()}, 'gives a dict'),
        (lambda p, y: (p.argmax(1) == y).sum(), 'int64'),
        (lambda p, y: p.detach().mean(), 'no gradient'),
        (lambda p, y: p.mean() * nan, 'is nan'),
        (lambda p, y: p.mean() + inf, 'is inf'),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_losses(f, says):
    refused(says, loss_func=f)


def test_one_output():
    one = dict(model=tiny_model(1))
    refused('y.unsqueeze(1)', (x, torch.ones(4)), loss_func=nn.MSELoss(), **one)
    refused('y.unsqueeze(1)', (x, torch.ones(4)), loss_func=nn.BCEWithLogitsLoss(), **one)
    learn = tiny_learner(dls=DataLoaders([(x, torch.ones(4, 1))], None), loss_func=nn.BCEWithLogitsLoss(), **one).fit(1)
    assert learn.step == 1


def test_soft_targets_that_do_not_sum_to_1():
    with pytest.warns(UserWarning, match='do not sum to 1'):
        tiny_learner(dls=DataLoaders([(x, torch.eye(4) / 2)], None)).fit(1)


@pytest.mark.filterwarnings('ignore')
def test_everything_frozen():
    learn = tiny_learner()
    for p in learn.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r'^fit: every parameter of the model is frozen.*learn.unfreeze\(\)'):
        learn.fit(1)
    learn.unfreeze()
    assert learn.fit(1).step == 6


def test_one_image_under_batchnorm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    refused('drop_last=True', (x, y), (x[:1], y[:1]), model=model, step=1)


def test_loaders_that_cannot_make_a_batch():
    from PIL import Image

    load = torch.utils.data.DataLoader
    sizes = load([(torch.zeros(3, 8 + i, 8), 0) for i in range(4)], 4)
    pictures = load([(Image.new('RGB', (8, 8)), 0)] * 4, 4)
    for dl, says in ((sizes, 'transforms.Resize'), (pictures, 'transforms.ToTensor()')):
        with pytest.raises(ValueError) as e:
            tiny_learner(dls=DataLoaders(dl, None)).fit(1)
        check_line(e.value, 'Learner: ', says)


def test_other_errors_say_which_batch():
    class Odd(nn.Module):
        def forward(self, x):
            raise KeyError('mine')

    with pytest.raises(KeyError, match='mine') as e:
        tiny_learner(model=nn.Sequential(tiny_model(), Odd())).fit(1)
    assert 'batch 0 of epoch 0: images 8 x 3 x 8 x 8 (float32)' in e.value.__notes__[-1]


@pytest.mark.parametrize(
    'item,says',
    [('a.jpg', 'got a str'), (x[0].numpy(), 'got a ndarray'), (x, 'get_preds')],
    ids=['path', 'array', 'batch'],
)
def test_predict_with_plain_loaders(item, says):
    with pytest.raises((ValueError, TypeError)) as e:
        tiny_learner().predict(item)
    check_line(e.value, 'predict: ', says)


def test_looking_leaves_nothing_behind():
    learn = tiny_learner()
    for f in (lambda: learn.fit(1), learn.validate, learn.get_preds):
        f()
        assert learn._label_range is None and learn._first_loss_due is False
    learn = tiny_learner(loss_func=lambda p, y: None)
    for f in (lambda: learn.fit(1), learn.validate):
        with pytest.raises(TypeError):
            f()
        assert learn._label_range is None and learn._first_loss_due is False


def test_an_empty_validation_loader_is_refused():
    one_line(lambda: tiny_learner(dls=DataLoaders([(x, y)], [])).fit(1), 'validation loader is empty')


def test_a_validation_iterator_lasts_one_epoch():
    one_line(lambda: tiny_learner(dls=DataLoaders([(x, y)], iter([(x, y)]))).fit(2), 'gave no batch')


@pytest.mark.parametrize('method', ['validate', 'get_preds'])
def test_an_empty_list_is_refused(method):
    one_line(lambda: getattr(tiny_learner(), method)([]), 'gave no batch')
