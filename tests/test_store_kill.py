"Processes that fill one store at the same time, and are killed in the middle of it, leave only images that are right."

import signal
import subprocess
import sys
import time

import torch
from PIL import Image

from trickbag.data.decode import decode
from trickbag.data.sources import FileSource
from trickbag.data.store import Store

FILL = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from trickbag.data.sources import FileSource
from trickbag.data.store import Store
files = sorted(Path(sys.argv[1]).glob('*.png'))
s = Store(FileSource(files), 48, keep='disk', threads=2)
print('open', flush=True)
g = torch.Generator().manual_seed(int(sys.argv[2]))
for i in torch.randperm(len(files), generator=g).split(8): s.submit(i)()
"""


def test_killed_while_filling(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    files = [tmp_path / f'{i:03}.png' for i in range(240)]
    g = torch.Generator().manual_seed(0)
    for f in files:
        Image.fromarray(torch.randint(0, 256, (90, 120, 3), generator=g, dtype=torch.uint8).numpy()).save(f)
    stamped = []
    for wait in (0.03, 0.1, 0.2):
        ps = [
            subprocess.Popen([sys.executable, '-c', FILL, str(tmp_path), str(k)], stdout=subprocess.PIPE, text=True)
            for k in range(2)
        ]
        for p in ps:
            assert p.stdout.readline() == 'open\n'
        time.sleep(wait)
        for p in ps:
            p.send_signal(signal.SIGKILL)
            p.wait()
            p.stdout.close()
        s = Store(FileSource(files), 48, keep='disk')
        there = [i for i in range(240) if int(s.index[i, 0])]
        stamped.append(len(there))
        for i in there:
            x, wh = decode(files[i], 48)
            assert torch.equal(s.arrays.pixels[i], x) and s.wh[i].tolist() == list(wh), i
    assert stamped == sorted(stamped) and stamped[-1] > 0  # what was there stays
    s.submit(torch.arange(240))()
    s.saved.result()
    assert not s.left and (s.arrays.folder / 'whole').exists()
