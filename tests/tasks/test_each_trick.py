"""Every trick where targets are boxes or masks: it keeps the promises, or it is refused before the first step."""

import warnings

import pytest
import torch

from tests.helpers import SaveAt, few_sets
from trickbag.all import Callback
from trickbag.testing.pairs import BAG
from trickbag.testing.proofs import EarlyBomb, LateBomb, found, weights
from trickbag.testing.tasks import TASKS, refused_task, small_task_data, task_learner

# what cannot work, and a word of the reason
MIXES = dict.fromkeys(('CutMix', 'FMix', 'MixOrCut', 'MixUp', 'RegMixUp', 'ResizeMix'), 'classes of whole images')
LABELS = dict.fromkeys(
    ('BinaryTargets', 'ClassWeights', 'LabelSmoothing', 'OHEM', 'SelectiveBackprop', 'JensenShannon'),
    'classes of whole images',
)
LOGITS = dict.fromkeys(('Distillation', 'LogitAdjustment', 'TTA'), 'logits')
PLACES = dict.fromkeys(('AugMix', 'ColOut', 'FixRes'), 'does not say what becomes of')
ONLY = dict.fromkeys(('BalancedSampler', 'HeadBias'), "'classify'")
REFUSED = MIXES | LABELS | LOGITS | PLACES | ONLY
WORKING = [name for name in BAG if name not in REFUSED]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', REFUSED)
def test_refused_before_the_first_step(task, name):
    learn = task_learner(task, name)
    before = weights(learn)
    with pytest.raises(ValueError, match=f"cbs: {name} and the task '{task}'.*leave {name} out") as e:
        learn.fit(1)
    assert REFUSED[name] in str(e.value)
    assert torch.equal(weights(learn), before) and learn.step == 0


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', WORKING)
def test_resumes_to_the_bit(task, name, tmp_path):
    assert refused_task(task, name) is None
    saves = SaveAt(((0, 1),), tmp_path)
    whole = task_learner(task, name).fit(2, cbs=saves)
    assert weights(whole).isfinite().all()
    torch.manual_seed(1)
    rest = task_learner(task, name).fit(2, resume=saves.files[0, 1])
    assert torch.equal(weights(whole), weights(rest))


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name', WORKING)
def test_undone_wherever_it_stops(task, name):
    learn = task_learner(task, name)
    was = found(learn)
    for bomb, event in ((EarlyBomb, 'after_loss'), (LateBomb, 'after_step')):
        with pytest.raises(ZeroDivisionError):
            learn.fit(1, cbs=bomb(event))
        now = found(learn)
        assert now == was, [key for key in was if was[key] != now[key]]


SETS = few_sets([name for name in WORKING if name != 'Compile'])


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('number', range(len(SETS)))
def test_the_order_of_the_list_does_not_matter(task, number):
    names = SETS[number]
    one = weights(task_learner(task, *names).fit(1))
    other = weights(task_learner(task, *names[::-1]).fit(1))
    assert one.isfinite().all() and torch.equal(one, other), names


@pytest.mark.parametrize('task', TASKS)
def test_a_callback_that_changes_images_must_say_what_becomes_of_places(task):
    class Shift(Callback):
        stage = 'augment'
        writes = ('x',)

        def before_batch(self, learn):
            learn.xb = learn.xb.roll(3, 2)

    learn = task_learner(task)
    with pytest.raises(ValueError, match='Shift .*does not say what becomes of'):
        learn.fit(1, cbs=Shift())


@pytest.mark.parametrize('task', TASKS)
def test_data_are_not_changed(task):
    data = small_task_data(task)
    before = [(x.clone(), y.clone()) for x, y in ((data.train.x, data.train.y), (data.valid.x, data.valid.y))]
    learn = task_learner(task, 'TrivialAugment', 'RandomAffine', 'PadCrop', 'Flip', 'RandomErasing')
    learn.dls = data
    learn.fit(1)
    for (x, y), dl in zip(before, (data.train, data.valid), strict=True):
        assert torch.equal(x, dl.x) and torch.equal(y, dl.y)
