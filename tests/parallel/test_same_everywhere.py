"What several processes say, find and write is what one process would: metric objects, rates, files, odd losses."

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.helpers import one_line
from tests.parallel.ranks import on_ranks
from tests.parallel.test_training import images, in_batches, plain_learner, plain_model
from trickbag.all import (
    Callback,
    Checkpoint,
    ClassScores,
    DataLoaders,
    GradientAccumulation,
    Learner,
    SaveBest,
    TerminateOnNaN,
)
from trickbag.core import processes
from trickbag.core.processes import mean_of_all, place
from trickbag.testing.pairs import small_data, small_model
from trickbag.testing.proofs import tiny_learner, weights

WEIGHTS = torch.tensor([1.0, 5.0, 0.2, 3.0], dtype=torch.float64)
LOSSES = dict(
    weighted=lambda: nn.CrossEntropyLoss(weight=WEIGHTS),
    ignoring=lambda: nn.CrossEntropyLoss(ignore_index=2),
    sum=lambda: nn.CrossEntropyLoss(reduction='sum'),
)


class Hits:
    "A metric object of a user's own, that knows nothing of processes and looks at the order"

    def reset(self):
        self.hits = []

    def update(self, pred, y):
        self.hits += (pred.argmax(1) == y).tolist()

    def compute(self):
        return sum(hit / (i + 2) for i, hit in enumerate(self.hits))


def loss_ends(bs):
    "Weights after a fit with each loss, and with accumulation"
    ends = {}
    for name, make in LOSSES.items():
        for cbs in ([], [GradientAccumulation(2)]):
            data = DataLoaders(in_batches(images(48, 0), bs), None)
            loss = make()
            learn = Learner(data, plain_model(), loss, cbs=cbs, opt_func=torch.optim.SGD, lr=0.01).fit(2)
            ends[name, len(cbs)] = weights(learn).tolist()
    return ends


def metric_rows():
    import torchmetrics

    rows = []
    for n in (41, 3):
        learn = plain_learner(12 // place().world, n_valid=n)
        auroc = torchmetrics.AUROC(task='multiclass', num_classes=4)
        learn.metrics = [*learn.metrics, ClassScores(list('abcd')), Hits(), auroc]
        rows.append(learn.validate())
    return rows


def padded_validation():
    "Validation and predictions of 41 images by a `DistributedSampler`, which would repeat one"
    data = TensorDataset(*images(41, 1))
    learn = plain_learner(6)
    sampler = DistributedSampler(data, num_replicas=place().world, rank=place().rank)
    learn.dls.valid = DataLoader(data, 5, sampler=sampler)
    learn.fit(1)
    return learn.history[0]['valid_loss'], learn.validate()['loss'], learn.get_preds()[0]


def suggested():
    # as if the images of one process were much harder
    learn = plain_learner(6)
    return tuple(learn.lr_find(num_it=24, show_plot=False))


def exported(folder):
    learn = Learner(small_data(), small_model()).fit(1)
    learn.export(folder, classes=list('abcd'))
    return None


def work(rank, folder):
    exported(folder / 'network')
    low = [torch.full((3,), 300.0 + rank, dtype=torch.float16), torch.full((2,), 1.0 + rank, dtype=torch.bfloat16)]
    mean_of_all(low, weight=257)
    nothing = [torch.tensor([float('nan')]) if rank else torch.tensor([3.0])]
    mean_of_all(nothing, weight=1 - rank)
    return dict(
        losses=loss_ends(6),
        metrics=metric_rows(),
        padded=padded_validation(),
        rates=suggested(),
        low=[t.tolist() for t in low],
        nothing=nothing[0].item(),
    )


def test_two_processes_say_what_one_says(tmp_path):
    (tmp_path / 'run').mkdir()
    first, second = on_ranks(2, tmp_path, work, tmp_path / 'run')
    for name, end in loss_ends(12).items():
        for got in (first, second):
            assert got['losses'][name] == pytest.approx(end, rel=1e-6, abs=1e-9), name
    for got in (first, second):
        for row, expected in zip(got['metrics'], metric_rows(), strict=True):
            assert row == pytest.approx(expected, rel=1e-6, nan_ok=True)
        epoch, after, probs = got['padded']
        assert epoch == pytest.approx(after, rel=1e-12) and len(probs) == 41
    learn = plain_learner(6)
    assert torch.equal(first['padded'][2], second['padded'][2])
    assert first['rates'] == second['rates'] and len(learn.metrics) == 1
    assert first['low'] == second['low'] == [[300.5] * 3, [1.5] * 2]
    assert first['nothing'] == second['nothing'] == 3
    assert {*os.listdir(tmp_path / 'run/network')} == {'config.json', 'model.safetensors'}
    assert json.loads(Path(tmp_path / 'run/network/config.json').read_text())


# What the environment says


def join():
    return processes.join(torch.device('cpu'))


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    one_line(join, 'RANK is missing', 'torchrun')
    monkeypatch.setenv('RANK', '0')
    one_line(join, 'MASTER_ADDR and MASTER_PORT missing', 'torchrun')


@pytest.mark.parametrize('number, rank', [('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID'), ('OMPI_COMM_WORLD_SIZE',) * 2])
def test_a_starter_that_sets_other_variables_is_named_once(number, rank, monkeypatch):
    monkeypatch.setattr(processes, '_said', set())
    monkeypatch.setenv(number, '4')
    monkeypatch.setenv(rank.replace('SIZE', 'RANK'), '1')
    with pytest.warns(UserWarning, match='4 tasks, and as RANK'):
        assert join().world == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        join()


def test_a_port_that_is_taken_is_named(monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
            monkeypatch.setenv(name, value)
        one_line(join, port, 'MASTER_PORT', exc=ConnectionError)


# Decisions


class Spoil(Callback):
    "Makes the loss of the second process NaN"

    stage = 'target'

    def after_loss(self, learn):
        if learn.training and learn.rank == 1 and learn.iter == 1:
            learn.loss = learn.loss * float('nan')


def decide(rank, folder):
    said = []
    (folder / f'{rank}').mkdir()
    learn = Learner(small_data(), small_model(), path=folder / f'{rank}', cbs=[SaveBest(), Checkpoint()])
    learn.fit(1)
    # as if each machine had a disk of its own: the first process alone has written
    for file in (True, 'models/last'):
        try:
            learn.fit(2, resume=file)
        except ValueError as e:
            said.append(str(e))
    best = SaveBest()
    best.best = best.best_epoch = 0
    best._take_back(learn)
    try:
        tiny_learner([TerminateOnNaN(1), Spoil()]).fit(1)
    except FloatingPointError as e:
        said.append(str(e))
    return said, best.best, sum(float(value.double().sum()) for value in best._weights.values())


def test_processes_decide_alike(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (first, *best), (second, *other_best) = on_ranks(2, tmp_path, decide, folder)
    assert first[0].startswith('resume: nothing to go on from') and first[0] == second[0]
    assert 'process 1 finds no file' in first[1] and first[1] == second[1] and '\n' not in first[1]
    assert 'of another process' in first[2] and 'loss is nan at epoch 0, batch 1' in second[2]
    assert best == other_best and best[0] == 0
