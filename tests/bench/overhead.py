"""What does the loop cost a step? A tiny model on batches in memory, so that nearly all the time is the loop's own.

    python -m tests.bench.overhead [--steps 2000] [--rounds 7] [--json FILE]

Each contender trains the same model on the same batches with the same optimizer (torch.optim.SGD, momentum .9).
Rounds interleave the contenders, so that a busy moment of the machine hits all of them; the table shows the median
round, and the difference to the bare loop of the same round. `bare_tricks` has MixUp, label smoothing, EMA,
one-cycle and recorded losses written into the loop by hand, `trickbag_tricks` as callbacks. Needs the extra [bench]
for fastai and Lightning; whatever is not installed is said to be missing."""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings

import torch
from torch import nn


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(n):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 8, generator=g), torch.randint(0, 4, (16,), generator=g)) for _ in range(64)] * (n // 64)


def sgd(params, lr=0.01):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def bare(data):
    m = tiny()
    opt = sgd(m.parameters())
    ce = nn.CrossEntropyLoss()
    m.train()

    def run():
        for xb, yb in data:
            loss = ce(m(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()

    return run


def _trickbag(data, cbs=(), **kw):
    from trickbag.all import DataLoaders, Learner

    learn = Learner(DataLoaders(data), tiny(), opt_func=sgd, lr=0.01, cbs=cbs, device='cpu', **kw)
    return lambda: learn.fit(1)


def trickbag(data):
    return _trickbag(data)


def bare_tricks(data):
    "MixUp, label smoothing, EMA, one cycle of rate and momentum, and recorded losses, written into the loop by hand"
    import math

    m = tiny()
    opt = sgd(m.parameters())
    ce = nn.CrossEntropyLoss()
    m.train()
    ps = [*m.state_dict().values()]
    avg = [p.detach().clone() for p in ps]
    lr = 0.01

    def cos(a, b, p):
        return b + (a - b) * (1 + math.cos(math.pi * p)) / 2

    def run():
        g = torch.Generator().manual_seed(0)
        n = len(data)
        losses = []
        for i, (xb, yb) in enumerate(data):
            p = i / n
            lr_i, mom = (
                (cos(lr / 25, lr, p / 0.25), cos(0.95, 0.85, p / 0.25))
                if p < 0.25
                else (cos(lr, lr / 1e5, (p - 0.25) / 0.75), cos(0.85, 0.95, (p - 0.25) / 0.75))
            )
            for o in opt.param_groups:
                o['lr'] = lr_i
                o['momentum'] = mom
            y = torch.zeros(len(yb), 4).scatter_(1, yb[:, None], 1.0) * 0.9 + 0.1 / 4
            u = torch._standard_gamma(torch.full((2, len(yb)), 0.4), generator=g)
            lam = u[0] / (u[0] + u[1])
            lam = torch.maximum(lam, 1 - lam)[:, None]
            perm = torch.randperm(len(yb), generator=g)
            loss = ce(m(torch.lerp(xb[perm], xb, lam)), torch.lerp(y[perm], y, lam))
            loss.backward()
            opt.step()
            torch._foreach_lerp_(avg, ps, 1 - min(0.9998, 1 - (1 + i) ** (-2 / 3)))
            opt.zero_grad()
            losses.append(loss.item())

    return run


def trickbag_tricks(data):
    from trickbag.all import EMA, LabelSmoothing, MixUp, OneCycle

    return _trickbag(data, cbs=[MixUp(), LabelSmoothing(), EMA(), OneCycle()])


def fastai(data):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    class DL(list):  # plain batches; fastai asks its loaders for these
        device = torch.device('cpu')
        n = 16 * len(data)

        def to(self, device):
            return self

    learn = Learner(
        DataLoaders(DL(data), DL()),
        tiny(),
        loss_func=nn.CrossEntropyLoss(),
        lr=0.01,
        opt_func=lambda ps, lr: OptimWrapper(ps, torch.optim.SGD, lr=lr, momentum=0.9),
    )
    return lambda: learn.fit(1)


def lightning(data):
    import lightning as L

    for n in ('lightning.pytorch', 'lightning.fabric', 'lightning'):
        logging.getLogger(n).setLevel(logging.ERROR)

    class M(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.m, self.ce = tiny(), nn.CrossEntropyLoss()

        def training_step(self, b, i):
            loss = self.ce(self.m(b[0]), b[1])
            self.log('loss', loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            return sgd(self.parameters())

    class DL(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data)

        def __len__(self):
            return len(data)

    dl = torch.utils.data.DataLoader(DL(), batch_size=None)

    def run():
        L.Trainer(
            max_epochs=1,
            accelerator='cpu',
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(M(), dl)

    return run


def measure(names, steps, rounds):
    data = batches(steps)
    runs = {}
    out = {n: [] for n in names}
    for n in names:
        try:
            runs[n] = globals()[n](data)
        except ImportError as e:
            print(f'{n}: not installed ({e})', file=sys.stderr)
    for r in range(rounds + 1):  # the first round warms up
        for n, run in runs.items():
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter('ignore')
                t = time.perf_counter()
                run()
                t = time.perf_counter() - t
            if r:
                out[n].append(t / len(data) * 1e6)
    return {n: v for n, v in out.items() if v}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=2048)
    ap.add_argument('--rounds', type=int, default=7)
    ap.add_argument('--json')
    ap.add_argument(
        '--only', nargs='*', default=['bare', 'trickbag', 'fastai', 'lightning', 'bare_tricks', 'trickbag_tricks']
    )
    a = ap.parse_args()
    torch.set_num_threads(1)
    res = measure(['bare', *(n for n in a.only if n != 'bare')], a.steps, a.rounds)
    print(f'{"":12} {"us/step":>8} {"over bare":>10} {"ratio":>6}')
    for n, v in res.items():
        over = statistics.median(x - b for x, b in zip(v, res['bare']))
        print(
            f'{n:12} {statistics.median(v):8.1f} {over:+10.1f} '
            f'{statistics.median(x / b for x, b in zip(v, res["bare"])):6.2f}'
        )
    if 'bare_tricks' in res and 'trickbag_tricks' in res:
        over = statistics.median(x - b for x, b in zip(res['trickbag_tricks'], res['bare_tricks']))
        print(
            f'{"tricks":12} {"":8} {over:+10.1f} '
            f'{statistics.median(x / b for x, b in zip(res["trickbag_tricks"], res["bare_tricks"])):6.2f}   over '
            'the loop with the same tricks by hand'
        )
    print(
        f'torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, 1 thread, '
        f'{a.rounds} rounds of {len(batches(a.steps))} steps'
    )
    if a.json:
        json.dump(
            dict(
                us_per_step=res,
                torch=torch.__version__,
                python=platform.python_version(),
                cores=os.cpu_count(),
                argv=sys.argv[1:],
            ),
            open(a.json, 'w'),
        )


if __name__ == '__main__':
    main()
