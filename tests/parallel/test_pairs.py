"Tricks together in two processes: both end with the same network, optimizer, history and states of callbacks."

import random

import torch

from tests.parallel.ranks import on_ranks
from tests.promises.test_pairs import NAMES, REFUSED, SETS
from trickbag.callback import Callback
from trickbag.core.plain_files import content_digest
from trickbag.testing.pairs import BAG, Trial, pair_learner
from trickbag.testing.proofs import found

# a compiler takes longer than all of these together
TOGETHER = [names for names in SETS if 'Compile' not in names]


def drawn_pairs(n, seed=0):
    "Legal pairs, each at most once"
    legal = [(a, b) for a in NAMES for b in NAMES if a < b and frozenset((a, b)) not in REFUSED]
    return random.Random(seed).sample([pair for pair in legal if 'Compile' not in pair], n)


def ends_of(rank, sets, more):
    "Names, joined -> digests of what one process has after a fit"
    ends = {}
    for names in sets:
        # layers that a trick adds are drawn in each process for itself
        torch.manual_seed(rank)
        learn = pair_learner(*names, bag=BAG | more)
        was = found(learn)
        learn.fit(1)
        row = {key: value for key, value in learn.history[-1].items() if key != 'time'}
        parts = dict(model=learn.model.state_dict(), opt=learn.opt.state_dict(), row=row)
        ends['-'.join(names)] = {key: content_digest(part) for key, part in parts.items()} | dict(
            undone=found(learn) == was,
            finite=all(p.isfinite().all() for p in learn.model.parameters()),
        )
    return ends


def wrong_ends(
    folder,
    sets,  # of names of tricks
    more=None,  # name -> `Trial`, beside those of `BAG`
):
    "What is wrong with each set in two processes, for those where something is"
    first, second = on_ranks(2, folder, ends_of, sets, more or {})
    wrong = {}
    for names, end in first.items():
        differing = [key for key in end if end[key] != second[names][key]]
        not_right = [key for key in ('undone', 'finite') if not end[key]]
        if differing or not_right:
            wrong[names] = [f'{key} differs' for key in differing] + [f'not {key}' for key in not_right]
    return wrong


def test_sets_of_eight_end_the_same_in_both_processes(tmp_path):
    assert wrong_ends(tmp_path, random.Random(1).sample(TOGETHER, 10)) == {}


def test_statistics_that_are_taken_anew_wait_for_nobody_in_vain(tmp_path):
    "Three batches for two processes: `update_bn` leaves one out, for a synchronized layer talks in each"
    assert wrong_ends(tmp_path, [('SWA', 'SyncBatchNorm'), ('EMA', 'SyncBatchNorm'), ('SWA', 'GhostBatchNorm')]) == {}


class NoiseOfRank(Callback):
    "Changes the weights after the step, by another number in each process"

    stage = 'weights'

    def after_step(self, learn):
        with torch.no_grad():
            for parameter in learn.model.parameters():
                parameter += 1e-6 * (learn.rank + 1)


def test_a_trick_that_is_another_in_each_process_is_found(tmp_path):
    wrong = wrong_ends(tmp_path, [('MixUp', 'NoiseOfRank'), ('MixUp', 'EMA')], dict(NoiseOfRank=Trial(NoiseOfRank)))
    assert [*wrong] == ['MixUp-NoiseOfRank'] and 'model differs' in wrong['MixUp-NoiseOfRank']
