"Every notebook in nbs/ runs, as `nbdev-test` runs it, so that pytest counts and reports them."

import multiprocessing
import os
import socket
import sys

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

from tests.helpers import processes

cfg = get_config(__file__)
nbs = nbglob(cfg.nbs_path, as_path=True).sorted()


def run_notebook(path, errors):
    """Run a notebook in this process, with what it writes to standard error in the file `errors`; exit status 0 if all
    went well"""
    from nbdev.test import test_nb as run

    from tests.conftest import fresh, no_network

    # workers of a notebook's loaders are made as in a kernel, not as this process was
    multiprocessing.set_start_method('fork', force=True)
    fd = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, 2)
    socket.socket.connect = no_network(socket.socket.connect)
    fresh()
    ok, _ = run(path, skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
    sys.__stderr__.flush()
    os._exit(0 if ok else 1)  # whatever threads the notebook left


@pytest.mark.parametrize('nb', nbs, ids=lambda p: p.resolve().relative_to(cfg.nbs_path).as_posix())
def test_notebook(nb, tmp_path):
    # a shell keeps all that its notebook made, and a heap of 6 GB makes every later test slow: each has its own process
    errors = tmp_path / 'errors'
    process = processes.Process(target=run_notebook, args=(nb.absolute(), errors))
    process.start()
    process.join()
    if process.exitcode:
        pytest.fail(f'exit status {process.exitcode}\n{errors.read_text() if errors.exists() else ""}', pytrace=False)
