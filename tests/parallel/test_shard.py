"Models whose weights several processes share: the same numbers as without, less memory, nothing left behind."

import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.helpers import SaveAt, few_sets
from tests.parallel.ranks import on_ranks
from tests.parallel.test_training import images, in_batches, plain_model
from trickbag.all import (
    AGC,
    EMA,
    LAMB,
    SAM,
    SWA,
    Callback,
    Checkpoint,
    DataLoaders,
    GradientAccumulation,
    GradientCentralization,
    GradientClip,
    Learner,
    Lookahead,
    MixedPrecision,
    SaveBest,
    accuracy,
)
from trickbag.core.shares import is_shared, own_parts, whole
from trickbag.parallel.shard import ShardModel
from trickbag.testing.pairs import BAG, SmallImages, pair_learner
from trickbag.testing.proofs import found, weights

# what needs whole weights, whole matrices or a forward pass of one process alone
REFUSED = {'FixRes', 'SelectiveBackprop', 'Whiten', 'Compile'}
# those that say that they work on parts; the others touch no weights, gradients or modules, or are refused
NAMES = [name for name in BAG if BAG[name].make().sharded]
NAMES += ['ChannelsLast', 'Distillation', 'JensenShannon', 'RegMixUp', 'TTA']


class Watch(Callback):
    "What each process holds while it trains: bytes of weights and optimizer state, and how many weights are shared"

    stage = 'stop'
    monitor = True

    def after_batch(self, learn):
        if not learn.training:
            return
        params = [*learn.model.parameters()]
        state = [value for of_one in learn.opt.state.values() for value in of_one.values() if value.ndim]
        self.n_shared = sum(map(is_shared, params))
        self.n_bytes = sum(part.untyped_storage().nbytes() for part in own_parts([*params, *state]))


def shard(**kw):
    return ShardModel(**{'min_params': 60, **kw})


# Every trick, with and without


def train_each(rank, sets):
    "Weights, buffers and results of a fit of each set of tricks that shares the model, and of one that does not"
    ends = {}
    for names in sets:
        name = ' '.join(names)
        ends[name] = []
        for more in ([], [shard()]):
            torch.manual_seed(rank)
            learn = pair_learner(*names)
            # of five batches the two processes have two each
            learn.dls.train = SmallImages(37)
            learn.metrics = [accuracy]
            learn.cbs = [*learn.cbs, *more]
            was = found(learn)
            watch = Watch()
            learn.fit(1, cbs=watch)
            row = [value for key, value in learn.history[-1].items() if key != 'time']
            buffers = torch.cat([buffer.double().flatten() for buffer in learn.model.buffers()])
            ends[name].append((weights(learn), buffers, torch.tensor(row), found(learn) == was, bool(watch.n_shared)))
    return ends


def check_shared(folder, sets):
    for ends in on_ranks(2, folder, train_each, sets):
        for name, (plain, shared) in ends.items():
            for a, b in zip(plain[:3], shared[:3], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f'{name}: {text}')
            assert shared[3] and shared[4] and not plain[4], name


def test_every_trick_trains_the_same_where_the_model_is_shared(tmp_path):
    "In sets of eight at most, as each is trained by two processes twice; if a set fails, which trick it is"
    sets = few_sets(NAMES)
    try:
        check_shared(tmp_path, sets)
    except AssertionError:
        for name in NAMES:
            check_shared(tmp_path, [[name]])
        raise


def refusals(rank):
    texts = {}
    for name in sorted(REFUSED):
        learn = pair_learner(name)
        learn.cbs = [*learn.cbs, shard()]
        with pytest.raises(ValueError) as e:
            learn.fit(1)
        texts[name] = str(e.value), learn.step
    return texts


def test_who_does_not_work_on_parts_is_refused_before_the_first_step(tmp_path):
    for texts in on_ranks(2, tmp_path, refusals):
        for name, (text, step) in texts.items():
            assert f'ShardModel and {name}' in text and ';' in text and '\n' not in text and step == 0


# Against one process with the whole batch


class Uneven(nn.Module):
    "Seven rows for two processes, a tied weight, a frozen layer, one that nobody uses and one that only one uses"

    def __init__(self, rank=0):
        super().__init__()
        torch.manual_seed(3)
        self.rank = rank
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh())
        self.inner = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7))
        self.inner[2].weight = self.inner[0].weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.never = nn.Linear(7, 4)
        self.sometimes = nn.Linear(7, 4)
        self.head = nn.Linear(7, 4)
        self.double()

    def forward(self, x):
        x = self.frozen(self.inner(self.body(x)))
        return self.head(x) + (self.sometimes(x) if self.rank == 0 else 0)


adamw = partial(torch.optim.AdamW, weight_decay=0.1)


def weighted():
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4]).double(), ignore_index=-100)


def summed():
    return nn.CrossEntropyLoss(reduction='sum')


SETTINGS = dict(
    plain=(nn.CrossEntropyLoss, tuple),
    weighted=(weighted, tuple),
    summed=(summed, tuple),
    accumulating=(weighted, lambda: [GradientAccumulation(2), GradientClip(0.1)]),
    inf_norm=(nn.CrossEntropyLoss, lambda: [GradientClip(0.1, norm_type=float('inf'))]),
    by_value=(nn.CrossEntropyLoss, lambda: [GradientClip(0.01, mode='value')]),
    sum_accumulating=(summed, lambda: [GradientAccumulation(2)]),
    ascending=(weighted, lambda: [SAM(0.1), GradientAccumulation(2)]),
    adaptive=(nn.CrossEntropyLoss, lambda: [SAM(0.5, adaptive=True)]),
    units=(nn.CrossEntropyLoss, lambda: [AGC(), GradientCentralization(), Lookahead(2)]),
    trust=(nn.CrossEntropyLoss, lambda: [LAMB(always_adapt=True), EMA(0.5)]),
    # weights stay between the passes
    kept=(weighted, lambda: [SWA(0.3)]),
)


def uneven_learner(rank, sizes, setting, cbs=(), n_valid=41):
    make_loss, make_cbs = SETTINGS[setting]
    x, y = images(sum(sizes), 0)
    if setting == 'weighted':
        # the second process has a batch of which the loss sees nothing
        y[2:8] = -100
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    dls = DataLoaders(batches, in_batches(images(n_valid, 1), 5))
    all_cbs = [*make_cbs(), *cbs]
    return Learner(dls, Uneven(rank), make_loss(), adamw, lr=0.05, metrics=accuracy, cbs=all_cbs)


def train_uneven(rank, sizes, shared, names):
    ends = {}
    for name in names:
        cbs = [shard(min_params=50, reshard_after_forward=name != 'kept')] if shared else []
        learn = uneven_learner(rank, sizes, name, cbs)
        never = learn.model.never.weight.clone()
        learn.fit(2)
        # of two validation batches' worth of images one process has none
        few = uneven_learner(rank, sizes, name, cbs, n_valid=3).fit(1)
        rows = [list(learn.history[-1].values())[:-1], list(few.history[-1].values())[:-1]]
        ends[name] = weights(learn), rows, torch.equal(never, learn.model.never.weight)
    return ends


def test_batches_of_unequal_sizes_train_as_without(tmp_path):
    sizes = [2, 6, 5, 3, 4, 4, 1, 8]
    plain = on_ranks(2, tmp_path, train_uneven, sizes, False, list(SETTINGS))
    shared = on_ranks(2, tmp_path, train_uneven, sizes, True, list(SETTINGS))
    for name in SETTINGS:
        expected, expected_rows, _ = plain[0][name]
        for got, rows, is_left_alone in (shared[0][name], shared[1][name]):
            torch.testing.assert_close(
                got, expected, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f'{name}: {text}'
            )
            for row, other in zip(rows, expected_rows, strict=True):
                assert row == pytest.approx(other, rel=1e-6), name
            assert is_left_alone, name


def train_as_one(rank, sizes, shared):
    x, y = images(8, 0)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    learn = Learner(DataLoaders(batches, [(x, y)]), plain_model(), opt_func=torch.optim.SGD, lr=0.1)
    return weights(learn.fit(1, cbs=[shard()] if shared else []))


def test_processes_that_share_a_model_train_as_one_with_the_whole_batch(tmp_path):
    alone = train_as_one(0, [8], False)
    for world, sizes in ((2, [2, 6]), (3, [1, 2, 5])):
        for got in on_ranks(world, tmp_path, train_as_one, sizes, True):
            torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-12)


class Narrow(nn.Module):
    "Of three processes some have no row of some weights"

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Linear(12, 1)
        self.b = nn.Linear(1, 2)
        self.gain = nn.Parameter(torch.ones(1))
        self.c = nn.Linear(2, 4)
        self.double()

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1))) * self.gain)))


FEW_ROWS = dict(
    inf_norm=lambda: [GradientClip(0.1, float('inf'))],
    sums=lambda: [GradientClip(0.1, 1.0), EMA(0.5)],
    by_value=lambda: [GradientClip(0.01, mode='value')],
    units=lambda: [AGC(), GradientCentralization(), Lookahead(2)],
    trust=lambda: [LAMB(always_adapt=True)],
    ascending=lambda: [SAM(0.1, adaptive=True)],
)
OPTIMIZERS = ['SGD', 'Adam', 'Adamax', 'NAdam', 'RAdam', 'RMSprop', 'Adadelta']


def train_narrow(rank, shared):
    def trained(cbs, opt=adamw):
        dls = DataLoaders(in_batches(images(36, 0), 3), in_batches(images(7, 1), 2))
        learn = Learner(dls, Narrow(), None, opt, lr=0.05, cbs=[*cbs, *([shard(min_params=1)] if shared else [])])
        return weights(learn.fit(2))

    ends = {name: trained(make()) for name, make in FEW_ROWS.items()}
    return ends | {name: trained([], getattr(torch.optim, name)) for name in OPTIMIZERS}


def test_processes_without_a_row_of_some_weights(tmp_path):
    plain = on_ranks(3, tmp_path, train_narrow, False)[0]
    for ends in on_ranks(3, tmp_path, train_narrow, True):
        for name, end in ends.items():
            torch.testing.assert_close(end, plain[name], rtol=1e-6, atol=1e-7, msg=lambda text, n=name: f'{n}: {text}')


# Files


def stateful():
    return [EMA(0.5), Lookahead(3), GradientAccumulation(2), SWA(0.3)][:3]


def file_learner(shared, **kw):
    cbs = [*stateful(), *([shard(**kw)] if shared else [])]
    dls = DataLoaders(in_batches(images(40, 0), 4), in_batches(images(8, 1), 4))
    return Learner(dls, small_net(), None, adamw, lr=0.05, cbs=cbs)


def small_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)).double()


# after a step; in the midst of a window of batches; at the end of an epoch
POINTS = [(0, 1), (1, 2), (1, None)]


def train_and_save(rank, folder, shared):
    folder.mkdir(exist_ok=True)
    saves = SaveAt(POINTS, folder)
    learn = file_learner(shared).fit(3, cbs=saves)
    learn.path = folder
    learn.save('after')
    return weights(learn), saves.files


def go_on(rank, files, shared):
    return {at: weights(file_learner(shared).fit(3, resume=file)) for at, file in files.items()}


def tensors_of(o):
    if isinstance(o, torch.Tensor):
        return [o]
    values = o.values() if isinstance(o, dict) else o if isinstance(o, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def test_a_shared_run_goes_on_to_the_bit_also_where_nothing_is_shared(tmp_path):
    (plain, plain_files), _ = on_ranks(2, tmp_path, train_and_save, tmp_path / 'plain', False)
    (shared, shared_files), _ = on_ranks(2, tmp_path, train_and_save, tmp_path / 'shared', True)
    torch.testing.assert_close(shared, plain, rtol=1e-6, atol=1e-8)
    for at, file in shared_files.items():
        stored = torch.load(file, weights_only=True)
        assert not any(map(is_shared, tensors_of(stored)))
        assert [*stored['model']] == [*small_net().state_dict()]
        # between steps each process has statistics of BatchNorm of its own, and nothing else
        assert {*stored['by_rank']} == ({'model'} if at == (1, 2) else set())
    for end in on_ranks(2, tmp_path, go_on, plain_files, False)[1].values():
        assert torch.equal(end, plain)
    for end in on_ranks(2, tmp_path, go_on, shared_files, True)[1].values():
        assert torch.equal(end, shared)
    del plain_files[1, 2]
    for end in on_ranks(2, tmp_path, go_on, plain_files, True)[1].values():
        torch.testing.assert_close(end, plain, rtol=1e-6, atol=1e-8)
    ends, _ = on_ranks(2, tmp_path, go_on, {(1, None): shared_files[1, None]}, False)
    torch.testing.assert_close(ends[1, None], shared, rtol=1e-6, atol=1e-8)
    # one process alone, from an epoch's end; it has batches of its own
    assert go_on(0, {(1, None): shared_files[1, None]}, True)[1, None].isfinite().all()
    for text in on_ranks(2, tmp_path, refuse_file, shared_files[1, 2]):
        assert 'in the midst of a window' in text and '\n' not in text


def refuse_file(rank, file):
    with pytest.raises(ValueError) as e:
        file_learner(False).fit(3, resume=file)
    return str(e.value)


def save_the_best(rank, folder, shared):
    folder.mkdir(exist_ok=True)
    learn = file_learner(shared)
    learn.path = folder
    learn.fit(3, cbs=[SaveBest(), Checkpoint()])
    saved = torch.load(folder / 'models' / 'best.pt', weights_only=True)
    return (
        weights(learn),
        {name: value.clone() for name, value in saved.items()},
        is_shared(next(learn.model.parameters())),
    )


def test_the_best_weights_are_saved_and_restored_whole(tmp_path):
    (plain, plain_saved, _), _ = on_ranks(2, tmp_path, save_the_best, tmp_path / 'plain', False)
    for got, saved, still_shared in on_ranks(2, tmp_path, save_the_best, tmp_path / 'shared', True):
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(saved, plain_saved, rtol=1e-6, atol=1e-8)
        assert not still_shared


# Before and after


def everything_of(model):
    "Identities of modules' classes, parameters and attributes, and keys of their dicts"
    seen = []
    for module in model.modules():
        seen.append((type(module), sorted(vars(module)), [id(param) for param in module._parameters.values()]))
        seen.append([(name, [*table]) for name, table in vars(module).items() if isinstance(table, dict)])
    seen.append([(param.stride(), param.requires_grad, param.dtype, param.device) for param in model.parameters()])
    return seen


class Stop(Callback):
    "Ends a fit in its second epoch by an error"

    stage = 'stop'
    monitor = True

    def __init__(self, error, event):
        self.error = error
        self.event = event

    def _raise(self, learn, event):
        # steps were taken since the epoch began
        if event == self.event and learn.epoch == 1 and (learn.iter == 2 or not learn.training):
            raise self.error('no more')

    def after_pred(self, learn):
        if learn.training:
            self._raise(learn, 'after_pred')

    def after_backward(self, learn):
        self._raise(learn, 'after_backward')

    def after_validate(self, learn):
        self._raise(learn, 'after_validate')


class EpochEnds(Callback):
    "The weights at the end of each epoch"

    stage = 'average'
    monitor = True

    def __init__(self):
        self.ends = []

    def after_train(self, learn):
        self.ends.append(torch.cat([whole(param.detach()).flatten().clone() for param in learn.model.parameters()]))


def stop_and_fit_again(rank):
    report = {}
    for error in (RuntimeError, KeyboardInterrupt):
        for event in ('after_pred', 'after_backward', 'after_validate'):
            learn = file_learner(True)
            learn.cbs = [cb for cb in learn.cbs if isinstance(cb, ShardModel)]
            was = everything_of(learn.model)
            ends = EpochEnds()
            with warnings.catch_warnings(record=True) as caught, pytest.raises(error):
                warnings.simplefilter('always')
                learn.fit(3, cbs=[Stop(error, event), ends])
            said = [str(w.message) for w in caught if 'ShardModel' in str(w.message)]
            now = torch.cat([param.detach().flatten() for param in learn.model.parameters()])
            kept = torch.equal(now, ends.ends[0])
            steps = {float(state['step']) for state in learn.opt.state.values()}
            # of the first epoch's five steps
            undone = everything_of(learn.model) == was and steps == {5.0}
            learn.fit(1)
            finite = weights(learn).isfinite().all().item()
            report[error.__name__, event] = kept, undone, finite, everything_of(learn.model) == was, said
    return report


def test_after_an_error_the_model_is_whole_and_trains_again(tmp_path):
    first, second = on_ranks(2, tmp_path, stop_and_fit_again)
    for key, (*facts, said) in first.items():
        assert facts == [True] * 4, (key, facts)
        assert len(said) == 1 and 'beginning of epoch 1' in said[0] and '\n' not in said[0]
    assert all([*facts] == [True] * 4 and not said for *facts, said in second.values())


def fit_in_turns(rank, shared):
    "Two fits with other callbacks, then one without sharing; a frozen body, discriminative rates"
    report = {}
    learn = file_learner(shared)
    was = everything_of(learn.model)
    names = {*vars(learn)}
    learn.freeze()
    learn.fit(1, 0.05)
    learn.unfreeze()
    learn.fit(2, slice(0.01, 0.1))
    report['undone'] = everything_of(learn.model) == was
    report['names'] = {*vars(learn)} - names
    report['plain state'] = not any(is_shared(t) for state in learn.opt.state.values() for t in state.values())
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, ShardModel)]
    learn.fit(1)
    report['weights'] = weights(learn)
    report['step'] = {float(state['step']) for state in learn.opt.state.values()}
    return report


def test_fits_in_turns_go_on_with_one_optimizer(tmp_path):
    plain, _ = on_ranks(2, tmp_path, fit_in_turns, False)
    for got in on_ranks(2, tmp_path, fit_in_turns, True):
        torch.testing.assert_close(got['weights'], plain['weights'], rtol=1e-9, atol=1e-12)
        assert got['undone'] and got['plain state']
        assert got['step'] == plain['step'] and got['names'] == plain['names']


def look_around(rank, folder):
    "What else a learner does, with the model shared in its fits"
    report = {}
    for shared in (False, True):
        learn = file_learner(shared)
        learn.path = folder
        was = everything_of(learn.model)
        rates = learn.lr_find(1e-4, 1, 20, show_plot=False)
        learn.fit_one_cycle(1, 0.05)
        report[shared] = [
            torch.tensor(rates),
            learn.get_preds()[0],
            torch.tensor(list(learn.validate().values())),
            weights(learn),
        ]
        report['undone', shared] = everything_of(learn.model) == was
    report['text'] = str(learn.explain())
    report['steps'] = str(file_learner(True).explain(step=True))
    return report


def test_what_else_a_learner_does(tmp_path):
    for report in on_ranks(2, tmp_path, look_around, tmp_path):
        for plain, got in zip(report[False], report[True], strict=True):
            torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-9)
        assert report['undone', False] and report['undone', True]
        assert 'ShardModel' in report['text'] and 'norm' in report['steps']


class AskInFit(Callback):
    "Predictions, a validation and a file of weights in the midst of a fit"

    stage = 'report'
    monitor = True

    def __init__(self, file):
        self.file = file
        self.answers = []

    def after_batch(self, learn):
        if learn.depth == 0 and learn.iter == 2:
            self._ask(learn)

    def _ask(self, learn):
        self.answers += [learn.get_preds(learn.dls.train)[0], learn.validate()['loss']]
        learn.save(self.file)
        if not learn.rank:
            self.answers.append(load_file(self.file))


def ask(rank, folder, shared):
    learn = uneven_learner(rank, [4] * 8, 'plain', [EMA(0.5), *([shard(min_params=50)] if shared else [])], n_valid=10)
    asker = AskInFit(folder / f'{shared}.safetensors')
    learn.fit(2, cbs=asker)
    return [*asker.answers, weights(learn)]


def test_predictions_and_files_in_the_midst_of_a_fit(tmp_path):
    plain = on_ranks(2, tmp_path, ask, tmp_path, False)
    for got, expected in zip(on_ranks(2, tmp_path, ask, tmp_path, True), plain, strict=True):
        assert len(got) == len(expected) > 4
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


# Memory


def hold(rank, shared):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    data = in_batches(images(16, 0), 4)
    learn = Learner(DataLoaders([(x.float(), y) for x, y in data], None), model)
    watch = Watch()
    learn.fit(1, cbs=[watch, *([shard()] if shared else [])])
    return watch.n_bytes


def test_each_process_holds_its_share(tmp_path):
    whole_bytes = hold(0, False)
    for world in (2, 4):
        for n_bytes in on_ranks(world, tmp_path, hold, True):
            assert n_bytes == pytest.approx(whole_bytes / world, rel=0.02)


# What is refused


class Odd(torch.optim.SGD):
    "An optimizer that may do anything"


class Known(torch.optim.SGD):
    "One that says that it works by number"

    sharded = True


class Touches(Callback):
    "Changes weights and does not say that it works on parts"

    writes = ('weights',)


def refuse(rank):
    def said(model=None, opt=adamw, loss=None, cbs=(), **kw):
        dls = DataLoaders(in_batches(images(16, 0), 4), None)
        learn = Learner(dls, model or small_net(), loss, opt, cbs=[*cbs, ShardModel(**kw)])
        was = everything_of(learn.model)
        try:
            learn.fit(1)
        except (ValueError, TypeError, RuntimeError) as e:
            assert everything_of(learn.model) == was and not learn.step
            return str(e)
        return ''

    scalar = small_net()
    scalar.scale = nn.Parameter(torch.tensor(1.0).double())
    mixed = small_net()
    mixed[3].float()
    tied = Uneven()
    return dict(
        opt=said(opt=Odd),
        known=said(opt=Known),
        muon=said(opt=lambda params, lr: torch.optim.Adafactor(params, lr=lr)),
        scalar=said(scalar),
        mixed=said(mixed),
        touches=said(cbs=[Touches()]),
        fp16=said(cbs=[MixedPrecision('fp16')]),
        no_class=said(blocks=nn.Conv2d),
        tied=said(tied, blocks=lambda model: [model.inner[0]]),
        stranger=said(blocks=lambda model: [nn.Linear(2, 2)]),
        no_blocks=said(blocks=3),
        classes=said(blocks=[nn.Linear]),
    )


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path):
    words = dict(
        opt='Odd may need whole weights',
        muon='Adafactor may need whole weights',
        scalar='scale is one number',
        mixed='torch.float32 and torch.float64',
        touches='Touches does not say',
        fp16='the scaler of fp16',
        no_class='the model has no Conv2d',
        tied='a weight in common',
        stranger='a Linear cannot be a block',
        no_blocks='blocks is 3',
    )
    for texts in on_ranks(2, tmp_path, refuse):
        assert texts.pop('classes') == texts.pop('known') == ''
        for key, text in texts.items():
            assert words[key] in text and ';' in text and '\n' not in text, text


def test_one_process_alone_does_nothing(tmp_path):
    ends = []
    for cbs in ([], [ShardModel()], [ShardModel(), Touches()]):
        learn = uneven_learner(0, [4] * 4, 'plain', cbs)
        ends.append(weights(learn.fit(1)))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
