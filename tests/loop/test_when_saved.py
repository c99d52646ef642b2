"When `Checkpoint` saves: by epochs, steps and the clock, the best apart, and in the right fit of several."

import pytest
import torch

from tests.helpers import one_line, small_learner
from tests.parallel.ranks import on_ranks
from trickbag.all import (
    EMA,
    Callback,
    CancelStep,
    Checkpoint,
    GradientAccumulation,
    MixedPrecision,
    ProgressiveResize,
    accuracy,
)
from trickbag.monitors import save_best
from trickbag.testing.proofs import StopAt, tiny_learner, weights


class Noted(Callback):
    "Where the run was when a checkpoint was written"

    stage = 'stop'
    monitor = True

    def __init__(self, cb):
        self.cb = cb
        self.places = []

    def note(self, learn):
        if self.cb._saved_at == learn.position and learn.position not in self.places:
            self.places.append(learn.position)

    after_batch = note
    after_epoch = note


def places(cb, *cbs, n_epoch=3, **kw):
    noted = Noted(cb)
    tiny_learner([cb, noted, *cbs], **kw).fit(n_epoch)
    return noted.places


class Skips(Callback):
    "A loss scale that is too high leaves out the third step"

    def before_step(self, learn):
        if (learn.epoch, learn.iter) == (0, 2):
            raise CancelStep


# six batches an epoch
@pytest.mark.parametrize(
    'every, cbs, expected',
    [
        (2, [], [(2, 0), (3, 0)]),
        ('2ep', [], [(2, 0), (3, 0)]),
        ('4st', [], [(0, 4), (1, 2), (2, 0), (2, 4), (3, 0)]),
        ('7 st', [], [(1, 1), (2, 2), (3, 0)]),
        ('4st', [Skips()], [(0, 5), (1, 3), (2, 1), (2, 5), (3, 0)]),
        ('4st', [GradientAccumulation(2)], [(1, 2), (2, 4), (3, 0)]),
        ('1h', [], [(3, 0)]),
    ],
)
def test_places(tmp_path, every, cbs, expected):
    # the step of the last batch of an epoch is saved before the epoch is over
    found = [
        (epoch + 1, 0) if batch == 6 else (epoch, batch)
        for epoch, batch in places(Checkpoint(every), *cbs, path=tmp_path)
    ]
    assert list(dict.fromkeys(found)) == expected


def test_steps_are_multiples_wherever_a_run_goes_on(tmp_path):
    cb = Checkpoint('4st', keep=9)
    tiny_learner([cb], path=tmp_path).fit(3)
    again = Checkpoint('4st', file='again')
    noted = Noted(again)
    tiny_learner([again, noted], path=tmp_path).fit(3, resume='models/last-4')  # of (0, 4)
    assert noted.places == [(1, 2), (1, 6), (2, 4), (3, 0)]


class Clock:
    "Each batch takes so many seconds"

    def __init__(self, seconds):
        self.now = 0.0
        self.seconds = seconds

    def __call__(self):
        return self.now


class Takes(Callback):
    def __init__(self, clock):
        self.clock = clock

    def before_batch(self, learn):
        self.clock.now += self.clock.seconds * learn.training


def timed_places(rank, folder, every, seconds_of_rank):
    clock = Clock(seconds_of_rank[rank])
    was = save_best.monotonic
    save_best.monotonic = clock
    try:
        return places(Checkpoint(every), Takes(clock), n_epoch=4, path=folder)
    finally:
        save_best.monotonic = was


def test_minutes(tmp_path):
    # 24 batches of 20 s; a batch is longer than a twentieth of a minute, so the clock is looked at after each
    assert timed_places(0, tmp_path, '1min', [20]) == [
        (0, 3),
        (0, 6),
        (1, 3),
        (1, 6),
        (2, 3),
        (2, 6),
        (3, 3),
        (3, 6),
        (4, 0),
    ]
    # 480 s in all
    assert timed_places(0, tmp_path, '5min', [20]) == [(2, 3), (4, 0)]
    assert timed_places(0, tmp_path, '90s', [20])[:2] == [(0, 5), (1, 4)]


def test_the_clock_is_looked_at_in_time():
    clock = Clock(1.0)
    was = save_best.monotonic
    save_best.monotonic = clock
    try:
        due = save_best._Clock(600.0)
        over = []
        for batch in range(1, 2000):
            clock.now += 1.0
            if due.is_over():
                over.append(batch)
    finally:
        save_best.monotonic = was
    gaps = [b - a for a, b in zip([0, *over], over)]
    assert len(gaps) == 3 and all(600 <= gap <= 630 for gap in gaps)


def test_the_first_process_has_the_clock(tmp_path):
    first, second = on_ranks(2, tmp_path, timed_places, tmp_path, '1min', [20, 1000])
    # each has half of the batches
    assert first == second == [(0, 3), (1, 3), (2, 3), (3, 3), (4, 0)]


class Script(Callback):
    "Validation gives these numbers"

    monitor = True  # so that nan, which is not nan, makes no other fit of it

    def __init__(self, *values):
        self.values = values

    def after_validate(self, learn):
        learn.results['accuracy'] = self.values[learn.epoch]


def at(file):
    return tuple(torch.load(file, weights_only=True)['loop']['position'])


@pytest.mark.parametrize(
    'values, epoch', [((0.1, 0.5, 0.3), 1), ((0.5, 0.5, 0.2), 0), ((0.1, 0.2, 0.3), 2), ((float('nan'), 0.2, 0.1), 1)]
)
def test_the_best_is_kept(tmp_path, values, epoch):
    cbs = [Script(*values), Checkpoint(best='accuracy'), EMA()]
    whole = tiny_learner(cbs, metrics=accuracy, path=tmp_path).fit(3)
    assert at(tmp_path / 'models/last-best.pt') == (epoch + 1, 0)
    assert at(tmp_path / 'models/last.pt') == (3, 0)
    again = tiny_learner([Script(*values), EMA()], metrics=accuracy, path=tmp_path).fit(3, resume='models/last-best')
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize('stop', [(0, 3), (1, 2), (2, 1)])
def test_the_best_of_a_run_that_goes_on(tmp_path, stop):
    def learner(*cbs):
        cbs = [Script(0.5, 0.2, 0.4), Checkpoint('2st', best='accuracy'), *cbs]
        return tiny_learner(cbs, metrics=accuracy, path=tmp_path)

    learner(StopAt(stop, tmp_path / 'stop.pt')).fit(3)
    learner().fit(3, resume='stop')
    assert at(tmp_path / 'models/last-best.pt') == (1, 0)


def test_every_fit_has_its_best(tmp_path):
    learn = tiny_learner([Checkpoint(best='accuracy')], metrics=accuracy, path=tmp_path)
    learn.fit(2, cbs=Script(0.1, 0.9))
    learn.fit(3, cbs=Script(0.5, 0.2, 0.4))
    assert at(tmp_path / 'models/last-best.pt') == (1, 0)


def test_refusals(tmp_path):
    for every in ('10', 'min', '0st', '1.5ep', '-1ep', '5 days', -1, ''):
        if every:
            one_line(lambda every=every: Checkpoint(every), 'every is', '10min')
        else:
            one_line(lambda: Checkpoint(''), 'never save')
    learn = tiny_learner([Checkpoint(best='f1')], metrics=accuracy, path=tmp_path)
    one_line(lambda: learn.fit(1), "Checkpoint: nothing called 'f1'", 'valid_loss, accuracy')


class Killed(BaseException):
    pass


class KillAt(Callback):
    "Dies after so many batches of training"

    stage = 'stop'
    monitor = True

    def __init__(self, n):
        self.left = n

    def after_batch(self, learn):
        self.left -= learn.training
        if not self.left:
            raise Killed


def several_fits(path, *cbs):
    "fine_tune is two fits, of which each grows its images, fix_res is one more"
    torch.manual_seed(0)
    learn = small_learner(EMA(), Checkpoint('3st', keep=2), ProgressiveResize(sizes=[8], start=0.3), *cbs)
    learn.path = path
    learn.fine_tune(2, 0.01, resume='models/last')
    learn.fix_res(16, 2, resume='models/last')
    return learn


def test_a_script_of_several_fits_goes_on_in_the_right_one(tmp_path):
    whole = several_fits(tmp_path / 'whole')
    rows = [{k: v for k, v in row.items() if k != 'time'} for row in whole.history]
    # 3, 6 and 6 batches: killed in each of the fits, in the last one twice
    for n in (5, 4, 6, 1):
        with pytest.raises(Killed):
            several_fits(tmp_path / 'killed', KillAt(n))
    again = several_fits(tmp_path / 'killed')
    assert torch.equal(weights(again), weights(whole))
    assert [{k: v for k, v in row.items() if k != 'time'} for row in again.history] == rows
    assert len(rows) == 5 and again.step == whole.step


def overflowing(*cbs):
    return small_learner(MixedPrecision('fp16', init_scale=2.0**40), *cbs, lr=1e-6)


def test_steps_that_overflow_are_counted(tmp_path):
    whole = overflowing().fit(3)
    counts = [row['overflows'] for row in whole.history]
    # three batches an epoch; a batch without a step was an overflow
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 9 - whole.step
    overflowing(StopAt((1, 1), tmp_path / 'stop.pt')).fit(3)
    again = overflowing().fit(3, resume=tmp_path / 'stop.pt')
    assert [row['overflows'] for row in again.history] == counts
    assert 'overflows' not in small_learner(MixedPrecision('bf16')).fit(1).history[0]
    assert 'overflows' not in overflowing().validate()
