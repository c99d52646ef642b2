"""Run notebooks in a real kernel and save their outputs: python .ci/outputs.py [NOTEBOOK ...]

Cells that were edited while the notebook ran keep their new source and old outputs.
"""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nb_test_cells

root = Path(__file__).resolve().parent.parent
os.environ['PYTHONWARNINGS'] = 'ignore:IProgress'  # tqdm, which timm imports, speaks of widgets that are not there


def run(p, skip):
    "Outputs of each cell of notebook `p` that a test would run, by cell id, with the source that made them"
    nb = nbformat.read(p, 4)
    ids = {c.id for c in nb_test_cells(p, skip_flags=skip)}
    cl = NotebookClient(
        nb,
        timeout=1200,
        kernel_name='python3',
        coalesce_streams=True,
        resources={'metadata': {'path': str(p.parent)}},
        extra_arguments=['--IPKernelApp.log_level=ERROR'],
    )
    with cl.setup_kernel():
        for i, c in enumerate(nb.cells):
            if c.id in ids:
                cl.execute_cell(c, i)
    clean_nb(nb)
    return {c.id: (c.source, c.outputs) for c in nb.cells if c.id in ids}


def save(p, res):
    nb = json.loads(p.read_text())
    for c in nb['cells']:
        src, outs = res.get(c['id'], (None, None))
        if src == ''.join(c['source']):
            c['outputs'] = [split(o) for o in outs]
    tmp = p.with_suffix('.tmp')
    tmp.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n')
    os.replace(tmp, p)


def split(o):
    "An output as notebooks store it: text as a list of lines, no folder of this machine, temporary ones by one name"

    def lines(s):
        if not isinstance(s, str):
            return s
        s = s.replace(str(root), '.').replace(str(Path.home()), '~')
        return re.sub(r'/tmp/tmp\w+', '/tmp/folder', s).splitlines(True)

    if 'text' in o:
        o['text'] = lines(o['text'])
    for k in o.get('data', {}):
        if k.startswith('text/') or k == 'image/svg+xml':
            o['data'][k] = lines(o['data'][k])
    return o


if __name__ == '__main__':
    os.environ['IN_TEST'] = '1'  # the last cell of a notebook does not export
    # this checkout's trickbag
    os.environ['PYTHONPATH'] = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    skip = get_config(root).tst_flags.split()
    for p in (Path(o).resolve() for o in sys.argv[1:] or sorted(nbglob(get_config(root).nbs_path))):
        try:
            save(p, run(p, skip))
        except CellExecutionError as e:
            sys.exit(f'{p}\n' + re.sub(r'\x1b\[[0-9;]*m', '', str(e)))
