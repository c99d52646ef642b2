"A checkpoint is what it says: whole, readable, of this fit, and taken up as a whole or not at all."

import os
import pickle
import random
import zipfile
from collections import defaultdict, namedtuple
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import one_line
from trickbag.all import *
from trickbag.core.files import atomic_save
from trickbag.core.plain_files import DamagedFile
from trickbag.loop.same_fit import described
from trickbag.testing.proofs import StopAt, TinyData, tiny_learner, tiny_model, weights


class KilledAt(Callback):
    "Ends as by Ctrl-C after so many steps of the learner's life"

    stage = 'stop'
    monitor = True

    def __init__(self, step):
        self.at = step

    def after_batch(self, learn):
        if learn.training and learn.step == self.at:
            raise KeyboardInterrupt


def stopped(tmp_path, cbs=(), n=2, at=(1, 2), lr=None, **kw):
    "A file saved in the middle of a fit"
    tiny_learner(cbs, **kw).fit(n, lr, cbs=StopAt(at, tmp_path / 's.pt'))
    return tmp_path / 's.pt'


def damaged(data, r):
    "Bytes with one damage at a random place"
    b = bytearray(data)
    at = r.randrange(len(data))
    n = r.choice([1, 2, 40, 400])
    how = r.choice(['flip', 'cut', 'drop', 'insert', 'overwrite'])
    if how == 'flip':
        b[at] ^= 1 << r.randrange(8)
    elif how == 'cut':
        del b[at:]
    elif how == 'drop':
        del b[at : at + n]
    elif how == 'insert':
        b[at:at] = r.randbytes(n)
    else:
        b[at : at + n] = r.randbytes(len(b[at : at + n]))
    return bytes(b)


def test_each_of_240_damages_is_found_or_harmless(tmp_path):
    f = tiny_learner().fit(1).save(tmp_path / 'm')
    good = weights(tiny_learner().load(f))
    data = f.read_bytes()
    r = random.Random(1)
    found = 0
    learn = tiny_learner()
    for _ in range(240):
        f.write_bytes(damaged(data, r))
        try:
            learn.load(f)
        except ValueError as e:
            found += 1
            assert str(f) in str(e) and '\n' not in str(e) and 'weights_only' not in str(e)
        else:
            assert torch.equal(weights(learn), good)
    assert found > 150


def flip_bits(file, flips):
    "The file with these bits of its first tensor's record changed"
    with zipfile.ZipFile(file) as z:
        at = next(o for o in z.infolist() if o.filename.endswith('data/0')).header_offset
    b = bytearray(file.read_bytes())
    for byte, mask in flips:
        b[at + 264 + byte] ^= mask
    file.write_bytes(b)
    assert zipfile.ZipFile(file).testzip()


def test_a_flipped_bit_is_put_right_with_a_warning(tmp_path):
    f = tiny_learner().fit(1).save(tmp_path / 'm')
    good = weights(tiny_learner().load(f))
    flip_bits(f, [(0, 64)])
    with pytest.warns(UserWarning, match='one bit of .*m.pt was flipped'):
        learn = tiny_learner().load(f)
    assert torch.equal(good, weights(learn))


@pytest.mark.parametrize('flips', [[(0, 0b11)], [(0, 64), (9, 1)], [(0, 255), (1, 255), (2, 255), (3, 255)]])
def test_more_than_a_flipped_bit_is_refused_and_nothing_is_loaded(tmp_path, flips):
    f = tiny_learner().fit(1).save(tmp_path / 'm')
    flip_bits(f, flips)
    learn = tiny_learner()
    w = weights(learn)
    with pytest.raises(DamagedFile, match='m.pt is damaged'):
        learn.load(f)
    assert torch.equal(w, weights(learn)) and learn.step == 0


def test_damage_that_looks_like_a_flipped_bit_is_refused(tmp_path, monkeypatch):
    # the wrong bit is put right: the zip's checksum is then taken for granted, but the content is not what was written
    f = tiny_learner().fit(1).save(tmp_path / 'm')
    flip_bits(f, [(0, 64)])
    monkeypatch.setattr('trickbag.core.plain_files.flipped_bit', lambda syndrome, n: (7, 3))
    with pytest.raises(DamagedFile, match='m.pt is damaged'):
        tiny_learner().load(f)


def test_pickled_objects_are_not_loaded_and_nobody_is_told_to(tmp_path):
    torch.save({'trickbag': 1, 'model': len}, tmp_path / 'x.pt')
    with pytest.raises(DamagedFile, match='can run any code, so it is not loaded') as e:
        tiny_learner().load(tmp_path / 'x')
    assert 'weights_only' not in str(e.value)


def test_the_older_file_is_used_when_the_newest_is_damaged(tmp_path):
    whole = tiny_learner().fit(2)

    def new():
        return tiny_learner([Checkpoint(every_batches=1, keep=2)], path=tmp_path)

    with suppress(KeyboardInterrupt):
        new().fit(2, cbs=KilledAt(8), resume='models/last')
    f = tmp_path / 'models/last.pt'
    f.write_bytes(f.read_bytes()[:-300])
    with pytest.raises(DamagedFile, match=r'last.pt is cut .*last-1.pt is older and whole'):
        new().load('models/last')
    with pytest.warns(UserWarning, match=r'last.pt is cut .*goes on from .*last-1.pt'):
        rest = new().fit(2, resume='models/last')
    assert torch.equal(weights(rest), weights(whole)) and len(rest.history) == 2
    f.write_bytes(b'x')
    (tmp_path / 'models/last-1.pt').write_bytes(b'y')
    with pytest.raises(DamagedFile, match='last.pt .*remove it to start anew'):
        new().fit(2, resume='models/last')


class Other(nn.CrossEntropyLoss):
    pass


CHANGES = dict(
    argument=dict(cbs=[MixUp(2.0)]),
    gone=dict(cbs=[]),
    new=dict(cbs=[MixUp(), RandomErasing()]),
    lr=dict(lr=0.5),
    n_epoch=dict(n=3),
    seed=dict(seed=1),
    batch_size=dict(dls=TinyData(bs=5)),
    samples=dict(dls=TinyData(n=44)),
    momentum=dict(opt_func=partial(adamw, betas=(0.8, 0.99))),
    weight_decay=dict(opt_func=partial(adamw, weight_decay=0.1)),
    optimizer=dict(opt_func=torch.optim.SGD),
    loss=dict(loss_func=Other()),
    label_smoothing=dict(loss_func=nn.CrossEntropyLoss(label_smoothing=0.1)),
    class_weights=dict(loss_func=nn.CrossEntropyLoss(torch.arange(1.0, 5.0))),
    schedule=dict(cbs=[MixUp(), OneCycle()]),
    function=dict(cbs=[MixUp(), Schedule(lambda p: 0.5)]),
    frozen=dict(frozen=True),
    shape=dict(model=nn.Sequential(*tiny_model()[:-1], nn.Linear(6, 5))),
    type=dict(model=tiny_model().double()),
)


@pytest.mark.parametrize('change', CHANGES)
def test_another_fit_is_refused_and_the_learner_is_as_before(change, tmp_path):
    f = stopped(tmp_path, [MixUp(0.4)])
    kw = dict(cbs=[MixUp(0.4)]) | CHANGES[change]
    n = kw.pop('n', 2)
    lr = kw.pop('lr', None)
    frozen = kw.pop('frozen', False)
    learn = tiny_learner(**kw)
    if frozen:
        learn.model[0].weight.requires_grad_(False)
    w = weights(learn)
    with pytest.raises(ValueError) as e:
        learn.fit(n, lr, resume=f)
    assert (
        '\n' not in str(e.value)
        and torch.equal(w, weights(learn))
        and learn.step == 0
        and learn.history == []
        and learn._loaded is None
    )
    assert not learn.make_opt().state


def test_a_refusal_names_what_differs(tmp_path):
    f = stopped(tmp_path, [MixUp(0.4), LabelSmoothing()])
    with pytest.raises(ValueError) as e:
        tiny_learner([MixUp(2.0), OneCycle()]).fit(2, 0.5, resume=f)
    for text in (
        str(f),
        'MixUp.alpha=0.4 then, 2.0 now',
        'LabelSmoothing then, not now',
        'OneCycle now, not then',
        'lr=0.01 then, 0.5 now',
    ):
        assert text in str(e.value)
    with pytest.warns(UserWarning, match='MixUp.alpha'):
        learn = tiny_learner([MixUp(2.0)]).fit(2, 0.5, resume=f, resume_anyway=True)
    assert learn.step == 12 and learn.cb(Recorder).lrs[-1] == 0.5


def test_what_only_watches_and_how_data_is_fetched_may_differ(tmp_path):
    f = stopped(tmp_path, [MixUp(), CSVLogger()], path=tmp_path)
    data = TinyData()
    data.train = torch.utils.data.DataLoader(data.train.dataset, 8, shuffle=True, num_workers=1)
    data.valid = torch.utils.data.DataLoader(data.valid.dataset, 3)
    rest = tiny_learner([MixUp(), Checkpoint(), TerminateOnNaN()], dls=data, path=tmp_path).fit(2, resume=f)
    assert torch.equal(weights(rest), weights(tiny_learner([MixUp()]).fit(2)))


def test_state_that_does_not_fit_is_refused_as_a_whole(tmp_path):
    class C(Callback):
        state = ('a',)
        a = None
        b = None

        def before_fit(self, learn):
            self.a = 1

    f = stopped(tmp_path, [C(), EMA(0.9)])
    C.state = ('a', 'b')
    learn = tiny_learner([C(), EMA(0.9)])
    w = weights(learn)
    with pytest.raises(ValueError, match='C cannot take its state from .*s.pt'):
        learn.fit(2, resume=f)
    assert torch.equal(w, weights(learn)) and learn.step == 0 and learn.history == []
    C.state = ('a',)
    assert learn.fit(2, resume=f).step == 12


SCRIPTS = dict(
    both=lambda learn: [learn.fit(2, 1e-2, resume='models/last'), learn.fit(2, 1e-3, resume='models/last')],
    first=lambda learn: [learn.fit(2, 1e-2, resume='models/last'), learn.fit(2, 1e-3)],
    alike=lambda learn: [learn.fit(1, resume='models/last') for _ in range(3)],
    fine_tune=lambda learn: learn.fine_tune(2, 1e-2, resume='models/last'),
    one_cycle=lambda learn: [
        learn.fit_one_cycle(1, 1e-2, resume='models/last'),
        learn.fit_flat_cos(2, 1e-2, resume='models/last'),
    ],
)


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_of_several_fits_is_killed_anywhere(name, tmp_path):
    "Killed in every part of it, and started again as it is"

    def new(d, *cbs):
        return tiny_learner([EMA(0.9), Checkpoint(every_batches=1), *cbs], path=tmp_path / d)

    whole = new('whole')
    SCRIPTS[name](whole)
    for at in (6, 12, 13):
        with suppress(KeyboardInterrupt):
            SCRIPTS[name](new(str(at), KilledAt(at)))
        rest = new(str(at))
        SCRIPTS[name](rest)
        assert torch.equal(weights(rest), weights(whole)) and rest.step == whole.step, at
        again = new(str(at))
        SCRIPTS[name](again)  # complete: trains nothing
        assert torch.equal(weights(again), weights(whole)) and again.step == whole.step, at


Point = namedtuple('Point', 'x y')


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize(
    'value',
    [
        Path('a'),
        Point(1, 2),
        defaultdict(int),
        np.zeros(2),
        {'k': [0] * 200 + [Path('a')]},
        {Path('a'): 1},
        torch.zeros(2).as_subclass(Own),
        frozenset([1]),
        range(3),
    ],
    ids=str,
)
def test_state_that_could_not_be_read_is_told_before_the_first_step(value, tmp_path):
    class C(Callback):
        state = ('v',)

        def before_fit(self, learn):
            self.v = value

    learn = tiny_learner([C(), Checkpoint()], path=tmp_path)
    with pytest.raises(TypeError, match='save: .*C.v'):
        learn.fit(1)
    assert learn.step == 0


@pytest.mark.parametrize(
    'kw',
    [
        dict(opt_func=partial(torch.optim.AdamW, weight_decay=np.float64(0.01), betas=(np.float64(0.9), 0.99))),
        dict(lr=np.float64(0.01)),
        dict(lr=np.float32(0.01)),
    ],
    ids=str,
)
def test_numbers_of_numpy_are_saved_as_pythons(kw, tmp_path):
    def new():
        return tiny_learner([Checkpoint(every_batches=1)], path=tmp_path, **kw)

    with suppress(KeyboardInterrupt):
        new().fit(2, cbs=KilledAt(8))
    torch.load(tmp_path / 'models/last.pt', weights_only=True)
    rest = new().fit(2, resume='models/last')
    assert torch.equal(weights(rest), weights(tiny_learner(**kw).fit(2)))


def test_history_and_buffers_with_odd_types_are_saved(tmp_path):
    learn = tiny_learner()
    learn.model.register_buffer('own', torch.ones(3).as_subclass(Own))
    learn.history.append({'epoch': np.int64(0), 'x': np.float32(0.5)})
    d = torch.load(learn.save(tmp_path / 'x'), weights_only=True)
    assert type(d['history'][0]['x']) is float and type(d['model']['own']) is torch.Tensor


def test_a_name_in_safetensors_holds_safetensors(tmp_path):
    from safetensors.torch import load_file

    learn = tiny_learner().fit(1)
    f = learn.save(tmp_path / 'm.safetensors')
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in load_file(f).items())
    other = tiny_learner().load(f)
    assert torch.equal(weights(other), weights(learn)) and other.step == 0
    with pytest.raises(ValueError, match='nothing to go on from|weights only'):
        tiny_learner().fit(1, resume=f)
    with pytest.raises(ValueError, match='give a name in .pt'):
        tiny_learner([Checkpoint(file='x.safetensors')], path=tmp_path).fit(1)


@pytest.mark.parametrize(
    'wrap', [nn.DataParallel, partial(torch.compile, backend='eager')], ids=['module', '_orig_mod']
)
def test_prefixes_of_wrappers_are_matched_and_said(wrap, tmp_path):
    plain = tiny_learner().fit(1)
    wrapped = tiny_learner(model=wrap(tiny_model()))
    for a, b in ((plain, wrapped), (wrapped, plain)):
        f = a.save(tmp_path / 'm')
        with pytest.warns(UserWarning, match='the names are matched'):
            b.load(f)
        assert torch.equal(weights(a), weights(b))


def test_a_newer_format_is_refused_plainly(tmp_path):
    f = tiny_learner().save(tmp_path / 'm')
    d = torch.load(f, weights_only=True)
    assert d['made_with']['torch'] == str(torch.__version__)
    torch.save({**d, 'trickbag': 99, 'made_with': {'trickbag': '9.9'}}, f)
    with pytest.raises(ValueError, match='newer trickbag, 9.9'):
        tiny_learner().load(f)


def test_a_full_disk_warns_and_is_raised_when_all_else_is_done(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    learn = tiny_learner([Checkpoint(), EMA(0.9)], path=tmp_path).fit(1)
    was = (tmp_path / 'models/last.pt').read_bytes()
    monkeypatch.setattr('os.fsync', full)
    with pytest.warns(UserWarning, match='not saved'), pytest.raises(OSError, match='last.pt'):
        learn.fit(2)
    assert learn.step == 18 and len(learn.history) == 3 and (tmp_path / 'models/last.pt').read_bytes() == was
    assert sorted(p.name for p in (tmp_path / 'models').iterdir()) == ['last.pt']


def test_a_folder_that_cannot_be_written_to_is_told_before_the_first_step(tmp_path):
    (tmp_path / 'file').write_text('x')
    for cb in (Checkpoint(file='file/x'), SaveBest(file='file/x'), CSVLogger('file/x.csv')):
        learn = tiny_learner([cb], path=tmp_path)
        with pytest.raises(OSError, match=f'{cb.name}: .*cannot be written'):
            learn.fit(1)
        assert learn.step == 0


def test_the_best_weights_come_back_though_their_file_is_gone(tmp_path):
    class Remove(Callback):
        stage = 'stop'
        monitor = True

        def after_epoch(self, learn):
            (tmp_path / 'models/best.pt').unlink(missing_ok=True)

    best = tiny_learner([SaveBest()], path=tmp_path / 'a').fit(4)
    gone = tiny_learner([SaveBest()], path=tmp_path).fit(4, cbs=Remove())
    assert torch.equal(weights(best), weights(gone))


def test_a_million_steps_of_records_are_small_and_quick(tmp_path):
    learn = tiny_learner().fit(1)
    r = learn.cb(Recorder)
    n = 100_000
    r.losses = [float(x) for x in torch.rand(n)]
    r.lrs = [0.01] * n
    r.moms = [0.9] * n
    r.ns = [8] * n
    assert learn.save(tmp_path / 'm').stat().st_size < 5 * n
    assert tiny_learner().load(tmp_path / 'm').cb(Recorder).losses == r.losses


@pytest.mark.parametrize('name', ['MixUp', 'EMA', 'Schedule', 'During'])
def test_a_fit_leaves_a_callbacks_description_as_it_was(name):
    cb = dict(
        MixUp=MixUp, EMA=EMA, Schedule=lambda: Schedule(lambda p: 1 - p / 2), During=lambda: During(MixUp(), stop=0.5)
    )[name]()
    was = described(cb.settings())
    tiny_learner([cb]).fit(1)
    assert described(cb.settings()) == was


@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_backward', 'after_step'])
def test_half_a_batch_is_no_point_to_resume_from(event, tmp_path):
    C = type('C', (Callback,), {event: lambda self, learn: learn.training and learn.save(tmp_path / 'x')})
    one_line(lambda: tiny_learner([C()]).fit(1), 'half done')


def test_what_does_not_fit_is_not_half_loaded(tmp_path):
    f = tiny_learner(opt_func=torch.optim.SGD).fit(1).save(tmp_path / 'm')
    learn = tiny_learner().fit(1)
    w = weights(learn)
    one_line(lambda: learn.load(f), 'saved with SGD', 'AdamW')
    s = tmp_path / 's.pt'
    tiny_learner().fit(2, cbs=StopAt((0, 2), s))
    n = learn.step
    one_line(lambda: learn.fit(3, resume=s), 'n_epoch')
    assert torch.equal(w, weights(learn)) and learn.step == n


def test_state_that_could_not_be_read_is_not_saved(tmp_path):
    class C(Callback):
        state = ('v',)

        def __init__(self):
            self.v = tmp_path

    one_line(lambda: tiny_learner([C()]).fit(1, cbs=StopAt((0, 0), tmp_path / 'x')), 'C.v', exc=TypeError)


def test_callback_state_outside_a_fit_is_saved(tmp_path):
    a = tiny_learner().fit(1)
    a.save(tmp_path / 'x')
    b = tiny_learner().load(tmp_path / 'x')
    assert a.cb(Recorder).losses == b.cb(Recorder).losses != []


# Models that are wrapped otherwise than when they were saved


class Counting(torch.optim.SGD):
    "Keeps in its groups how often it stepped, as schedule-free optimizers and timm's Adan do"

    def step(self, closure=None):
        for g in self.param_groups:
            g['steps'] = g.get('steps', 0) + 1
        return super().step(closure)


class WithTable(nn.Module):
    "A buffer that no state dict has"

    def __init__(self, n=3):
        super().__init__()
        self.m = tiny_model()
        self.register_buffer('table', torch.arange(float(n)), persistent=False)

    def forward(self, x):
        return self.m(x)


def compiled(model):
    return torch.compile(model, backend='eager')


def plain(model):
    return model


@pytest.mark.parametrize('then,now', [(compiled, plain), (plain, compiled)])
def test_all_of_a_checkpoint_finds_its_place_though_a_wrapper_changed_the_names(then, now, tmp_path):
    a = tiny_learner(model=then(WithTable()), opt_func=Counting, path=tmp_path).fit(1)
    next(b for n, b in a.model.named_buffers() if n.endswith('table')).fill_(7)
    a.save('a')
    b = tiny_learner(model=now(WithTable()), opt_func=Counting, path=tmp_path)
    with pytest.warns(UserWarning, match='the names are matched'):
        b.load('a')
    assert next(b for n, b in b.model.named_buffers() if n.endswith('table')).tolist() == [7, 7, 7]
    assert b.opt.param_groups[0]['steps'] == a.opt.param_groups[0]['steps'] == 6
    assert torch.equal(weights(a), weights(b))


def test_weights_that_fit_bring_no_tables_of_another_size(tmp_path):
    tiny_learner(model=WithTable(3), path=tmp_path).save('a')
    b = tiny_learner(model=WithTable(5), path=tmp_path).load('a', strict=False)
    assert b.model.table.tolist() == [0, 1, 2, 3, 4]


def best_of_the_first(path, then, now, spoil=lambda file: None):
    """A run whose first epoch is taken for the best, stopped in the second, and taken up by a model that is wrapped
    otherwise"""

    def made(model):
        return tiny_learner([SaveBest(mode='max')], model=model, path=path)

    with pytest.raises(KeyboardInterrupt):
        made(then(tiny_model())).fit(3, cbs=[Checkpoint(every_batches=1), KilledAt(8)])
    spoil(path / 'models/best.pt')
    return made(now(tiny_model())).fit(3, resume='models/last')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('then,now', [(compiled, plain), (plain, compiled), (plain, plain)])
def test_the_best_weights_are_restored_though_a_wrapper_changed_their_names(then, now, tmp_path):
    learn = best_of_the_first(tmp_path, then, now)
    assert learn.cb(SaveBest).best_epoch == 0
    assert torch.equal(weights(learn), weights(tiny_learner(path=tmp_path).fit(1)))


def test_best_weights_of_another_model_are_no_end_of_a_run(tmp_path):
    def spoil(file):
        torch.save(nn.Linear(2, 2).state_dict(), file)

    with pytest.warns(UserWarning, match='is of another model'):
        learn = best_of_the_first(tmp_path, plain, plain, spoil)
    losses = [row['valid_loss'] for row in learn.history]
    assert learn.cb(SaveBest).best == max(losses[1:])


# What is saved and what is read


def test_a_file_is_on_the_disk_before_it_takes_the_others_name(tmp_path, monkeypatch):
    "Else a loss of power may leave the name with nothing behind it (POSIX: only fsync says that data has arrived)"
    done = []
    fsync = os.fsync
    replace = os.replace

    def synced(fd):
        done.append(('fsync', os.fstat(fd).st_ino, os.fstat(fd).st_size))
        fsync(fd)

    def replaced(a, b):
        done.append(('replace', os.stat(a).st_ino, os.stat(a).st_size))
        replace(a, b)

    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(os, 'replace', replaced)
    f = atomic_save(dict(a=torch.zeros(1000)), tmp_path / 'a.pt')
    at = os.stat(f).st_ino, os.stat(f).st_size
    assert done[:2] == [('fsync', *at), ('replace', *at)]


def test_what_load_read_is_not_trained_further(tmp_path):
    "Else the same file, loaded once, resumes from another place the second time"
    tiny_learner([EMA()]).fit(2, cbs=StopAt((0, 2), tmp_path / 's.pt'))
    learn = tiny_learner([EMA()]).load(tmp_path / 's.pt')
    read = learn._loaded['cbs']['EMA']['avg']
    learn.fit(2, resume=True)
    was = torch.load(tmp_path / 's.pt', weights_only=True)['cbs']['EMA']['avg']
    assert all(torch.equal(read[n], was[n]) for n in was)


@pytest.mark.parametrize('state', [[Fraction(1, 2)], [[Fraction(1, 2)]], [dict(a=Fraction(1, 2))]])
def test_state_in_lists_is_looked_at_before_it_is_saved(state, tmp_path):
    "As `torch.load(weights_only=True)` would refuse it"

    class Wrong(Callback):
        pass

    Wrong.state = ('kept',)
    cb = Wrong()
    cb.kept = state
    torch.save(state, tmp_path / 's.pt')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 's.pt', weights_only=True)
    with pytest.raises(TypeError, match='Fraction'):
        tiny_learner([cb]).save(tmp_path / 't')


def test_classes_in_another_order_are_other_classes(tmp_path):
    a = TinyData()
    b = TinyData()
    a.vocab = list('abcd')
    b.vocab = list('abdc')
    tiny_learner(dls=a).save(tmp_path / 's')
    tiny_learner(dls=a).load(tmp_path / 's')
    with pytest.raises(ValueError, match='trained on 4 classes'):
        tiny_learner(dls=b).load(tmp_path / 's')
