"A script under `torchrun`, as users start it."

import os
import subprocess
import sys

import torch

from tests.parallel.ranks import on_ranks
from trickbag.all import EMA, Checkpoint, CSVLogger, Learner, accuracy
from trickbag.testing.pairs import small_data, small_model
from trickbag.testing.proofs import tiny_learner, weights

SCRIPT = '''
import sys
from pathlib import Path

import torch

from trickbag.all import EMA, Callback, Checkpoint, CSVLogger, Learner, accuracy
from trickbag.testing.pairs import small_data, small_model
from trickbag.testing.proofs import tiny_learner, weights

torch.set_num_threads(1)
folder = Path(sys.argv[1])


class DieOnce(Callback):
    "The second process dies within its second epoch, once"

    def before_step(self, learn):
        if learn.rank == 1 and learn.epoch == 1 and not (folder / 'died').exists():
            (folder / 'died').touch()
            raise ZeroDivisionError('the true error')


learn = Learner(small_data(), small_model(), metrics=accuracy, path=folder, cbs=[EMA(), CSVLogger(), DieOnce()])
learn.fit(3, cbs=Checkpoint(), resume='models/last')
torch.save(learn.model.state_dict(), folder / f'{learn.rank} of {learn.world}.pt')
'''


def undisturbed(rank, folder):
    "The same training, in processes that nobody kills"
    learn = Learner(small_data(), small_model(), metrics=accuracy, path=folder, cbs=[EMA(), CSVLogger()])
    learn.fit(3)
    return learn.model.state_dict()


def test_an_error_in_one_process_ends_all_and_a_restart_goes_on_to_the_bit(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    script = folder / 'train.py'
    script.write_text(SCRIPT)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '--max-restarts=1']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'TRICKBAG_PROGRESS': 'plain'}
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert not done.returncode, done.stderr
    # the error of the process that failed comes before that of the one which then waited in vain
    assert 'ZeroDivisionError: the true error' in done.stderr.partition('[rank0]')[0]
    # the first process prints and writes, and nobody else
    starts = [' '.join(line.split()[:2]) for line in done.stdout.splitlines()]
    assert starts == ['epoch 0', 'resume: goes', 'epoch 1', 'epoch 2']
    rows = (folder / 'history.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['epoch', '0', '1', '2']
    ends = on_ranks(2, tmp_path, undisturbed, tmp_path)
    for rank in (0, 1):
        got = torch.load(folder / f'{rank} of 2.pt', weights_only=True)
        assert all(torch.equal(got[name], end[name]) for end in ends for name in end)


PREEMPTED = '''
import os, signal, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from trickbag.all import EMA, Callback, Checkpoint, Preemptible
from trickbag.testing.proofs import tiny_learner

folder = Path(sys.argv[1])


class AskLauncher(Callback):
    "torchrun gets SIGTERM within a step of the second epoch, once, and passes it on"

    monitor = True

    def before_step(self, learn):
        if learn.rank == 1 and (learn.epoch, learn.iter) == (1, 1) and not (folder / 'asked').exists():
            (folder / 'asked').touch()
            os.kill(os.getppid(), signal.SIGTERM)

    def before_batch(self, learn):
        if (folder / 'asked').exists() and learn.world > 1:
            # the launcher takes a moment
            import time

            time.sleep(0.02)


cbs = [EMA(), Checkpoint('1h'), Preemptible(), AskLauncher()]
learn = tiny_learner(cbs, path=folder).fit(60, resume='models/last')
torch.save(learn.model.state_dict(), folder / f'{learn.rank}.pt')
'''


def test_sigterm_to_torchrun_saves_in_both_processes(tmp_path):
    script = tmp_path / 'train.py'
    script.write_text(PREEMPTED)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(script)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'TRICKBAG_PROGRESS': 'plain'}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment)
    # torchrun's own code, and not that of its processes
    assert done.returncode == 1, done.stderr
    assert done.stdout.count('saved in models/last, ends with code 75') == 1, done.stdout + done.stderr
    assert not (tmp_path / '0.pt').exists()
    loop = torch.load(tmp_path / 'models/last.pt', weights_only=True)['loop']
    assert loop['world'] == 2 and loop['position'][0] >= 1
    # two processes go on, without the launcher
    (first, second) = on_ranks(2, tmp_path, go_on_preempted, tmp_path)
    (whole, _) = on_ranks(2, tmp_path, go_on_preempted, tmp_path / 'whole')
    assert torch.equal(first, whole) and torch.equal(second, whole)


def go_on_preempted(rank, folder):
    folder.mkdir(exist_ok=True)
    return weights(tiny_learner([EMA(), Checkpoint('1h')], path=folder).fit(60, resume='models/last'))
