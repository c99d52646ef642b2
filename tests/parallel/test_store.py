"The processes of one machine decode each image once, together."

import os

import numpy as np
from PIL import Image

from tests.parallel.ranks import on_ranks
from trickbag.all import DataLoaders, Learner, accuracy
from trickbag.data.sources import FileSource
from trickbag.testing.pairs import small_model


class Counting(FileSource):
    "Notes which images are decoded"

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.decoded = []

    def get(self, i, presize):
        self.decoded.append(i)
        return super().get(i, presize)


def train(rank, folder, world):
    os.environ['TRICKBAG_CACHE'] = str(folder / 'cache')
    os.environ['LOCAL_WORLD_SIZE'] = str(world)
    files = sorted((folder / 'photographs').rglob('*.png'))
    labels = [i % 4 for i in range(len(files))]
    sources = [Counting(files[:24], labels[:24]), Counting(files[24:], labels[24:])]
    dls = DataLoaders.from_sources(*sources, size=16, bs=4, vocab=list('abcd'), threads=1)
    Learner(dls, small_model(4), metrics=accuracy, device='cpu').fit(3)
    return [source.decoded for source in sources], dls.train.store.kind


def test_each_image_is_decoded_by_one_process(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(33):
        file = tmp_path / 'photographs' / f'{i:02d}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    (tmp_path / 'ranks').mkdir()
    ends = on_ranks(2, tmp_path / 'ranks', train, tmp_path, 2)
    for part, n in enumerate((24, 9)):
        assert sorted(i for decoded, _ in ends for i in decoded[part]) == list(range(n))
    # each of them decodes a part, and a set that a single process would keep in its memory is in their folder
    assert all(decoded[0] and kind == 'disk' for decoded, kind in ends)
