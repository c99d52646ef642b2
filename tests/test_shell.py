"""The shell, from a folder of images to an ONNX file: a transcript that is run on the toy set, with a kill in it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trickbag.cli import main
from trickbag.data.toy import toy_set


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with `photographs` and `test` in it, each with a folder of images a class"
    place = tmp_path_factory.mktemp('shell')
    toy_set(place / 'toy', n_classes=3, n_train=60, n_valid=12)
    (place / 'toy' / 'train').rename(place / 'photographs')
    (place / 'toy' / 'valid').rename(place / 'test')
    return place


def start(place, *argv):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TRICKBAG_CACHE': str(place / 'cache')}
    command = [sys.executable, '-m', 'trickbag', *argv]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shell(place, *argv):
    "Exit code, what was printed, and what was printed to standard error"
    process = start(place, *argv)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


RUN = ('--size', '32', '--bs', '8', '--lr', '4e-3', '--tricks', 'MixUp(.2), EMA()', '--out', 'run')


def wait_for(file, process):
    end = time.monotonic() + 240
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_from_photographs_to_onnx(place):
    # a kill after the first checkpoint
    training = start(place, 'train', 'photographs', '--epochs', '3', *RUN)
    wait_for(place / 'run' / 'last.pt', training)
    training.send_signal(signal.SIGKILL)
    training.communicate()

    code, out, err = shell(place, 'resume', 'run')
    assert code == 0, err
    assert 'accuracy' in out
    rows = list(csv.DictReader((place / 'run' / 'history.csv').open()))
    assert [row['epoch'] for row in rows] == [str(i) for i in range(3)]
    for name in ('batch.png', 'loss.png', 'confusion.png', 'worst.png', 'run.json', 'classifier/config.json'):
        assert (place / 'run' / name).exists(), name

    code, out, err = shell(place, 'evaluate', 'run', 'test', '--tta')
    assert code == 0, err
    assert '12 images' in out

    images = sorted(str(file.relative_to(place)) for file in (place / 'test').rglob('*.jpg'))[:2]
    code, out, err = shell(place, 'predict', 'run', *images, '--json')
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [row['file'] for row in found] == images
    assert all(abs(sum(row['probabilities'].values()) - 1) < 1e-4 for row in found)

    code, out, err = shell(place, 'export', 'run', '--onnx', 'photographs.onnx')
    assert code == 0, err
    assert (place / 'photographs.onnx').stat().st_size > 2**20


MISTAKES = [
    (['train', 'nowhere'], 'no set of that name'),
    (['train', 'photographs', '--tricks', 'Mixup(.2)'], 'did you mean MixUp'),
    (['train', 'photographs', '--arch', 'resnet51'], 'did you mean'),
    (['train', 'photographs', '--epochs', '0'], 'must be 1 or more'),
    (['train', 'photographs', '--lr', 'fast'], 'number'),
    (['resume', 'nowhere'], 'no run'),
    (['evaluate', 'nowhere', 'test'], 'no folder'),
    (['predict', 'nowhere', 'a.jpg'], 'no folder'),
    (['export', 'nowhere', '--onnx', 'a.onnx'], 'no folder'),
    (['fly'], 'invalid choice'),
]


@pytest.mark.parametrize('argv, word', MISTAKES, ids=[' '.join(argv) for argv, _ in MISTAKES])
def test_a_mistake_is_said_in_a_line(place, monkeypatch, capsys, argv, word):
    monkeypatch.chdir(place)
    out = ['--out', 'other'] if argv[0] == 'train' else []
    with pytest.raises(SystemExit) as stop:
        main([*argv, *out])
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert word in err
    assert len(err.strip().splitlines()) == 1, err


def test_ctrl_c_says_what_was_saved(place):
    training = start(place, 'train', 'photographs', '--epochs', '50', *RUN[:-1], 'stopped')
    wait_for(place / 'stopped' / 'last.pt', training)
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=120)
    assert training.returncode == 130
    assert 'trickbag resume stopped' in err


def test_help_answers_without_torch(place):
    code = """
import sys
from trickbag.cli import main
try:
    main(['train', '--help'])
except SystemExit:
    pass
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'example:' in done.stdout
