"The loop: events, cancels, exact means, saving, optimizers, freezing, and what it refuses."

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import one_line
from trickbag.all import *
from trickbag.callback import EVENTS
from trickbag.core.streams import fold_in, name_key, seed_all, seed_default
from trickbag.loop.snapshot import preserve_learner
from trickbag.testing.proofs import StopAt, TinyData, tiny_learner, tiny_model, weights


class Log(Callback):
    "Write every event down, before any other callback"

    stage = 'surgery'
    monitor = True

    def __init__(self):
        self.seen = []


for e in EVENTS:
    setattr(Log, e, lambda self, learn, e=e: self.seen.append((e, learn.training)))

BATCH = [
    'before_batch',
    'after_pred',
    'after_loss',
    'before_backward',
    'after_backward',
    'before_step',
    'after_step',
    'after_batch',
]
VALID = [
    'before_validate',
    *['before_batch', 'after_pred', 'after_loss', 'after_batch'] * 3,
    'after_validate',
    'cleanup_validate',
]


def test_order_of_events():
    log = Log()
    tiny_learner().fit(2, cbs=log)
    epoch = ['before_epoch', 'before_train', *BATCH * 6, 'after_train', *VALID, 'after_epoch']
    assert [e for e, _ in log.seen] == ['before_fit', *epoch, *epoch, 'after_fit', 'cleanup_fit']


def test_evaluation_has_a_path_of_its_own():
    log = Log()
    learn = tiny_learner([log])
    learn.validate()
    learn.get_preds()
    learn.predict(next(iter(learn.dls.valid))[0][0])
    assert [e for e, _ in log.seen] == VALID * 2 + [
        'before_validate',
        'before_batch',
        'after_pred',
        'after_batch',
        'after_validate',
        'cleanup_validate',
    ]
    assert not any(t for _, t in log.seen)


def cancel(event, exc, when=lambda l: l.iter == 1):
    class C(Callback):
        stage = 'stop'
        done = False

    def f(self, learn):
        if not self.done and learn.epoch == 0 and when(learn):
            self.done = True
            raise exc

    setattr(C, event, f)
    return C()


@pytest.mark.parametrize(
    'event,exc,lost,kept',
    [
        ('before_batch', CancelBatch, ['after_pred', 'after_step'], ['after_batch']),
        ('after_batch', CancelBatch, [], ['after_batch', 'after_step']),
        ('before_backward', CancelBackward, ['after_backward'], ['after_step']),
        ('before_step', CancelStep, ['after_step'], ['after_batch', 'after_backward']),
    ],
)
def test_batch_cancels(event, exc, lost, kept):
    log = Log()
    learn = tiny_learner([log])
    learn.fit(1, cbs=cancel(event, exc))
    for e in lost:
        assert [x for x in log.seen if x == (e, True)].__len__() == 5, e
    for e in kept:
        assert log.seen.count((e, True)) == 6, e
    assert learn.step == (6 - ('after_step' in lost))


def test_stretch_cancels():
    for event, exc, lost, kept in [
        ('after_batch', CancelTrain, [], ['after_train', 'before_validate', 'after_epoch', 'after_fit']),
        ('after_batch', CancelEpoch, ['after_train', 'before_validate'], ['after_epoch', 'after_fit']),
        ('after_batch', CancelFit, ['after_train', 'before_validate', 'after_epoch'], ['after_fit', 'cleanup_fit']),
    ]:
        log = Log()
        learn = tiny_learner([log])
        learn.fit(1, cbs=cancel(event, exc))
        names = [e for e, _ in log.seen]
        assert learn.step == 2 and not set(lost) & set(names) and set(kept) <= set(names), exc
    log = Log()
    learn = tiny_learner([log], metrics=accuracy)
    learn.fit(1, cbs=cancel('after_batch', CancelValidate, lambda l: not l.training and l.iter == 1))
    assert (
        'after_validate' in dict(log.seen)
        and log.seen.count(('after_batch', False)) == 2
        and learn.history[0]['accuracy'] >= 0
    )


def test_validation_counts_every_sample_once():
    learn = tiny_learner(metrics=[accuracy, top_5]).fit(1)
    m = learn.model.eval()
    x, y = map(torch.cat, zip(*learn.dls.valid))
    assert len(x) == 19
    with torch.no_grad():
        p = m(x)
    for bs in (1, 4, 7, 19, 100):
        ds = torch.utils.data.TensorDataset(x, y)
        r = learn.validate(torch.utils.data.DataLoader(ds, bs))
        assert r['loss'] == pytest.approx(F.cross_entropy(p, y).item(), abs=1e-6) and r['accuracy'] == pytest.approx(
            accuracy(p, y).item(), abs=1e-7
        )
    probs, t = learn.get_preds()
    torch.testing.assert_close(probs, p.softmax(1))
    assert torch.equal(t, y)


def test_train_loss_is_the_mean_over_samples():
    learn = tiny_learner().fit(1)
    rec = learn.cb(Recorder)
    assert rec.ns == [8] * 5 + [5]
    assert learn.history[0]['train_loss'] == pytest.approx(np.average(rec.losses, weights=rec.ns), abs=1e-9)


def test_a_step_is_torchs_step():
    "The same bits as a loop written by hand, dropout included"
    learn = tiny_learner(opt_func=partial(torch.optim.SGD, momentum=0.9), lr=0.1).fit(2)
    m = tiny_model().train()
    d = TinyData()
    opt = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        key = 42, epoch, True, name_key('data')
        seed_all(fold_in(*key))
        it = iter(d.train)
        key = fold_in(*key, 0)
        for i in range(len(d.train)):
            if i:
                seed_default(fold_in(key, i))
            x, y = next(it)
            if not i:
                seed_default(fold_in(key, 0))
            F.cross_entropy(m(x), y).backward()
            opt.step()
            opt.zero_grad()
    assert torch.equal(torch.cat([t.double().flatten() for t in m.state_dict().values()]), weights(learn))


@pytest.mark.parametrize(
    'loss,act',
    [
        (nn.CrossEntropyLoss(), lambda p: p.softmax(1)),
        (F.cross_entropy, lambda p: p.softmax(1)),
        (nn.NLLLoss(), torch.exp),
        (nn.BCEWithLogitsLoss(), torch.sigmoid),
        (F.binary_cross_entropy_with_logits, torch.sigmoid),
    ],
)
def test_get_preds_gives_probabilities_whatever_the_loss(loss, act):
    learn = tiny_learner(loss_func=loss)
    x = torch.cat([x for x, _ in learn.dls.valid])
    probs, y = learn.get_preds([(x, None)])
    assert y is None
    with torch.no_grad():
        torch.testing.assert_close(probs, act(learn.model.eval()(x)))


@pytest.mark.parametrize(
    'loss',
    [
        nn.BCEWithLogitsLoss(),
        F.binary_cross_entropy_with_logits,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 3.0])),
    ],
    ids=['bce', 'bce function', 'weighted'],
)
@pytest.mark.parametrize('cbs', [(), (MixUp, LabelSmoothing)], ids=['plain', 'mixed'])
def test_losses_on_indices_and_on_probabilities(loss, cbs):
    learn = tiny_learner([c() for c in cbs], loss_func=loss, metrics=accuracy).fit(1)
    x, y = map(torch.cat, zip(*learn.dls.valid))
    bce = not isinstance(loss, nn.CrossEntropyLoss)
    with torch.no_grad():
        p = learn.model.eval()(x)
    if bce:
        assert learn.validate()['loss'] == pytest.approx(loss(p, F.one_hot(y, 4).float()).item(), abs=1e-6)
    assert learn.validate()['accuracy'] == pytest.approx(accuracy(p, y).item(), abs=1e-6)


def test_torchmetrics_and_functions():
    import torchmetrics

    learn = tiny_learner(metrics=[accuracy, torchmetrics.Accuracy('multiclass', num_classes=4, average='micro')])
    r = learn.validate()
    assert r['accuracy'] == pytest.approx(r['MulticlassAccuracy'], abs=1e-6)


def test_xresnet50_with_mixup_and_ema():
    "The promise of the front page, with plain cross entropy, batches of one, and an odd last batch"
    g = torch.Generator().manual_seed(0)
    for n, bs in ((3, 2), (2, 1)):
        x = torch.randn(n, 3, 64, 64, generator=g)
        y = torch.randint(0, 10, (n,), generator=g)
        data = list(zip(x.split(bs), y.split(bs)))
        for loss in (None, nn.CrossEntropyLoss(), F.cross_entropy):
            learn = Learner(DataLoaders(data, data), xresnet50(), loss_func=loss, cbs=[MixUp(), EMA()], device='cpu')
            learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
            learn.fit(1)
            assert np.isfinite(learn.history[0]['valid_loss'])
            if bs == 1:
                break


def test_save_and_load(tmp_path):
    a = tiny_learner(metrics=accuracy).fit(2)
    f = a.save(tmp_path / 'm')
    assert f == tmp_path / 'm.pt'
    b = tiny_learner(metrics=accuracy)
    b.load(f)
    assert torch.equal(weights(a), weights(b)) and b.history == a.history and b.step == a.step
    a.fit(1)
    b.fit(1)
    assert torch.equal(weights(a), weights(b))  # optimizer state and random streams went along
    c = tiny_learner(path=tmp_path)
    c.save()
    assert (tmp_path / 'models/model.pt').exists()
    c.load()
    other = tiny_learner(model=nn.Sequential(*tiny_model()[:-1], nn.Linear(6, 9)))
    w = weights(other)
    with pytest.raises(ValueError, match='size mismatch'):
        other.load(f)
    assert torch.equal(w, weights(other))
    other.load(f, strict=False)
    assert torch.equal(other.model[0].weight, b.load(f).model[0].weight)


def test_load_says_what_is_wrong(tmp_path):
    learn = tiny_learner(path=tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no'):
        learn.load('nothing')
    torch.save({'x': 1}, tmp_path / 'x.pt')
    with pytest.raises(ValueError, match='not written by learn.save'):
        learn.load('x')
    learn.save('m')
    with pytest.raises(ValueError, match='nothing to go on from'):
        learn.fit(1, resume='m')
    learn.dls.vocab = list('abcd')
    learn.save('v')
    learn.dls.vocab = list('abcx')
    with pytest.raises(ValueError, match='use the same classes'):
        learn.load('v')


def test_resume_must_be_the_same_fit(tmp_path):
    f = tmp_path / 's.pt'
    tiny_learner([EMA()]).fit(2, cbs=StopAt((0, 2), f))
    for kw, n, why in (
        (dict(cbs=[EMA()]), 3, 'n_epoch=2'),
        (dict(), 2, 'EMA'),
        (dict(cbs=[EMA()], seed=1), 2, 'seed'),
        (dict(cbs=[EMA()], dls=TinyData(bs=5)), 2, 'n_iter'),
    ):
        with pytest.raises(ValueError, match=why):
            tiny_learner(**kw).fit(n, resume=f)
    learn = tiny_learner().fit(1, resume=tmp_path / 'not_there')
    assert len(learn.history) == 1  # nothing to resume: starts


def test_freeze_and_discriminative_rates():
    learn = tiny_learner()
    learn.freeze()
    # norms go on training
    assert [p.requires_grad for p in learn.model.parameters()] == [False, True, True, True, True]
    w = learn.model[0].weight.clone()
    learn.fit(1)
    assert torch.equal(w, learn.model[0].weight)
    learn.unfreeze()
    learn.fit(1)
    assert not torch.equal(w, learn.model[0].weight)
    seen = {}

    class Look(Callback):
        def after_step(self, learn):
            seen[0] = [g['lr'] for g in learn.opt.param_groups]

    learn.fit(1, slice(1e-4, 1e-2), cbs=Look())
    assert seen[0] == pytest.approx([1e-4, 1e-2])
    assert len(learn.opt.param_groups) == 1
    own = tiny_learner(
        opt_func=lambda ps, lr: torch.optim.SGD([dict(params=ps[:2]), dict(params=ps[2:], lr=lr * 10)], lr=lr), lr=0.01
    )
    own.fit(1, 0.05, cbs=Look())
    assert seen[0] == pytest.approx([0.005, 0.05])  # the user's own groups keep their ratio: lr is the largest


def test_plain_iterables_and_the_third_element():
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))] * 3
    learn = tiny_learner(dls=DataLoaders(data))
    learn.fit(1)
    assert 'valid_loss' not in learn.history[0]
    with pytest.raises(ValueError, match='no valid part'):
        learn.validate()
    gen = tiny_learner(dls=DataLoaders(iter(data)))
    with pytest.raises(ValueError, match='gave no batch'):
        gen.fit(2)


TWO = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 5]))]


@pytest.mark.parametrize(
    'f,says,exc',
    [
        (lambda: tiny_learner(dls=DataLoaders(TWO)).fit(1), 'n_out=6', ValueError),
        (lambda: tiny_learner([MixUp(), MixUp()]).fit(1), 'MixUp is listed twice', ValueError),
        (lambda: tiny_learner([Cosine(warmup=5)]).fit(2), 'warm', ValueError),
        (lambda: tiny_learner([OneCycle(), Cosine()]).fit(2), 'lr', ValueError),
        (lambda: tiny_learner(dls=DataLoaders([])).fit(1), 'training loader is empty', ValueError),
        (lambda: tiny_learner().fit(1.5), 'whole number', ValueError),
        (lambda: Learner(TWO, tiny_model()), 'write DataLoaders', TypeError),
        (lambda: tiny_learner([MixUp]).fit(1), 'write MixUp()', TypeError),
        (
            lambda: tiny_learner(splitter=lambda m: [list(m.parameters())]).freeze(),
            'gives one parameter group',
            ValueError,
        ),
    ],
    ids=lambda o: o if isinstance(o, str) else '',
)
def test_what_cannot_be_trained_is_refused_in_a_line(f, says, exc):
    one_line(f, says, exc=exc)


def test_fewer_outputs_than_classes_are_refused_before_the_first_step():
    learn = tiny_learner()
    learn.dls.c = 7
    learn.dls.vocab = None
    w = weights(learn)
    one_line(lambda: learn.fit(1), 'has 4 outputs, the data 7 classes')
    assert learn.step == 0 and torch.equal(w[:162], weights(learn)[:162])
    one_line(lambda: Learner(learn.dls, tiny_model(), cbs=MixUp(), device='cpu').fit(1), 'n_out=7')


def test_two_owners_of_one_thing_are_both_named():
    one_line(lambda: tiny_learner([CutMix(), MixUp()]).fit(1), 'MixUp', 'CutMix', "both own 'mix'")


def test_a_mistyped_event_is_answered_with_the_right_one():
    def mistyped():
        class Mine(Callback):
            def after_stp(self, learn):
                pass

    with pytest.raises(TypeError, match='.*after_step') as e:
        mistyped()
    assert '\n' not in str(e.value)


def test_errors_name_callback_and_event():
    class Mine(Callback):
        def after_loss(self, learn):
            raise KeyError('lost')

    with pytest.raises(KeyError, match='lost') as e:
        tiny_learner([Mine()]).fit(1)
    assert any('Mine.after_loss (epoch 0, batch 0)' in n for n in e.value.__notes__)


def test_one_cleanup_that_fails_does_not_keep_the_others_from_theirs():
    done = []

    class A(Callback):
        stage = 'crop'

        def cleanup_fit(self, learn):
            raise OSError('first')

    class B(Callback):
        def cleanup_fit(self, learn):
            done.append(1)

    with pytest.raises(OSError, match='first'):
        tiny_learner([A(), B()]).fit(1)
    assert done == [1]


def test_temporary_callbacks_last_one_call():
    log = Log()
    learn = tiny_learner()
    learn.fit(1, cbs=log)
    n = len(log.seen)
    learn.fit(1)
    learn.validate()
    assert len(log.seen) == n
    learn.validate(cbs=log)
    assert len(log.seen) > n and learn.cbs == []


def test_validate_inside_a_fit():
    class Peek(Callback):
        def after_batch(self, learn):
            if learn.training:
                learn.validate()
                assert learn.training and learn.model.training and learn.xb is not None

    assert torch.equal(
        weights(tiny_learner([EMA(), MixUp()]).fit(1, cbs=Peek())), weights(tiny_learner([EMA(), MixUp()]).fit(1))
    )


def test_a_fit_inside_a_fit_is_refused():
    class C(Callback):
        def after_epoch(self, learn):
            learn.fit(1)

    one_line(lambda: tiny_learner([C()]).fit(1), 'a fit is running')


def test_slices_keep_the_users_groups_and_miss_no_parameter():
    def of(ps, lr):
        return torch.optim.SGD([dict(params=ps[:1], weight_decay=0.1), dict(params=ps[1:], weight_decay=0.0)], lr=lr)

    seen = {}

    class Look(Callback):
        def after_step(self, learn):
            seen[0] = sorted((len(g['params']), g['weight_decay'], g['lr']) for g in learn.opt.param_groups)

    tiny_learner(opt_func=of).fit(1, slice(1e-4, 1e-2), cbs=Look())
    assert seen[0] == [(1, 0.1, 1e-4), (2, 0.0, 1e-4), (2, 0.0, 1e-2)]
    learn = tiny_learner(splitter=lambda m: [list(m[0].parameters()), list(m[-1].parameters())])
    one_line(lambda: learn.fit(1, slice(1e-4, 1e-2)), 'every parameter')


def test_misplaced_cancels_say_where():
    class C(Callback):
        def after_loss(self, learn):
            raise CancelStep

    for run in (lambda: tiny_learner([C()]).fit(1), lambda: tiny_learner([C()]).validate()):
        with pytest.raises(RuntimeError, match='CancelStep was raised in C.after_loss') as e:
            run()
        assert '\n' not in str(e.value)


class ValidatesElsewhere(Callback):
    "Validates on the training images, before the row of the history is written"

    stage = 'schedule'

    def after_epoch(self, learn):
        learn.validate(learn.dls.train)


def test_a_validation_in_between_does_not_get_into_the_history():
    plain = tiny_learner()
    learn = tiny_learner([ValidatesElsewhere()])
    plain.fit(1)
    learn.fit(1)
    assert learn.history[0]['valid_loss'] == plain.history[0]['valid_loss']
    was = learn.results
    assert learn.validate(learn.dls.train) != was and learn.results == was


def test_no_graph_is_kept_in_validation():
    class Look(Callback):
        def after_loss(self, learn):
            seen.append((learn.training, learn.loss.requires_grad))

    seen = []
    tiny_learner([Look()]).fit(1)
    assert set(seen) == {(True, True), (False, False)}


def test_a_rate_of_zero_is_no_missing_rate():
    learn = tiny_learner(opt_func=torch.optim.SGD)
    was = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1, lr=0.0)
    assert all(torch.equal(p, w) for p, w in zip(learn.model.parameters(), was))


def test_kept_puts_every_counter_back():
    learn = tiny_learner().fit(1)

    def counters():
        return (
            learn.step,
            learn.epochs_run,
            learn.epoch,
            learn.iter,
            learn.n_epoch,
            learn.n_iter,
            learn.position,
            len(learn.history),
        )

    was = counters()
    with preserve_learner(learn):
        learn.fit(2)
        # the last batch of an epoch is the last again
        assert all(a != b for a, b in zip(counters(), was) if b not in (5, 6))
    assert counters() == was
