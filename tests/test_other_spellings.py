"""Losses, outputs, loaders and arguments written in other ways than the library's own pages do: right, or one line
with the remedy."""

import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset

from trickbag.all import *
from trickbag.loop.read_loss import read_loss
from trickbag.testing.proofs import tiny_learner, tiny_model

g = torch.Generator().manual_seed(0)
x = torch.randn(22, 3, 8, 8, generator=g)
y = torch.randint(0, 4, (22,), generator=g)
two = torch.randint(0, 2, (22,), generator=g)
w = torch.tensor([0.1, 1.0, 3.0, 7.0])


def batches(bs, x=x, y=y):
    return [(x[i : i + bs], y[i : i + bs]) for i in range(0, len(x), bs)]


def learner(y=y, n_out=4, loss=None, cbs=(), bs=11, **kw):
    return tiny_learner(
        list(cbs), DataLoaders(batches(bs, y=y), batches(bs, y=y)), tiny_model(n_out), loss_func=loss, **kw
    )


def logits(n_out=4):
    return tiny_model(n_out).eval()(x).detach()


def one_line(f, *words, exc=(ValueError, TypeError)):
    with pytest.raises(exc) as e:
        f()
    assert '\n' not in str(e.value) and re.match(r'[\w.() ]+: \S', str(e.value)), str(e.value)
    for word in words:
        assert word in str(e.value), str(e.value)


# Weights of classes, whatever way a loss comes by them: torch's weighted cross entropy is the right value


def taken(p, y):
    mine = w.take(y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def gathered(p, y):
    mine = w.gather(0, y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def one_hot(p, y):
    rows = F.one_hot(y, 4).float()
    return -(rows * p.log_softmax(1) * w).sum() / (rows @ w).sum()


def listed_weights(p, y):
    mine = torch.tensor([[0.1, 1.0, 3.0, 7.0][k] for k in y.tolist()])
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


def first_is_free(p, y):
    mine = torch.tensor([0.0, 1.0, 2.0, 3.0]).take(y)
    return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()


WEIGHTED = {taken: w, gathered: w, one_hot: w, listed_weights: w, first_is_free: torch.tensor([0.0, 1.0, 2.0, 3.0])}


@pytest.mark.parametrize('loss', WEIGHTED, ids=lambda f: f.__name__)
def test_the_mean_over_weights_is_found_by_values(loss):
    whole = F.cross_entropy(logits(), y, weight=WEIGHTED[loss]).item()
    assert [learner(loss=loss, bs=bs).validate()['loss'] for bs in (22, 7, 3)] == pytest.approx([whole] * 3, rel=1e-5)


@pytest.mark.parametrize('loss', WEIGHTED, ids=lambda f: f.__name__)
def test_accumulated_batches_are_the_big_batch(loss):
    def trained(bs, cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        tiny_learner(cbs, DataLoaders(batches(bs)), model, loss_func=loss, opt_func=torch.optim.SGD, lr=0.1).fit(1)
        return model[1].weight.detach()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    F.cross_entropy(model(x), y, weight=WEIGHTED[loss]).backward()
    right = (model[1].weight - 0.1 * model[1].weight.grad).detach()
    for got in (trained(22, []), trained(6, [GradientAccumulation(4)])):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


def test_weights_of_1000_classes_are_found():
    weight = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.1

    def loss(p, y):
        mine = weight.take(y)
        return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()

    facts = read_loss(loss, torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64))
    assert facts.reduction == 'mean'
    torch.testing.assert_close(facts.weight / facts.weight.sum(), weight / weight.sum(), rtol=1e-3, atol=1e-7)


def test_weights_that_change_are_found_anew():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = w

        def forward(self, p, y):
            mine = self.w.take(y)
            return (mine * F.cross_entropy(p, y, reduction='none')).sum() / mine.sum()

    loss = Moving()
    learn = learner(loss=loss, bs=5)
    for weight in (w, w, w.flip(0)):
        loss.w = weight
        assert learn.validate()['loss'] == pytest.approx(F.cross_entropy(logits(), y, weight=weight).item(), rel=1e-5)


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


def test_a_loss_that_is_no_mean_is_said_in_validation_too():
    def half(p, y):
        return F.cross_entropy(p, y, weight=w) + F.cross_entropy(p, y)

    with pytest.warns(UserWarning, match='neither the mean nor the sum'):
        learner(loss=half).validate()


# Metrics and samples that the loss ignores


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


# One output, two classes


class Spy(Callback):
    "Keep the targets of the first batch as the loss gets them"

    stage = 'monitor'
    reads = ('y',)
    y = None

    def after_pred(self, learn):
        if learn.training and self.y is None:
            self.y = learn.yb.clone()


FLAT = dict(
    column=(two.float()[:, None], nn.BCEWithLogitsLoss()),
    floats=(two.float(), lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y)),
    indices=(two, lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y.float())),
    indices_plain=(two, nn.BCEWithLogitsLoss()),
)


@pytest.mark.parametrize('kind', FLAT)
def test_one_output_in_every_form_of_targets(kind):
    targets, loss = FLAT[kind]
    learn = learner(targets, 1, loss, metrics=partial(accuracy, threshold=0.0), bs=22)
    right = F.binary_cross_entropy_with_logits(logits(1)[:, 0], two.float()).item()
    res = learn.validate()
    assert res['loss'] == pytest.approx(right, rel=1e-5)
    assert res['accuracy'] == pytest.approx(((logits(1)[:, 0] > 0) == two.bool()).float().mean().item())
    torch.testing.assert_close(learn.get_preds()[0], logits(1).sigmoid())
    torch.testing.assert_close(learn.predict(x[0])[2], logits(1).sigmoid()[0], rtol=1e-4, atol=1e-5)
    learn.fit(1)


@pytest.mark.parametrize('kind', ['column', 'indices_plain'])
def test_smoothing_of_one_output_is_towards_a_half(kind):
    spy = Spy()
    learner(*FLAT[kind][:1], 1, FLAT[kind][1], [LabelSmoothing(0.2), spy], bs=22).fit(1)
    # as Keras' BinaryCrossentropy(label_smoothing=.2)
    torch.testing.assert_close(spy.y, two.float()[:, None] * 0.8 + 0.1)


@pytest.mark.parametrize('trick', [MixUp, CutMix, FMix, ResizeMix, MixOrCut])
def test_one_output_is_mixed(trick):
    spy = Spy()
    learner(two.float()[:, None], 1, nn.BCEWithLogitsLoss(), [trick(), spy], bs=22).fit(1)
    assert spy.y.shape == (22, 1) and 0 <= spy.y.min() and spy.y.max() <= 1


def test_softmax_over_one_output_is_refused():
    one_line(lambda: learner(two, 1, nn.CrossEntropyLoss()).fit(1), 'class index 1', 'n_out=2')


def test_numbers_are_no_classes():
    far = 7 * two.float()[:, None]
    learn = learner(far, 1, nn.MSELoss())
    one_line(lambda: Interpretation(learn), 'one output')
    with torch.no_grad():
        learn.model[-1].bias.fill_(-9.0)
    one_line(lambda: learn.predict(x[0]), 'no probability')
    for trick in (LabelSmoothing(), BinaryTargets()):
        one_line(lambda: learner(far, 1, nn.MSELoss(), [trick]).fit(1), 'from 0 to 7')


# Losses and models that are not what they are taken for


def test_scores_come_first():
    for f in (lambda y, p: F.cross_entropy(p, y), lambda y, p: F.nll_loss(p, y)):
        one_line(lambda: learner(loss=f).fit(1), 'logits come first')
    many = F.one_hot(y, 4).float()
    one_line(
        lambda: learner(many, loss=lambda y, p: F.binary_cross_entropy_with_logits(p, y)).fit(1), 'logits come first'
    )


class Ended(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body = tiny_model(4)
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


@pytest.mark.parametrize(
    'end,loss,says',
    [
        (nn.Softmax(1), nn.CrossEntropyLoss(), 'softmax of them once more'),
        (nn.Identity(), nn.NLLLoss(), 'logarithms of probabilities'),
    ],
)
def test_a_softmax_too_many_or_too_few_is_said(end, loss, says):
    with pytest.warns(UserWarning, match=says):
        tiny_learner([], DataLoaders(batches(11)), Ended(end), loss_func=loss).fit(1)


@pytest.mark.parametrize(
    'end,loss',
    [
        (nn.Identity(), nn.CrossEntropyLoss()),
        (nn.LogSoftmax(1), nn.NLLLoss()),
        (nn.LogSoftmax(1), nn.CrossEntropyLoss()),
    ],
)
def test_right_ends_are_not_warned_of(end, loss):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tiny_learner([], DataLoaders(batches(11)), Ended(end), loss_func=loss).fit(1)


@pytest.mark.parametrize(
    'weight,word',
    [
        (torch.ones(3), '3 weights'),
        (torch.tensor([1, 2, 3, 4]), 'int64'),
        (torch.ones(4).double(), 'float64'),
        ([1.0, 2.0, 3.0, 4.0], 'torch.tensor(weight)'),
        (torch.zeros(4), 'not all 0'),
        (torch.tensor([1.0, -1, 1, 1]), '0 or more'),
        (torch.tensor([1.0, float('nan'), 1, 1]), 'finite'),
    ],
    ids=str,
)
def test_weights_that_cannot_be_used(weight, word):
    learn = learner(loss=partial(F.cross_entropy, weight=weight))
    one_line(lambda: learn.fit(1), 'Learner: ', word)
    assert learn.step == 0


@pytest.mark.parametrize(
    'loss,word',
    [
        (lambda p: p.mean(), 'loss_func(pred, y)'),
        (lambda p, y, z: p.mean(), 'loss_func(pred, y)'),
        (nn.BCELoss(), 'BCEWithLogitsLoss'),
        (nn.MultiLabelMarginLoss(), 'loss_func fails'),
        (nn.TripletMarginLoss(), 'loss_func(pred, y)'),
        (lambda p, y: None, 'None'),
    ],
)
def test_losses_that_cannot_be_called(loss, word):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        one_line(lambda: learner(loss=loss).fit(1), 'Learner: ', word, exc=(ValueError, TypeError, RuntimeError))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = tiny_model(4)

    def forward(self, x, z):
        return self.body(x)


def test_a_model_of_two_arguments():
    one_line(lambda: tiny_learner([], DataLoaders(batches(11)), Two()).fit(1), 'model(images)', "'z'")


def test_metrics_that_cannot_take_scores():
    tm = pytest.importorskip('torchmetrics')
    one_line(lambda: learner(metrics=tm.MeanSquaredError()).fit(1), 'metrics: MeanSquaredError', exc=RuntimeError)


# Loaders


@pytest.mark.parametrize('dl', [None, 5, 'data', x, lambda: [], {}], ids=lambda o: type(o).__name__)
def test_what_is_no_loader(dl):
    one_line(lambda: tiny_learner([], DataLoaders(dl)).fit(1), 'fit: the training loader is')
    if dl is not None:
        one_line(lambda: tiny_learner().validate(dl), 'validate: dl is')


def test_a_dataset_is_no_loader():
    one_line(lambda: tiny_learner([], DataLoaders(TensorDataset(x, y))).fit(1), 'DataLoader(dataset, batch_size)')


def test_no_targets():
    one_line(lambda: tiny_learner([], DataLoaders([(x, None)])).fit(1), 'without targets')


class Shuffled(Sampler):
    def __init__(self):
        pass

    def __len__(self):
        return 22

    def __iter__(self):
        return iter(torch.randperm(22).tolist())


class ShuffledBatches:
    def __len__(self):
        return 2

    def __iter__(self):
        return iter(torch.randperm(22).view(2, 11).tolist())


class Backwards(Shuffled):
    def __iter__(self):
        return iter(range(21, -1, -1))


class Stream(IterableDataset):
    def __iter__(self):
        return zip(x, y)


data = TensorDataset(x, y)


@pytest.mark.parametrize(
    'dl',
    [
        DataLoader(data, 4, sampler=Shuffled()),
        DataLoader(data, batch_sampler=ShuffledBatches()),
        DataLoader(data, batch_sampler=BatchSampler(Shuffled(), 4, False)),
    ],
)
def test_a_sampler_of_ones_own_that_shuffles_is_said(dl):
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match='at random'):
        tiny_learner().get_preds(dl)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    'dl',
    [
        DataLoader(Stream(), 4, drop_last=True),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, True)),
    ],
)
def test_predictions_are_whole_and_in_order(dl):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(tiny_learner().get_preds(dl)[1], y)


class Files(TensorDataset):
    samples = [(f'{i}.png', int(k)) for i, k in enumerate(y)]


def test_files_of_top_losses_follow_the_sampler():
    files = Files(x, y)
    right = F.cross_entropy(logits(), y, reduction='none').argmax().item()
    for kw in (dict(), dict(sampler=Backwards()), dict(batch_sampler=BatchSampler(Backwards(), 4, False))):
        dl = DataLoader(files, **(kw if 'batch_sampler' in kw else kw | dict(batch_size=4)))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert Interpretation(tiny_learner(), dl).top_losses(1).files == [f'{right}.png']
    with pytest.warns(UserWarning, match='at random'):
        assert Interpretation(tiny_learner(), DataLoader(files, 4, sampler=Shuffled())).top_losses(1).files == [None]


# Arguments


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda: Learner(DataLoaders([]), tiny_model(), loss_fn=1), ('Learner: ', 'loss_func=')),
        (lambda: Learner(DataLoaders([]), tiny_model(), callbacks=[]), ('cbs=',)),
        (lambda: Learner(DataLoaders([]), tiny_model(), batch_size=8), ('the DataLoaders have it',)),
        (lambda: Learner(tiny_model(), DataLoaders([])), ('the data comes first',)),
        (lambda: tiny_learner().fit(epochs=1), ('fit: ', 'n_epoch=')),
        (lambda: tiny_learner().fit(), ("'n_epoch'",)),
        (lambda: tiny_learner().fit(1, wd=0.1), ('weight_decay',)),
        (lambda: tiny_learner().fit_one_cycle(1, max_lr=0.1), ('fit_one_cycle: ', 'lr_max=')),
        (lambda: tiny_learner().fit_flat_cos(1, pct=0.1), ('pct_start=',)),
        (lambda: tiny_learner().fine_tune(1, lr=0.1), ('fine_tune: ',)),
        (lambda: tiny_learner().fix_res(8, epochs=1), ('n_epoch=',)),
        (lambda: tiny_learner().lr_find(num_iter=3), ('num_it=',)),
        (lambda: tiny_learner().tta(n=4), ('tta: ', 'crops=')),
        (lambda: tiny_learner().get_preds(with_loss=True), ('get_preds: ',)),
        (lambda: tiny_learner().get_preds(act='softmax'), ('torch.sigmoid',)),
        (lambda: tiny_learner().freeze_to('head'), ('freeze_to: ', 'whole number')),
        (lambda: tiny_learner().freeze_to(1.5), ('whole number',)),
        (lambda: tiny_learner().profile('a'), ('profile: ',)),
        (lambda: Interpretation(tiny_learner()).top_losses('3'), ('top_losses: ', 'write 3')),
        (lambda: TTA(n=4), ('TTA: ',)),
        (lambda: Crop(), ("'size'",)),
        (lambda: DataLoaders.from_folder(None), ('path must be a path',)),
        (lambda: DataLoaders.from_folder('.', train=3), ('train must be',)),
    ],
)
def test_arguments_that_are_not_there(f, words):
    one_line(f, *words)


BAD = {
    int: ['3', 1.5, True, [1], None],
    float: ['.1', [1.0], True, float('nan'), None],
    bool: ['yes', 2, [True]],
    str: [3, ['a']],
}


def test_every_argument_of_every_callback():
    """A value that is nothing of what the signature says is refused when the callback is made, in one line that names
    both"""
    import inspect

    seen = 0
    for kind in vars(__import__('trickbag.all', fromlist=['x'])).values():
        if not (isinstance(kind, type) and issubclass(kind, Callback)) or kind.__init__ is Callback.__init__:
            continue
        params = [
            p for p in inspect.signature(kind).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        needed = {p.name: 1 for p in params if p.default is p.empty}
        for p in params:
            for value in BAD.get(p.annotation, []):
                if value is None:
                    continue  # whether None will do is up to each
                with pytest.raises(ValueError) as e:
                    kind(**needed | {p.name: value})
                assert '\n' not in str(e.value) and re.match(rf'\w+: {p.name} must be ', str(e.value)), (
                    f'{kind.__name__}({p.name}={value!r}): {e.value}'
                )
                seen += 1
    assert seen > 300


@pytest.mark.parametrize(
    'f',
    [
        lambda: EarlyStopping(patience=None),
        lambda: SaveBest(min_delta=None),
        lambda: MixUp(None),
        lambda: TerminateOnNaN(None),
        lambda: GhostBatchNorm(None),
    ],
)
def test_none_where_a_number_belongs(f):
    one_line(f, 'must be a', 'None')


@pytest.mark.parametrize(
    'f',
    [
        lambda: EarlyStopping(patience=np.int64(3)),
        lambda: MixUp(np.float32(0.4)),
        lambda: LabelSmoothing(torch.tensor(0.1)),
        lambda: SaveBest(restore=np.bool_(True)),
        lambda: Flip(1),
    ],
)
def test_numbers_of_numpy_and_torch_will_do(f):
    f()


def test_a_class_of_ones_own_is_not_looked_at():
    class Mine(Callback):
        stage = 'monitor'

        def __init__(self, n: int = 3):
            self.n = n

    assert Mine('three').n == 'three'


def test_fix_res_goes_on_anyway(tmp_path):
    learn = tiny_learner([], path=tmp_path)
    learn.fix_res(8, 2, 0.1, cbs=Checkpoint(file='f'))
    with pytest.warns(UserWarning):
        tiny_learner([], path=tmp_path).fix_res(8, 3, 0.2, resume='f', resume_anyway=True)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / 'sub').mkdir()
    learn = tiny_learner(path=tmp_path)
    for f in (lambda: learn.save('sub'), lambda: learn.load('sub'), lambda: learn.fit(1, resume='sub')):
        one_line(f, 'is a folder')


@pytest.mark.parametrize(
    'argv,word',
    [
        ('--epochs -1', 'must be 1 or more'),
        ('--epochs x', 'invalid whole number value'),
        ('--size 0', 'must be 1 or more'),
        ('--bs 0', 'must be 1 or more'),
        ('--lr nan', 'finite number above 0'),
        ('--lr -1', 'finite number above 0'),
        ('--out /dev/null', 'cannot be made'),
        ('--out /dev/null/x', 'cannot be made'),
    ],
)
def test_the_command_line_says_what_is_wrong(argv, word, capsys):
    from trickbag.cli import main

    with pytest.raises(SystemExit) as e:
        main(['demo', *argv.split()])
    assert e.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert word in last and argv.split()[0] in last


# Tables and lists


def _files(folder, n=8):
    from PIL import Image

    for i in range(n):
        Image.new('RGB', (9, 9), (9 * i, 0, 0)).save(folder / f'{i}.png')
    return [str(folder / f'{i}.png') for i in range(n)]


@pytest.mark.parametrize(
    'marks',
    [
        ['train', 'valid'] * 4,
        ['0', '1'] * 4,
        ['False', 'True'] * 4,
        [0.0, 1.0] * 4,
        np.array([False, True] * 4),
        torch.tensor([False, True] * 4),
        [float('nan'), 1] * 4,
    ],
)
def test_marks_of_validation_in_every_form(marks, tmp_path):
    dls = DataLoaders.from_lists(_files(tmp_path), list('aabbaabb'), is_valid=marks, size=8, bs=2)
    assert [dls.name(i).rsplit('/')[-1] for i in range(4)] == ['1.png', '3.png', '5.png', '7.png']


def test_marks_that_mean_nothing(tmp_path):
    one_line(
        lambda: DataLoaders.from_lists(_files(tmp_path), list('aabbaabb'), is_valid=[0, 2] * 4, size=8),
        'from_lists: ',
        '2',
    )


def test_labels_in_several_columns_are_asked_for(tmp_path):
    _files(tmp_path)
    (tmp_path / 'labels.csv').write_text('file,cat,dog\n' + ''.join(f'{i}.png,{i % 2},{1 - i % 2}\n' for i in range(8)))
    one_line(lambda: DataLoaders.from_csv(tmp_path, size=8), 'label_col', "'cat' and 'dog'")
    assert DataLoaders.from_csv(tmp_path, size=8, bs=2, label_col='dog').vocab == ['0', '1']


def test_a_split_that_is_not_used_is_said(tmp_path):
    _files(tmp_path)
    (tmp_path / 'labels.csv').write_text(
        'file,label,part\n' + ''.join(f'{i}.png,{"ab"[i % 2]},{"test" if i > 5 else "train"}\n' for i in range(8))
    )
    with pytest.warns(UserWarning, match="valid_col='part'"):
        DataLoaders.from_csv(tmp_path, size=8, bs=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = DataLoaders.from_csv(tmp_path, size=8, bs=2, valid_col='part')
    assert [dls.name(i).rsplit('/')[-1] for i in range(2)] == ['6.png', '7.png']


def test_columns_called_by_numbers(tmp_path):
    rows = [{0: f, 1: 'ab'[i % 2]} for i, f in enumerate(_files(tmp_path))]
    assert DataLoaders.from_rows(rows, file_col=0, label_col=1, size=8, bs=2).vocab == ['a', 'b']
