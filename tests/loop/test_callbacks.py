"""What a callback is, is declared: a subclass is what it inherits from, another class of the same name is not."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import trickbag
from trickbag import all as tb
from trickbag.all import *
from trickbag.callback import Callback
from trickbag.loop.defaults import ToDevice
from trickbag.testing.pairs import BAG, bag_opt, small_data, small_model
from trickbag.testing.proofs import tiny_learner, weights


def derived(cb):
    "The same callback, of a subclass with another name"
    cb.__class__ = type(f'My{type(cb).__name__}', (type(cb),), {'__module__': 'users'})
    return cb


def pair(*cbs, loss=None):
    return tiny_learner(list(cbs), small_data(), small_model(), loss_func=loss and loss(), opt_func=bag_opt)


def message(*cbs, **kw):
    learn = pair(*cbs, **kw)
    with pytest.raises(ValueError) as e:
        learn.fit(1)
    assert learn.step == 0
    return str(e.value).replace('My', '')


@pytest.mark.parametrize(
    'a,b',
    [
        ('MixUp', 'CutMix'),
        ('FixRes', 'StochasticDepth'),
        ('FixRes', 'DropBlock'),
        ('FixRes', 'MixUp'),
        ('SelectiveBackprop', 'GradientAccumulation'),
        ('FixRes', 'ProgressiveResize'),
        ('AGC', 'GradientClip'),
    ],
)
def test_a_subclass_is_refused_as_its_parent_is(a, b):
    make_a = BAG[a].make
    make_b = BAG[b].make
    plain = message(make_a(), make_b())
    assert (
        plain
        == message(derived(make_a()), make_b())
        == message(make_a(), derived(make_b()))
        == message(derived(make_a()), derived(make_b()))
    )


@pytest.mark.parametrize(
    'a,b,loss',
    [
        ('RepeatedAugmentation', 'AlternatingFlip', None),
        ('BinaryTargets', 'LabelSmoothing', nn.BCEWithLogitsLoss),
        ('Im2Col', 'Compile', None),
    ],
)
def test_a_subclass_is_warned_of_as_its_parent_is(a, b, loss):
    learn = pair(derived(BAG[a].make()), derived(BAG[b].make()), loss=loss)
    with pytest.warns(UserWarning, match=f'cbs: My{a} and My{b}: '):
        learn.explain(), learn.fit(0)


def test_another_class_of_the_same_name_is_something_else():
    "Named as tricks are, they do nothing: the rules, TTA and PCALighting must not take them for these"
    same_names = [
        type(n, (Callback,), {'__module__': 'users'})()
        for n in ('EMA', 'SAM', 'MixedPrecision', 'FixRes', 'StochasticDepth', 'SaveBest')
    ]
    learn = tiny_learner([*same_names, tb.MixUp()]).fit(1)
    assert torch.equal(weights(learn), weights(tiny_learner(tb.MixUp()).fit(1)))
    crop = type('Crop', (Callback,), {'__module__': 'users', 'stage': 'crop'})()
    plain = tiny_learner()
    assert torch.equal(plain.tta()[0], tiny_learner(crop).tta()[0])


def images(crop):
    data = small_data()
    data.cbs[0] = crop
    return data


@pytest.mark.parametrize(
    'trick',
    [lambda: tb.ProgressiveResize(0.5, step=2), lambda: tb.FixRes(16), lambda: tb.Flip()],
    ids=['ProgressiveResize', 'FixRes', 'Flip'],
)
def test_a_crop_of_your_own_is_a_crop(trick):
    "Boxes are drawn and sizes asked for as with Crop; only its random stream is its own, so both get one name"

    class MyCrop(tb.Crop):
        name = 'Crop'

    ends = []
    for crop in (tb.Crop(12), MyCrop(12)):
        learn = tiny_learner(trick(), images(crop), small_model(), opt_func=bag_opt).fit(2)
        ends.append((weights(learn), learn.tta()[0]))
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


def test_a_crop_of_your_own_gives_tta_its_views():
    class MyCrop(tb.Crop):
        pass

    asked = []

    class Sees(MyCrop):
        def before_batch(self, learn):
            asked.append(learn.crop_settings.get('size'))
            super().before_batch(learn)

    plain = tiny_learner((), images(tb.Crop(12)), small_model()).tta()[0]
    mine = tiny_learner((), images(Sees(12)), small_model()).tta()[0]
    assert torch.equal(plain, mine) and set(asked) == {round(12 / 0.875)}


def test_subclasses_run_where_their_parents_would():
    "Normalize comes before PCALighting, whatever a subclass is called"

    class ZNormalize(tb.Normalize):
        pass

    class ALighting(tb.PCALighting):
        name = 'PCALighting'  # the same stream

    ends = []
    for norm, light in ((tb.Normalize(), tb.PCALighting()), (ZNormalize(), ALighting())):
        data = small_data()
        data.cbs[1] = norm
        ends.append(weights(tiny_learner(light, data, small_model(), opt_func=bag_opt).fit(1)))
    assert torch.equal(*ends)


def test_a_subclass_takes_the_place_of_a_default():
    class MyRecorder(tb.Recorder):
        pass

    class MyToDevice(ToDevice):
        pass

    class MyNormalize(tb.Normalize):
        pass

    learn = tiny_learner([MyRecorder(), MyToDevice(), MyNormalize()], small_data(), small_model()).fit(2)
    assert len(learn.history) == 2
    with learn.composed():
        names = [cb.name for cb in learn.active]
    assert {'MyRecorder', 'MyToDevice', 'MyNormalize'} <= {*names} and not {'Recorder', 'ToDevice', 'Normalize'} & {
        *names
    }
    assert learn.cb('Recorder') is learn.cb(tb.Recorder) is learn.cb('MyRecorder')
    assert tiny_learner([MyRecorder(), tb.EarlyStopping('train_loss')]).fit(1).history


def test_unrelated_callbacks_that_derive_from_one_another_stay():
    class Base(Callback):
        def __init__(self):
            self.n = 0

        def after_step(self, learn):
            self.n += 1

    class Derived(Base):
        pass

    base = Base()
    more = Derived()
    tiny_learner(base).fit(1, cbs=more)
    assert base.n == more.n == 6
    learn = tiny_learner(tb.Schedule(tb.sched_lin(1.0, 0.0), 'weight_decay'), opt_func=bag_opt)
    learn.fit_one_cycle(1)  # a Schedule too, of other things
    assert learn.opt is not None


# What is given both to the learner and to a call


def test_tta_of_a_learner_with_tta():
    for own in (tb.TTA(crops=1), derived(tb.TTA(crops=1))):
        learn = tiny_learner(own, small_data(), small_model())
        plain = tiny_learner((), small_data(), small_model())
        assert torch.equal(learn.tta()[0], plain.tta()[0])
        assert learn.validate(cbs=[tb.TTA()]) == plain.validate(cbs=[tb.TTA()])
        assert learn.validate() == plain.validate(cbs=[tb.TTA(crops=1)]) != plain.validate()
        assert str(learn.summary()).split('batch')[0] == str(plain.summary()).split('batch')[0]
        assert learn.cbs == [own]


def test_a_call_takes_the_place_of_the_learners():
    ends = [weights(tiny_learner(cbs).fit(1, cbs=tb.MixUp(0.2))) for cbs in ((), tb.MixUp(0.4))]
    assert torch.equal(*ends)


def test_two_in_one_list_are_refused():
    for cbs in ([tb.TTA(), tb.TTA()], [tb.TTA(), derived(tb.TTA())]):
        with pytest.raises(ValueError, match='TTA'):
            tiny_learner((), small_data(), small_model()).validate(cbs=cbs)
    with pytest.raises(ValueError, match="MixUp and MyMixUp both own 'mix'"):
        tiny_learner([tb.MixUp(), derived(tb.MixUp())]).fit(1)
    with pytest.raises(ValueError, match="MyMixUp and CutMix|CutMix and MyMixUp"):
        tiny_learner(tb.CutMix()).fit(1, cbs=derived(tb.MixUp()))


def test_no_callback_is_known_by_its_name():
    "In the package no name of a callback is compared with a text"
    names = '|'.join(n for n in tb.__all__ if isinstance(getattr(tb, n), type) and issubclass(getattr(tb, n), Callback))
    compared = re.compile(
        r"""\.name\s*(==|!=|in|not\s+in)\s*[(\[]?['"][A-Z]"""
        rf"""|(==|!=)\s*['"]({names})['"]|['"]({names})['"]\s+(in|not\s+in)\b"""
    )
    found = [
        f'{f.name}:{i}: {line.strip()}'
        for f in Path(trickbag.__file__).parent.rglob('*.py')
        if f.name != '_modidx.py'
        for i, line in enumerate(f.read_text().splitlines(), 1)
        if compared.search(line)
    ]
    assert not found, found


def test_private_helpers_may_look_like_events():
    class C(Callback):
        def _after_step(self):
            pass


def test_callbacks_of_one_stage_run_by_name_however_they_are_listed():
    class A(Callback):
        def before_fit(self, learn):
            ran.append(self.name)

    class B(A):
        pass

    for cbs in ([A(), B()], [B(), A()]):
        ran = []
        tiny_learner(cbs).fit(0)
        assert ran == ['A', 'B']


@pytest.mark.parametrize('name', ['reads', 'writes', 'owns', 'does', 'traced', 'state'])
def test_a_text_where_names_are_listed_is_refused(name):
    with pytest.raises(TypeError, match=f'Wrong.{name} is a text'):
        type('Wrong', (Callback,), {name: 'weights'})
