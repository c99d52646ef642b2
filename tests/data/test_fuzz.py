"Files that are damaged or made to do harm: a few of those that `tests/bench/fuzz.py` tries"

import random
from pathlib import Path

import pytest

from tests.bench import fuzz
from trickbag.core.plain_files import content_digest, read_file, read_weights

IMAGES = fuzz.image_files()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', IMAGES)
def test_a_damaged_image_is_as_pillow_has_it_or_refused(name, tmp_path):
    rng = random.Random(name)
    ends = [fuzz.read_image(fuzz.changed(IMAGES[name], rng), tmp_path) for _ in range(8)]
    assert {*ends} <= {'as Pillow', 'refused'}
    assert fuzz.read_image(IMAGES[name], tmp_path) == 'as Pillow'


def test_damaged_runs_and_weights_are_as_written_or_refused(tmp_path):
    rng = random.Random(1)
    run = fuzz.checkpoint_file(tmp_path)
    written = content_digest(read_file(tmp_path / 'good.pt'))
    weights = fuzz.weights_file(tmp_path)
    written_weights = content_digest(read_weights(tmp_path / 'good.safetensors')[0])
    assert fuzz.read_checkpoint(run, tmp_path, written) == 'as written'
    assert fuzz.read_weights_file(weights, tmp_path, written_weights) == 'as written'
    for _ in range(8):
        assert fuzz.read_checkpoint(fuzz.changed(run, rng), tmp_path, written) in ('as written', 'refused')
        ends = fuzz.read_weights_file(fuzz.changed(weights, rng), tmp_path, written_weights)
        assert ends in ('as written', 'refused')


@pytest.mark.parametrize('form', ['tgz', 'zip'])
def test_damaged_archives_are_as_written_or_refused(form, tmp_path):
    rng = random.Random(2)
    data = fuzz.archive_file(tmp_path, form)
    packed = {file.read_bytes() for file in (tmp_path / 'set').rglob('*.png')}
    for i, changed in enumerate([data, *(fuzz.changed(data, rng) for _ in range(8))]):
        place = Path(tmp_path) / str(i)
        place.mkdir()
        assert fuzz.read_archive(changed, place, packed) in ('as written', *(['refused'] if i else []))


def test_what_would_do_harm_is_refused():
    assert not fuzz.harmful()['wrong']
