"What Progress shows in a real kernel, a terminal, IPython in a terminal, and a pipe."

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import traceback

import nbformat
from nbclient import NotebookClient

from tests.helpers import processes

COLS = 90
LEARNER = '''
import os, sys, time, torch

torch.set_num_threads(1)
from trickbag import Learner
from trickbag.callback import Callback
from trickbag.loop.metrics import accuracy
from trickbag.core.output import say
from trickbag.monitors.progress import bar
from trickbag.testing.proofs import tiny_model


class Slow:
    "Batches, one every `secs`"

    def __init__(self, n, secs=0.02):
        self.n, self.secs = n, secs

    def __len__(self):
        return self.n

    def __iter__(self):
        for i in range(self.n):
            time.sleep(self.secs)
            yield (
                torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)),
                torch.tensor([0, 1, 2, 3]),
            )


class Fail(Callback):
    def before_batch(self, learn):
        if learn.epoch == 1 and learn.iter == 20:
            raise ValueError('bad batch')


class Data:
    train, valid = Slow(25), Slow(10)


def learner(**kw):
    return Learner(Data, tiny_model(), metrics=accuracy, device='cpu', **kw)
'''
SCRIPT = (
    LEARNER
    + '''
def part(s):
    print('==', s, flush=True)


part('fit')
start = time.time()
learn = learner().fit(3)
secs = time.time() - start
part('history')
print(secs, [[f"{r[k]:.4f}" for k in ('train_loss', 'valid_loss', 'accuracy')] for r in learn.history])
part('predict')
learn.predict(torch.randn(3, 8, 8))
learn.validate(Slow(5))
part('validate')
learn.validate(Slow(40, 0.04))
learn.get_preds(Slow(40, 0.04))
part('loop')
list(bar(Slow(40, 0.04), label='decoding'))
part('error')
try:
    learner(cbs=[Fail()]).fit(2)
except ValueError as e:
    print(e)
part('interrupt')
if sys.stdout.isatty():

    # Ctrl-C is pressed when the first of 30 blocks is seen
    class Long:
        train, valid = Slow(1000), None

    try:
        Learner(Long, tiny_model(), device='cpu').fit(1)
    except KeyboardInterrupt:
        print('stopped')
part('end')
'''
)


def run_job(job):
    "In a process of its own, with its own terminal or pipe: `script.py`, or IPython with some arguments"
    os.setsid()
    for n, f in enumerate((job['stdin'], job['out'], job['out'])):
        fd = os.open(f, os.O_WRONLY if n else os.O_RDONLY)
        os.dup2(fd, n)
        os.close(fd)
    if os.isatty(1):
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)  # so that it gets Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ways = ((0, 'r'), (1, 'w'), (2, 'w'))
    sys.stdin, sys.stdout, sys.stderr = (open(n, m, encoding='utf-8', buffering=-1 if n < 2 else 1) for n, m in ways)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    for k in ('TRICKBAG_PROGRESS', 'IN_TEST', 'COLUMNS', 'LINES', 'PYTHONSTARTUP', 'TERM'):
        os.environ.pop(k, None)
    os.environ.update(job['env'])
    os.chdir(job['cwd'])
    code = 0
    try:
        if 'ipython' in job:
            import IPython

            IPython.start_ipython(argv=job['ipython'])
        else:
            exec(compile(open('script.py').read(), 'script.py', 'exec'), {'__name__': '__main__'})
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


IPYTHON = ['--no-banner', '--colors=NoColor', '--simple-prompt', '--HistoryManager.enabled=False', '--no-confirm-exit']


def start(script, cwd, out, stdin='/dev/null', **kw):
    "A process that runs the script, forked from one that has torch loaded: that is the same to it, and much quicker"
    (cwd / 'script.py').write_text(script)
    env = dict(TERM='xterm', IPYTHONDIR=str(cwd / 'ipython'))
    job = dict(out=str(out), stdin=str(stdin), cwd=str(cwd), env=env, **kw)
    process = processes.Process(target=run_job, args=(job,))
    process.start()
    return process


def on_terminal(script, cwd, stdin=None, limit=120, **kw):
    "Run `script` on a pseudo-terminal, press Ctrl-C when the bar of the part 'interrupt' is seen; all that was written"
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, COLS, 0, 0))
    tty = os.ttyname(slave)
    out = b''
    sent = False
    end = time.monotonic() + limit
    try:
        process = start(script, cwd, tty, stdin or tty, **kw)
        # it runs, or there is more
        while process.is_alive() or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < end, out.decode(errors='replace')[-2000:]
            if not select.select([master], [], [], 0.1)[0]:
                continue
            out += os.read(master, 65536)
            if not sent and '█' in out.decode(errors='ignore').partition('== interrupt')[2]:
                os.write(master, b'\x03')
                sent = True
        assert process.exitcode == 0, out.decode(errors='replace')[-2000:]
    finally:
        os.close(slave)
        os.close(master)
    return out.decode().replace('\r\n', '\n')


def screen(s):
    "The lines that a terminal of `COLS` columns shows after it got `s`"
    lines = ['']
    x = 0
    for c in re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', s):
        if c == '\n':
            lines.append('')
            x = 0
        elif c == '\r':
            x = 0
        else:
            assert x < COLS, f'wraps: {lines[-1]}'
            lines[-1] = lines[-1][:x].ljust(x) + c + lines[-1][x + 1 :]
            x += 1
    return [l.rstrip() for l in lines if l.rstrip()]


def parts(s):
    "What was written between the marks"
    names = re.findall(r'== (\w+)\n', s)
    texts = re.split(r'== \w+\n', s)
    return dict(zip(names, texts[1:]))


def numbers(text):
    "Seconds, and losses and accuracy of each epoch"
    secs, rows = text.strip().split(' ', 1)
    return float(secs), [re.findall(r'[\d.]+', r) for r in rows.split('], [')]


def check_terminal(s):
    assert '<' not in s, 'HTML in a terminal'
    p = parts(s)
    secs, rows = numbers(p['history'])
    table = screen(p['fit'])
    assert table[0].split() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time'] and len(table) == 4
    assert [l.split()[1:4] for l in table[1:]] == rows and [l.split()[0] for l in table[1:]] == ['0', '1', '2']
    assert len({len(l) for l in table}) == 1, 'columns are not aligned'
    bars = re.findall(r'epoch \d of 3  \w+ \|[█-]+\| \d+/\d+  \d:\d\d left(?:  loss \d\.\d{4})?', p['fit'])
    assert 5 <= len(bars) <= 10 * secs + 1, (len(bars), secs)
    assert any('valid' in b for b in bars) and all(('loss' in b) == ('train' in b) for b in bars)
    assert p['predict'] == '', p['predict']
    assert p['validate'].count('validate |') >= 4 and screen(p['validate']) == [], p['validate']
    assert p['loop'].count('decoding |') >= 3 and screen(p['loop']) == []
    table = screen(p['error'])
    assert (
        len(table) == 4
        and table[1].split()[0] == '0'
        and table[2].startswith('epoch 1 of 2  train |')
        and table[3] == 'bad batch'
    )
    assert screen(p['interrupt'])[-1] == 'stopped' and len(screen(p['interrupt'])) == 2


def test_terminal(tmp_path):
    check_terminal(on_terminal(SCRIPT, tmp_path))


def test_ipython_in_a_terminal(tmp_path):
    check = 'assert type(get_ipython()).__name__=="TerminalInteractiveShell"\n'
    check_terminal(on_terminal(check + SCRIPT, tmp_path, ipython=[*IPYTHON, 'script.py']))


def test_typed_into_ipython(tmp_path):
    (tmp_path / 'typed').write_text("%run script.py\nprint('=='+' fit'); learner().fit(1); print('=='+' end')\nexit\n")
    s = parts(on_terminal(LEARNER, tmp_path, stdin=tmp_path / 'typed', ipython=IPYTHON))['fit']
    assert '<' not in s and '\repoch 0 of 1  train |' in s and len(screen(s)) == 2, s


def test_terminal_that_is_told_otherwise(tmp_path):
    p = parts(
        on_terminal(
            LEARNER
            + """
for env in ({'TRICKBAG_PROGRESS': '0'}, {'TRICKBAG_PROGRESS': 'plain'}, {'TERM': 'dumb'}):
    os.environ.pop('TRICKBAG_PROGRESS', None)
    os.environ.update(env)
    print('==', *env.values())
    learner().fit(1)
    say('a word')
    learner().validate(Slow(40, 0.04))
""",
            tmp_path,
        )
    )
    assert p['0'] == ''
    line = r'epoch 0  train_loss [\d.]+  valid_loss [\d.]+  accuracy [\d.]+  time 0:0\d\na word\n'
    for k in ('plain', 'dumb'):
        assert re.fullmatch(line, p[k]), p[k]


def test_pipe(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    process = start(SCRIPT, tmp_path, tmp_path / 'pipe')
    with open(tmp_path / 'pipe', encoding='utf-8', newline='') as f:
        first = [f.readline() for _ in range(2)]
        # while it trains
        assert process.is_alive() and first[1].startswith('epoch 0  train_loss'), first
        s = ''.join(first) + f.read()
    process.join()
    assert process.exitcode == 0 and '\r' not in s and '█' not in s
    p = parts(s)
    _, rows = numbers(p['history'])
    lines = p['fit'].splitlines()
    assert [re.findall(r'(?:train_loss|valid_loss|accuracy) (\S+)', l) for l in lines] == rows
    assert all(re.search(r'  time \d:\d\d$', l) for l in lines)
    assert p['predict'] == p['validate'] == '' and re.fullmatch(r'decoding  40  0:0\d\n', p['loop']), p['loop']
    assert re.fullmatch(r'epoch 0  .*\nbad batch\n', p['error'])


class Watched(NotebookClient):
    "Keeps what a front end would have been sent"

    def process_message(self, msg, cell, cell_index):
        kind = msg['msg_type']
        if kind in ('display_data', 'update_display_data'):
            self.seen.append((cell_index, kind, msg['content']['data'], time.time()))
        return super().process_message(msg, cell, cell_index)


def test_kernel(tmp_path):
    cells = [
        LEARNER + "import fastprogress; print(fastprogress.__version__)",
        "learn = learner().fit(3)",
        "learn.predict(torch.randn(3, 8, 8)); learn.validate(Slow(5));",
        "learn.validate(Slow(40, .04));",
        "list(bar(Slow(40, .04), label='a < b'));",
        "learner(cbs=[Fail()]).fit(2)",
        "learner().fit(1); print('between'); learner().fit(1);",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata.kernelspec = dict(name='python3', display_name='python3', language='python')
    cl = Watched(
        nb,
        timeout=120,
        kernel_name='python3',
        allow_errors=True,
        resources={'metadata': {'path': str(tmp_path)}},
        extra_arguments=['--HistoryManager.enabled=False', '--IPKernelApp.log_level=ERROR'],
    )
    cl.seen = []
    cl.execute(env={k: v for k, v in os.environ.items() if k != 'TRICKBAG_PROGRESS'})
    outs = [[dict(o.get('data', {}), type=o.output_type, text=o.get('text')) for o in c.outputs] for c in nb.cells]
    print('fastprogress', outs[0])
    assert [o['type'] for o in outs[0]] == ['stream'], outs[0]

    def rows(o):
        return re.findall(r'<td>(\d+)</td><td>([\d.]+)</td>', o['text/html'])

    assert [o['type'] for o in outs[1]] == ['display_data']  # one output, and in it the table alone
    assert '<progress' not in outs[1][0]['text/html'] and [r[0] for r in rows(outs[1][0])] == ['0', '1', '2']
    assert outs[1][0]['text/plain'].splitlines()[0].split() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time']
    live = [(d['text/html'], t) for i, _, d, t in cl.seen if i == 1]
    bars = [h for h, _ in live if '<progress' in h]
    assert 5 <= len(bars) and len(live) <= 10 * (live[-1][1] - live[0][1]) + 6, (len(bars), len(live))
    assert any(
        re.search(r'epoch 1 of 3  train  \d+/25  \d:\d\d left  loss \d\.\d{4}', h) and len(rows({'text/html': h})) == 1
        for h in bars
    )
    assert re.search(r"""value=['"]?\d+""", bars[0]) and re.search(r"""max=['"]?25""", bars[0])
    assert [i for i, kind, _, _ in cl.seen if kind == 'display_data'] == [1, 3, 4, 5, 6, 6]

    assert outs[2] == [], 'predict and a short validate show nothing'
    for i in (3, 4):  # a bar that was there and is gone
        assert [o['type'] for o in outs[i]] == ['display_data'] and outs[i][0]['text/html'] == outs[i][0][
            'text/plain'
        ] == ''
        assert sum('<progress' in d['text/html'] for j, _, d, _ in cl.seen if j == i) >= 3
    assert any('a &lt; b' in d['text/html'] for j, _, d, _ in cl.seen if j == 4)
    assert [o['type'] for o in outs[5]] == ['display_data', 'error']  # the table so far, and where it stopped
    assert (
        [r[0] for r in rows(outs[5][0])] == ['0']
        and 'interrupted' in outs[5][0]['text/html']
        and '<progress' in outs[5][0]['text/html']
    )
    assert [o['type'] for o in outs[6]] == ['display_data', 'stream', 'display_data'] and all(
        len(rows(outs[6][k])) == 1 for k in (0, 2)
    )
