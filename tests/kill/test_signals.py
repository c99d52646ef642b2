"A training process that is asked to end saves, says so by its exit code, and goes on to the bit."

import json
import os
import signal
import time

import pytest
import torch

from tests.helpers import start
from tests.parallel.ranks import on_ranks
from trickbag.all import EMA, Callback, Checkpoint
from trickbag.monitors.preemptible import Preempted, Preemptible
from trickbag.testing.proofs import tiny_learner, weights

SCRIPT = '''
import hashlib, json, os, random, signal, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from trickbag.callback import Callback
from trickbag.monitors.preemptible import Preemptible
from trickbag.monitors.save_best import Checkpoint
from trickbag.testing.proofs import tiny_learner
from trickbag.tricks.mixup import MixUp


class Steps(Callback):
    "Says that the run has begun, and when its last step was over"

    stage = 'report'
    monitor = True

    def __init__(self, pipe, file):
        self.pipe = pipe
        self.file = file

    def before_train(self, learn):
        if self.pipe is not None:
            os.write(self.pipe, b'x')
            self.pipe = None

    def before_batch(self, learn):
        time.sleep(0.003)

    def after_batch(self, learn):
        self.file.write_text(str(time.time()))


def train(folder, pipe):
    cbs = [MixUp(), Checkpoint('1h', keep=2), Preemptible(), Steps(pipe, folder / 'step')]
    learn = tiny_learner(cbs, path=folder).fit(10, resume='models/last')
    sha = hashlib.sha256()
    for t in learn.model.state_dict().values():
        sha.update(t.numpy().tobytes())
    rows = [{k: v for k, v in row.items() if k != 'time'} for row in learn.history]
    (folder / 'end.json').write_text(json.dumps([sha.hexdigest(), rows]))


def begin(folder):
    "A process that trains, when it has begun to, and its id"
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        os.read(read, 1)  # nothing comes of a process that trains no more
        os.close(read)
        return pid
    os.close(read)
    code = 1
    try:
        train(folder, write)
        code = 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


torch.optim.AdamW([torch.zeros(1)]).zero_grad()  # loads what is loaded late, once for all children
root = Path(FOLDER)
random = random.Random(0)
for name in ('whole', 'asked'):
    (root / name).mkdir()
assert os.waitpid(begin(root / 'whole'), 0)[1] == 0
seen = []
for i in range(20):
    pid = begin(root / 'asked')
    time.sleep(random.random() * 0.05)
    name = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1'][i % 4]
    try:
        os.kill(pid, signal.Signals[name])
    except ProcessLookupError:
        pass
    status = os.waitpid(pid, 0)[1]
    if (root / 'asked/end.json').exists():
        break
    last = root / 'asked/models/last.pt'
    late = last.stat().st_mtime - float((root / 'asked/step').read_text())
    position = torch.load(last, weights_only=True)['loop']['position']
    seen.append([name, os.waitstatus_to_exitcode(status), late, position])
while not (root / 'asked/end.json').exists():
    assert os.waitpid(begin(root / 'asked'), 0)[1] == 0
print(json.dumps([seen, (root / 'whole/end.json').read_text() == (root / 'asked/end.json').read_text()]))
'''


def test_signals_at_random_moments(tmp_path):
    output = tmp_path / 'output'
    process = start(f'FOLDER = {str(tmp_path)!r}\n{SCRIPT}', output)
    process.join(240)
    assert process.exitcode == 0, output.read_text()[-3000:]
    seen, is_equal = json.loads(output.read_text().splitlines()[-1])
    print(seen)
    names, codes, late, positions = zip(*seen, strict=True)
    assert {*names} == {'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1'} and len(names) >= 6
    assert {*codes} == {75}
    assert max(late) < 2
    # each of them came further
    assert sorted(positions) == list(positions) and len({tuple(p) for p in positions}) > 4
    assert is_equal


class Signal(Callback):
    "Sends a process a signal in the midst of its eighth step, or none"

    monitor = True

    def __init__(self, rank, name='SIGTERM'):
        self.rank = rank
        self.name_of_signal = name

    def before_step(self, learn):
        if learn.rank == self.rank and (learn.epoch, learn.iter) == (1, 1):
            os.kill(os.getpid(), signal.Signals[self.name_of_signal])


def asked(rank, folder, rank_of_signal, every):
    cbs = [EMA(), Checkpoint(), Preemptible(every=every)]
    learn = tiny_learner(cbs, path=folder)
    try:
        learn.fit(3, cbs=Signal(rank_of_signal), resume='models/last')
    except Preempted as e:
        assert (folder / 'models/last.pt').exists()
        return e.code, learn.position
    return weights(learn)


def undisturbed(rank):
    return weights(tiny_learner([EMA()]).fit(3))


@pytest.mark.parametrize('rank_of_signal, every', [(0, 1), (1, 1), (1, 3)])
def test_all_processes_end_at_the_same_batch(tmp_path, rank_of_signal, every):
    folder = tmp_path / 'run'
    folder.mkdir()
    # of six batches an epoch each process has three
    codes = on_ranks(2, tmp_path, asked, folder, rank_of_signal, every)
    assert codes == [(75, (1, 2 if every == 1 else 3))] * 2
    ends = on_ranks(2, tmp_path, asked, folder, None, every)
    assert all(torch.equal(end, right) for end, right in zip(ends, on_ranks(2, tmp_path, undisturbed), strict=True))


class Twice(Callback):
    def before_step(self, learn):
        os.kill(os.getpid(), signal.SIGINT)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    def __init__(self, seconds):
        self.seconds = seconds


class TwiceInValidation(Twice):
    "Where handlers stand within others, that hold signals back"

    def before_step(self, learn):
        "Not yet"

    def after_pred(self, learn):
        if not learn.training:
            super().before_step(learn)


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr('trickbag.monitors.preemptible._SAME_SIGNAL', 0.1)

    def run(seconds):
        tiny_learner([Checkpoint(), Preemptible(['SIGINT']), Twice(seconds)], path=tmp_path).fit(1)

    def run_in_validation(seconds):
        tiny_learner([Checkpoint(), Preemptible(['SIGINT']), TwiceInValidation(seconds)], path=tmp_path).fit(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_in_validation(0.15)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Preempted):
        run(0.0)
    with pytest.raises(KeyboardInterrupt):
        run(0.15)
    assert signal.getsignal(signal.SIGINT) is before


class Tardy(Callback):
    "A signal after the last moment in which the fit looks for one"

    stage = 'stop'
    monitor = True

    def after_fit(self, learn):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_late_signal_is_answered_in_the_next_fit(tmp_path):
    learn = tiny_learner([Checkpoint(), Preemptible()], path=tmp_path).fit(1, cbs=Tardy())
    assert len(learn.history) == 1
    with pytest.raises(Preempted):
        learn.fit(1)
    assert learn.position == (0, 1)
    # and that was all
    learn.fit(1)


def test_nothing_saved_is_no_75(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('trickbag.monitors.save_best.write_checkpoint', full)
    learn = tiny_learner([Checkpoint('1h'), Preemptible(), Signal(0)], path=tmp_path)
    with pytest.warns(UserWarning, match='No space left'), pytest.raises(RuntimeError, match='could not be saved'):
        learn.fit(3)


def test_ignored_signals_stay_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tiny_learner([Checkpoint(), Preemptible(), Signal(0, 'SIGHUP')], path=tmp_path).fit(2)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class OwnAnswer(Callback):
    "Somebody answers a signal in a way of their own from the first batch on"

    def before_batch(self, learn):
        signal.signal(signal.SIGUSR1, own_answer)


def own_answer(number, frame):
    pass


def test_an_answer_that_came_later_stays(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    try:
        tiny_learner([Checkpoint(), Preemptible(), OwnAnswer()], path=tmp_path).fit(1)
        assert signal.getsignal(signal.SIGUSR1) is own_answer
    finally:
        signal.signal(signal.SIGUSR1, before)


class Forked(Callback):
    "Ends a child of this process, such as one that loads images, by a signal"

    def before_step(self, learn):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            # whoever only notes it comes here
            os._exit(0)
        self.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_is_ended_by_its_signal(tmp_path):
    forked = Forked()
    tiny_learner([Checkpoint(), Preemptible(), forked], path=tmp_path).fit(1)
    assert forked.status == -signal.SIGTERM
