"""Ctrl-C at random moments: python -m tests.bench.interrupts [--n 2000] [--plant]

Each interrupt is a real signal, SIGINT from another process or SIGALRM from a timer, at a random moment of a call:
anywhere in it, and densely in its first microseconds and its last. Afterwards the learner and the process are
compared with what they were before. A line of tests/bench/results/interrupts.json for each call, written every 25
signals; what is there already is gone on with. `--plant` puts the fault in: signals are not held."""

import argparse
import json
import math
import mmap
import os
import random
import signal
import struct
import sys
import time
import warnings
from pathlib import Path

import torch

from trickbag.all import *
from trickbag.core import interrupts
from trickbag.testing.pairs import bag_opt, small_data, small_model
from trickbag.testing.proofs import found, tiny_learner

OUT = Path(__file__).parent / 'results' / 'interrupts.json'


def surgery():
    return [
        BlurPool(min_channels=8),
        GhostBatchNorm(4),
        Im2Col(0, 0),
        ChannelsLast(),
        StochasticDepth(0.5),
        SqueezeExcite(8, 4),
    ]


def averages():
    return [
        EMA(),
        SAM(),
        MixedPrecision('bf16'),
        MixUp(),
        LabelSmoothing(),
        GradientAccumulation(2),
        LayerFreezing(0.0),
    ]


def others():
    return [
        SWA(0.0),
        Lookahead(2),
        GradientCheckpointing(),
        CutMix(),
        SelectiveBackprop(start=0.0),
        Whiten(),
        Distillation(small_model()),
    ]


def watched():
    return [BlurPool(min_channels=8), EMA(), TTA(1), ProgressiveResize(step=4), GradientClip(1.0)]


# (name, the callbacks, the call, whether the call may change weights and history: then these are not looked at)
CALLS = [
    ('fit, surgery', surgery, lambda learn: learn.fit(1), True),
    ('fit, averages', averages, lambda learn: learn.fit(1), True),
    ('fit, others', others, lambda learn: learn.fit(1), True),
    ('fit_one_cycle', watched, lambda learn: learn.fit_one_cycle(1), True),
    ('validate', watched, lambda learn: learn.validate(), False),
    ('validate, surgery', surgery, lambda learn: learn.validate(), False),
    ('explain', averages, lambda learn: learn.explain(), False),
    ('explain(step=True)', surgery, lambda learn: learn.explain(step=True), False),
    ('lr_find', averages, lambda learn: learn.lr_find(num_it=20, show_plot=False), False),
    ('tta', surgery, lambda learn: learn.tta(), False),
    ('profile', averages, lambda learn: learn.profile(n=2), False),
    ('summary', surgery, lambda learn: learn.summary(), False),
]


def signature(o):
    """What can be compared with `==`: tensors by their bits, plain values and lists as they are, other objects by
    their kind"""
    if isinstance(o, torch.Tensor):
        return (
            tuple(o.shape),
            str(o.dtype),
            o.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if o.numel() else b'',
        )
    if isinstance(o, torch.nn.Module):
        return signature(o.state_dict())
    if isinstance(o, dict):
        return {k if isinstance(k, (str, int, tuple)) else id(k): signature(v) for k, v in o.items()}
    if isinstance(o, (list, tuple)):
        return [signature(v) for v in o]
    if isinstance(o, float) and math.isnan(o):
        return 'nan'
    if isinstance(o, (bool, int, float, str, bytes, type(None))):
        return o
    return type(o).__name__, getattr(o, '__qualname__', None)


def everything(learn) -> dict:
    """`found`, and all that a call which only looks must leave alone: weights, optimizer state, history, the
    callbacks' attributes"""
    cbs = [*learn.default_cbs, *learn.cbs]
    counters = (
        'history',
        'results',
        'step',
        'epochs_run',
        'epoch',
        'iter',
        'n_epoch',
        'n_iter',
        'position',
        'depth',
        '_in_batch',
        'xb',
        'yb',
        'idx',
        'clean_yb',
        'pred',
        'loss',
    )
    return found(learn) | dict(
        weights=signature(learn.model.state_dict()),
        optimizer=signature({id(p): s for p, s in learn.opt.state.items()}),
        counters=signature({n: getattr(learn, n) for n in counters}),
        callbacks={cb.name: signature(vars(cb)) for cb in cbs},
    )


class Sender:
    "Sends this process one signal at a time, after a delay"

    def __init__(self):
        self.shared = mmap.mmap(-1, 24)  # how many were asked for, how many were sent, the next delay
        self.n = 0
        self.was = signal.signal(signal.SIGALRM, interrupt)
        self.parent = os.getpid()
        self.child = os.fork()
        if not self.child:
            self.serve()

    def serve(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        done = 0
        while os.getppid() == self.parent:
            asked, _, delay = struct.unpack('qqd', self.shared[:])
            if asked == done:
                time.sleep(5e-5)
                continue
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                pass
            os.kill(self.parent, signal.SIGINT)
            done = asked
            self.shared[8:16] = struct.pack('q', done)
        os._exit(0)

    def during(self, call, delay: float, sigint: bool) -> bool:
        "Whether the call was interrupted"
        hit = False
        try:
            try:
                if sigint:
                    self.n += 1
                    self.shared[16:24] = struct.pack('d', delay)
                    self.shared[:8] = struct.pack('q', self.n)
                else:
                    signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
                call()
            except KeyboardInterrupt:
                hit = True
            self.settle(sigint)
        except KeyboardInterrupt:
            self.settle(sigint)  # it came after the call
        return hit

    def settle(self, sigint):
        "Wait until the signal is through, or call it off"
        if not sigint:
            signal.setitimer(signal.ITIMER_REAL, 0)
        while sigint and struct.unpack('q', self.shared[8:16])[0] != self.n:
            time.sleep(1e-4)

    def close(self):
        os.kill(self.child, signal.SIGTERM)
        os.waitpid(self.child, 0)
        signal.signal(signal.SIGALRM, self.was)


def interrupt(*_):
    raise KeyboardInterrupt


def a_moment(rand: random.Random, secs: float) -> float:
    "Of a call that takes so long: half of them anywhere, the others dense at its beginning and its end"
    kind = rand.random()
    if kind < 0.5:
        return rand.uniform(0, 1.05 * secs)
    dense = math.exp(rand.uniform(math.log(5e-6), math.log(secs)))
    return dense if kind < 0.8 else max(secs - dense / 4, 0)


def try_call(name: str, n: int, seed: int = 0) -> dict:
    "Interrupt one of `CALLS` `n` times"
    _, cbs, call, trains = next(c for c in CALLS if c[0] == name)
    look = found if trains else everything
    rand = random.Random(f'{name} {seed}')
    sender = Sender()
    res = dict(call=name, signals=n, interrupted=0, left={})
    learn = None
    try:
        for _ in range(n):
            if learn is None:  # at first, and where the last one is spoiled
                learn = tiny_learner(cbs(), small_data(), small_model(), opt_func=bag_opt)
                learn.fit(1)
                call(learn)
                was = look(learn)
                start = time.perf_counter()
                call(learn)
                secs = time.perf_counter() - start
            try:
                start = time.perf_counter()
                hit = sender.during(lambda: call(learn), a_moment(rand, secs), rand.random() < 0.5)
                res['interrupted'] += hit
                if not hit:
                    secs = 0.7 * secs + 0.3 * (time.perf_counter() - start)  # other programs come and go
            except Exception as e:
                what = f'{type(e).__name__}: {e}'
                res['left'][what] = res['left'].get(what, 0) + 1
            now = look(learn)
            differ = [k for k in was if now[k] != was[k]]
            if differ:
                what = ', '.join(differ)
                res['left'][what] = res['left'].get(what, 0) + 1
                learn = None
                mend()
    finally:
        sender.close()
    return res


def mend():
    "Give the process its usual state back, after a failure"
    torch.set_grad_enabled(True)
    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def plant():
    "The fault that this script must find: signals are not held"
    interrupts._install = lambda mine: None


def main(n: int, plant_it: bool, out: Path = OUT, chunk: int = 25):
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    mend()  # a background job ignores Ctrl-C
    if plant_it:
        plant()
    rows = json.loads(out.read_text()) if out.exists() and not plant_it else []
    for name, *_ in CALLS:
        row = next((r for r in rows if r['call'] == name), None)
        if row is None:
            rows.append(row := dict(call=name, signals=0, interrupted=0, left={}))
        while row['interrupted'] < n / len(CALLS):
            res = try_call(name, chunk, seed=row['signals'])
            for k in ('signals', 'interrupted'):
                row[k] += res[k]
            for what, k in res['left'].items():
                row['left'][what] = row['left'].get(what, 0) + k
            if not plant_it:
                out.write_text('[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n')
        print(row, flush=True)
    left = sum(sum(r['left'].values()) for r in rows)
    print(
        f"{sum(r['signals'] for r in rows)} signals, {sum(r['interrupted'] for r in rows)} interrupted a call, "
        f"{left} left something"
    )
    return left


if __name__ == '__main__':
    ps = argparse.ArgumentParser()
    ps.add_argument(
        '--n',
        type=int,
        default=2000,
        help='interrupted calls, of all kinds together; signals that came too late do not count',
    )
    ps.add_argument('--plant', action='store_true', help='put the fault in, and store nothing')
    args = ps.parse_args()
    sys.exit(bool(main(args.n, args.plant)))
