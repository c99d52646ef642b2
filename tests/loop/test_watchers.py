"What only watches never ends a run: a closed terminal, a broken pipe, a full disk, another process in the folder."

import csv
import errno
import io
import subprocess
import sys
import warnings

import pytest

from tests.helpers import start
from trickbag.all import *
from trickbag.core.output import display_kind, say, standard_output
from trickbag.monitors import csv_logger
from trickbag.monitors.progress import Bar, Progress, bar
from trickbag.testing.proofs import tiny_learner, weights


@pytest.fixture(autouse=True)
def new_output(monkeypatch):
    monkeypatch.setattr(standard_output, 'gone', None)
    monkeypatch.setattr(standard_output, 'warned', False)


class Broken(io.StringIO):
    "A stream whose writes fail"

    def __init__(self, error, tty=False):
        super().__init__()
        self.error = error
        self.tty = tty
        self.tries = 0

    def isatty(self):
        return self.tty

    def write(self, s):
        self.tries += 1
        raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, 'Broken pipe'),
    OSError(errno.EIO, 'Input/output error'),
    OSError(errno.ENOSPC, 'No space left'),
    ValueError('I/O operation on closed file'),
]


@pytest.mark.parametrize('how', ['plain', 'tty'])
@pytest.mark.parametrize('error', ERRORS, ids=lambda e: type(e).__name__ + str(getattr(e, 'errno', '')))
def test_a_run_outlives_its_output(error, how, monkeypatch):
    want = weights(tiny_learner().fit(2))
    monkeypatch.setattr(sys, 'stdout', Broken(error))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn = tiny_learner([Progress(every=0, how=how)]).fit(2)
        say('a word')
        assert sum(bar(range(3))) == 3
    assert len(learn.history) == 2 and weights(learn).equal(want)
    assert [str(w.message).split(':')[0] for w in told] == ['Progress']


def test_a_full_disk_may_be_emptied_and_a_closed_pipe_stays_closed(monkeypatch):
    for error, again in ((ERRORS[2], True), (ERRORS[0], False)):
        monkeypatch.setattr(standard_output, 'gone', None)
        monkeypatch.setattr(standard_output, 'warned', False)
        out = Broken(error)
        monkeypatch.setattr(sys, 'stdout', out)
        with pytest.warns(UserWarning, match='goes on'):
            say('one')
        say('two')
        assert (out.tries == 2) == again


@pytest.mark.parametrize('code', ['ascii', 'cp1252', 'latin-1'])
def test_letters_that_a_terminal_does_not_know(code, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding=code))
    say('précision → 0.9')
    Bar(10, '学習', how='tty').draw(5)
    standard_output.live_bar = None
    sys.stdout.flush()
    assert raw.getvalue().startswith('précision → 0.9'.encode(code, 'replace'))


def test_odd_outputs(monkeypatch):
    class Tee:
        "What people put in place of stdout: it writes, and no more"

        def __init__(self):
            self.text = ''

        def write(self, s):
            self.text += s

    tee = Tee()
    monkeypatch.setattr(sys, 'stdout', tee)
    assert display_kind() == 'plain'
    tiny_learner([Progress()]).fit(1)
    assert tee.text.startswith('epoch 0')
    monkeypatch.setattr(sys, 'stdout', None)
    assert display_kind() == 'off'
    tiny_learner([Progress()]).fit(1)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, 'stdout', closed)
    assert display_kind() == 'off'


@pytest.mark.parametrize('env', [dict(COLUMNS='0'), dict(COLUMNS='1'), dict(COLUMNS='no'), dict(TERM='dumb')], ids=str)
def test_odd_terminals(env, monkeypatch):
    for k, v in env.items():
        monkeypatch.setenv(k, v)
    tiny_learner([Progress(every=0, how='tty')]).fit(1)


def test_a_front_end_that_is_gone(monkeypatch):
    import IPython.display

    def display(*_, **__):
        raise RuntimeError('the kernel is gone')

    monkeypatch.setattr(IPython.display, 'display', display)
    with pytest.warns(UserWarning, match='the kernel is gone'):
        learn = tiny_learner([Progress(every=0, how='kernel')]).fit(2)
    assert len(learn.history) == 2


def test_no_traceback_at_the_end_of_the_program():
    code = '''
from trickbag.testing.proofs import tiny_learner
from trickbag.monitors.progress import Progress
import sys

l = tiny_learner([Progress(how='plain')])
print('go', flush=True)
sys.stdin.readline()
l.fit(2)
print(len(l.history), file=sys.stderr)
'''
    p = subprocess.Popen(
        [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    p.stdout.readline()
    p.stdout.close()
    p.stdin.write('x\n')
    p.stdin.close()
    err = p.stderr.read()
    assert p.wait() == 0 and err.endswith('2\n') and 'Traceback' not in err and 'Exception ignored' not in err, err


def rows(f):
    with open(f, newline='') as s:
        return list(csv.DictReader(s))


def test_csv_and_a_full_disk(tmp_path, monkeypatch):
    "Epochs 1 and 2 cannot be written; when there is room again all rows are there"
    put = csv_logger._put
    learn = tiny_learner([CSVLogger()], path=tmp_path)

    def full(f, rows):
        if 1 <= learn.epoch <= 2:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return put(f, rows)

    monkeypatch.setattr(csv_logger, '_put', full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.fit(4)
    assert [int(r['epoch']) for r in rows(tmp_path / 'history.csv')] == [0, 1, 2, 3]
    assert len([w for w in told if 'CSVLogger' in str(w.message)]) <= 2 and 'No space' in str(told[0].message)
    assert [p.name for p in tmp_path.iterdir()] == ['history.csv']


def test_csv_where_nothing_can_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    learn = tiny_learner([CSVLogger('file/history.csv')], path=tmp_path)
    with pytest.raises((OSError, ValueError), match='CSVLogger'):
        learn.fit(1)
    assert learn.step == 0  # known before step 1


def test_two_processes_in_one_folder(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    code = f'''
import warnings
from trickbag.all import *
from trickbag.testing.proofs import tiny_learner
warnings.simplefilter('ignore')
tiny_learner([CSVLogger()], path={str(folder)!r}).fit(12)
'''
    outputs = [tmp_path / f'output{i}' for i in range(2)]
    processes = [start(code, output) for output in outputs]
    for process, output in zip(processes, outputs):
        process.join(120)
        assert process.exitcode == 0, output.read_text()
    got = [int(r['epoch']) for r in rows(folder / 'history.csv')]
    assert got == list(range(12)) and [p.name for p in folder.iterdir()] == ['history.csv']


def test_somebody_else_writes_the_file(tmp_path):
    f = tmp_path / 'history.csv'

    class Other(Callback):
        stage = 'stop'

        def after_epoch(self, learn):
            if learn.epoch == 1:
                f.write_text('nonsense\n')

    with pytest.warns(UserWarning, match='something else writes'):
        learn = tiny_learner([CSVLogger(), Other()], path=tmp_path).fit(4)
    assert [float(r['train_loss']) for r in rows(f)] == [r['train_loss'] for r in learn.history]


def test_killed_before_the_first_checkpoint(tmp_path):
    "Started again with the same `resume`, epochs are there once; without it, the rows stay"
    before = tiny_learner([CSVLogger(append=True)], path=tmp_path).fit(1).history
    code = f'''
import os
from trickbag.all import *
from trickbag.testing.proofs import tiny_learner


class Kill(Callback):
    stage = 'stop'

    def after_epoch(self, learn):
        os._exit(7)


tiny_learner([CSVLogger(append=True)], path={str(tmp_path)!r}).fit(2, resume='models/last', cbs=[Kill()])
'''
    # not a fork of this process: autograd's threads, which another test may have started, do not survive one
    output = tmp_path.parent / f'{tmp_path.name}-output'
    process = start(code, output)
    process.join(120)
    assert process.exitcode == 7, output.read_text()
    assert len(rows(tmp_path / 'history.csv')) == 2
    tiny_learner([CSVLogger(append=True)], path=tmp_path).fit(2, resume='models/last')
    assert [int(r['epoch']) for r in rows(tmp_path / 'history.csv')] == [0, 0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ['history.csv']
    assert float(rows(tmp_path / 'history.csv')[0]['train_loss']) == before[0]['train_loss']
