"""Are the tests able to find a bug? Plants one at a time in a copy of the package and runs the tests that should see it.

    python -m tests.bench.plant [--only TEXT] [--jobs 2] [--json FILE] [--again]
    python -m tests.bench.plant --table

The bugs stand in `planted.py` beside this file: a module, the text to be replaced (it must stand there exactly once), what replaces it,
and where to look, as arguments of pytest. A bug is found if those tests fail; they pass on the code as it is, which --clean checks.
One JSON line a bug; what is in the file already is not repeated, unless its bug or its tests have changed since, or with --again."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .planted import PLANTED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent/'results'/'planted.jsonl'
LINKED = ('tests', 'nbs', 'pyproject.toml', 'setup.py', 'README.md', 'docs', '.ci')


def checkout(folder, bug=None):
    "A copy of the package in `folder`, with the bug, and beside it links to all that the tests need"
    shutil.copytree(ROOT/'trickbag', folder/'trickbag', ignore=shutil.ignore_patterns('__pycache__'))
    for name in LINKED:
        if (ROOT/name).exists(): os.symlink(ROOT/name, folder/name)
    if bug:
        file = folder/'trickbag'/bug.module
        text = file.read_text()
        if text.count(bug.old) != 1: raise ValueError(f'{bug.module}: {bug.old!r} stands there {text.count(bug.old)} times, not once')
        file.write_text(text.replace(bug.old, bug.new))


def run_tests(tests, bug=None, limit=600):
    "Exit status of pytest, the last lines that it printed, and seconds"
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        checkout(folder, bug)
        env = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1', OMP_NUM_THREADS='1',
                   TRICKBAG_CACHE=str(folder/'cache'))
        start = time.perf_counter()
        cmd = [sys.executable, '-W', 'ignore', '-m', 'pytest', '-x', '-q', '-n', '0', '--tb=line', *tests]
        try: r = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired: return 'time', f'no end within {limit} s', time.perf_counter()-start
        lines = [s for s in r.stdout.splitlines() if s.startswith(('FAILED', 'ERROR'))] or r.stdout.splitlines()[-2:]
        return r.returncode, ' | '.join(lines).replace(str(folder), '.')[:300], time.perf_counter()-start


def try_bug(bug):
    status, said, seconds = run_tests(bug.tests, bug)
    # 1: a test failed; 2: the package does not even import, or a fixture broke
    found = status in (1, 2, 'time')
    return dict(module=bug.module, old=bug.old, new=bug.new, kind=bug.kind, tests=list(bug.tests), found=found, said=said,
                seconds=round(seconds, 1), reason=bug.reason)


def key(r): return r['module'], r['old'], r['new'], tuple(r['tests'])


def rows(file): return [json.loads(s) for s in file.read_text().splitlines()] if file.exists() else []


def table(rs):
    n = sum(r['found'] for r in rs)
    print(f'{n} of {len(rs)} planted bugs found')
    for r in rs:
        if not r['found']: print(f"  NOT FOUND  {r['module']}: {r['old']!r} -> {r['new']!r}" + (f"  ({r['reason']})" if r['reason'] else ''))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', default='', help='bugs whose module or text holds this')
    ap.add_argument('--jobs', type=int, default=1)
    ap.add_argument('--json', type=Path, default=RESULTS)
    ap.add_argument('--again', action='store_true')
    ap.add_argument('--clean', action='store_true', help='run all named tests on the code as it is')
    ap.add_argument('--table', action='store_true')
    a = ap.parse_args()
    bugs = [b for b in PLANTED if a.only in b.module or a.only in b.old]
    if a.clean:
        status, said, seconds = run_tests(sorted({t for b in bugs for t in b.tests if not t.startswith('-')}), limit=3600)
        print('all pass' if status==0 else f'FAILS on the code as it is: {said}', f'{seconds:.0f} s')
        return sys.exit(status)
    if not a.table:
        there = {} if a.again else {key(r): r for r in rows(a.json)}
        todo = [b for b in bugs if (b.module, b.old, b.new, tuple(b.tests)) not in there]
        with ThreadPoolExecutor(a.jobs) as pool:
            for r in pool.map(try_bug, todo):
                there[key(r)] = r
                with open(a.json, 'a') as f: f.write(json.dumps(r)+'\n')
                print('found    ' if r['found'] else 'NOT FOUND', r['module'], repr(r['old'][:60]), f"{r['seconds']:.0f} s", r['said'][:90], flush=True)
    # the file keeps one line a bug of the present list
    known = {key(r): r for r in rows(a.json)}
    now = [known[k] for b in PLANTED if (k := (b.module, b.old, b.new, tuple(b.tests))) in known]
    a.json.write_text(''.join(json.dumps(r)+'\n' for r in now))
    table(now)


if __name__=='__main__': main()
