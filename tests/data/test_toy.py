"""The toy set where a notebook cannot show it: killed, asked for by several processes at once, in its default place,
and pinned pixels."""

import os
import time

import pytest
from PIL import Image

from tests.helpers import start
from trickbag.data.beetles import beetle
from trickbag.data.toy import toy_set

SMALL = dict(n_classes=3, n_train=24, n_valid=12, size=48)


def files(p):
    return {o.relative_to(p).as_posix(): o.read_bytes() for o in p.rglob('*') if o.is_file()}


def drawing(path, output, **kw):
    "A process that draws a set"
    return start(f'from trickbag.data.toy import toy_set\ntoy_set({str(path)!r}, **{kw!r})', output)


def test_killed_while_drawing(tmp_path):
    kw = {**SMALL, 'n_train': 4000}
    path = tmp_path / 'a'
    output = tmp_path / 'output'
    process = drawing(path, output, **kw)
    try:
        end = time.time() + 120
        while sum(1 for _ in tmp_path.glob('.a-*/new/train/*/*.jpg')) < 20:
            assert process.is_alive(), output.read_text()
            assert time.time() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    # nothing under the name, the rest hidden
    assert not path.exists() and len(left := list(tmp_path.glob('.a-*'))) == 1
    toy_set(path, **SMALL)
    assert files(path) == files(toy_set(tmp_path / 'b', **SMALL)) and left[0].exists()
    (path / 'labels.csv').unlink()
    old = time.time() - 2 * 86400
    os.utime(left[0], (old, old))
    toy_set(path, **SMALL)
    assert not list(tmp_path.glob('.*'))  # swept by a later call, once it is a day old


@pytest.mark.parametrize('cut', ('toy.json', 'labels.csv', 'image'))
def test_half_a_set_is_drawn_again(tmp_path, monkeypatch, cut):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    path = toy_set(**SMALL)
    want = files(path)
    (next(path.glob('valid/*/*.jpg')) if cut == 'image' else path / cut).unlink()
    assert toy_set(**SMALL) == path and files(path) == want and [o.name for o in path.parent.iterdir()] == [path.name]


def test_broken_json_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path))
    path = toy_set(**SMALL)
    want = files(path)
    (path / 'toy.json').write_text('{"n_cla')
    assert files(toy_set(**SMALL)) == want


def test_error_leaves_nothing(tmp_path, monkeypatch):
    import trickbag.data.toy as toy

    def stop(y, key, *args, **kw):
        if key.endswith('train/9'):
            raise KeyboardInterrupt
        return beetle(y, key, *args, **kw)

    monkeypatch.setattr(toy, 'beetle', stop)
    with pytest.raises(KeyboardInterrupt):
        toy_set(tmp_path / 'a', **SMALL)
    assert not list(tmp_path.iterdir())


def test_several_processes_at_once(tmp_path):
    sets = tmp_path / 'sets'
    sets.mkdir()
    outputs = [tmp_path / f'output{i}' for i in range(3)]
    processes = [drawing(sets / 'a', output, **SMALL) for output in outputs]
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0, 0, 0], [output.read_text() for output in outputs]
    assert files(sets / 'a') == files(toy_set(sets / 'b', **SMALL))
    assert sorted(o.name for o in sets.iterdir()) == ['a', 'b']


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'c'))
    monkeypatch.setenv('TRICKBAG_DATA', str(tmp_path / 'd'))
    a = toy_set(**SMALL)
    b = toy_set(**SMALL, pose=1)
    c = toy_set(**SMALL, light=0)
    # same knobs, same folder; else another
    assert a == b != c and a.parent == c.parent == tmp_path / 'c' and not (tmp_path / 'd').exists()
    monkeypatch.delenv('TRICKBAG_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert toy_set(**SMALL) == tmp_path / 'home' / '.cache' / 'trickbag' / a.name
    assert files(tmp_path / 'home' / '.cache' / 'trickbag' / a.name) == files(a)


def test_existing_folder(tmp_path):
    (tmp_path / 'empty').mkdir()
    assert (toy_set(tmp_path / 'empty', **SMALL) / 'toy.json').exists()
    (tmp_path / 'file').write_text('x')
    with pytest.raises(FileExistsError, match='not a toy set'):
        toy_set(tmp_path / 'file', **SMALL)
    with pytest.raises(FileExistsError, match='other size'):
        toy_set(tmp_path / 'empty', **{**SMALL, 'size': 40})


def test_tiny_is_quick(tmp_path):
    t = time.process_time()
    toy_set(tmp_path / 'a', **SMALL)
    assert time.process_time() - t < 1.5  # 0.15 s of one core where it was written


# 4 x 4 means of four pictures: a change of drawing must be meant (then raise `version` in toy_set's knobs, so that
# caches are redrawn)
PINS = {
    0: bytes.fromhex(
        '488f90559aa8578d9c2e4f665d7591404d613e5164415c6c474f62421f2c28213250608050557248213d2d2d403f6775'
    ),
    13: bytes.fromhex(
        'c6b397d8ae96c8b88dc4c18eb7ad92b2ac8887856bbcb79da1988078734e5955388e8e6ca5997797925f7f725483826a'
    ),
    26: bytes.fromhex(
        '494a4251584465615559554662655b453f48574d535b513d636d5e3c38434737506a685f6c6b5d5c535c595453858268'
    ),
    39: bytes.fromhex(
        '393b364d52494f584e434b4443463f49444445413f5c5a56636c645f515383466751534c6d8574616555635956617869'
    ),
}


@pytest.mark.parametrize('k', PINS)
def test_pinned_pixels(k):
    got = list(beetle(k, k, 64, aspect=1.5, nuisance=1.0).resize((4, 4), Image.Resampling.BOX).tobytes())
    assert len(got) == len(PINS[k]) and max(abs(a - b) for a, b in zip(got, PINS[k])) <= 1, got
