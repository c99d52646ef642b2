"""What the measurements of a source share: pictures, rows, one JSON line a run, going on after a kill.

A source is a module beside this one with a list of `Row`. Each is run as

    python -m tests.bench.evidence.NAME --data FOLDER --json FILE [--seed 42] [--rows 'base|+ EMA']

FOLDER has imagenette2-160, stanford-cars-160 and weights/, as the other measurements take them. FILE is a log of
`trickbag.recipes.runs.RunLog`: its first line says what the rows are, and each further one is a run with its score,
seconds and images. Kill it anywhere and call it again: what is there is not trained again. `--seed` and `--rows`
say what is trained now, not what is planned.

One thread. All rows of a log share their seeds, their images and their test images."""

import argparse
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trickbag.core.output import say
from trickbag.recipes.ablation import GivenRows
from trickbag.recipes.runs import Job, RunLog, is_right, run_job, score_name

SEEDS = (42, 43, 44)


@dataclass
class Pictures:
    "Which part of a set is trained and tested on"

    folder: str  # under `--data`
    train: str = 'train'  # its folder of training images
    test: str = 'val'
    classes: int | None = None  # the first ones by name; None: all
    per_class: int | None = None  # training images of each, the first ones by name; None: all
    test_per_class: int | None = None


def link_pictures(pictures: Pictures, data: Path, to: Path) -> Path:
    "A folder of links to that part, with `train` and `test` in it"
    source = data / pictures.folder
    parts = (('train', pictures.train, pictures.per_class), ('test', pictures.test, pictures.test_per_class))
    for part, folder, count in parts:
        for class_folder in sorted((source / folder).iterdir())[: pictures.classes]:
            (to / part / class_folder.name).mkdir(parents=True)
            for file in sorted(class_folder.iterdir())[:count]:
                (to / part / class_folder.name / file.name).symlink_to(file.resolve())
    return to


def link_weights(data: Path, to: Path):
    "Published weights under the names by which `vision_learner` looks for them"
    (to / 'weights').mkdir()
    file = data / 'weights' / 'mobilenet_v2_imagenet1k_features_fp16.safetensors'
    (to / 'weights' / 'mobilenet_v2.IMAGENET1K_V1.safetensors').symlink_to(file.resolve())
    os.environ['TRICKBAG_DATA'] = str(to)


class Loaders:
    "`dls_fn` of a folder; those of the last size and batch are kept"

    def __init__(self, folder: Path):
        self.folder = folder
        self.key = None
        self.dls = None

    def __call__(self, recipe):
        parts = ('size', 'presize', 'valid_size', 'crop_pct', 'scale', 'ratio', 'flip', 'interpolation', 'bs')
        key = tuple(getattr(recipe, part) for part in parts)
        if key != self.key:
            self.dls = recipe.data(self.folder, valid='test', valid_bs=256)
            self.key = key
        return self.dls


def asked(doc: str) -> argparse.Namespace:
    "The arguments of a module"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder of the image sets and of weights/')
    parser.add_argument('--json', type=Path, required=True, help='log that is written, or gone on with')
    parser.add_argument('--seed', type=int, help='train the runs of this seed only')
    parser.add_argument('--rows', help='train these rows only; names, with | between them')
    return parser.parse_args()


def measure_rows(
    rows: list,  # of `Row`
    pictures: Pictures | Callable,  # or a function that makes the set in a folder
    asked: argparse.Namespace,
    seeds: tuple = SEEDS,
    teacher=None,  # `teacher(dls_fn)` -> a trained network and what the log says of it
    measure=None,  # name of a row -> as for `run_job`
):
    "Train what the log has not yet"
    torch.set_num_threads(1)
    plan = GivenRows(tuple(rows), tuple(seeds))
    log = RunLog(asked.json, plan.about() | dict(threads=1, score=score_name(is_right)))
    names = asked.rows and asked.rows.split('|')
    with tempfile.TemporaryDirectory() as tmp:
        os.environ['TRICKBAG_CACHE'] = f'{tmp}/cache'
        folder = Path(tmp) / 'set'
        link_weights(asked.data, Path(tmp))
        dls_fn = Loaders(pictures(folder) if callable(pictures) else link_pictures(pictures, asked.data, folder))
        for job in plan.next_jobs(log):
            is_asked = asked.seed in (None, job.seed) and (names is None or job.recipe.name in names)
            # two rows may train the same
            if not is_asked or job.key in log.runs:
                continue
            try:
                log.add(_measured(job, dls_fn, teacher, (measure or {}).get(job.recipe.name)))
            # a run that fails must not keep those after it from being measured
            except Exception:
                traceback.print_exc()


def _measured(job: Job, dls_fn, teacher, measure) -> dict:
    network, further = teacher(dls_fn) if teacher and job.recipe.needs else (None, {})
    found = run_job(job, dls_fn, halve=False, each_epoch=False, teacher=network, measure=measure)
    assert found is not None
    say(f"{found['recipe']}, seed {found['seed']}: {found['choose']:.4f} ({found['train_seconds']:.0f} s)")
    return found | further
