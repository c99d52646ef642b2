"A run of several processes goes on to the bit, and with another number of them each sample is still seen once."

import pytest
import torch

from tests.helpers import SaveAt, class_folders
from tests.parallel.ranks import on_ranks
from tests.parallel.test_training import images, in_batches, plain_model
from trickbag.all import SAM, Callback, DataLoaders, GradientAccumulation, LabelSmoothing, Learner
from trickbag.testing.pairs import pair_learner, small_model
from trickbag.testing.proofs import weights

# those that hold something of their own while a run goes on
WITH_STATE = [
    'EMA',
    'SWA',
    'Lookahead',
    'SelectiveBackprop',
    'ScheduleFree',
    'Whiten',
    'LayerFreezing',
    'SqueezeExcite',
]


class Seen(Callback):
    "The numbers of the samples of each training batch"

    monitor = True
    state = ('only_of_the_first',)  # as that of a log, into which the first process writes

    def __init__(self):
        self.numbers = []
        self.only_of_the_first = None

    def before_fit(self, learn):
        self.only_of_the_first = 'open' if learn.rank == 0 else None

    def before_batch(self, learn):
        if learn.training:
            self.numbers.append((learn.epoch, learn.xb[:, 0, 0, 0].tolist()))


def numbered(n, bs):
    "Images whose first pixel is their number"
    x, y = images(n, 0)
    x[:, 0, 0, 0] = torch.arange(n, dtype=x.dtype)
    return in_batches((x, y), bs)


def numbered_learner(cbs=(), bs=4):
    dls = DataLoaders(numbered(48, bs), in_batches(images(8, 1), bs))
    return Learner(dls, plain_model(), cbs=list(cbs), opt_func=torch.optim.SGD, lr=0.1)


def train_and_save(rank, folder, at, make_cbs):
    saves = SaveAt([at], folder)
    learn = numbered_learner([*make_cbs(), Seen()]).fit(2, cbs=saves)
    return weights(learn), saves.files[at]


def go_on(rank, file, make_cbs):
    seen = Seen()
    learn = numbered_learner(make_cbs()).fit(2, resume=file, cbs=seen)
    return weights(learn), seen.numbers, learn.step


def accumulating():
    return [GradientAccumulation(2), LabelSmoothing()]


def ascending():
    return [GradientAccumulation(2), SAM()]


@pytest.mark.parametrize('make_cbs', [tuple, accumulating, ascending])
def test_two_processes_go_on_in_mid_epoch_to_the_bit(make_cbs, tmp_path):
    "Of two batches that add up to a step, the file is written after the first: each process keeps its own gradient"
    (first, file), (second, _) = on_ranks(2, tmp_path, train_and_save, tmp_path, (1, 2), make_cbs)
    assert torch.equal(first, second)
    for rest, _, _ in on_ranks(2, tmp_path, go_on, file, make_cbs):
        assert torch.equal(rest, first)


def train_and_save_bag(rank, folder):
    ends = {}
    for name in WITH_STATE:
        saves = SaveAt([(0, 0)], folder / name)
        (folder / name).mkdir(exist_ok=True)
        whole = pair_learner(name).fit(2, cbs=saves)
        rest = pair_learner(name).fit(2, resume=saves.files[0, 0])
        ends[name] = torch.equal(weights(whole), weights(rest))
    return ends


def test_tricks_with_a_state_of_their_own_go_on_to_the_bit(tmp_path):
    for ends in on_ranks(2, tmp_path, train_and_save_bag, tmp_path):
        assert ends == dict.fromkeys(WITH_STATE, True)


@pytest.mark.parametrize('then, now', [(2, 1), (1, 2), (2, 3)])
def test_with_another_number_of_processes_each_sample_is_seen_once(then, now, tmp_path):
    at = (0, 0) if then == 2 else (0, 2)
    done = 2 if then == 2 else 3  # batches of the loader
    runs = on_ranks(then, tmp_path, train_and_save, tmp_path, at, tuple)
    rests = on_ranks(now, tmp_path, go_on, runs[0][1], tuple)
    of_epoch = [
        sorted(n for _, seen, _ in rests for epoch, numbers in seen if epoch == e for n in numbers) for e in (0, 1)
    ]
    # what does not make up a step of all processes is left out, as in any epoch
    n_steps = (12 - done) // now
    assert sorted(of_epoch[0]) == list(range(4 * done, 4 * (done + n_steps * now)))
    assert sorted(of_epoch[1]) == list(range(48 // now * now))
    assert all(torch.equal(rest[0], rests[0][0]) for rest in rests)


def refuse(rank, file, make_cbs):
    with pytest.raises(ValueError) as e:
        numbered_learner(make_cbs()).fit(2, resume=file)
    return str(e.value)


def test_what_differs_between_processes_asks_for_as_many(tmp_path):
    (_, file), _ = on_ranks(2, tmp_path, train_and_save, tmp_path, (1, 2), accumulating)
    (message,) = on_ranks(1, tmp_path, refuse, file, accumulating)
    assert 'saved by 2 processes' in message and "epoch's end" in message and '\n' not in message


def folder_learner(folder, cbs=()):
    dls = DataLoaders.from_folder(folder / 'images', valid='valid', size=16, bs=2)
    return Learner(dls, small_model(2), cbs=[*cbs, Seen()], path=folder)


def stop_and_go_on(rank, folder):
    saves = SaveAt([(0, 0), (0, 1), (1, 1)], folder)
    whole = folder_learner(folder).fit(2, cbs=saves)
    ends = {}
    for at, file in saves.files.items():
        rest = folder_learner(folder).fit(2, resume=file)
        seen = whole.cb(Seen).numbers[-len(rest.cb(Seen).numbers) :]
        ends[at] = seen == rest.cb(Seen).numbers, torch.equal(weights(rest), weights(whole))
    return ends


def test_a_shuffling_image_loader_goes_on_in_mid_epoch_with_its_order(tmp_path):
    class_folders(tmp_path / 'images')
    for ends in on_ranks(2, tmp_path, stop_and_go_on, tmp_path):
        assert ends == dict.fromkeys([(0, 0), (0, 1), (1, 1)], (True, True))
