"""What does each trick cost a step?

    python -m tests.bench.tricks [--arch xresnet50 --size 224 --bs 128] [--steps 6] [--rounds 5] [--only NAME
        ...] [--json FILE]

Without --arch: xresnet50 at 224 pixels, batch 128, bf16, on a GPU; xresnet18 at 64 pixels, batch 32, on the CPU.
The images lie decoded in memory; every learner crops, flips and normalizes them, so a trick's cost comes on top of
that. Each round runs the plain learner and then the one with the trick, so that a busy moment of the machine hits
both; `extra` is the median over rounds of the difference of their median steps, `spread` half the distance of its
quartiles. `calls` is what the trick's own methods take (a copy of the step under a watch), which says more than
`extra` where the machine is noisy, but leaves out what a trick does inside forward and backward."""

import argparse
import json
import os
import platform
import statistics
import time
import warnings

import torch

from trickbag import all as bag
from trickbag.callback import Callback
from trickbag.look.steps import trace_step
from trickbag.testing.pairs import BAG, SmallImages, bag_opt

FULL = dict(  # as a user would write them for images of full size, where trickbag.testing.pairs has them small
    Compile=lambda: bag.Compile(),
    SqueezeExcite=lambda: bag.SqueezeExcite(),
    BlurPool=lambda: bag.BlurPool(),
    GhostBatchNorm=lambda: bag.GhostBatchNorm(),
    DropBlock=lambda: bag.DropBlock(0.9, keep_prob_start=0.9),
    LayerFreezing=lambda: bag.LayerFreezing(0, 0.5),
    FixRes=lambda: bag.FixRes(A.size),
    Lookahead=lambda: bag.Lookahead(),
    GradientAccumulation=lambda: bag.GradientAccumulation(2),
    GaussianBlur=lambda: bag.GaussianBlur(),
    Im2Col=lambda: bag.Im2Col(),
    Distillation=lambda: bag.Distillation(getattr(bag, A.arch)(n_out=10)),
    ProgressiveResize=lambda: bag.ProgressiveResize(start=0.9, end=1.0),
)  # measured before the first jump: the smallest size
THEORY = dict(
    SAM='2 x', SelectiveBackprop='1/3 for the look, less half of the step', Distillation='a forward pass of the teacher'
)
SKIP = ('TTA',)  # not in training


class Clock(Callback):
    "Seconds of each step of a fit but the first"

    stage = 'stop'
    monitor = True

    def before_fit(self, learn):
        self.steps = []
        self.last = None

    def after_batch(self, learn):
        if not learn.training:
            return
        if learn.device.type == 'cuda':
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last:
            self.steps.append(now - self.last)
        self.last = now


class OnGPU(SmallImages):
    "Batches that lie on the device, so that nothing is measured but the step"

    def __iter__(self):
        if not hasattr(self, 'held'):
            self.held = [(x.cuda(), y, i) for x, y, i in super().__iter__()]
        return iter(self.held)


class Data:
    def __init__(self, a):
        n = a.bs * a.steps
        self.train = (OnGPU if a.device == 'cuda' else SmallImages)(n, 10, round(a.size * 1.15), a.bs)
        self.valid = None
        self.c = 10
        self.vocab = [str(i) for i in range(10)]
        self.cbs = [bag.Crop(a.size), bag.Flip(), bag.Normalize()]


def learner(name, a, data):
    t = BAG.get(name)
    torch.manual_seed(0)
    model = getattr(bag, a.arch)(n_out=10, zero_gamma=False)
    cbs = [FULL.get(name, t.make)()] if t else []
    if a.amp and name != 'MixedPrecision':
        cbs.append(bag.MixedPrecision('bf16'))
    if a.device == 'cuda' and name != 'ChannelsLast':
        cbs.append(bag.ChannelsLast())
    if name == 'AlternatingFlip':
        data = Data.__new__(Data)
        data.__dict__.update(DATA.__dict__, cbs=[c for c in DATA.cbs if c.name != 'Flip'])
    learn = bag.Learner(
        data, model, loss_func=t and t.loss and t.loss(), opt_func=t and t.opt or bag_opt, cbs=cbs, device=a.device
    )
    learn.default_cbs = [cb for cb in learn.default_cbs if cb.name != 'Progress']
    return learn


def run(learn):
    clock = Clock()
    learn.fit(1, cbs=clock)
    return statistics.median(clock.steps)


def measure(name, a):
    learn = learner(name, a, DATA)
    base = learner(None, a, DATA)
    if BAG[name].loss:
        base.loss_func = BAG[name].loss()
    if BAG[name].opt:
        base.opt_func = BAG[name].opt
    run(base)
    run(learn)  # warm up
    pairs = [(run(base), run(learn)) for _ in range(a.rounds)]
    extra = sorted(t - b for b, t in pairs)
    calls = trace_step(learn, at=1, timed=a.steps - 2).cost(name)
    return dict(base=statistics.median(b for b, _ in pairs), extra=statistics.median(extra), raw=pairs, calls=calls)


def main():
    global DATA, A
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    ap.add_argument('--arch', default='xresnet50' if gpu else 'xresnet18')
    ap.add_argument('--size', type=int, default=224 if gpu else 64)
    ap.add_argument('--bs', type=int, default=128 if gpu else 32)
    ap.add_argument('--steps', type=int, default=10 if gpu else 5)
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--only', nargs='*')
    ap.add_argument('--json')
    ap.add_argument('--amp', action=argparse.BooleanOptionalAction, default=gpu)
    ap.add_argument('--device', default='cuda' if gpu else 'cpu')
    a = A = ap.parse_args()
    DATA = Data(a)
    res = {}
    warnings.simplefilter('ignore')
    where = torch.cuda.get_device_name() if a.device == 'cuda' else f'{os.cpu_count()} CPU cores'
    print(
        f"{a.arch}, {a.size} px, batch {a.bs}, {'bf16' if a.amp else 'fp32'}, {where}, torch {torch.__version__}, "
        f"{a.rounds} rounds of {a.steps} steps\n"
    )
    print(
        f"{'trick':22} {'step ms':>8} {'extra ms':>9} {'extra %':>8} {'spread %':>9} {'calls ms':>9} "
        f"{'calls %':>8}  by theory",
        flush=True,
    )
    for n in a.only or [n for n in BAG if n not in SKIP]:
        try:
            r = measure(n, a)
        except Exception as e:
            print(f'{n:22} not measured: {str(e)[:110].splitlines()[:1]}', flush=True)
            continue
        res[n], b = r, r['base']
        q = statistics.quantiles([(t - s) / s for s, t in r['raw']], n=4) if len(r['raw']) > 1 else (0, 0, 0)
        c = r['calls'] or 0.0
        print(
            f"{n:22} {b * 1e3:8.1f} {r['extra'] * 1e3:+9.1f} {r['extra'] / b:+8.1%} {(q[2] - q[0]) / 2:9.1%} "
            f"{c * 1e3:9.2f} {c / b:8.1%}  {THEORY.get(n, '')}",
            flush=True,
        )
        if a.json:
            json.dump(
                dict(
                    results=res,
                    args={k: v for k, v in vars(a).items() if k != 'json'},
                    where=where,
                    torch=torch.__version__,
                    python=platform.python_version(),
                ),
                open(a.json, 'w'),
            )


if __name__ == '__main__':
    main()
