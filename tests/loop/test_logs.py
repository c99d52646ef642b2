"A run that is killed and gone on with is one run in TensorBoard, MLflow and W&B, with each step once."

import os
import signal
import warnings

import pytest
import torch
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import processes
from trickbag.all import *
from trickbag.monitors.log import Log, MLflow, TensorBoard, WandB, offline_rows
from trickbag.testing.proofs import tiny_learner


class Killed(Callback):
    "As if the power failed"

    stage = 'stop'
    at = None

    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == Killed.at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, name, at=None):
    Killed.at = at
    cbs = [Log(PLACES[name][0](), every=1, mistakes=2), Checkpoint(every_batches=4), Killed()]
    learn = tiny_learner(cbs, metrics=accuracy)
    learn.path = folder
    learn.fit(2, resume='models/last')
    return learn


def killed_and_gone_on(folder, name, at):
    process = processes.Process(target=run, args=(folder, name, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return run(folder, name)


def by_key(rows):
    "key -> (step, value) of rows"
    found = {}
    for row in rows:
        for key in row:
            if key in ('batch_loss', 'lr/0', 'accuracy', 'valid_loss', 'epoch'):
                found.setdefault(key, []).append((row['step'], row[key]))
    return found


def from_tensorboard(folder, log):
    events = EventAccumulator(str(folder / 'runs' / log.runs['TensorBoard']), size_guidance={'scalars': 0, 'images': 0})
    events.Reload()
    # the pictures, too
    n_pictures = [len(events.Images(f'mistakes/{i}')) for i in range(2)]
    assert n_pictures == [2, 2]
    return {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()['scalars'] if key != 'time'}


def from_mlflow(folder, log):
    client = MlflowClient(f'sqlite:///{folder}/mlflow.db')
    (experiment,) = [e for e in client.search_experiments() if e.name == 'trickbag']
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == log.runs['MLflow'] and found.info.status == 'FINISHED'
    assert found.data.params['n_epoch'] == '2'
    assert len(client.list_artifacts(found.info.run_id, 'mistakes')) == 6  # two pictures and a text an epoch
    keys = [key for key in found.data.metrics if key not in ('time', 'step')]
    return {key: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, key)] for key in keys}


def from_wandb(folder, log):
    rows = offline_rows(folder, log.runs['WandB'])
    # its own count goes on, or its server would leave rows out
    assert [row['_step'] for row in rows] == list(range(len(rows)))
    assert [row['mistakes']['count'] for row in rows if 'mistakes' in row] == [2, 2]
    return by_key(rows)


PLACES = dict(
    TensorBoard=(TensorBoard, from_tensorboard),
    MLflow=(MLflow, from_mlflow),
    WandB=(lambda: WandB(mode='offline'), from_wandb),
)


@pytest.mark.parametrize('name', PLACES)
def test_killed_and_gone_on_is_one_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_SILENT', 'true')
    _, read = PLACES[name]
    # two batches, and an epoch with them, after the last checkpoint
    # first: a process that is forked when W&B runs already shares its service, which keeps the killed run as in use
    folder = tmp_path / 'killed'
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = killed_and_gone_on(folder, name, (1, 1))
    whole_folder = tmp_path / 'whole'
    whole_folder.mkdir()
    whole = run(whole_folder, name)
    expected = read(whole_folder, whole.cb(Log))
    n = whole.cb(Log).batches
    assert [step for step, _ in expected['batch_loss']] == list(range(1, n + 1))
    found = read(folder, learn.cb(Log))
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key] == expected[key], key


def test_what_a_fit_is_made_of_is_written_down(tmp_path):
    learn = tiny_learner([MixUp(0.3), Log(TensorBoard(run='a'), config=dict(recipe='name = "x"'))])
    learn.path = tmp_path
    learn.fit(1)
    events = EventAccumulator(str(tmp_path / 'runs' / 'a')).Reload()
    (text,) = events.Tensors('config/text_summary')
    said = text.tensor_proto.string_val[0].decode()
    for words in ('| seed |', '| recipe | name = "x" |', '0.3', '| n_epoch | 1 |'):
        assert words in said, said


class Keep(TensorBoard):
    "Keeps the pictures that it gets"

    @property
    def name(self):
        return 'Keep'

    def pictures(self, step, name, images, captions):
        Keep.shown = images, captions


def test_no_picture_has_an_ignored_label(tmp_path):
    torch.manual_seed(0)
    path = toy_set(tmp_path / 'toy', n_classes=2, n_train=16, n_valid=8)
    dls = DataLoaders.from_folder(path, size=16, bs=8)
    # trained for the second class alone, the network is most wrong about the first
    loss = torch.nn.CrossEntropyLoss(ignore_index=0)
    Learner(dls, xresnet18(n_out=2), loss, lr=0.01, path=tmp_path, cbs=Log(Keep(), mistakes=3)).fit(2)
    _, captions = Keep.shown
    assert len(captions) == 3 and all(text.startswith(dls.vocab[1]) for text in captions)


def test_pictures_are_the_worst_predictions(tmp_path):
    "As they came to the network, back to levels; captions name both classes"
    torch.manual_seed(0)
    path = toy_set(tmp_path / 'toy', n_classes=2, n_train=16, n_valid=8)
    dls = DataLoaders.from_folder(path, size=16, bs=8)
    learn = Learner(dls, xresnet18(n_out=2), path=tmp_path, cbs=Log(Keep(), mistakes=3)).fit(1)
    probs, targets = learn.get_preds()
    losses = -probs.gather(1, targets[:, None])[:, 0].log()
    worst = losses.topk(3)[1]
    images, captions = Keep.shown
    assert [float(text.split()[-1]) for text in captions] == pytest.approx(losses[worst].tolist(), abs=0.006)
    assert images[0].shape == (16, 16, 3) and images[0].dtype.name == 'uint8'
    for i, text in zip(worst.tolist(), captions, strict=True):
        right = int(probs[i].argmax()) == int(targets[i])
        assert ('taken for' not in text) == right and text.startswith(dls.vocab[int(targets[i])])
