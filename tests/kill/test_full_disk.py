"A full disk: the earlier state is left, and what is said tells what to free."

import errno

import pytest

from tests.helpers import image_files
from trickbag.all import Checkpoint, CSVLogger, SaveBest
from trickbag.data.sources import FileSource
from trickbag.data.store import Store
from trickbag.testing.proofs import tiny_learner


def full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_says_what_to_free_and_leaves_the_earlier_state(tmp_path, monkeypatch):
    (tmp_path / 'cache/store/a set').mkdir(parents=True)
    (tmp_path / 'cache/store/a set/pixels').write_bytes(b'x' * 3_000_000)
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    learn = tiny_learner([Checkpoint(keep=2), CSVLogger(), SaveBest()], path=tmp_path).fit(1)
    before = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr('os.fsync', full)
        with pytest.warns(UserWarning) as told, pytest.raises(OSError, match='are free in'):
            learn.fit(1)
        with pytest.raises(OSError, match=f'kB are needed and .* .B are free in {tmp_path}/models; make room there'):
            learn.save('models/other')
    assert before == {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    texts = {text.split(':')[0]: text for text in (str(w.message) for w in told)}
    for name in ('Checkpoint', 'CSVLogger', 'SaveBest'):
        assert f'3.0 MB there are decoded images in {tmp_path}/cache/store' in texts[name], name
        assert '\n' not in texts[name]
    assert 'keep fewer than 2' in texts['Checkpoint']
    # the next one finds room
    learn.fit(1)
    assert len((tmp_path / 'history.csv').read_text().splitlines()) == 4


def test_a_store_without_room_says_how_much_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('trickbag.data.store.DiskArrays.__init__', full)
    (tmp_path / 'images').mkdir()
    source = FileSource(image_files(tmp_path / 'images'))
    with pytest.warns(
        UserWarning, match=r'about 98.3 kB are needed and [\d,.]+ .B are free in .*; they are kept in memory'
    ):
        Store(source, 64, keep='disk')
