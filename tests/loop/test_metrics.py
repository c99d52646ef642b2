"""What metrics give and which way they get better: held against torchmetrics, scikit-learn and behavior."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchmetrics as tm
import torchmetrics.wrappers as tw
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.datasets import ImageFolder

from tests.helpers import learner, one_line
from trickbag.all import (
    Callback,
    CSVLogger,
    DataLoaders,
    EarlyStopping,
    Interpretation,
    MixUp,
    Recorder,
    SaveBest,
    accuracy,
    error_rate,
    soft_targets,
    top_5,
)
from trickbag.loop.metrics import Averages, higher_is_better
from trickbag.monitors.early_stopping import monitor_mode
from trickbag.testing.proofs import TinyData, tiny_learner, tiny_model, weights

FOUR = dict(task='multiclass', num_classes=4)


def brier(pred, y):
    return (pred.softmax(1) - nn.functional.one_hot(y, 4)).square().sum(1).mean()


def declared_brier(pred, y):
    return brier(pred, y)


declared_brier.higher_is_better = False


class Bare:
    "A metric object without `__call__`, and nothing of torchmetrics"

    higher_is_better = False

    def reset(self):
        self.wrong = self.n = 0

    def update(self, pred, y):
        self.wrong += int((pred.argmax(1) != y).sum())
        self.n += len(y)

    def compute(self):
        return self.wrong / self.n


# metric, column, whether higher is better by its definition (None: not known, so it must be refused)
DIRECTIONS = [
    (accuracy, 'accuracy', True),
    (error_rate, 'error_rate', False),
    (partial(top_5, k=2), 'top_5', True),
    (brier, 'brier', None),
    (declared_brier, 'declared_brier', False),
    (partial(declared_brier), 'declared_brier', False),
    (lambda p, y: log_loss(y, p.double().softmax(1), labels=range(4)), '<lambda>', None),
    (nn.CrossEntropyLoss(label_smoothing=0.1), 'CrossEntropyLoss', False),
    (Bare(), 'Bare', False),
    (tm.Accuracy(**FOUR), 'MulticlassAccuracy', True),
    (tm.HammingDistance(**FOUR), 'MulticlassHammingDistance', False),
    (tm.HingeLoss(**FOUR), 'MulticlassHingeLoss', False),
    (tm.CalibrationError(**FOUR), 'MulticlassCalibrationError', False),
    (tm.CohenKappa(**FOUR), 'MulticlassCohenKappa', True),
    (1 - tm.Accuracy(**FOUR), 'CompositionalMetric', None),
    (tw.MinMaxMetric(tm.HingeLoss(**FOUR)), 'raw', False),
    (tw.MinMaxMetric(1 - tm.Accuracy(**FOUR)), 'raw', None),
    (tw.BootStrapper(tm.HingeLoss(**FOUR), num_bootstraps=3), 'mean', False),
    (tw.BootStrapper(tm.Accuracy(**FOUR), num_bootstraps=3), 'std', None),
    (tw.ClasswiseWrapper(tm.Accuracy(**FOUR, average=None), prefix='of_'), 'of_2', True),
    (tm.MetricCollection([tm.F1Score(**FOUR), tm.HammingDistance(**FOUR)]), 'MulticlassF1Score', True),
    (
        tm.MetricCollection([tm.F1Score(**FOUR), tm.HammingDistance(**FOUR)], prefix='v_', postfix='_x'),
        'v_MulticlassHammingDistance_x',
        False,
    ),
    (tm.MetricCollection({'good': tm.F1Score(**FOUR), 'bad': tm.HingeLoss(**FOUR)}), 'bad', False),
]
NAMES = [f'{column}-{i}' for i, (_, column, _) in enumerate(DIRECTIONS)]


class Swing(Callback):
    "Epochs that are good, best, bad: the head is scaled, turned round and put back"

    def after_train(self, learn):
        factor = (0.5, 1.0, -1.0)[learn.epoch]
        with torch.no_grad():
            for p in learn.model[-1].parameters():
                p.mul_(factor)


@pytest.mark.parametrize('metric,column,higher', DIRECTIONS, ids=NAMES)
def test_the_direction_is_the_metrics_own(metric, column, higher, tmp_path):
    """SaveBest restores the weights whose validation was best, by the metric's own definition, and EarlyStopping stops
    after it"""
    save = SaveBest(column, tmp_path / 'best')
    learn = tiny_learner([save, Swing()], metrics=metric, lr=3e-2)
    if higher is None:
        with pytest.raises(
            ValueError,
            match=f"SaveBest: nothing says whether a lower '{column}' is better; give mode='min' or mode='max'",
        ):
            learn.fit(3)
        assert learn.step == 0
        learn.cbs[0] = save = SaveBest(column, tmp_path / 'best', mode='min')
        learn.fit(1)
        assert save.direction == 'min'
        return
    learn.fit(3)
    values = [row[column] for row in learn.history]
    best = (max if higher else min)(values)
    assert len(set(values)) > 1, 'the epochs must differ, or nothing is shown'
    assert save.best == best and save.best_epoch == values.index(best)
    restored = weights(learn)
    saved = tiny_model()
    saved.load_state_dict(torch.load(tmp_path / 'best.pt', weights_only=True))
    assert torch.equal(restored, torch.cat([t.double().flatten() for t in saved.state_dict().values()]))
    if not isinstance(metric, tw.BootStrapper):
        assert learn.validate()[column] == best  # that one draws


def test_directions_are_those_of_torchmetrics():
    classes = [getattr(tm.classification, n) for n in tm.classification.__all__ if n.startswith('Multiclass')]
    seen = {True: 0, False: 0, None: 0}
    for cls in classes:
        try:
            metric = cls(num_classes=4)
        except (TypeError, ValueError):
            continue  # wants another argument
        assert higher_is_better(metric) == cls.higher_is_better, cls
        seen[cls.higher_is_better] += 1
    assert min(seen[True], seen[False]) > 1, seen


@pytest.mark.parametrize('name', ['rmse', 'nll', 'ece', 'brier', 'my_loss', 'error', 'accuracy', 'MeanSquaredError'])
def test_a_name_says_nothing(name):
    assert monitor_mode(name, None) is None
    assert monitor_mode(name, 'min') == 'min'


def test_the_users_mode_is_taken_and_a_contradiction_said(tmp_path):
    save = SaveBest('accuracy', tmp_path / 'b', mode='min')
    with pytest.warns(
        UserWarning, match="SaveBest: mode='min' is taken, although 'accuracy' says that higher is better"
    ):
        learn = tiny_learner([save, Swing()], metrics=accuracy).fit(3)
    assert save.best == min(r['accuracy'] for r in learn.history)


def test_early_stopping_lets_a_falling_metric_improve():
    "Brier falls in each of these epochs, so the run must not end"
    learn = tiny_learner([EarlyStopping('declared_brier', patience=1)], metrics=declared_brier, lr=1e-3).fit(4)
    values = [r['declared_brier'] for r in learn.history]
    assert len(values) == 4 and values == sorted(values, reverse=True)


def test_early_stopping_on_a_collection_resumes(tmp_path):
    """Stopped by a column of a collection, saved and resumed: it trains no further, though no batch has shown the
    columns"""

    def learner():
        return tiny_learner([EarlyStopping('bad', patience=1), Swing()], metrics=DIRECTIONS[-1][0])

    class SaveEach(Callback):
        stage = 'report'

        def after_epoch(self, learn):
            learn.save(tmp_path / f'{learn.epoch}.pt')

    whole = learner().fit(3, cbs=SaveEach())
    rest = learner().fit(3, resume=tmp_path / f'{len(whole.history) - 1}.pt', cbs=SaveEach())
    assert len(rest.history) == len(whole.history) and torch.equal(weights(whole), weights(rest))


def test_a_collection_is_no_column(tmp_path):
    mc = tm.MetricCollection([tm.Accuracy(**FOUR), tm.F1Score(**FOUR)])
    learn = tiny_learner(metrics=mc)
    with pytest.raises(ValueError, match="nothing called 'MetricCollection' is measured.*MulticlassF1Score"):
        learn.fit(1, cbs=SaveBest('MetricCollection', tmp_path / 'b', mode='max'))
    assert learn.step == 0


def test_several_numbers_are_recorded_but_not_monitored(tmp_path):
    "A confusion matrix goes into history, table and file as it is; no epoch is its best"
    conf = tm.ConfusionMatrix(**FOUR)
    learn = tiny_learner(CSVLogger(tmp_path / 'h.csv'), metrics=conf).fit(1)
    pred, y = learn.get_preds()
    assert torch.equal(learn.history[0]['MulticlassConfusionMatrix'], tm.functional.confusion_matrix(pred, y, **FOUR))
    learn = tiny_learner(SaveBest('MulticlassConfusionMatrix', tmp_path / 'b', mode='max'), metrics=conf)
    with pytest.raises(ValueError, match="SaveBest: 'MulticlassConfusionMatrix' is 16 numbers"):
        learn.fit(1)
    assert learn.step == 0


# What no metric may give: known before step 1, with its name


def a_value_each(p, y):
    return (p.argmax(1) == y).float()


def nothing(p, y):
    return None


def a_text(p, y):
    return 'good'


def a_dict(p, y):
    return {'a': torch.ones(3), 'b': torch.ones(3)}


def a_list(p, y):
    return [1.0, 2.0]


def wrong_arguments(p):
    return 0.0


def fails(p, y):
    raise KeyError('deep inside')


class Text(Bare):
    def compute(self):
        return 'good'


class Dicts(Bare):
    def compute(self):
        return {'x': {'y': 1.0}}


class NoReset:
    def update(self, p, y):
        pass

    def compute(self):
        return 1.0


@pytest.mark.parametrize(
    'metric',
    [
        a_value_each,
        nothing,
        a_text,
        a_dict,
        a_list,
        wrong_arguments,
        fails,
        Text(),
        Dicts(),
        NoReset(),
        Bare,
        'accuracy',
    ],
    ids=lambda m: m if isinstance(m, str) else getattr(m, '__name__', type(m).__name__),
)
def test_what_is_no_metric_is_known_before_step_1(metric):
    learn = tiny_learner()
    was = weights(learn)
    with pytest.raises((TypeError, ValueError, KeyError)) as e:
        learn = tiny_learner(metrics=[accuracy, metric])  # some are refused here already
        learn.fit(1)
    assert learn.step == 0 and torch.equal(weights(learn), was)
    name = metric if isinstance(metric, str) else getattr(metric, '__name__', type(metric).__name__)
    assert name in str(e.value) + ''.join(getattr(e.value, '__notes__', []))


@pytest.mark.parametrize('names', [['loss'], ['time'], ['epoch'], ['valid_loss']])
def test_columns_do_not_overwrite_one_another(names):
    for name in names:

        def f(p, y):
            return 0.0

        f.__name__ = name
        with pytest.raises(ValueError, match=f'called {name}'):
            tiny_learner(metrics=f).fit(1)
    both = [accuracy, tm.MetricCollection({'accuracy': tm.Accuracy(**FOUR)})]
    learn = tiny_learner(metrics=both)
    with pytest.raises(ValueError, match='prefix'):
        learn.fit(1)
    assert learn.step == 0


class Late:
    "A function that goes wrong in the validation of the second epoch"

    __name__ = 'late'
    higher_is_better = True

    def __init__(self, wrong):
        self.wrong = wrong
        self.n = 0

    def __call__(self, p, y):
        self.n += 1
        return 0.5 if self.n < 5 else self.wrong()  # the trial, and three batches


def broken():
    raise RuntimeError('no positive samples')


@pytest.mark.parametrize('wrong', [lambda: torch.ones(3), lambda: None, lambda: 'text', broken])
def test_a_metric_that_fails_late_does_not_end_the_run(wrong, tmp_path):
    cbs = [SaveBest('late', tmp_path / 'b'), EarlyStopping('late', patience=9), CSVLogger(tmp_path / 'h.csv')]
    plain = tiny_learner(metrics=accuracy).fit(3)
    with pytest.warns(UserWarning, match='metric late failed'):
        learn = tiny_learner([*cbs[1:]], metrics=[Late(wrong), accuracy]).fit(3)
    assert 'late' in learn.history[0] and 'late' not in learn.history[1]
    assert [r['accuracy'] for r in learn.history] == [r['accuracy'] for r in plain.history]
    assert torch.equal(weights(learn), weights(plain))
    with pytest.warns(UserWarning, match='metric late failed'):
        learn = tiny_learner([*cbs], metrics=Late(wrong)).fit(3)
    assert learn.cb(SaveBest).best_epoch == 0
    with pytest.warns(UserWarning, match='metric late failed'):
        learn = tiny_learner(Recorder(train_metrics=True), metrics=Late(wrong)).fit(1)
    assert learn.history[0]['train_late'] != learn.history[0]['train_late']  # NaN


def test_trying_metrics_leaves_no_trace():
    "The metrics are tried on the first batch; weights, draws and objects are those of a run without"
    plain = tiny_learner().fit(2)
    boot = tw.BootStrapper(tm.Accuracy(**FOUR), num_bootstraps=3)
    learn = tiny_learner(metrics=[accuracy, boot, Bare()]).fit(2)
    assert torch.equal(weights(plain), weights(learn))
    assert boot.metrics[0].update_count == 0


def test_metrics_that_cannot_take_scores():
    tm = pytest.importorskip('torchmetrics')
    one_line(lambda: learner(metrics=tm.MeanSquaredError()).fit(1), 'metrics: MeanSquaredError', exc=RuntimeError)


# One output, several labels, shapes


def test_one_output():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 1, generator=g)
    y = torch.randint(0, 2, (50, 1), generator=g).float()
    want = accuracy_score(y[:, 0], logits[:, 0].sigmoid() > 0.5)
    for p, t in ((logits, y), (logits[:, 0], y[:, 0]), (logits, y[:, 0]), (logits, y.long())):
        assert float(accuracy(p, t, threshold=0.0)) == pytest.approx(want)
        assert float(accuracy(p.sigmoid(), t, threshold=0.5)) == pytest.approx(want)
        assert float(error_rate(p, t, threshold=0.0)) == pytest.approx(1 - want)
        for m in (accuracy, error_rate, top_5):
            with pytest.raises(ValueError, match=f'{m.__name__}: one logit a sample has no highest'):
                m(p, t)


def test_several_labels():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=g)
    y = torch.randint(0, 2, (50, 4), generator=g)
    want = tm.functional.accuracy(logits, y, task='multilabel', num_labels=4, average='micro')
    assert torch.allclose(accuracy(logits, y.float(), threshold=0.0), want)
    for t in (y, y.float(), y.bool()):
        for m in (accuracy, error_rate, top_5):
            with pytest.raises(ValueError, match=f'{m.__name__}: .*MultilabelF1Score'):
                m(logits, t)


@pytest.mark.parametrize(
    'pred,y', [((4, 4), (4, 1)), ((4, 3, 4), (4,)), ((4, 4), (4, 4, 4)), ((6, 3, 2, 2), (6, 2)), ((3, 5), (5,))]
)
def test_shapes_that_would_broadcast_are_refused(pred, y):
    for m in (accuracy, error_rate, top_5):
        with pytest.raises(ValueError, match='do not fit'):
            m(torch.zeros(pred), torch.zeros(y, dtype=torch.int64))


def test_maps_of_classes():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(3, 7, 4, 5, generator=g)
    y = torch.randint(0, 7, (3, 4, 5), generator=g)
    assert torch.allclose(
        accuracy(p, y), tm.functional.accuracy(p, y, task='multiclass', num_classes=7, average='micro')
    )
    assert torch.allclose(
        top_5(p, y), tm.functional.accuracy(p, y, task='multiclass', num_classes=7, average='micro', top_k=5)
    )


@pytest.mark.parametrize('metric', [accuracy, error_rate, top_5])
def test_a_fit_with_multi_hot_targets_is_refused_before_step_1(metric):
    x = torch.randn(16, 3, 8, 8)
    y = torch.randint(0, 2, (16, 4)).float()
    data = DataLoaders([(x[:8], y[:8]), (x[8:], y[8:])], [(x, y)])
    learn = tiny_learner(dls=data, loss_func=nn.BCEWithLogitsLoss(), metrics=metric)
    with pytest.raises(ValueError, match=f'{metric.__name__}: samples have several labels'):
        learn.fit(1)
    assert learn.step == 0
    learn = tiny_learner(dls=data, loss_func=nn.BCEWithLogitsLoss(), metrics=partial(accuracy, threshold=0.0)).fit(1)
    pred = learn.get_preds()[0]
    assert learn.history[0]['accuracy'] == pytest.approx(float(((pred > 0.5) == (y > 0.5)).float().mean()))


def test_soft_targets_in_training_only():
    "A training loader that mixes, and hard validation targets: a metric that takes only hard ones is no error"
    t = TinyData()
    soft = [(x, nn.functional.one_hot(y, 4) * 0.9 + 0.025) for x, y in t.train]
    learn = tiny_learner(dls=DataLoaders(soft, t.valid), metrics=[tm.Accuracy(**FOUR), accuracy]).fit(1)
    assert 'MulticlassAccuracy' in learn.history[0]


class TwoHeads(nn.Module):
    def __init__(self, in_eval_only=False):
        super().__init__()
        self.body = tiny_model()
        self.in_eval_only = in_eval_only

    def forward(self, x):
        out = self.body(x)
        return out if self.in_eval_only and self.training else (out, out[:, :2])


def two_losses(pred, y):
    return nn.functional.cross_entropy(pred[0], y) + pred[1].square().mean()


def test_two_heads():
    "Metrics get the tuple as it is, and means are over samples, not over heads"

    def first(pred, y):
        return accuracy(pred[0], y)

    learn = tiny_learner(model=TwoHeads(), loss_func=two_losses, metrics=first)
    averages = Averages([first])
    model = TwoHeads().eval()
    batches = list(learn.dls.valid)
    for x, y in batches:
        averages.add(two_losses(model(x), y), model(x), y)
    x = torch.cat([b[0] for b in batches])
    y = torch.cat([b[1] for b in batches])
    assert averages.compute()['first'] == pytest.approx(float(first(model(x), y)))
    learn = tiny_learner(model=TwoHeads(), loss_func=two_losses, metrics=accuracy)
    with pytest.raises(ValueError, match='the model gives a tuple'):
        learn.fit(1)
    assert learn.step == 0


# Interpretation and predict


def binary(loss=nn.BCEWithLogitsLoss, n=40):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 8, 8, generator=g)
    y = torch.randint(0, 2, (n, 1), generator=g).float()
    data = DataLoaders([(x, y)], [(x, y)], vocab=['no', 'yes'])
    return (
        tiny_learner(dls=data, model=tiny_model(1), loss_func=loss(), metrics=partial(accuracy, threshold=0.0)),
        x,
        y[:, 0].long(),
    )


def test_interpretation_and_predict_of_one_output():
    "Against scikit-learn on the sigmoid of the logits"
    learn, x, y = binary()
    learn.fit(3)
    with torch.no_grad():
        learn.model[-1].bias -= learn.model.eval()(x).median() - 1e-4  # both classes are said
    with torch.no_grad():
        said = (learn.model.eval()(x)[:, 0].sigmoid() > 0.5).long()
    assert 0 < int(said.sum()) < len(x)
    it = Interpretation(learn)
    assert torch.equal(it.preds, said) and torch.equal(it.targets, y)
    assert it.accuracy == pytest.approx(accuracy_score(y, said)) == learn.validate()['accuracy']
    assert it.confusion_matrix().tolist() == confusion_matrix(y, said).tolist()
    assert [row[0] for row in it.report().rows] == ['no', 'yes']
    assert it.losses.mean().item() == pytest.approx(learn.validate()['loss'], rel=1e-5)
    assert len(it.top_losses(3)[0]) == 3 and it.most_confused()
    it.plot_top_losses(2)
    for i in (0, 1, 2, 3):
        assert learn.predict(x[i])[:2] == (['no', 'yes'][said[i]], int(said[i]))


def test_interpretation_of_several_labels_is_refused():
    x = torch.randn(16, 3, 8, 8)
    y = torch.randint(0, 2, (16, 4)).float()
    learn = tiny_learner(dls=DataLoaders([(x, y)], [(x, y)]), loss_func=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match='Interpretation: samples have several labels'):
        Interpretation(learn)


class Maps(nn.Module):
    "Logits N x 4 x 2 x 2"

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x):
        return self.body(x)


def test_maps_of_scores_are_refused_where_a_class_is_wanted():
    x = torch.randn(8, 3, 8, 8)
    y = torch.randint(0, 4, (8, 2, 2))
    learn = tiny_learner(dls=DataLoaders([(x, y)], [(x, y)]), model=Maps(), metrics=accuracy).fit(1)
    assert learn.history[0]['accuracy'] == pytest.approx(float((learn.get_preds()[0].argmax(1) == y).float().mean()))
    with pytest.raises(ValueError, match='predict: the model gives .4, 2, 2. for an image'):
        learn.predict(x[0])
    with pytest.raises(ValueError, match='Interpretation: needs a logit a class'):
        Interpretation(learn)
    with pytest.raises(ValueError, match='TTA'):
        learn.tta()
    with pytest.raises(ValueError, match='logits N x C are needed'):
        tiny_learner(MixUp(), dls=learn.dls, model=Maps()).fit(1)


def test_top_losses_name_files(tmp_path):
    for part, n in (('train', 4), ('val', 3)):
        for k in 'ab':
            (tmp_path / part / k).mkdir(parents=True)
            for i in range(n):
                Image.new('RGB', (16, 16), (60 * i, 200 * (k == 'a'), 9)).save(tmp_path / part / k / f'{i}.png')
    files = sorted(map(str, (tmp_path / 'val').rglob('*.png')))
    dls = DataLoaders.from_folder(tmp_path, valid='val', size=8, presize=16, bs=4, keep='memory')
    it = Interpretation(tiny_learner(dls=dls, model=tiny_model(2)))
    top = it.top_losses(None)
    assert [it.files[i] for i in top.indices] == top.files and sorted(top.files) == files
    assert all(str(it.targets[i].item()) == {'a': '0', 'b': '1'}[Path(it.files[i]).parent.name] for i in range(6))
    assert Path(top.files[0]).name in repr(top)
    losses, places = it.top_losses(2)
    assert torch.equal(losses, it.losses[places])
    to_tensor = lambda im: (
        torch.frombuffer(bytearray(im.tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1).float() / 255
    )
    folder = ImageFolder(tmp_path / 'val', to_tensor)
    for data, want in (
        (folder, files),
        (Subset(folder, [4, 1]), [files[4], files[1]]),
        (ConcatDataset([Subset(folder, [2]), folder]), [files[2], *files]),
    ):
        dl = DataLoader(data, 2)
        assert (
            Interpretation(tiny_learner(dls=DataLoaders(dl, dl, vocab=['a', 'b']), model=tiny_model(2))).files == want
        )


def test_a_confusion_matrix_of_1000_classes_is_small():
    x = torch.randn(8, 3, 8, 8)
    y = torch.arange(0, 1000, 125)
    learn = tiny_learner(
        dls=DataLoaders([(x, y)], [(x, y)], vocab=[str(i) for i in range(1000)]), model=tiny_model(1000)
    )
    fig = Interpretation(learn).plot_confusion_matrix()
    width, height = fig.get_size_inches() * fig.dpi
    assert width * height * 4 < 50e6 and len(fig.axes[0].get_yticks()) <= 60


def test_long_names_leave_room_for_the_cells_of_a_confusion_matrix():
    x = torch.randn(8, 3, 8, 8)
    vocab = [f'{i:03d} a car of the year {2000 + i}, with all that belongs to its name' for i in range(6)]
    learn = tiny_learner(
        dls=DataLoaders([(x, torch.arange(8) % 6)], [(x, torch.arange(8) % 6)], vocab=vocab), model=tiny_model(6)
    )
    fig = Interpretation(learn).plot_confusion_matrix()
    fig.draw_without_rendering()
    ax = fig.axes[0]
    # six cells of .3 inches at least
    assert ax.get_window_extent().width > 6 * 0.3 * fig.dpi
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(labels)) == 6 and max(map(len, labels)) <= 30 and all(label.endswith('its name') for label in labels)
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:]))


def test_metrics_are_looked_at_before_training():
    for m, w, e in (([accuracy, accuracy], 'two are called', ValueError), ('accuracy', 'is no function', TypeError)):
        one_line(lambda: tiny_learner(metrics=m), w, exc=e)

    def odd(p, y):
        raise KeyError('x')

    with pytest.raises(KeyError) as e:
        tiny_learner(metrics=odd).validate()
    assert any('in metric odd' in n for n in e.value.__notes__)


def test_torchmetrics_collections_and_nested_validation():
    import torchmetrics as tm

    mc = tm.MetricCollection(
        [tm.Accuracy('multiclass', num_classes=4, average='micro'), tm.F1Score('multiclass', num_classes=4)]
    )
    assert {'MulticlassAccuracy', 'MulticlassF1Score'} <= set(tiny_learner(metrics=mc).validate())

    class Peek(Callback):
        def after_batch(self, learn):
            if not getattr(self, 'busy', 0):
                self.busy = 1
                learn.validate()

    m = tm.Accuracy('multiclass', num_classes=4, average='micro')
    r = tiny_learner([Peek()], metrics=[accuracy, m]).validate()
    assert r['accuracy'] == pytest.approx(r['MulticlassAccuracy'], abs=1e-6)


# In training


def test_a_metric_of_training_is_a_mean_over_samples():
    "45 images in batches of 8 and one of 5, counted one by one"

    class Count(Callback):
        stage = 'monitor'
        monitor = True
        right = 0

        def after_pred(self, learn):
            if learn.training:
                self.right += int((learn.pred.argmax(1) == learn.clean_yb).sum())

    count = Count()
    learn = tiny_learner([Recorder(train_metrics=True), count], metrics=accuracy).fit(1)
    assert abs(learn.history[0]['train_accuracy'] - count.right / 45) < 1e-6


def soft_batches(n=12):
    x = torch.randn(n, 3, 8, 8)
    y = soft_targets(torch.arange(n) % 4, 4)
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, n, 4)]


def test_probabilities_as_targets_wait_for_no_gpu():
    "Tensors on 'meta' have no values, so who asks for one fails, as who asks for one on a GPU waits"
    meta = torch.device('meta')
    pred = torch.zeros(4, 4, device=meta)
    with pytest.raises(RuntimeError):
        accuracy(pred, pred)
    averages = Averages([accuracy, error_rate, partial(top_5, k=3)], meta)
    averages.add(pred.sum(), pred, pred)
    assert [len(checks) for checks in averages.deferred.values()] == [1, 2, 1]


def test_several_labels_in_the_last_batch_are_refused():
    batches = soft_batches()
    batches[-1][1][0] = 1.0
    learn = tiny_learner(dls=DataLoaders(soft_batches(), batches), metrics=accuracy)
    with pytest.raises(ValueError, match='accuracy: samples have several labels or none'):
        learn.validate()
