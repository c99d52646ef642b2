"What goes wrong in a user's first tries is right, or one line that says who, what and the remedy, before step 1."
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from trickbag.all import *
from trickbag.checks import check_device, check_lr, check_number, check_whole
from trickbag.testing import TinyData, tiny_learner, tiny_model, weights

nan = float('nan')
inf = float('inf')


def one_line(error, *parts):
    text = str(error)
    assert '\n' not in text
    assert re.match(r"[\w() .]+: \S", text), f"says not who speaks: {text}"
    for part in parts: assert part in text


BAD_RATES = [nan, inf, -inf, -.1, '1e-3', b'1', None, True, 1j, [], [nan], ['a'], slice(nan), slice(0, .1), slice(1e-3, inf), slice(None),
             slice('a', 'b'), slice(1, 2, 3), torch.tensor(nan), np.float64('nan'), np.zeros((2, 2)), np.array(['a']), {}]

@pytest.mark.parametrize('lr', BAD_RATES, ids=repr)
def test_bad_rates_are_refused_wherever_a_rate_is_given(lr):
    with pytest.raises(ValueError) as e: tiny_learner(lr=lr)
    one_line(e.value, 'Learner: ', 'lr')
    if lr is None: return       # for a fit: the learner's own
    for fit in (lambda learn: learn.fit(1, lr), lambda learn: learn.fit_one_cycle(1, lr), lambda learn: learn.fit_flat_cos(1, lr)):
        learn = tiny_learner()
        with pytest.raises(ValueError) as e: fit(learn)
        one_line(e.value, 'fit: ', 'lr')
        assert learn.step==0 and not learn.fitting
    learn = tiny_learner()
    learn.lr = lr
    with pytest.raises(ValueError, match='^fit: .*lr'): learn.fit(1)

@pytest.mark.parametrize('lr', [np.float64(.5), np.float32(.5), torch.tensor(.5), [.5, np.float64(.5)], np.array([.5, .5])], ids=repr)
def test_numbers_of_numpy_and_torch_train_as_plain_ones(lr):
    ref = tiny_learner(lr=.5).fit(1)
    learn = tiny_learner(lr=lr).fit(1)
    assert torch.equal(weights(learn), weights(ref))
    rates = learn.lr if isinstance(learn.lr, list) else [learn.lr]
    assert [type(r) for r in rates]==[float]*len(rates)

def test_a_rate_of_0_moves_only_buffers():
    learn = tiny_learner(opt_func=torch.optim.SGD, lr=0)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert all(torch.equal(p, q) for p,q in zip(before, learn.model.parameters()))

def test_as_many_rates_as_groups():
    with pytest.raises(ValueError, match='^lr: 3 values for 2 parameter groups; give'): tiny_learner().fit(1, [.1, .1, .1])
    with pytest.raises(ValueError, match='^lr: 3 values for 2 parameter groups; give'): tiny_learner(lr=[.1, .1, .1]).fit(1)

@pytest.mark.parametrize('n', [1.5, 2., nan, -1, '2', None, True, [1], torch.tensor(2.)], ids=repr)
def test_epochs_are_whole_numbers(n):
    for f in (lambda l: l.fit(n), lambda l: l.fit_one_cycle(n), lambda l: l.fine_tune(n), lambda l: l.fine_tune(1, freeze_epochs=n)):
        learn = tiny_learner()
        with pytest.raises(ValueError) as e: f(learn)
        one_line(e.value, 'whole number >= 0', 'epoch')
        assert learn.step==0 and all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('n', [1, np.int64(1), torch.tensor(1)], ids=repr)
def test_whole_numbers_of_any_kind(n):
    assert tiny_learner().fit(n).step==6

def test_no_epoch_is_no_error():
    assert tiny_learner().fit(0).step==tiny_learner().fit_one_cycle(0).step==0

@pytest.mark.parametrize('kw,says', [
    *((dict(seed=s), 'seed must be a whole number') for s in ('1', 1.5, None, 2**64, True, [1])),
    (dict(metrics='accuracy'), 'give accuracy'), (dict(metrics=[nn.Linear]), 'is a class'), (dict(cbs='MixUp'), 'not a Callback'),
    (dict(cbs=[None]), 'not a Callback'), (dict(cbs=MixUp), 'write MixUp()'), (dict(device='gpu'), "write 'cuda'"), (dict(device=''), "write 'cuda'"),
    (dict(device=1.5), "write 'cuda'"), (dict(path=3), 'path'), (dict(path=None), 'path'), (dict(loss_func='ce'), 'nn.CrossEntropyLoss()'),
    (dict(loss_func=nn.CrossEntropyLoss), 'nn.CrossEntropyLoss()'), (dict(loss_func=torch.ones(3)), 'nn.CrossEntropyLoss()'),
    (dict(opt_func='adam'), 'torch.optim.SGD'), (dict(opt_func=None), 'torch.optim.SGD'),
    (dict(opt_func=torch.optim.SGD([torch.zeros(1)], .1)), 'torch.optim.SGD'), (dict(splitter=[1]), 'splitter'), (dict(dls=[1]), 'DataLoaders(train, valid)'),
    (dict(model=xresnet18), 'call the function')], ids=lambda o: repr(o)[:40])
def test_arguments_of_the_learner(kw, says):
    with pytest.raises((ValueError, TypeError)) as e: tiny_learner(**kw)
    one_line(e.value, says)

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device', ['cuda', 0, 'cuda:3'])
def test_a_gpu_that_is_not_there(device):
    with pytest.raises(ValueError) as e: tiny_learner(device=device)
    one_line(e.value, 'no CUDA device', 'leave device out')

def test_none_is_no_metric_and_no_callback():
    learn = tiny_learner(cbs=None, metrics=None)
    assert learn.fit(1, cbs=None).step==6 and learn.cbs==learn.metrics==[]

@pytest.mark.parametrize('seed', [-1, np.int64(3), 2**62])
def test_any_seed_of_64_bits(seed):
    learn = tiny_learner(seed=seed).fit(1)
    assert type(learn.seed) is int and learn.step==6

@pytest.mark.parametrize('opt_func,says', [
    (lambda params, lr: None, 'gives None, not an optimizer'), (lambda params: torch.optim.SGD(params, .1), 'does not take'),
    (lambda: None, 'does not take')], ids=['none', 'no lr', 'nothing'])
def test_what_makes_no_optimizer(opt_func, says):
    with pytest.raises(TypeError) as e: tiny_learner(opt_func=opt_func).fit(1)
    one_line(e.value, 'Learner: ', says)

@pytest.mark.parametrize('make', [
    lambda v: Cosine(warmup=v), lambda v: Cosine(end=v), lambda v: Linear(end=v), lambda v: Warmup(warmup_start=v), lambda v: StepDecay(1, gamma=v),
    lambda v: StepDecay([v]), lambda v: FlatCos(pct_start=v), lambda v: FlatCos(div_final=v), lambda v: OneCycle(pct_start=v), lambda v: OneCycle(div=v),
    lambda v: OneCycle(div_final=v), lambda v: OneCycle(moms=(.9, v, .9)), lambda v: tiny_learner().lr_find(v), lambda v: tiny_learner().lr_find(end_lr=v),
    lambda v: tiny_learner().lr_find(num_it=v), lambda v: tiny_learner().fine_tune(1, v), lambda v: tiny_learner().fine_tune(1, lr_mult=v),
    lambda v: tiny_learner(Schedule(lambda p: v)).fit(1)])
@pytest.mark.parametrize('value', [nan, 'a', None, -1.], ids=repr)
def test_arguments_of_schedules(make, value):
    with pytest.raises(ValueError) as e: make(value)
    one_line(e.value)

def test_files_are_paths():
    for f in (tiny_learner().save, tiny_learner().load):
        with pytest.raises(TypeError) as e: f(3)
        one_line(e.value, 'file must be a path')
    with pytest.raises(FileNotFoundError, match='there is no'): tiny_learner().load('nowhere')
