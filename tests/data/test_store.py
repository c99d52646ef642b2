"A store gives what was decoded, and knows of each image whether it still is what lies in the file."

import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.helpers import Levels
from trickbag.data import sources
from trickbag.data.store import Store


@pytest.mark.parametrize('field', ['st_mtime_ns', 'st_size', 'st_ctime_ns', 'st_ino'])
def test_a_stamp_depends_on_all_that_tells_a_changed_file(field, tmp_path, monkeypatch):
    "Each alone: a file may grow within one tick of the clock, or be replaced by one of its size and date"
    f = tmp_path / 'a.bmp'
    f.write_bytes(b'BM')
    source = sources.FileSource([f])
    now = dict(st_mtime_ns=1, st_size=2, st_ctime_ns=3, st_ino=4)
    monkeypatch.setattr(sources, 'os', SimpleNamespace(**(vars(os) | dict(stat=lambda _: SimpleNamespace(**now)))))
    was = source.stamp(0)
    now[field] += 1
    assert source.stamp(0) != was


def test_an_image_asked_for_twice_at_once_counts_once():
    "Else a store takes itself for complete, and gives what was never decoded"
    store = Store(Levels(4), 4, keep='memory', threads=1)
    waits = [store.submit(torch.tensor([0, 1])) for _ in range(2)]
    store.source.free.set()
    for w in waits:
        w()
    assert store.submit(torch.tensor([2, 3]))()[:, 0, 0, 0].tolist() == [2, 3]


def test_an_image_that_is_being_replaced_in_a_store_on_disk_is_marked(tmp_path, monkeypatch):
    "A run that is killed in the middle leaves half of the new picture: no stamp may say that it is right"
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    f = tmp_path / 'a.bmp'

    def store(color):
        Image.new('RGB', (4, 4), color).save(f)
        return Store(sources.FileSource([f]), 4, keep='disk', threads=1)

    store('red').submit(torch.tensor([0]))()
    new = store('blue')
    assert new.index[0, 0] != 0

    def killed(i, x):
        raise RuntimeError('killed')

    monkeypatch.setattr(new.arrays, 'write', killed)
    with pytest.raises(RuntimeError, match='killed'):
        new.submit(torch.tensor([0]))()
    assert new.index[0, 0] == 0
