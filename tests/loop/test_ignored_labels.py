"Samples that the loss ignores count nowhere: not in the loss, not in metrics, on no device. Right values are torch's."

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import batches, labeled_images, learner, linear, logits, x, y
from tests.loop.fake_gpu import GPU, fake_gpu
from trickbag.all import *
from trickbag.testing.proofs import tiny_learner, tiny_model, weights

# In the loss


@pytest.mark.parametrize('ignore', [-100, 4, 255])
def test_ignored_labels_are_no_classes(ignore):
    "Nothing tells how many classes the data has, but for the labels themselves"
    x, y = labeled_images(24)
    y[::5] = ignore
    loss = nn.CrossEntropyLoss(ignore_index=ignore)
    dls = DataLoaders(batches(8, x, y), batches(8, x, y))
    learn = tiny_learner(dls=dls, model=linear(), loss_func=loss, opt_func=torch.optim.SGD, lr=0.1)
    learn.fit(1)
    model = linear()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for xb, yb in batches(8, x, y):
        F.cross_entropy(model(xb), yb, ignore_index=ignore).backward()
        opt.step()
        opt.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), model.parameters()))
    assert learn.history[-1]['valid_loss'] == pytest.approx(
        F.cross_entropy(model(x), y, ignore_index=ignore).item(), rel=1e-5
    )


def test_labels_that_are_not_ignored_are_still_counted():
    x, y = labeled_images(24)
    y[3] = 255
    with pytest.raises(ValueError, match='255'):
        tiny_learner(dls=DataLoaders(batches(8, x, y)), loss_func=nn.CrossEntropyLoss(ignore_index=254)).fit(1)


def test_several_labels_mix_though_the_data_counts_no_classes():
    x, y = labeled_images(24)
    learn = tiny_learner(
        [MixUp()],
        dls=DataLoaders(batches(8, x, (y > 1).float()[:, None])),
        model=tiny_model(1),
        loss_func=nn.BCEWithLogitsLoss(),
    )
    assert weights(learn.fit(1)).isfinite().all()


def test_labels_that_are_ignored_reach_a_gpu_in_validation_too():
    x, y = labeled_images(24)
    y[::5] = 255
    with fake_gpu():
        dls = DataLoaders(batches(8, x[:16], y[:16]), batches(8, x[16:], y[16:]))
        dls.c = 4
        Learner(dls, linear(), loss_func=nn.CrossEntropyLoss(ignore_index=255), device=GPU).fit(1)


def test_labels_that_are_no_classes_are_refused_on_their_way_to_a_gpu():
    x, y = labeled_images(24)
    y[-1] = 255
    with fake_gpu(), pytest.raises(ValueError, match='in validation has the class index 255'):
        dls = DataLoaders(batches(8, x[:16], y[:16]), batches(8, x[16:], y[16:]))
        dls.c = 4
        Learner(dls, linear(), device=GPU).fit(1)


def test_targets_of_every_pixel_are_counted_and_not_kept():
    "A thousand batches of them would fill a GPU"
    x, _ = labeled_images(32)
    alive = []
    most = []

    class Fresh:
        def __len__(self):
            return 8

        def __iter__(self):
            g = torch.Generator().manual_seed(1)
            for i in range(8):
                y = torch.randint(0, 4, (4, 8, 8), generator=g)
                y[:, :i] = 255
                alive.append(weakref.ref(y))
                most.append(sum(r() is not None for r in alive))
                yield x[i * 4 : i * 4 + 4], y
                del y

    loss = nn.CrossEntropyLoss(ignore_index=255)
    learn = tiny_learner([TerminateOnNaN()], dls=DataLoaders(Fresh()), model=nn.Conv2d(3, 4, 1), loss_func=loss, lr=0.0)
    learn.fit(1)
    assert max(most) <= 3
    pairs = list(Fresh())
    want = F.cross_entropy(
        learn.model(torch.cat([a for a, _ in pairs])), torch.cat([b for _, b in pairs]), ignore_index=255
    ).item()
    assert learn.history[0]['train_loss'] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('label', [-1, 255, 17, -7])
def test_a_label_of_ones_own_that_the_loss_masks_does_not_count(label):
    def masked(p, y):
        kept = (y >= 0) & (y < 4)
        return F.cross_entropy(p[kept], y[kept])

    some = torch.where(torch.arange(22) % 5 == 0, label, y)
    whole = masked(logits(), some).item()
    for bs in (22, 7):
        assert learner(some, loss=masked, bs=bs).validate()['loss'] == pytest.approx(whole, rel=1e-5)
    learner(some, loss=masked).fit(1)
    learner(some, loss=nn.CrossEntropyLoss(ignore_index=label), cbs=[LabelSmoothing()]).fit(1)


# In metrics and monitors


@pytest.mark.parametrize('every', [1, 50])
def test_a_batch_of_ignored_samples_ends_no_run(every):
    x, y = labeled_images(24)
    y[8:16] = -100
    learn = tiny_learner([TerminateOnNaN(every)], dls=DataLoaders(batches(8, x, y)))
    assert weights(learn.fit(2)).isfinite().all()


def test_metrics_leave_out_what_the_loss_ignores():
    tm = pytest.importorskip('torchmetrics.classification')
    some = torch.where(torch.arange(22) % 3 == 0, -100, y)
    metrics = [accuracy, tm.MulticlassAccuracy(4, average='micro', ignore_index=-100)]
    res = learner(some, metrics=metrics, bs=4).validate()
    assert res['accuracy'] == pytest.approx(res['MulticlassAccuracy'], abs=1e-6)
    assert res['accuracy'] == pytest.approx((logits().argmax(1) == some)[some >= 0].float().mean().item(), abs=1e-6)
    # refuses the label -100 by itself
    plain = learner(some, metrics=tm.MulticlassAccuracy(4, average='micro'), bs=4).validate()
    assert plain['MulticlassAccuracy'] == pytest.approx(res['accuracy'], abs=1e-6)


def test_metrics_of_training_batches_leave_them_out():
    some = torch.where(torch.arange(22) < 8, -100, y)  # the first batch of 4 has none that counts
    learn = learner(
        some, metrics=accuracy, cbs=[Recorder(train_metrics=True)], bs=4, lr=0.0, loss=nn.CrossEntropyLoss()
    )
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    right = (learn.model(x).argmax(1) == some)[some >= 0].float().mean().item()
    assert learn.fit(1).history[0]['train_accuracy'] == pytest.approx(right, abs=1e-6)


def test_a_batch_of_ignored_samples_is_no_divergence():
    some = torch.where(torch.arange(22) < 8, -100, y)
    learner(some, cbs=[TerminateOnNaN(every=1)], bs=4).fit(1)

    def diverged(p, y):
        return F.cross_entropy(p * (float('nan') if torch.is_grad_enabled() and len(p) == 2 else 1.0), y)

    with pytest.raises(FloatingPointError):
        learner(cbs=[TerminateOnNaN(every=1)], bs=4, loss=diverged).fit(1)
