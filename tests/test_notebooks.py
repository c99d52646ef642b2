"Every notebook in nbs/ runs, as `nbdev-test` runs it, so that pytest counts and reports them."
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb   # another name, so that pytest does not collect it

cfg = get_config(__file__)
nbs = nbglob(cfg.nbs_path, as_path=True).sorted()

@pytest.mark.parametrize('nb', nbs, ids=lambda p: p.resolve().relative_to(cfg.nbs_path).as_posix())
def test_notebook(nb, capfd):
    ok,_ = run_nb(nb.absolute(), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
    if not ok: pytest.fail(capfd.readouterr().err, pytrace=False)
