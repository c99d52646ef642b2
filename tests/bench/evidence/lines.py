"""A file of one JSON line a run, that goes on where it was killed."""

import json
import os
import platform
from pathlib import Path


class Lines:
    "The runs that are there, each known by the values of some of its names"

    def __init__(
        self,
        file: Path,  # made, with its folders, if it is not there
        names: tuple,  # of what tells one run from another, such as ('row', 'seed')
    ):
        self.file = Path(file)
        self.names = names
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = self.file.read_text() if self.file.exists() else ''
        whole, newline, torn = text.rpartition('\n')
        # the line at which a kill came
        if torn:
            os.truncate(self.file, len((whole + newline).encode()))
        self.done = {self.key(json.loads(line)) for line in whole.splitlines()}

    def key(self, run: dict) -> tuple:
        return tuple(run[name] for name in self.names)

    def missing(self, runs: list) -> list:
        "Of the planned runs those that are not there, in their order"
        return [run for run in runs if self.key(run) not in self.done]

    def add(self, run: dict):
        "Keep a run, with the versions that it ran with"
        import torch

        versions = dict(torch=torch.__version__, python=platform.python_version(), threads=torch.get_num_threads())
        with self.file.open('a') as f:
            f.write(json.dumps(run | versions) + '\n')
            f.flush()
            os.fsync(f.fileno())
        self.done.add(self.key(run))
        print(json.dumps(run), flush=True)


def read_lines(file: Path) -> list:  # of dicts; none, if there is no file yet
    "All runs of a file"
    file = Path(file)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
