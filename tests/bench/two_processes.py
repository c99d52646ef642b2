"""Tricks together in two processes: after a fit both have the same network, optimizer and history, to the bit.

    python -m tests.bench.two_processes [--pairs 200] [--seed 0] [--json FILE]

Trained are so many drawn pairs, and then sets of eight in which every legal pair of the bag occurs. One JSON line for
each of the two."""

import argparse
import json
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

from tests.parallel.test_pairs import TOGETHER, drawn_pairs, wrong_ends

RESULTS = Path(__file__).parent / 'results' / 'two_processes.jsonl'


def tried(what, sets) -> dict:
    "How many were wrong; a hundred share their two processes"
    start = time.perf_counter()
    wrong = {}
    with tempfile.TemporaryDirectory() as folder:
        for start_at in range(0, len(sets), 100):
            wrong |= wrong_ends(Path(folder), sets[start_at : start_at + 100])
    pairs = {frozenset(pair) for names in sets for pair in combinations(names, 2)}
    row = dict(what=what, sets=len(sets), pairs=len(pairs), wrong=wrong)
    return row | dict(seconds=round(time.perf_counter() - start))


def run(a):
    rows = []
    for what, sets in dict(pairs=drawn_pairs(a.pairs, a.seed), sets=TOGETHER).items():
        rows.append(tried(what, sets))
        print(json.dumps(rows[-1]), flush=True)
        if a.json:
            with open(a.json, 'a') as f:
                f.write(json.dumps(rows[-1]) + '\n')
    return any(row['wrong'] for row in rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    sys.exit(run(parser.parse_args()))
