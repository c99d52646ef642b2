"""A signal at any moment leaves nothing behind: set-ups and clean-ups are held together, and the script that sends
thousands of them finds nothing."""

import contextlib
import os
import random
import signal
import threading
import time

import pytest
import torch

from tests.bench import interrupts as bench
from trickbag.all import *
from trickbag.core import interrupts
from trickbag.core.basics import preserve_attrs, preserve_modes
from trickbag.core.interrupts import interrupts_held, interrupts_released, preserve_torch_state, uninterrupted
from trickbag.core.threads import one_thread, preserve_rng
from trickbag.testing.proofs import Bomb, process_state, tiny_learner, weights


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_held_signals_come_at_the_end_and_handlers_are_as_before():
    before = process_state()['handlers']
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            ctrl_c()
            ctrl_c()  # a second one breaks nothing
            seen.append('set up')
    assert seen == ['set up'] and process_state()['handlers'] == before


def test_released_inside_held():
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            ctrl_c()
            try:
                with interrupts_released():
                    seen.append('not reached')
            finally:
                ctrl_c()
                seen.append('cleaned')
    assert seen == ['cleaned']


def test_every_handler_of_python_is_held_and_each_is_called(monkeypatch):
    seen = []
    was = [signal.signal(s, lambda s, frame: seen.append(s)) for s in (signal.SIGUSR1, signal.SIGTERM)]
    try:
        with interrupts_held():
            for s in (signal.SIGUSR1, signal.SIGTERM):
                signal.raise_signal(s)
            assert seen == []
        assert sorted(seen) == sorted([signal.SIGUSR1, signal.SIGTERM])
    finally:
        for s, h in zip((signal.SIGUSR1, signal.SIGTERM), was):
            signal.signal(s, h)


def test_who_insists_gets_through(monkeypatch):
    monkeypatch.setattr(interrupts, 'PATIENCE', 0.01)
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            ctrl_c()
            time.sleep(0.02)
            ctrl_c()
            raise AssertionError('the second one was held, too')


def test_a_handler_that_was_put_in_meanwhile_stays():
    mine = lambda *_: None
    was = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        signal.signal(signal.SIGINT, mine)
    assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, was)


def test_threads_and_children_are_not_concerned():
    got = []

    def f():
        with interrupts_held():
            got.append(interrupts._state.on)

    t = threading.Thread(target=f)
    t.start()
    t.join()
    assert got == [True] and not interrupts._state.on
    with interrupts_held():
        if not (pid := os.fork()):
            os._exit(interrupts._state.on)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    'context',
    [
        preserve_rng,
        one_thread,
        preserve_torch_state,
        lambda: preserve_modes(torch.nn.Linear(1, 1)),
        lambda: preserve_attrs(threading.local()),
        lambda: tiny_learner().composed(),
    ],
)
def test_context_managers_hold(context):
    before = process_state()
    cm = context()
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            ctrl_c()
            with cm:
                assert interrupts._state.on  # as it was found
    assert process_state() == before


def random_moments(work, n, secs, mistake):
    "How often something is left after a signal at a random moment"
    bad = 0
    rand = random.Random(0)

    def alarm(*_):
        raise KeyboardInterrupt

    was = signal.signal(signal.SIGALRM, alarm)
    try:
        for _ in range(n):
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rand.uniform(5e-6, secs))
                    while True:
                        work()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            bad += mistake() or signal.getsignal(signal.SIGALRM) is not alarm
    finally:
        signal.signal(signal.SIGALRM, was)
    return bad


def test_no_instruction_is_left_out():
    "Context managers around next to no work: most signals fall into what comes before and after it"
    here = set()

    @uninterrupted
    def entry(name):
        here.add(name)
        try:
            yield
        finally:
            here.remove(name)

    def work():
        with entry('a'), entry('b'):
            pass
        with interrupts_held(), entry('c'):
            with interrupts_released(), entry('d'):
                pass

    assert random_moments(work, 2000, 2e-4, lambda: bool(here) or interrupts._state.on or bool(interrupts._came)) == 0


def test_torch_s_own_context_managers_are_not_safe():
    "So the test above can fail, and this is what `preserve_torch_state` is for"

    def work():
        with torch.no_grad():
            pass

    def left():
        off = not torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        return off

    def kept():
        with interrupts_held(), preserve_torch_state(), interrupts_released():
            while True:
                work()

    assert any(random_moments(work, 200, 2e-4, left) for _ in range(50))
    assert random_moments(kept, 1000, 3e-4, left) == 0


CHEAP = ['fit, surgery', 'fit, averages', 'validate', 'explain', 'lr_find', 'tta']


@pytest.mark.parametrize('call', CHEAP)
def test_signals_at_random_moments(call):
    res = bench.try_call(call, 20, seed=1)
    assert not res['left'] and res['interrupted'], res


def test_the_script_finds_the_fault(monkeypatch):
    monkeypatch.setattr(interrupts, '_install', lambda mine: None)

    class Slow(BlurPool):
        "Half way through its surgery for a moment that a signal will not miss"

        def before_fit(self, learn):
            hook = learn.model.register_forward_hook(lambda *_: None)
            time.sleep(0.05)
            self._undo = hook.remove

        before_validate = before_fit

    monkeypatch.setattr(bench, 'CALLS', [('fit', lambda: [Slow(min_channels=8)], lambda learn: learn.fit(1), True)])
    assert bench.try_call('fit', 12)['left']


def test_an_error_in_a_cleanup_does_not_hide_the_true_one():
    class Careless(Callback):
        def cleanup_fit(self, learn):
            raise KeyError('lost')

        cleanup_validate = cleanup_fit

    learn = tiny_learner([Careless()])
    with pytest.raises(ZeroDivisionError) as e:
        learn.fit(1, cbs=[Bomb('after_loss')])
    assert any('Careless.cleanup' in n and 'KeyError' in n for n in e.value.__notes__)
    with pytest.raises(KeyError):
        learn.fit(1)  # by itself it comes out
    assert not learn.fitting


def test_sam_goes_down_again():
    "Interrupted between the ascent and the step, the weights are those before the ascent"

    class Stop(Callback):
        stage = 'stop'

        def after_loss(self, learn):
            if learn.cb(SAM).ascended:
                ctrl_c()

    learn = tiny_learner([SAM(0.5)])
    was = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=[Stop()])
    assert all(torch.equal(p, was[n]) for n, p in learn.model.named_parameters())


def test_a_signal_in_the_cleanup_comes_after_it():
    class Late(Callback):
        def cleanup_fit(self, learn):
            ctrl_c()

    learn = tiny_learner([Late(), EMA()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert not learn.fitting and learn.cb(EMA).avg == {} and len(learn.history) == 1
    assert weights(learn).isfinite().all()


@pytest.mark.parametrize('call', [c[0] for c in bench.CALLS if not c[3]])
def test_what_only_looks_leaves_nothing_after_a_fit(call):
    "Without a signal, first of all: model, optimizer, callbacks and process are as they were"
    _, cbs, call, _ = next(c for c in bench.CALLS if c[0] == call)
    learn = tiny_learner(cbs(), bench.small_data(), bench.small_model(), opt_func=bench.bag_opt).fit(1)
    call(learn)
    was = bench.everything(learn)
    call(learn)
    now = bench.everything(learn)
    assert not [k for k in was if was[k] != now[k]]


def test_a_fit_with_parameters_of_a_callback_can_be_saved_afterwards(tmp_path):
    learn = tiny_learner([SqueezeExcite(8, 4)], bench.small_data(), bench.small_model(), opt_func=bench.bag_opt).fit(1)
    learn.opt.state_dict()  # torch's own: KeyError where a parameter with state is in no group
    learn.save(tmp_path / 'x')
    assert learn.load(tmp_path / 'x').fit(1).history


def test_a_grad_mode_that_was_left_on_or_off_is_put_back():
    with preserve_torch_state():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
