"Processes that fill one store at the same time, and are killed in the middle of it, leave only images that are right."

import time

import torch
from PIL import Image

from tests.helpers import start, wait_for
from trickbag.data.decode import decode
from trickbag.data.sources import FileSource
from trickbag.data.store import Store

FILL = """
from pathlib import Path
import torch
from trickbag.data.sources import FileSource
from trickbag.data.store import Store

files = sorted(Path(FOLDER).glob('*.png'))
s = Store(FileSource(files), 48, keep='disk', threads=2)
print('open', flush=True)
g = torch.Generator().manual_seed(SEED)
for i in torch.randperm(len(files), generator=g).split(8):
    s.submit(i)()
"""


def test_killed_while_filling(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    files = [tmp_path / f'{i:03}.png' for i in range(240)]
    g = torch.Generator().manual_seed(0)
    for f in files:
        Image.fromarray(torch.randint(0, 256, (90, 120, 3), generator=g, dtype=torch.uint8).numpy()).save(f)
    stamped = []
    for goal in (1, 60, 120):
        outputs = [tmp_path / f'{k}.txt' for k in range(2)]
        for output in outputs:
            output.unlink(missing_ok=True)
        code = [f'FOLDER, SEED = {str(tmp_path)!r}, {k}\n{FILL}' for k in range(2)]
        fillers = [start(code[k], outputs[k]) for k in range(2)]
        for filler, output in zip(fillers, outputs):
            wait_for('open', output, filler)
        s = Store(FileSource(files), 48, keep='disk')
        end = time.monotonic() + 60
        while int((s.index[:, 0] != 0).sum()) < goal:
            assert time.monotonic() < end, [output.read_text() for output in outputs]
            time.sleep(0.001)
        for filler in fillers:
            filler.kill()
            filler.join()
        s = Store(FileSource(files), 48, keep='disk')
        there = [i for i in range(240) if int(s.index[i, 0])]
        stamped.append(len(there))
        for i in there:
            x, wh = decode(files[i], 48)
            assert torch.equal(s.arrays.pixels[i], x) and s.wh[i].tolist() == list(wh), i
    assert stamped == sorted(stamped) and stamped[0] > 0  # what was there stays
    s.submit(torch.arange(240))()
    s.saved.result()
    assert not s.left and (s.arrays.folder / 'whole').exists()
