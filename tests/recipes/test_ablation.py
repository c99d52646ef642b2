"An ablation at work: killed, on several processes, within a budget, with losers dropped, from the shell."

import json
import os
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.helpers import processes
from trickbag.cli import main
from trickbag.data.toy import toy_set
from trickbag.recipes.ablation import (
    Ablation,
    GivenRows,
    as_table,
    folder_data,
    plot_curves,
    plot_gains,
    read_findings,
)
from trickbag.recipes.evidence import evidence_table, progress
from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import Recipe, to_toml
from trickbag.recipes.runs import Job, RunLog, run_job

RECIPE = Recipe(
    'small',
    arch='timm/test_resnet',
    size=24,
    bs=16,
    n_images=32,
    epochs=2,
    lr=0.02,
    opt='AdamW()',
    tricks=('OneCycle()', 'LabelSmoothing()', 'MixUp(0.2)', 'EMA(0.9)'),
)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    return toy_set(tmp_path_factory.mktemp('ablation'), n_classes=3, n_train=32, n_valid=30)


@pytest.fixture(scope='module')
def whole(photographs, tmp_path_factory):
    "An ablation that nothing disturbed"
    ablation = make(photographs, tmp_path_factory.mktemp('whole') / 'log.jsonl')
    ablation.run()
    return ablation


def make(photographs, log, **kw):
    return Ablation(
        RECIPE, 'OneCycle', partial(folder_data, path=photographs), log=log, **{'seeds': 2, 'threads': 1, **kw}
    )


def scores(ablation):
    "What a log says, without what is never the same twice"
    names = ('recipe', 'seed', 'choose', 'confirm', 'curve', 'epochs')
    return {key: [run[name] for name in names] for key, run in ablation.log.runs.items()}


def train(photographs, log):
    make(photographs, log).run()


def test_ten_kills_and_the_same_table(photographs, whole, tmp_path):
    log = tmp_path / 'log.jsonl'
    for kill in range(10):
        process = processes.Process(target=train, args=(photographs, log))
        process.start()
        # at a time of its own: soon after this many lines are there
        end = time.monotonic() + 120
        while process.is_alive() and lines(log) < kill + 1:
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(0.013 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    # half a line, as a kill in the middle of writing leaves
    with open(log, 'a') as f:
        f.write('{"key": "hal')
    resumed = make(photographs, log)
    resumed.run()
    assert scores(resumed) == scores(whole)
    assert repr(resumed.table(with_cost=False)) == repr(whole.table(with_cost=False))


def lines(log):
    return log.read_text().count('\n') if log.exists() else 0


def test_several_processes_give_the_same(photographs, whole, tmp_path):
    several = make(photographs, tmp_path / 'log.jsonl', processes=2)
    several.run()
    assert scores(several) == scores(whole)
    with pytest.raises(ValueError, match=r'cannot .*take partial\(folder_data'):
        Ablation(RECIPE, 'OneCycle', lambda r: r.data(photographs), log=tmp_path / 'b.jsonl', processes=2).run()


def test_a_row_is_the_recipes_own_training(photographs, whole):
    rows = {row.name: row for row in whole.findings.rows}
    alone = run_job(Job(rows['EMA(decay=0.9)'].recipe, 43), lambda recipe: recipe.data(photographs))
    logged = whole.log.runs[alone['key']]
    assert [alone[name] for name in ('choose', 'confirm')] == [logged[name] for name in ('choose', 'confirm')]
    # the same seed, the same first weights and order: without its trick the row is the base
    data = RECIPE.data(photographs)
    torch.manual_seed(43)
    learn = rows['base'].recipe.learner(data, seed=43)
    rows['base'].recipe.fit(learn)
    probs, targets = learn.get_preds()
    run = whole.findings.runs(rows['base'].recipe)[43]
    both = (run['choose'] * run['n_choose'] + run['confirm'] * run['n_confirm']) / 30
    assert both == pytest.approx((probs.argmax(1) == targets).double().mean().item())
    assert {run['seed'] for run in whole.log.runs.values()} == {42, 43, 44, 45}


def test_it_keeps_a_budget(photographs, tmp_path):
    ablation = make(photographs, tmp_path / 'log.jsonl')
    start = time.monotonic()
    table = ablation.run(budget=3 / 60)
    # what a run needs beside its training is not cut short
    assert time.monotonic() - start < 3 + 8
    done = len(ablation.log.runs)
    assert 0 < done < 20
    assert 'did not fit into 0.05 minutes: ' in repr(table)
    assert 'Run it again to go on' in repr(table)
    # none of them is a run that was broken off
    assert all(run['epochs'] == 2 for run in ablation.log.runs.values())


def test_losers_are_dropped_and_said(photographs, whole, tmp_path, capsys):
    ablation = make(photographs, tmp_path / 'log.jsonl', halving=True)
    table = repr(ablation.run())
    (after_one,) = [ablation.plan.left(ablation.log, 1)]
    assert len(after_one) == 2
    dropped = ({'LabelSmoothing', 'MixUp', 'EMA'} - {row.technique for row in after_one}).pop()
    (row,) = [row for row in ablation.findings.rows if row.kind == 'alone' and row.technique == dropped]
    assert list(ablation.findings.runs(row.recipe)) == [42]
    assert f'{row.name} dropped after 1 seed.' in table
    assert not any(row.technique == dropped for row in ablation.findings.rows if row.kind != 'alone')
    # the better ones stayed
    first = {row.technique: row for row in whole.findings.rows if row.kind == 'alone'}
    best = max(first, key=lambda name: whole.findings.runs(first[name].recipe)[42]['choose'])
    assert best in {row.technique for row in after_one}
    assert repr(make(photographs, tmp_path / 'log.jsonl', halving=True).run()) == table


def test_what_clashes_is_refused_before_the_first_training(photographs, tmp_path):
    clashing = RECIPE + 'CutMix()'
    with pytest.raises(ValueError, match=r'Ablation: .*CutMix.*MixUp'):
        Ablation(clashing, 'OneCycle', partial(folder_data, path=photographs), log=tmp_path / 'log.jsonl').run()
    assert lines(tmp_path / 'log.jsonl') == 1


def test_rendered_again_from_the_log(whole):
    found = read_findings(whole.log.file)
    assert repr(as_table(found)) == repr(whole.table())
    gains, curves = plot_gains(found), plot_curves(found)
    assert len(gains.axes[0].patches) == sum(1 for row in found.rows if row.against)
    assert [ax.get_title() for ax in curves.axes if ax.get_title()] == [row.name for row in found.rows]


def test_from_the_shell(photographs, tmp_path, monkeypatch, capsys):
    to_toml(RECIPE, tmp_path / 'mine.toml')
    monkeypatch.chdir(tmp_path)
    ablate = [
        'ablate',
        str(photographs),
        '--recipe',
        'mine.toml',
        '--base',
        'OneCycle',
        '--seeds',
        '1',
        '--rows',
        'ladder',
    ]
    main([*ablate, '--without', 'EMA', '--out', 'found'])
    out = capsys.readouterr().out
    assert '+ MixUp(alpha=0.2)' in out and 'EMA' not in out and 'Best: ' in out
    assert {file.name for file in (tmp_path / 'found').iterdir()} == {
        'log.jsonl',
        'table.txt',
        'gains.png',
        'curves.png',
    }
    assert (tmp_path / 'found' / 'table.txt').read_text().strip() in out
    about = json.loads((tmp_path / 'found' / 'log.jsonl').read_text().splitlines()[0])
    assert about['seeds'] == [42] and about['kinds'] == ['ladder']
    # again: all is there
    main([*ablate, '--without', 'EMA', '--out', 'found'])
    n_runs = len((tmp_path / 'found' / 'log.jsonl').read_text().splitlines()) - 1
    assert f'log.jsonl: {n_runs} trainings are there, and not done again' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*ablate[:5], 'Cosine'])
    assert 'has no Cosine; its tricks: OneCycle' in capsys.readouterr().err


def test_rows_that_are_given(photographs, tmp_path):
    plain = replace(RECIPE, tricks=('OneCycle()',))
    smoothed = plain + 'LabelSmoothing()'
    rows = (
        Row('base', 'plain', plain),
        Row('alone', 'smoothing', smoothed, plain, 'smoothing'),
        Row('other', 'the same', smoothed, plain, 'smoothing'),
        Row('other', 'both', smoothed + 'EMA(0.9)', smoothed, 'EMA'),
    )
    plan = GivenRows(rows, (42, 43))
    log = RunLog(tmp_path / 'log.jsonl', plan.about())
    jobs = plan.next_jobs(log)
    assert [job.seed for job in jobs] == [42] * 4 + [43] * 4
    dls = plain.data(photographs)
    for job in {job.key: job for job in jobs}.values():
        log.add(run_job(job, lambda recipe: dls, halve=False))
    findings = read_findings(log.file)
    # the plan is read from the log, and nothing is left of it
    assert findings.plan == plan
    assert not plan.next_jobs(findings.log)
    assert len(findings.log.runs) == 6
    expected = [log.runs[Job(smoothed, s).key]['choose'] - log.runs[Job(plain, s).key]['choose'] for s in (42, 43)]
    assert findings.gains(rows[1]) == findings.gains(rows[2]) == expected
    table = as_table(findings)
    assert [row[0] for row in table.rows] == ['plain', 'smoothing', 'the same', 'both']
    # nothing was chosen, so that nothing is confirmed
    assert not table.notes
    plot_gains(findings)
    assert progress(findings).startswith('6 of 6 runs')
    assert [row[1] for row in evidence_table(findings, rows=('alone', 'both')).rows] == ['2', '2']
