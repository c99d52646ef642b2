"""Are the tests able to find a bug? Plants one at a time in a copy of the package and runs the tests that should see
it.

    python -m tests.bench.plant [--only TEXT] [--jobs 2] [--json FILE] [--again]
    python -m tests.bench.plant --clean
    python -m tests.bench.plant --table

The bugs stand in `planted.py` beside this file: a module, the text to be replaced (it must stand there exactly
once), what replaces it, and where to look, as arguments of pytest. It is planted in the module and in its notebook,
which runs what it exports. A bug is found if those tests fail; they pass on the code as it is, which --clean
checks. One JSON line a bug; what is in the file already is not repeated, unless its bug or its tests have changed
since, or with --again.

Importing torch, IPython and the like takes longer than most of these tests, so it is done once, here; each bug gets
a forked process that imports the package from the copy."""

import argparse
import compileall
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from .planted import PLANTED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / 'results' / 'planted.jsonl'
COPIED = ('trickbag', 'tests', 'nbs', '.ci')  # and all files beside them
LIMIT = 400  # seconds; a bug may well make a test wait for ever


def page_of(module):
    "The notebook that a module is made from"
    line = next(s for s in module.read_text().splitlines() if 'File to edit: ' in s)
    return (module.parent / line.split('File to edit: ')[1].rstrip('. ')).resolve()


def exported(cell):
    "The code of a notebook's cell that goes into the package; '' for other cells"
    source = ''.join(cell['source'])
    return source if cell['cell_type'] == 'code' and re.search(r'^#\| *export[si]?\b', source, re.M) else ''


def places(text, old):
    "Where a piece of code stands in a text, however it is spaced"
    words = re.findall(r'\d*\.\d+|\d+\.|\w+|[^\w\s]', old)
    patterns = [
        ('0?' if w[0] == '.' and w[1:].isdigit() else '') + re.escape(w) + ('0?' if w[:-1].isdigit() else '')
        for w in words
    ]
    return list(re.finditer(r'\s*'.join(patterns), text))


def planted(text, bug):
    "The text with the bug in it"
    for place in reversed(places(text, bug.old)):
        text = text[: place.start()] + bug.new + text[place.end() :]
    return text


def planted_page(page, bug):
    "The notebook with the bug, as a notebook runs what it exports"
    nb = json.loads(page.read_text())
    for c in nb['cells']:
        if code := exported(c):
            c['source'] = planted(code, bug).splitlines(True)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def check_bugs(bugs):
    "Raise ValueError if a bug cannot be planted"
    for bug in bugs:
        module = ROOT / 'trickbag' / bug.module
        n = len(places(module.read_text(), bug.old))
        if n != 1:
            raise ValueError(f'{bug.module}: {bug.old!r} stands there {n} times, not once')
        cells = json.loads(page_of(module).read_text())['cells']
        if not any(places(exported(c), bug.old) for c in cells):
            raise ValueError(f'{bug.module}: {bug.old!r} does not stand in its page')
        if bug.old == bug.new:
            raise ValueError(f'{bug.module}: {bug.old!r} is replaced by itself')
    keys = [(b.module, b.old, b.new) for b in bugs]
    if twice := [k for k in keys if keys.count(k) > 1]:
        raise ValueError(f'planted twice: {twice[0]}')


def checkout(folder):
    "A copy of the package and of all that its tests need"
    skip = shutil.ignore_patterns('__pycache__', 'planted.jsonl')
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for file in ROOT.iterdir():
        if file.is_file() and file.name != '.git':
            shutil.copy(file, folder)
    (folder / 'docs').symlink_to(ROOT / 'docs')
    # a file that is changed, and so newer, is compiled where it is imported
    compileall.compile_dir(folder / 'trickbag', quiet=1)


def import_what_is_slow():
    "All that tests import from elsewhere; nothing of this package"
    import matplotlib

    matplotlib.use('Agg')
    import execnb.shell  # noqa: F401
    import IPython  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    for name in [n for n in sys.modules if n.partition('.')[0] == 'tests']:
        del sys.modules[name]
    assert 'trickbag' not in sys.modules


def begin(folder, tests, log):
    "A process that runs tests in a copy; its number"
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.setsid()
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.chdir(folder)
        sys.path[:] = [str(folder)] + [p for p in sys.path if p and Path(p).resolve() != ROOT]
        os.environ.update(
            PYTHONPATH=str(folder),
            PYTHONDONTWRITEBYTECODE='1',
            OMP_NUM_THREADS='1',
            TRICKBAG_CACHE=str(folder / 'cache'),
        )
        sys.dont_write_bytecode = True
        import pytest

        status = int(pytest.main(['-W', 'ignore', '-x', '-q', '-n', '0', '--tb=line', *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def end(pid, started):
    "Exit status of such a process, or None while it runs"
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        return os.waitstatus_to_exitcode(status)
    if time.perf_counter() - started < LIMIT:
        return None
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 'time'


class Slot:
    "A copy of the package in which one bug at a time is tried"

    def __init__(self, folder):
        self.folder = folder
        self.pid = None
        checkout(folder)

    def plant(self, bug):
        self.bug = bug
        self.started = time.perf_counter()
        self.was = {}
        if bug.old:
            module = self.folder / 'trickbag' / bug.module
            self._write(module, planted(module.read_text(), bug))
            self._write(page_of(module), planted_page(page_of(module), bug))
        shutil.rmtree(self.folder / 'cache', ignore_errors=True)
        self.pid = begin(self.folder, bug.tests, self.folder / 'log')

    def _write(self, file, text):
        self.was[file] = file.read_text(), file.stat().st_mtime_ns
        file.write_text(text)

    def mend(self):
        # with its time, so that what was compiled of it is right again
        for file, (text, time_ns) in self.was.items():
            file.write_text(text)
            os.utime(file, ns=(time_ns, time_ns))

    def harvest(self):
        "What was found, as a line of the results; None while the tests run"
        status = end(self.pid, self.started)
        if status is None:
            return None
        seconds = time.perf_counter() - self.started
        lines = (self.folder / 'log').read_text(errors='replace').splitlines()
        said = ' | '.join([s for s in lines if s.startswith(('FAILED', 'ERROR'))] or lines[-2:]).replace(
            str(self.folder), '.'
        )
        if status == 'time':
            said = f'no end within {LIMIT} s'
        if status in (3, 4, 5, 99):
            raise RuntimeError(f'{self.bug.module}: {self.bug.tests} cannot be run (status {status}): {said}')
        self.mend()
        self.pid = None
        b = self.bug
        # 1: a test failed; 2: the package does not even import; negative: the process died. Too long may be the
        # machine's fault
        return dict(
            module=b.module,
            old=b.old,
            new=b.new,
            kind=b.kind,
            tests=list(b.tests),
            found=status not in (0, 'time'),
            said=said[:300],
            seconds=round(seconds, 1),
            reason=b.reason,
        )


def try_all(bugs, jobs, done):
    "Plant them all, `jobs` at a time; `done(row)` is called with each result"
    with tempfile.TemporaryDirectory() as d:
        slots = [Slot(Path(d) / str(i)) for i in range(min(jobs, len(bugs)))]
        os.chdir(d)
        import_what_is_slow()
        todo = list(bugs)
        try:
            while todo or any(s.pid for s in slots):
                for s in slots:
                    if s.pid and (row := s.harvest()):
                        done(row)
                    if not s.pid and todo:
                        s.plant(todo.pop(0))
                time.sleep(0.1)
        finally:
            for s in slots:
                if s.pid:
                    os.killpg(s.pid, signal.SIGKILL)
            os.chdir(ROOT)


def clean_runs(bugs):
    "All named tests as few runs without a bug: one for each file with `-k`, and one for each page or whole file"
    whole = set()
    chosen = {}
    for b in bugs:
        if '-k' in b.tests:
            at = b.tests.index('-k')
            chosen.setdefault(b.tests[:at], set()).add(b.tests[at + 1])
        else:
            whole |= set(b.tests)
    runs = [(*files, '-k', ' or '.join(f'({k})' for k in sorted(ks))) for files, ks in chosen.items()]
    kind = type(bugs[0])
    return [kind('', '', '', tests) for tests in [*runs, *((t,) for t in sorted(whole))]]


def key(r):
    return r['module'], r['old'], r['new'], tuple(r['tests'])


def rows(file):
    return [json.loads(s) for s in file.read_text().splitlines()] if file.exists() else []


def table(rs):
    n = sum(r['found'] for r in rs)
    print(f'{n} of {len(rs)} planted bugs found')
    for r in rs:
        if not r['found']:
            print(
                f"  NOT FOUND  {r['module']}: {r['old']!r} -> {r['new']!r}"
                + (f"  ({r['reason']})" if r['reason'] else '')
            )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', default='', help='bugs whose module or text holds this')
    ap.add_argument('--jobs', type=int, default=1)
    ap.add_argument('--json', type=Path, default=RESULTS)
    ap.add_argument('--again', action='store_true')
    ap.add_argument('--clean', action='store_true', help='run all named tests on the code as it is')
    ap.add_argument('--table', action='store_true')
    a = ap.parse_args()
    a.json = a.json.absolute()
    check_bugs(PLANTED)
    bugs = [b for b in PLANTED if a.only in b.module or a.only in b.old]
    if a.clean:
        bad = []

        def clean(r):
            print(
                'FAILS ' if r['found'] else 'passes',
                ' '.join(r['tests'])[:100],
                f"{r['seconds']:.0f} s",
                r['said'] if r['found'] else '',
                flush=True,
            )
            if r['found']:
                bad.append(r)

        try_all(clean_runs(bugs), a.jobs, clean)
        return sys.exit(bool(bad))
    if not a.table:
        there = set() if a.again else {key(r) for r in rows(a.json)}
        todo = [b for b in bugs if (b.module, b.old, b.new, tuple(b.tests)) not in there]
        a.json.parent.mkdir(exist_ok=True)

        def done(r):
            with open(a.json, 'a') as f:
                f.write(json.dumps(r) + '\n')
            print(
                'found    ' if r['found'] else 'NOT FOUND',
                r['module'],
                repr(r['old'][:60]),
                f"{r['seconds']:.0f} s",
                r['said'][:90],
                flush=True,
            )

        if todo:
            try_all(todo, a.jobs, done)
    # the file keeps one line a bug of the present list, the last one
    known = {key(r): r for r in rows(a.json)}
    now = [known[k] for b in PLANTED if (k := (b.module, b.old, b.new, tuple(b.tests))) in known]
    a.json.write_text(''.join(json.dumps(r) + '\n' for r in now))
    table(now)


if __name__ == '__main__':
    main()
