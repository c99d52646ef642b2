"A training process killed with SIGKILL, again and again, and resumed, ends with the bits of one left alone."

import json

from tests.helpers import start

SCRIPT = '''
import csv, hashlib, json, os, random, signal, time
from pathlib import Path
import torch

torch.set_num_threads(1)
from trickbag.callback import Callback
from trickbag.loop.metrics import accuracy
from trickbag.monitors.csv_logger import CSVLogger
from trickbag.monitors.early_stopping import EarlyStopping
from trickbag.monitors.save_best import Checkpoint, SaveBest
from trickbag.monitors.terminate_on_nan import TerminateOnNaN
from trickbag.testing.proofs import tiny_learner, tiny_model
from trickbag.tricks.mixup import MixUp


class Slow(Callback):
    def after_batch(self, learn):
        time.sleep(0.005)  # else a quick machine is done before it is killed


def train(d):
    "The script that is killed and started again; the model is wide so that writing takes a while"
    torch.manual_seed(0)
    wide = [torch.nn.Linear(4, 5000), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(5000, 4)]
    model = torch.nn.Sequential(tiny_model(), *wide)
    watchers = [SaveBest('accuracy'), CSVLogger(), EarlyStopping(patience=4), TerminateOnNaN(4)]
    cbs = [Slow(), MixUp(), Checkpoint(every_batches=2, keep=2), *watchers]
    learn = tiny_learner(cbs, model=model, metrics=accuracy, path=d).fit(5, resume='models/last')
    sha = hashlib.sha256()
    for t in learn.model.state_dict().values():
        sha.update(t.numpy().tobytes())
    hist = [{k: v for k, v in r.items() if k != 'time'} for r in learn.history]
    rows = [
        {k: float(v) for k, v in r.items() if k != 'time'} for r in csv.DictReader(open(d / 'history.csv'))
    ]
    (d / 'end.json').write_text(
        json.dumps(dict(sha=sha.hexdigest(), hist=hist, rows=rows, best=learn.cb(SaveBest).best))
    )


def start(d):
    if pid := os.fork():
        return pid
    code = 1
    try:
        train(d)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


torch.optim.AdamW([torch.zeros(1)]).zero_grad()  # loads what is loaded late, once for all children
root, r, seen = Path(FOLDER), random.Random(0), []
for n in ('whole', 'killed'):
    (root / n).mkdir()
assert os.waitpid(start(root / 'whole'), 0)[1] == 0
last = root / 'killed/models/last.pt'


def position():
    return torch.load(last, weights_only=True)['loop']['position'] if last.exists() else None


for i in range(6):
    pid, old, saves = (
        start(root / 'killed'),
        last.stat().st_ino if last.exists() else None,
        r.choice([1, 2, 3]),
    )
    while saves and os.waitpid(pid, os.WNOHANG)[0] == 0:
        new = last.stat().st_ino if last.exists() else None
        if new != old:
            old, saves = new, saves - 1
        time.sleep(0.001)
    time.sleep(r.random() * 0.015)  # anywhere from here on, the next writing included
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        break
    seen.append(position())  # the file under the first name is whole after each kill
while not (root / 'killed/end.json').exists():
    assert os.waitpid(start(root / 'killed'), 0)[1] == 0
again = (root / 'killed/end.json').read_text()
assert os.waitpid(start(root / 'killed'), 0)[1] == 0  # a run that is complete: started again, nothing changes
print(
    json.dumps(
        dict(
            seen=seen,
            whole=json.loads((root / 'whole/end.json').read_text()),
            killed=json.loads(again),
            again=json.loads((root / 'killed/end.json').read_text()),
            left=sorted(o.name for o in (root / 'killed').rglob('*') if o.is_file()),
        )
    )
)
'''


def test_killed_and_resumed(tmp_path):
    output = tmp_path / 'output'
    process = start(f'FOLDER = {str(tmp_path)!r}\n{SCRIPT}', output)
    process.join(300)
    assert process.exitcode == 0, output.read_text()[-3000:]
    d = json.loads(output.read_text().splitlines()[-1])
    print(d['seen'])
    # killed on its way
    assert len(d['seen']) >= 4 and d['seen'] == sorted(d['seen']) and len({tuple(o) for o in d['seen']}) >= 3, d['seen']
    assert len(d['whole']['hist']) == 5 and d['whole']['rows'] == d['whole']['hist']
    assert d['killed'] == d['whole'] and d['again'] == d['whole']
    assert [n for n in d['left'] if not n.startswith('.')] == [
        'best.pt',
        'end.json',
        'history.csv',
        'last-1.pt',
        'last.pt',
    ]
