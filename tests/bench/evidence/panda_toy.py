"""GiantPanda's list of tricks on drawings: see `panda`."""

from dataclasses import replace

from trickbag.data.toy import toy_set

from .common import asked, measure_rows
from .panda import BASE, rows_on


def beetles(folder):
    "The toy set, its validation images where the other sets have their test"
    toy_set(folder)
    (folder / 'test').symlink_to(folder / 'valid')
    return folder


if __name__ == '__main__':
    measure_rows(rows_on(replace(BASE, size=32, n_images=1500)), beetles, asked(__doc__))
