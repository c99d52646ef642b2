"Each trick changes what it says that it writes, and nothing else; and it does something."

import ast
import io
import tokenize
from pathlib import Path

import pytest
import torch

import trickbag
from trickbag.testing.pairs import BAG, pair_learner, prove_writes
from trickbag.testing.proofs import weights

# training is the same to the bit, or to rounding (SyncBatchNorm: in one process)
SAME = {'TTA', 'ChannelsLast', 'Compile', 'GradientCheckpointing', 'SyncBatchNorm'}
WITH = dict(BinaryTargets=('MixUp',))  # there is nothing to do without these


@pytest.mark.parametrize('name', BAG)
def test_writes_what_it_declares(name):
    prove_writes(name)


# (loss, optimizer, model, companions, epochs) -> weights of the run without the trick, which many tricks share
PLAIN = {}


def changes_training(name, n_epoch):
    "Whether a run ends differently with the trick than without, with the same loss, optimizer and companions"
    companions = WITH.get(name, ())
    trial = BAG[name]
    key = (trial.loss, trial.opt, trial.model, companions, n_epoch)
    if key not in PLAIN:
        learn = pair_learner(name, *companions)
        learn.cbs = learn.cbs[1:]
        PLAIN[key] = weights(learn.fit(n_epoch))
    return not torch.equal(weights(pair_learner(name, *companions).fit(n_epoch)), PLAIN[key])


@pytest.mark.parametrize('name', [n for n in BAG if n not in SAME])
def test_does_something(name):
    "One epoch shows it of most; some begin late"
    assert changes_training(name, 1) or changes_training(name, 2), f"{name} changed nothing in two epochs"


@pytest.mark.parametrize('name', sorted(SAME))
def test_changes_no_bit(name):
    "These say that training is the same"
    plain = pair_learner(name)
    plain.cbs = []
    with_trick = weights(pair_learner(name).fit(1))
    without = weights(plain.fit(1))
    if name == 'ChannelsLast':
        assert torch.allclose(with_trick, without, atol=1e-4)
    else:
        assert torch.equal(with_trick, without)


@pytest.mark.parametrize('name', BAG)
def test_says_what_it_tells(name):
    for cb in pair_learner(name).cbs:
        for n in cb.traced:
            assert hasattr(cb, n), f"{cb.name} tells of {n}, which it does not have before a fit"


@pytest.mark.parametrize(
    'file',
    sorted(
        f
        for d in ('tricks', 'vision')
        for f in Path(trickbag.__file__).parent.joinpath(d).glob('[!_]*.py')
        if f.stem not in ('ops', 'crop', 'preprocess', 'moved_targets')
    ),
    ids=lambda f: f.stem,
)
def test_a_trick_is_short(file):
    """Pure functions and callback: 1,050 tokens or fewer, without imports and comments. `ops`, `crop`,
    `preprocess` and `moved_targets` are shared, not tricks"""
    text = file.read_text()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    n = 0
    for o in ast.parse(text).body:
        if not isinstance(o, (ast.FunctionDef, ast.ClassDef)):
            continue
        source = io.StringIO(ast.get_source_segment(text, o))
        n += sum(t.type not in layout for t in tokenize.generate_tokens(source.readline))
    assert 0 < n <= 1050
