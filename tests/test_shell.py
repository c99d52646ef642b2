"""The shell, from a folder of images to an ONNX file: a transcript that is run on the toy set, with a kill in it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from trickbag.all import load_classifier
from trickbag.cli import main
from trickbag.commands import ARGUMENTS, _held, has_checkpoint, make_data, resume, write_run
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


# a network that timm has for tests
HOW = ('--arch', 'timm/test_resnet', '--size', '32', '--bs', '8')
RUN = (*HOW, '--lr', '4e-3', '--tricks', 'MixUp(.2), EMA()', '--out', 'run')


def wait_for(file, process):
    end = time.monotonic() + 240
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def here(place, monkeypatch, capsys, *argv):
    "What a command prints that runs in this process: a new one loads torch first"
    monkeypatch.chdir(place)
    monkeypatch.setenv('TRICKBAG_CACHE', str(place / 'cache'))
    main(list(argv))
    return capsys.readouterr().out


def test_from_photographs_to_onnx(place, monkeypatch, capsys):
    # a kill after the first checkpoint
    training = start(place, 'train', 'photographs', '--epochs', '3', *RUN)
    wait_for(place / 'run' / 'last.pt', training)
    training.send_signal(signal.SIGKILL)
    training.communicate()
    with pytest.raises(SystemExit):
        here(place, monkeypatch, capsys, 'predict', 'run', 'photographs')
    assert 'trickbag resume run' in capsys.readouterr().err

    code, out, err = shell(place, 'resume', 'run')
    assert code == 0, err
    assert 'accuracy' in out
    # the first epoch was done
    assert 'epoch 0 ' not in out + err and 'epoch 2 ' in out + err, out + err
    rows = list(csv.DictReader((place / 'run' / 'history.csv').open()))
    assert [row['epoch'] for row in rows] == [str(i) for i in range(3)]
    for name in ('batch.png', 'loss.png', 'confusion.png', 'worst.png', 'run.json', 'classifier/config.json'):
        assert (place / 'run' / name).exists(), name
    assert len(json.loads((place / 'run' / 'run.json').read_text())['started']) == 2

    # the same as a run that nobody disturbed
    here(place, monkeypatch, capsys, 'train', 'photographs', '--epochs', '3', *RUN[:-1], 'undisturbed')
    weights, undisturbed = (
        load_file(place / name / 'classifier' / 'model.safetensors') for name in ('run', 'undisturbed')
    )
    assert weights.keys() == undisturbed.keys()
    assert all(weights[name].equal(undisturbed[name]) for name in weights)

    out = here(place, monkeypatch, capsys, 'evaluate', 'run', 'test', '--tta')
    assert '12 images' in out

    images = sorted(str(file.relative_to(place)) for file in (place / 'test').rglob('*.jpg'))[:2]
    out = here(place, monkeypatch, capsys, 'predict', 'run', *images, '--json')
    found = [json.loads(line) for line in out.splitlines()]
    assert [row['file'] for row in found] == images
    assert all(abs(sum(row['probabilities'].values()) - 1) < 1e-4 for row in found)

    here(place, monkeypatch, capsys, 'export', 'run', '--onnx', '--torch', 'photographs.pt2')
    assert (place / 'run' / 'model.onnx').stat().st_size > 2**18
    assert (place / 'photographs.pt2').stat().st_size > 2**18


def test_predict_a_folder_with_a_damaged_file(place, monkeypatch, capsys):
    here(place, monkeypatch, capsys, 'train', 'test', '--epochs', '1', *RUN[:-1], 'short')
    folder = place / 'mixed'
    folder.mkdir()
    for i, file in enumerate(sorted((place / 'test').rglob('*.jpg'))[:3]):
        (folder / f'{i}.jpg').write_bytes(file.read_bytes())
    (folder / 'damaged.jpg').write_bytes(b'no image')
    with pytest.raises(SystemExit):
        here(place, monkeypatch, capsys, 'predict', 'short', 'mixed', '--csv')
    captured = capsys.readouterr()
    rows = list(csv.DictReader(captured.out.splitlines()))
    assert [row['file'].split('/')[-1] for row in rows] == ['0.jpg', '1.jpg', '2.jpg']
    assert 'damaged.jpg' in captured.err and '1 of 4 could not be read' in captured.err
    classifier = load_classifier(place / 'short' / 'classifier')
    for row in rows:
        one = classifier.predict(place / row['file'])
        assert row['label'] == one.label and row['sure'] == 'True'
        assert abs(float(row['probability']) - one.probability) < 2e-6


def test_weights_in_a_file_and_a_rate_that_is_found(place, monkeypatch, capsys):
    torch.manual_seed(0)
    save_file(timm.create_model('test_resnet', num_classes=7).state_dict(), place / 'seven.safetensors')
    how = (*HOW, '--seed', '1')
    out = here(
        place,
        monkeypatch,
        capsys,
        'train',
        'photographs',
        '--weights',
        'seven.safetensors',
        '--epochs',
        '1',
        '--lr',
        'auto',
        *how,
        '--out',
        'tuned',
    )
    assert 'found by lr_find' in out
    about = json.loads((place / 'tuned' / 'run.json').read_text())
    assert about['arguments']['pretrained'] == str((place / 'seven.safetensors').resolve())
    assert isinstance(about['arguments']['lr'], float)
    rows = list(csv.DictReader((place / 'tuned' / 'history.csv').open()))
    # head first, then all
    assert len(rows) == 2
    # from another folder, and with the photographs elsewhere
    shutil.copytree(place / 'photographs', place / 'moved')
    out = here(place / 'tuned', monkeypatch, capsys, 'resume', '../tuned', '--data', '../moved')
    assert 'accuracy' in out
    assert float(here(place, monkeypatch, capsys, 'find-lr', 'photographs', *how).split()[1]) > 0
    assert 'MixUp' in here(place, monkeypatch, capsys, 'explain', 'photographs', '--tricks', 'MixUp()', *how)


def test_a_split_by_the_folders_names(place, monkeypatch, capsys):
    split = place / 'split'
    for name, part in (('Training', 'photographs'), ('dev', 'test'), ('test', 'test')):
        shutil.copytree(place / part, split / name)
    found = make_data(dict(data=str(split), size=32, bs=8, valid_pct=None, seed=1))
    assert f'validates on {split / "dev"}' in capsys.readouterr().out
    assert (len(found.train.labels), len(found.valid.labels)) == (60, 12)
    with pytest.raises(ValueError, match='has its own split'):
        make_data(dict(data=str(split), size=32, bs=8, valid_pct=0.3, seed=1))


def test_a_run_without_a_checkpoint_is_begun_anew(place, monkeypatch, capsys):
    here(place, monkeypatch, capsys, 'train', 'photographs', '--epochs', '1', *RUN[:-1], 'short of one')
    before = load_file(place / 'short of one' / 'classifier' / 'model.safetensors')
    # as a kill in its first epoch would leave it
    shutil.rmtree(place / 'short of one' / 'classifier')
    (place / 'short of one' / 'last.pt').unlink()
    assert not has_checkpoint(place / 'short of one')
    assert 'begins anew' in here(place, monkeypatch, capsys, 'resume', 'short of one')
    after = load_file(place / 'short of one' / 'classifier' / 'model.safetensors')
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_nothing_of_a_run_is_written_over(place, monkeypatch, capsys):
    for name in ('run.json', 'last.pt', 'classifier/config.json'):
        folder = place / 'not ours' / name.partition('.')[0]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text('kept')
        with pytest.raises(SystemExit):
            here(place, monkeypatch, capsys, 'train', 'photographs', '--epochs', '1', *RUN[:-1], str(folder))
        assert 'already' in capsys.readouterr().err and (folder / name).read_text() == 'kept'
    # a complete run whose checkpoint was removed
    write_run(folder, dict.fromkeys(ARGUMENTS) | dict(data=str(place / 'photographs')))
    with pytest.raises(ValueError, match='is complete'):
        resume(folder)


def test_a_run_is_no_class(place, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        here(place / 'photographs', monkeypatch, capsys, 'train', '.', '--epochs', '1', *HOW)
    assert 'whose folders are classes' in capsys.readouterr().err
    # what was made for the start that failed is gone
    assert not (place / 'photographs' / 'run').exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with _held(tmp_path / 'run'):
        with pytest.raises(ValueError, match='another process trains there'):
            with _held(tmp_path / 'run'):
                pass
    with _held(tmp_path / 'run'):
        pass


def test_photographs_that_moved(place, monkeypatch, capsys):
    (place / 'gone').mkdir()
    write_run(place / 'gone', dict.fromkeys(ARGUMENTS) | dict(data=str(place / 'was here')))
    with pytest.raises(FileNotFoundError, match='if the photographs moved: trickbag resume .* --data FOLDER'):
        resume(place / 'gone')


def test_what_a_run_learned_begins_another(place, monkeypatch, capsys):
    here(place, monkeypatch, capsys, 'train', 'photographs', '--epochs', '1', *RUN[:-1], 'first')
    for weights in ('first', 'first/classifier', 'first/classifier/model.safetensors'):
        folder = f'after {weights.count("/")}'
        out = here(
            place, monkeypatch, capsys, 'train', 'photographs', '--weights', weights, '--epochs', '1', *RUN[:-1], folder
        )
        # the configuration beside the weights says how images are prepared
        assert 'does not say' not in out and 'head: new, for 3 classes' in out


def test_one_trick_with_its_arguments(capsys):
    main(['tricks', 'MixUp'])
    out = capsys.readouterr().out
    assert out.startswith('MixUp: Mix each image') and 'alpha=0.4' in out and 'Beta' in out
    main(['tricks'])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith(('BestEpoch:', 'Callback:', 'Progress:'))]
    with pytest.raises(SystemExit):
        main(['tricks', 'Mixup'])
    assert 'did you mean MixUp?' in capsys.readouterr().err


def test_a_refused_resume_leaves_the_run_as_it_was(place, monkeypatch, capsys):
    here(place, monkeypatch, capsys, 'train', 'photographs', '--epochs', '2', *RUN[:-1], 'kept')
    before = {file: (place / 'kept' / file).read_bytes() for file in ('run.json', 'last.pt')}
    toy_set(place / 'other', n_classes=2, n_train=20, n_valid=8)
    with pytest.raises(SystemExit):
        here(place, monkeypatch, capsys, 'resume', 'kept', '--data', 'other/train')
    assert {file: (place / 'kept' / file).read_bytes() for file in before} == before
    (place / 'kept' / 'run.json').write_text('{"arguments": {"data": "x"}, "started": []}')
    with pytest.raises(ValueError, match='run.json is damaged .*lacks arch'):
        resume(place / 'kept')


def test_predict_goes_on_beside_an_empty_folder(place, monkeypatch, capsys):
    here(place, monkeypatch, capsys, 'train', 'test', '--epochs', '1', *RUN[:-1], 'beside')
    (place / 'empty').mkdir()
    image = str(next((place / 'test').rglob('*.jpg')))
    with pytest.raises(SystemExit):
        here(place, monkeypatch, capsys, 'predict', 'beside', 'empty', image)
    captured = capsys.readouterr()
    assert image in captured.out and 'empty' in captured.err


def test_copied_notebooks(tmp_path, monkeypatch, capsys):
    assert 'notebooks in' in here(tmp_path, monkeypatch, capsys, 'notebooks', 'pages')
    assert (tmp_path / 'pages' / 'own_photographs.ipynb').exists()
    with pytest.raises(SystemExit):
        main(['notebooks', str(tmp_path / 'pages')])


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
    (['predict', 'test', 'a.jpg'], 'config.json'),
    (['explain', 'photographs', '--tricks', 'MixUp() for x in y'], 'no list of calls'),
    (['fly'], 'invalid choice'),
    (['train', ''], 'is empty'),
    (['evaluate', 'test', ''], 'is empty'),
    (['notebooks', ''], 'is empty'),
    (['export', 'test', '--onnx', ''], 'is empty'),
    (['train', 'photographs', '--seed', '9' * 30], 'within 64 bits'),
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
