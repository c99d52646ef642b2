"""SIGTERM at random moments of a run under torchrun: python -m tests.bench.preempted [--n 20] [--minutes 60]

Two processes train with EMA, MixUp, `Checkpoint` and `Preemptible`. At a random moment SIGTERM goes to the launcher, or
to one of the two alone, in turn; then the same command goes on, and at last to the end. A line of
tests/bench/results/preempted.json for each signal: to whom it went, torchrun's exit code and those of its processes,
where the checkpoint is, and how long after the end of the last step it was written. The last line says whether the
weights and the history are those of a run that nobody disturbed, to the bit."""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parent / 'results' / 'preempted.json'

SCRIPT = '''
import json, os, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from trickbag.all import EMA, Callback, Checkpoint, CSVLogger, MixUp, Preemptible
from trickbag.testing.proofs import tiny_learner

folder = Path(sys.argv[1])


class Steps(Callback):
    stage = 'report'
    monitor = True

    def before_batch(self, learn):
        time.sleep(0.02)

    def before_train(self, learn):
        (folder / f'process {learn.rank}').write_text(str(os.getpid()))

    def after_batch(self, learn):
        if learn.training and not learn.rank:
            (folder / 'step').write_text(str(time.time()))


cbs = [EMA(), MixUp(), CSVLogger(), Checkpoint('1h', keep=2), Preemptible(), Steps()]
learn = tiny_learner(cbs, path=folder).fit(100, resume='models/last')
rows = [{k: v for k, v in row.items() if k != 'time'} for row in learn.history]
end = [[t.tolist() for t in learn.model.state_dict().values()], rows, (folder / 'history.csv').read_text().count('\\n')]
(folder / f'end {learn.rank}.json').write_text(json.dumps(end))
'''


def begin(folder):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    environment = {**os.environ, 'TRICKBAG_PROGRESS': '0', 'OMP_NUM_THREADS': '1'}
    output = open(folder / 'output', 'w')
    return subprocess.Popen(
        [*command, str(folder.parent / 'train.py'), str(folder)], env=environment, stdout=output, stderr=output
    )


def disturb(folder, to, seconds):
    "Start the run, send the signal so long after its first batch, and look at what is left"
    files = [folder / f'process {rank}' for rank in (0, 1)]
    for file in files:
        file.unlink(missing_ok=True)
    launcher = begin(folder)
    while not all(file.exists() and file.read_text() for file in files):
        if launcher.poll() is not None:
            return None  # nothing was left to train
        time.sleep(0.01)
    time.sleep(seconds)
    pid = launcher.pid if to == 'launcher' else int(files[to].read_text())
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return None
    code = launcher.wait(120)
    if (folder / 'end 0.json').exists():
        return None
    import torch

    last = folder / 'models/last.pt'
    late = last.stat().st_mtime - float((folder / 'step').read_text())
    position = torch.load(last, weights_only=True)['loop']['position']
    codes = sorted({int(found) for found in re.findall(r'exitcode\s*: (-?\d+)', (folder / 'output').read_text())})
    return dict(to=to, code=code, of_processes=codes, position=position, late=round(late, 3))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--n', type=int, default=20)
    parser.add_argument('--minutes', type=float, default=60, help='after which no further signal is sent')
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    chance = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / name for name in ('whole', 'asked')]
        (Path(root) / 'train.py').write_text(SCRIPT)
        for folder in folders:
            folder.mkdir()
        whole, asked = folders
        assert begin(whole).wait(600) == 0, (whole / 'output').read_text()
        for i in range(args.n):
            if time.monotonic() > end:
                break
            row = disturb(asked, ['launcher', 0, 1][i % 3], chance.random() * 0.6)
            if row is None:
                break
            print(row, flush=True)
            rows.append(row)
        while not (asked / 'end 0.json').exists():
            assert begin(asked).wait(600) == 0, (asked / 'output').read_text()
        names = ('end 0.json', 'end 1.json')
        is_equal = all((whole / name).read_text() == (asked / name).read_text() for name in names)
    rows.append(dict(signals=len(rows), equal_to_undisturbed=is_equal, latest=max(row['late'] for row in rows)))
    print(rows[-1])
    OUT.write_text('\n'.join(map(json.dumps, rows)) + '\n')


if __name__ == '__main__':
    main()
