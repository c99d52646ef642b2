"""Every trick of the bag, on a small ResNet and uint8 images: resumed to the bit, undone after an error, and its
checkpoints fit the plain model."""

import random
import warnings

import pytest
import torch

from tests.helpers import SaveAt
from trickbag.testing.pairs import BAG, bag_opt, pair_learner, small_data, small_model
from trickbag.testing.proofs import EarlyBomb, LateBomb, found, prove_own_stream, weights


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.mark.parametrize('name', BAG)
def test_resumes_to_the_bit_and_saves_what_the_plain_model_loads(name, tmp_path):
    "One run saves on its way; those that go on from its files save nothing, and end with the same bits"
    places = (0, 0), (0, 1), (0, 2), (0, None), (1, 1)
    saves = SaveAt(places, tmp_path)
    whole = pair_learner(name).fit(2, cbs=saves)
    plain = (BAG[name].model or small_model)()
    keys = list(plain.state_dict())
    for at, file in saves.files.items():
        sd = torch.load(file, weights_only=True)['model']
        assert list(sd) == keys, f"{name}: other keys than the plain model's"
        plain.load_state_dict(sd, strict=True)
        torch.manual_seed(random.randrange(2**31))
        rest = pair_learner(name).fit(2, resume=file)
        assert torch.equal(weights(whole), weights(rest)), (
            f"{name}, stopped after {at}: {(weights(whole) - weights(rest)).abs().max():.1e} apart"
        )


@pytest.mark.parametrize('name', BAG)
def test_undone_wherever_it_stops(name):
    "One learner goes from error to error, so that what an error leaves behind is in the way of the next fit"
    learn = pair_learner(name)
    was = found(learn)
    for bomb in (EarlyBomb, LateBomb):
        for e in (
            'before_fit',
            'before_batch',
            'after_pred',
            'after_loss',
            'after_backward',
            'before_step',
            'after_step',
            'after_batch',
            'before_validate',
            'after_epoch',
            'after_fit',
        ):
            with pytest.raises(ZeroDivisionError):
                learn.fit(1, cbs=bomb(e))
            now = found(learn)
            assert now == was, f"{name}, {bomb.__name__} in {e}: {[k for k in was if was[k] != now[k]]}"
        learn.validate()
        assert found(learn) == was


@pytest.mark.parametrize('name', BAG)
def test_looking_leaves_no_trace(name):
    learn = pair_learner(name)
    learn.fit(1)
    was = found(learn)
    w = weights(learn)
    for f in (
        learn.validate,
        learn.get_preds,
        learn.explain,
        lambda: learn.explain(step=True),
        lambda: learn.lr_find(num_it=20, show_plot=False, suggest=('minimum',)),
    ):
        f()
        assert found(learn) == was and torch.equal(weights(learn), w), f"{name}: {f}"


@pytest.mark.parametrize('name', [n for n in BAG if n != 'Compile'])
def test_draws_from_its_own_stream(name):
    trial = BAG[name]
    prove_own_stream(
        lambda: [trial.make()],
        model=trial.model or small_model,
        dls=small_data(),
        loss_func=trial.loss and trial.loss(),
        opt_func=trial.opt or bag_opt,
    )
