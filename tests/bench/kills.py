"""A run that is killed at random moments and started again ends as one that nobody touched.

    python -m tests.bench.kills [--kills 50] [--seed 0] [--json FILE]             one process
    python -m tests.bench.kills --torchrun [--kills 10] [--seed 0] [--json FILE]  two, under torchrun --max-restarts

SIGKILL comes at a random moment of a training with callbacks that hold a state of their own: while photographs are
decoded into the store, in a training batch, in validation, while a checkpoint is written. Compared with an undisturbed
run are the weights, the best weights, the history, each line of the CSV file and each point that TensorBoard's own
reader finds. One JSON line."""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / 'results' / 'kills.jsonl'
EPOCHS = 4


def trained(place: Path, photographs: Path):
    "The training that is killed; the last thing it writes is end.json"
    from trickbag.all import (
        AGC,
        EMA,
        BalancedSampler,
        Checkpoint,
        CSVLogger,
        DataLoaders,
        EarlyStopping,
        GradientAccumulation,
        LabelSmoothing,
        Learner,
        Log,
        MixUp,
        RandomErasing,
        ReduceLROnPlateau,
        SaveBest,
        StochasticDepth,
        accuracy,
    )
    from trickbag.monitors.log import TensorBoard
    from trickbag.testing.pairs import small_model

    os.environ['TRICKBAG_CACHE'] = str(place / 'cache')
    torch.set_num_threads(1)
    dls = DataLoaders.from_folder(photographs, valid_pct=0.3, size=24, bs=6, keep='disk', threads=1)
    tricks = [EMA(), AGC(), MixUp(), LabelSmoothing(), RandomErasing(), StochasticDepth()]
    tricks += [GradientAccumulation(2), BalancedSampler(), ReduceLROnPlateau(patience=0, factor=0.5)]
    watchers = [SaveBest('accuracy'), EarlyStopping(patience=9), CSVLogger(), Log(TensorBoard('board'), every=1)]
    learn = Learner(dls, small_model(len(dls.vocab)), metrics=accuracy, cbs=tricks + watchers, path=place, device='cpu')
    learn.fit(EPOCHS, cbs=Checkpoint('3st', keep=2), resume='models/last')
    if learn.rank:
        return
    ended = dict(
        weights=digest_of(learn.model.state_dict()),
        best=digest_of(torch.load(place / 'models' / 'best.pt', weights_only=True)),
        history=without_time(learn.history),
        rows=without_time(csv.DictReader((place / 'history.csv').open())),
        points=points_of(place / 'board'),
    )
    (place / 'writing.json').write_text(json.dumps(ended))
    (place / 'writing.json').rename(place / 'end.json')


def digest_of(state) -> str:
    from trickbag.core.plain_files import content_digest

    return content_digest({key: value for key, value in state.items() if key != 'digest'})


def without_time(rows) -> list:
    return [{key: value for key, value in row.items() if key != 'time'} for row in rows]


def points_of(folder: Path) -> dict:
    "What TensorBoard's reader finds: name -> steps and a digest of the values"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    # a process that was killed before its first checkpoint has left a run of its own, which nobody goes on with
    last = max(folder.rglob('*tfevents*'), key=lambda file: file.stat().st_mtime)
    reader = EventAccumulator(str(last.parent), dict(scalars=0))
    reader.Reload()
    for name in reader.Tags()['scalars']:
        events = reader.Scalars(name)
        values = json.dumps([event.value for event in events]) if name != 'time' else ''
        found[name] = [event.step for event in events], hashlib.sha256(values.encode()).hexdigest()[:12]
    return found


def make_photographs(folder: Path) -> Path:
    "Sixty drawings of four classes"
    from trickbag.all import toy_set

    by_class = sorted(path for path in (toy_set() / 'train').iterdir() if path.is_dir())[:4]
    for name in by_class:
        shutil.copytree(name, folder / name.name)
        for file in sorted((folder / name.name).iterdir())[15:]:
            file.unlink()
    return folder


def what_it_did(place: Path) -> str:
    "In the midst of what a run was, by what it had written"
    if not any((place / 'cache').rglob('*')) if (place / 'cache').exists() else True:
        return 'starting'
    parts = [file.name for file in (place / 'models').glob('*')] if (place / 'models').exists() else []
    if any('.tmp' in name or name.startswith('.') for name in parts):
        return 'writing a file'
    return 'training' if parts else 'decoding or before the first checkpoint'


def start(place: Path, photographs: Path) -> int:
    "A child that trains; its number"
    if pid := os.fork():
        return pid
    code = 1
    try:
        warnings.simplefilter('ignore')
        with open(place / 'out.txt', 'a') as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            trained(place, photographs)
        code = 0
    except BaseException:
        import traceback

        (place / 'error.txt').write_text(traceback.format_exc())
    os._exit(code)


def run_alone(folder: Path, a) -> dict:
    # what is imported here, the children need not import
    import torch.utils.tensorboard

    import trickbag.all
    import trickbag.testing.pairs  # noqa: F401

    # loads what torch loads late
    torch.optim.AdamW([torch.zeros(1)]).zero_grad()
    rng = random.Random(a.seed)
    photographs = make_photographs(folder / 'photographs')
    whole = folder / 'whole'
    whole.mkdir()
    began = time.perf_counter()
    assert os.waitpid(start(whole, photographs), 0)[1] == 0, (whole / 'error.txt').read_text()
    seconds = time.perf_counter() - began
    truth = json.loads((whole / 'end.json').read_text())
    kills = runs = 0
    doing = {}
    wrong = []
    while kills < a.kills:
        runs += 1
        place = folder / f'killed {runs}'
        place.mkdir()
        while not (place / 'end.json').exists():
            pid = start(place, photographs)
            moment = time.perf_counter() + rng.uniform(0.02, 0.9) * seconds
            while time.perf_counter() < moment and os.waitpid(pid, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
            try:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                status = 0
            if (place / 'error.txt').exists():
                wrong.append((place / 'error.txt').read_text())
                break
            if status == signal.SIGKILL:
                kills += 1
                what = what_it_did(place)
                doing[what] = doing.get(what, 0) + 1
        else:
            wrong += compared(truth, json.loads((place / 'end.json').read_text()), f'run {runs}')
    return dict(what='one process', kills=kills, runs=runs, doing=doing, wrong=wrong)


def compared(truth: dict, got: dict, which: str) -> list:
    return [f'{which}: {name} differs' for name in truth if truth[name] != got[name]]


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from tests.bench.kills import trained
place = Path(sys.argv[1])
(place / f'pid of {os.environ["RANK"]}').write_text(str(os.getpid()))
trained(place, Path(sys.argv[2]))
"""


def torchrun(place: Path, photographs: Path, restarts: int):
    place.mkdir()
    (place / 'train.py').write_text(SCRIPT)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'TRICKBAG_PROGRESS': 'plain'}
    return subprocess.Popen(
        [*command, f'--max-restarts={restarts}', str(place / 'train.py'), str(place), str(photographs)],
        stdout=(place / 'out.txt').open('w'),
        stderr=subprocess.STDOUT,
        env=environment,
    )


def run_torchrun(folder: Path, a) -> dict:
    "One of two processes is killed at a random moment; torchrun ends the other, and starts both again"
    rng = random.Random(a.seed)
    photographs = make_photographs(folder / 'photographs')
    whole = torchrun(folder / 'whole', photographs, 0)
    assert whole.wait(600) == 0, (folder / 'whole' / 'out.txt').read_text()[-3000:]
    truth = json.loads((folder / 'whole' / 'end.json').read_text())
    kills = runs = 0
    wrong = []
    while kills < a.kills:
        runs += 1
        place = folder / f'killed {runs}'
        process = torchrun(place, photographs, 99)
        done = threading.Event()
        count = [0]

        def kill_at_random():
            known = set()
            while not done.is_set():
                files = [place / f'pid of {rank}' for rank in (0, 1)]
                pids = [file.read_text() for file in files if file.exists()]
                if len(pids) < 2 or known & {*pids} or '' in pids:
                    time.sleep(0.05)
                    continue
                time.sleep(rng.uniform(1, 12))
                if (place / 'end.json').exists() or count[0] >= 4:
                    return
                try:
                    os.kill(int(rng.choice(pids)), signal.SIGKILL)
                    count[0] += 1
                except ProcessLookupError:
                    return
                known |= {*pids}

        killer = threading.Thread(target=kill_at_random)
        killer.start()
        code = process.wait(900)
        done.set()
        killer.join()
        kills += count[0]
        if code:
            wrong.append(f'run {runs}: exit code {code}: ' + (place / 'out.txt').read_text()[-2000:])
        else:
            wrong += compared(truth, json.loads((place / 'end.json').read_text()), f'run {runs}')
        print(f'run {runs}: {count[0]} kills, {len(wrong)} wrong', file=sys.stderr, flush=True)
    return dict(what='two processes under torchrun', kills=kills, runs=runs, wrong=wrong)


def run(a):
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        row = (run_torchrun if a.torchrun else run_alone)(Path(folder), a)
    row |= dict(seconds=round(time.perf_counter() - began), torch=torch.__version__)
    print(json.dumps(row))
    if a.json:
        with open(a.json, 'a') as f:
            f.write(json.dumps(row) + '\n')
    return bool(row['wrong'])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, help='50, under torchrun 10')
    parser.add_argument('--torchrun', action='store_true')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    arguments.kills = arguments.kills or (10 if arguments.torchrun else 50)
    sys.exit(run(arguments))
