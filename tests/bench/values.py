"""Do seeded runs end with the same weights as those of another version? One line a run: its name and a digest of
weights and history.

    python -m tests.bench.values [--json FILE]     # writes
    python -m tests.bench.values --against FILE    # compares, and exits 1 if a run differs

Run it in two checkouts on the same machine with the same torch. The first part is every trick of the bag alone,
two epochs of small batches; the second, runs that combine many. Losses and metrics are compared to the bit as well.

Compile is not among them: what it compiles in the bag is a network of one block, and was another up to 2,628 pairs; and
the code that a compiler makes may differ from machine to machine. A trick that only one of the two versions has counts
as one that differs."""

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from functools import partial

import torch
from torch import nn

import trickbag.all as tb
from trickbag.testing.pairs import BAG, bag_opt, pair_learner, small_data, small_model
from trickbag.testing.proofs import tiny_learner, weights


def digest(learn):
    "Of all weights, and of the history without its times"
    h = hashlib.sha256(weights(learn).numpy().tobytes())
    for row in learn.history:
        h.update(repr([(k, v) for k, v in sorted(row.items()) if k != 'time']).encode())
    return h.hexdigest()[:16]


def small(cbs, n_epoch=2, **kw):
    learn = tiny_learner(cbs, small_data(), small_model(), **{'opt_func': bag_opt, 'metrics': tb.accuracy, **kw})
    return learn.fit(n_epoch)


def from_files(folder):
    dls = tb.DataLoaders.from_folder(folder, size=32, bs=16)
    torch.manual_seed(0)
    learn = tb.Learner(
        dls,
        tb.xresnet18(n_out=dls.c),
        metrics=[tb.accuracy, tb.top_5],
        device='cpu',
        cbs=[tb.LabelSmoothing(), tb.MixUp(), tb.EMA(), tb.TrivialAugment(), tb.RandomErasing()],
    )
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
    return learn.fit_one_cycle(2, 3e-3)


COMBINED = dict(
    plain=lambda: tiny_learner(metrics=tb.accuracy).fit(3),
    adamw=lambda: small([tb.MixUp(), tb.EMA(0.9), tb.LabelSmoothing()], opt_func=tb.adamw),
    accumulate=lambda: small([tb.GradientAccumulation(2), tb.CutMix(), tb.OneCycle()]),
    ascent=lambda: small([tb.SAM(), tb.GradientClip(0.5), tb.Cosine(warmup='20%')]),
    drop=lambda: small([tb.StochasticDepth(0.5), tb.DropBlock(0.5), tb.Lookahead(2)]),
    sigmoid=lambda: small([tb.MixUp(), tb.LabelSmoothing()], loss_func=nn.BCEWithLogitsLoss()),
    surgery=lambda: small([tb.BlurPool(min_channels=8), tb.SqueezeExcite(8, 4), tb.GhostBatchNorm(4)]),
    hard=lambda: small([tb.SelectiveBackprop(start=0, interrupt=0), tb.SWA(0.3)]),
    slices=lambda: tiny_learner([tb.MixUp()], opt_func=partial(torch.optim.SGD, momentum=0.9)).fit(
        2, slice(1e-3, 1e-1)
    ),
    tune=lambda: tiny_learner([tb.LabelSmoothing()]).fine_tune(2),
)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--json')
    ap.add_argument('--against')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    runs = {
        f'alone {n}': partial(lambda n: pair_learner(n).fit(2), n) for n in sorted(BAG) if n != 'Compile'
    } | COMBINED
    got = {}
    with tempfile.TemporaryDirectory() as d:
        folder = tb.toy_set(d, n_classes=4, n_train=64, n_valid=32)
        runs['from files'] = lambda: from_files(folder)
        for name, f in runs.items():
            try:
                got[name] = digest(f())
            except Exception as e:
                got[name] = f'{type(e).__name__}: {e}'
            print(f'{name:32} {got[name]}', flush=True)
    if a.json:
        with open(a.json, 'w') as f:
            json.dump(got, f, indent=1)
    if not a.against:
        return
    with open(a.against) as f:
        was = json.load(f)
    odd = [n for n in was.keys() | got.keys() if was.get(n) != got.get(n)]
    print(
        f"{len(got) - len(odd)} of {len(got)} runs equal to the bit"
        + (f"; others: {', '.join(sorted(odd))}" if odd else '')
    )
    sys.exit(bool(odd))


if __name__ == '__main__':
    main()
