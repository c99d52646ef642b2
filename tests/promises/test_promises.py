"The promises, for every trick there is: any order, no trace, resumed to the bit, no pickle; and eight of them at once."

import random
from functools import partial

import pytest
import torch

from tests.helpers import TRIALS
from trickbag.all import *
from trickbag.callback import EVENTS
from trickbag.core.threads import preserve_rng
from trickbag.loop.optimizer import opt_state
from trickbag.monitors.log import Log, TensorBoard
from trickbag.testing.proofs import found, prove_order, prove_resume, prove_undone, tiny_learner, weights

# Tricks that a tiny model bears, with dropout and torch's own loader; those of the whole bag are in test_each_trick.py
TRICKS = {
    n: TRIALS[n].make
    for n in (
        'MixUp',
        'CutMix',
        'MixOrCut',
        'LabelSmoothing',
        'RandomErasing',
        'EMA',
        'GradientAccumulation',
        'GradientClip',
        'MixedPrecision',
        'ChannelsLast',
        'NoBiasDecay',
        'OneCycle',
        'Cosine',
        'FlatCos',
        'StepDecay',
        'ProgressiveResize',
        'Flip',
        'EarlyStopping',
        'RollBack',
        'TerminateOnNaN',
    )
}


def blocks():
    with preserve_rng():
        torch.manual_seed(0)
        return XResNet(1, [1, 1], 4, stem='small', widen=0.125, drop_path=0.2)


def test_zero_gamma_resumes_on_residual_blocks():
    prove_resume(lambda: [ZeroGamma(), EMA()], model=blocks)


def test_zero_gamma_is_undone_on_residual_blocks():
    prove_undone(lambda: [ZeroGamma()], model=blocks)


WRITERS = dict(
    CSVLogger=lambda folder: CSVLogger(folder / 'h.csv'),
    SaveBest=lambda folder: SaveBest(file=folder / 'best'),
    Checkpoint=lambda folder: Checkpoint(every_batches=2, file=folder / 'last'),
    Log=lambda folder: Log(TensorBoard(folder / 'runs'), every=2),
)


@pytest.mark.parametrize('name', WRITERS)
def test_resume_with_a_monitor_that_writes(name, tmp_path):
    prove_resume(lambda: [EMA(), WRITERS[name](tmp_path)])


@pytest.mark.parametrize('name', WRITERS)
def test_undone_with_a_monitor_that_writes(name, tmp_path):
    prove_undone(lambda: [WRITERS[name](tmp_path)])


@pytest.mark.parametrize('name', TRICKS)
def test_resume(name):
    prove_resume(lambda: [TRICKS[name]()])


@pytest.mark.parametrize('name', TRICKS)
def test_undone(name):
    prove_undone(lambda: [TRICKS[name]()])


EIGHT = [
    'MixUp',
    'LabelSmoothing',
    'RandomErasing',
    'EMA',
    'GradientAccumulation',
    'GradientClip',
    'NoBiasDecay',
    'OneCycle',
]


def eight():
    return [TRICKS[n]() for n in EIGHT]


def test_eight_callbacks_in_any_order():
    prove_order(eight, n=20)


def test_eight_callbacks_resume():
    prove_resume(eight)


def test_eight_callbacks_leave_no_trace():
    prove_undone(eight)


def test_eight_callbacks_each_do_something():
    "An order test proves nothing about a callback that does nothing"
    whole = weights(tiny_learner(eight()).fit(1))
    for i, n in enumerate(EIGHT):
        cbs = eight()
        del cbs[i]
        assert not torch.equal(whole, weights(tiny_learner(cbs).fit(1))), n


@pytest.mark.parametrize(
    'opt',
    [
        torch.optim.SGD,
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        torch.optim.RMSprop,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.Adagrad,
        adamw,
    ],
    ids=lambda o: getattr(o, '__name__', 'nesterov'),
)
def test_resume_with_any_optimizer(opt):
    prove_resume(lambda: [EMA()], opt_func=opt)


def test_a_callback_that_draws_nothing_disturbs_nothing():
    class Quiet(Callback):
        def before_batch(self, learn):
            pass

    assert torch.equal(weights(tiny_learner([MixUp()]).fit(2)), weights(tiny_learner([MixUp(), Quiet()]).fit(2)))


def test_two_callbacks_never_share_a_stream():
    seen = {}

    class A(Callback):
        def before_batch(self, learn):
            seen.setdefault(self.name, []).append(torch.rand(4, generator=learn.rng(self)))

    class B(A):
        pass

    tiny_learner([A(), B()]).fit(2)
    draws = torch.stack(seen['A'] + seen['B'])
    assert len(draws.unique(dim=0)) == len(draws)


def test_the_global_random_state_has_no_say():
    ws = []
    for s in (0, 1):
        torch.manual_seed(s)
        random.seed(s)
        ws.append(weights(tiny_learner([MixUp()]).fit(1)))
    assert torch.equal(*ws)
    assert not torch.equal(ws[0], weights(tiny_learner([MixUp()], seed=1).fit(1)))


@pytest.mark.parametrize('event', EVENTS)
def test_an_error_in_any_event_of_any_callback(event):
    "Eight tricks at once; the bomb raises before or after them"
    prove_undone(eight, events=[event])


def test_keyboard_interrupt_leaves_no_trace(tmp_path):
    class Stop(Callback):
        stage = 'mix'

        def after_backward(self, learn):
            if learn.iter == 2:
                raise KeyboardInterrupt

    learn = tiny_learner([*eight(), ChannelsLast(), MixedPrecision()])
    was = found(learn)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, cbs=Stop())
    assert found(learn) == was
    r = learn.validate()
    assert found(learn) == was and learn.validate() == r
    learn.fit(1)
    assert found(learn) == was


def test_looking_leaves_no_trace(tmp_path):
    """validate, get_preds, predict, tta, explain, summary, show_batch, lr_find: weights, optimizer, logs and random
    state as found"""
    learn = tiny_learner([*eight(), CSVLogger(tmp_path / 'h.csv'), SaveBest(file=tmp_path / 'best')], metrics=accuracy)
    learn.fit(2)

    def all_of():
        return (
            found(learn),
            weights(learn).tolist(),
            str(opt_state(learn.opt, learn.model)),
            str(learn.history),
            learn.step,
            learn.epochs_run,
            sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()),
            learn.cb(Recorder).losses,
        )

    x = next(iter(learn.dls.valid))[0][0]
    was = all_of()
    for f in (
        learn.validate,
        learn.get_preds,
        lambda: learn.predict(x),
        learn.tta,
        learn.explain,
        learn.summary,
        learn.show_batch,
        lambda: learn.lr_find(num_it=20, show_plot=False),
    ):
        f()
        assert all_of() == was, f


def test_what_is_saved_holds_no_pickled_objects(tmp_path):
    learn = tiny_learner(eight())

    class Save(Callback):
        stage = 'report'
        monitor = True

        def after_batch(self, learn):
            if learn.training and learn.iter == 2:
                learn.save(tmp_path / 'mid')

    learn.fit(1, cbs=Save())
    learn.save(tmp_path / 'end')
    for f in ('mid.pt', 'end.pt'):
        d = torch.load(tmp_path / f, weights_only=True)
        assert set(d) == {
            'trickbag',
            'made_with',
            'digest',
            'model',
            'opt',
            'cbs',
            'loop',
            'history',
            'vocab',
            'fit',
            'fits',
        }
    assert {'EMA', 'GradientAccumulation'} <= set(torch.load(tmp_path / 'mid.pt', weights_only=True)['cbs'])


@pytest.mark.parametrize('name', TRICKS)
def test_state_dict_round_trip(name, tmp_path):
    "A callback's state can be saved, read without pickle, and put back, without a learner"
    cb = TRICKS[name]()

    class Look(Callback):
        stage = 'stop'
        monitor = True

        def after_batch(self, learn):
            if learn.training and learn.iter == 3:
                torch.save(cb.state_dict(), tmp_path / 's.pt')

    tiny_learner([cb]).fit(1, cbs=Look())
    new = TRICKS[name]()
    read = torch.load(tmp_path / 's.pt', weights_only=True)
    assert set(read) == set(new.state_dict())
    new.load_state_dict(read)
    assert str(new.state_dict()) == str(read)
