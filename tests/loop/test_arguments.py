"Arguments that are misspelled, of another type, or out of range: one line that names them and the remedy."

import re

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import check_line, one_line
from trickbag.all import *
from trickbag.data.sources import Paths
from trickbag.testing.proofs import TinyData, prove, tiny_learner, tiny_model


def test_optimizers_that_need_a_closure():
    one_line(lambda: tiny_learner(opt_func=torch.optim.LBFGS).fit(1), 'LBFGS needs a closure')


def test_optimizers_of_second_order():
    adahessian = pytest.importorskip('timm.optim').Adahessian
    one_line(lambda: tiny_learner(opt_func=adahessian).fit(1), 'Adahessian needs a backward pass')


def test_no_epoch_with_an_average_of_no_steps():
    tiny_learner([EMA(half_life=0.1)]).fit(0)


def test_freeze_to_a_group_that_is_not_there():
    one_line(lambda: tiny_learner().freeze_to(7), 'no group 7')


def test_a_function_that_makes_models_is_no_model():
    one_line(lambda: Learner(TinyData(), xresnet18), 'call the function', exc=TypeError)


def test_a_callback_whose_method_takes_no_learner():
    def no_learn():
        class C(Callback):
            def before_batch(self):
                pass

    one_line(no_learn, 'def before_batch(self, learn)', exc=TypeError)


def test_a_callback_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(KeyError) as e:
        tiny_learner().cb('MixUp')
    check_line(e.value.args[0], 'it has', 'Recorder')


def test_prove_takes_what_makes_callbacks():
    one_line(lambda: prove([EMA()]), 'prove(lambda', exc=TypeError)
    prove(EMA)


@pytest.mark.parametrize(
    'f,says',
    [
        (lambda: update_bn(nn.Linear(2, 2)), 'takes the learner'),
        (lambda: Paths('abc.jpg'), 'a list of paths'),
        (lambda: OneCycle(moms=(1, 2, 3)), 'moms are three numbers'),
        (lambda: MixUp(float('nan')), 'alpha must be'),
        (lambda: Im2Col(float('nan')), 'whole must be'),
        (lambda: tiny_learner([Fast]).fit(1), 'is a class'),
        (lambda: tiny_learner().profile(0), 'n must be a whole number >= 1'),
        (lambda: tiny_learner().explain(step=True, at=-1), 'counts batches'),
    ],
)
def test_bad_values_are_named(f, says):
    with pytest.raises((ValueError, TypeError), match=says):
        f()


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
    one_line(f, *words, exc=(ValueError, TypeError))


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
    assert e.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert word in last and argv.split()[0] in last


@pytest.mark.parametrize(
    'f,words',
    [
        (lambda: xresnet18(num_classes=3), ('XResNet: ', 'n_out=')),
        (lambda: xresnet18(in_channels=1), ('XResNet: ', 'c_in=')),
        (lambda: xresnet18(pretrained=True), ('XResNet: ', 'the model has it')),
        (lambda: adamw([nn.Parameter(torch.ones(1))], wd=0.1), ('adamw: ', 'weight_decay=')),
        (lambda: adamw([nn.Parameter(torch.ones(1))], foo=0.1), ('adamw: ', 'there are params, lr')),
        (lambda: Cosine(warmup_epochs=5), ('Cosine: ', 'write warmup=')),
        (lambda: OneCycle(max_lr=1), ('OneCycle: ', 'the fit has it')),
        (lambda: Flip(prob=1), ('Flip: ', 'write p=')),
        (lambda: LabelSmoothing(smoothing=0.1), ('LabelSmoothing: ', 'write eps=')),
        (lambda: EMA(beta=0.9), ('EMA: ', 'write decay=')),
    ],
)
def test_arguments_of_other_libraries(f, words):
    one_line(f, *words, exc=TypeError)


@pytest.mark.parametrize(
    'name,says',
    [
        ('recorder', 'learn.cb(Recorder)'),
        ('add_cb', 'learn.cbs.append(cb)'),
        ('callbacks', 'learn.cbs'),
        ('fit_onecycle', 'learn.fit_one_cycle'),
        ('validation', 'did you mean validate?'),
    ],
)
def test_attributes_of_other_libraries(name, says):
    one_line(lambda: getattr(tiny_learner(), name), f"Learner: there is no '{name}'", says, exc=AttributeError)
    assert not hasattr(tiny_learner(), '_nothing') and getattr(tiny_learner(), 'nothing', 3) == 3


def test_names_of_other_libraries():
    import trickbag

    one_line(lambda: Interpretation.from_learner(tiny_learner()), 'write Interpretation(learn)', exc=AttributeError)
    for name, meant in (('Mixup', 'MixUp'), ('Cutmix', 'CutMix'), ('LabelSmooth', 'LabelSmoothing')):
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}': did you mean {meant}\?"):
            getattr(trickbag, name)


def test_callbacks_and_metrics_may_be_given_later_and_alone():
    learn = tiny_learner()
    learn.cbs = MixUp()
    learn.metrics = accuracy
    assert 'accuracy' in learn.fit(1).history[-1] and learn.cb(MixUp) is learn.cbs[0]
    learn.cbs = [learn.cbs, (LabelSmoothing(), [EMA()])]
    assert [cb.name for cb in learn.cbs] == ['MixUp', 'LabelSmoothing', 'EMA']
    learn.cbs += [GradientClip()]
    learn.cbs.append(Cosine())
    assert len(learn.cbs) == 5 and learn.fit(1).epochs_run == 2
    mine = []
    learn.cbs = mine
    mine.append(MixUp())
    assert learn.cb(MixUp) is mine[0]
    learn.metrics = learn.cbs = None
    assert learn.metrics == learn.cbs == []


def test_a_file_of_a_fit_that_is_over(tmp_path):
    file = tiny_learner(path=tmp_path).fit(1).save('done')
    for fit in (
        lambda: tiny_learner(path=tmp_path).fit(3, resume='done'),
        lambda: tiny_learner(path=tmp_path).load('done').fit(3, resume=True),
    ):
        one_line(fit, f'resume: nothing to go on from; {file}', f'learn.load({str(file)!r})', 'without resume')
    assert tiny_learner(path=tmp_path).load('done').fit(3).epochs_run == 4
    weights_alone = tiny_learner(path=tmp_path).save('w.safetensors')
    one_line(lambda: tiny_learner().fit(1, resume=weights_alone), 'holds weights alone')


def test_digits_are_no_suffix(tmp_path):
    learn = tiny_learner(path=tmp_path).fit(1)
    assert learn.save('model_v1.2').name == 'model_v1.2.pt' and learn.save('model_v1.3').name == 'model_v1.3.pt'
    assert tiny_learner(path=tmp_path).load('model_v1.2').epochs_run == 1
    # as it was written before
    (tmp_path / 'model_v1.2.pt').rename(tmp_path / 'model_v1.4')
    assert tiny_learner(path=tmp_path).load('model_v1.4').epochs_run == 1
    assert learn.save('model.pth').name == 'model.pth'


def test_each_rule_is_named_once_with_its_reason():
    notes = tiny_learner([MixUp(), LabelSmoothing()]).explain().notes
    rules = [note for note in notes if note.startswith('- ')]
    assert len(set(rules)) == len(rules) == 3
    assert rules[0].startswith('- LabelSmoothing, MixUp with the loss: refused where targets become probabilities')
    # what only a look would tell is said in general
    assert not {'{', '}', '...'} & set(''.join(rules))
    assert 'which the loss does not take' in rules[0]
    assert tiny_learner().explain().notes[-1] == '- none'
