"""How long does the same training take, and how good is it: fastai, trickbag as it is, trickbag with `Fast()`?

    python -m tests.bench.training --data FOLDER [--seeds 42 43 44] [--epochs 3] [--limit N] [--size 64] [--bs
        64] [--json FILE]

FOLDER has a `train` and a `val` folder with a folder a class (Imagenette). Every peer trains trickbag's xresnet18
from the same first weights with cross entropy, Adam (betas .9 and .99, eps 1e-5, weight decay .01 on all weights),
one cycle, random crops (scale .35 to 1), mirrored images and ImageNet's statistics, and validates after each epoch.
Seconds are those of `fit_one_cycle`, validation and decoding included: trickbag starts each run with an empty
store. `accuracy` is what each says itself after its last epoch; fastai validates on up to 4:3 of an image,
squeezed, trickbag on the central square, so `judged` is the accuracy of all of them by trickbag's validation. Each
run is a process of its own; the peers take turns seed by seed. fastai decodes in the number of workers of --workers
that is faster in a short trial. --limit takes every k-th image, of training and validation alike. `others` is the
fraction of the cores that other processes took meanwhile: where it is large, seconds say little, so the table's are
of runs with less than a fifth, if there are any. --wait S gives the machine up to S seconds before each run to
become quiet, --tries N repeats a run that others disturbed. OMP_WAIT_POLICY=passive, set for all, lessens what they
do. --only takes further peers: `fastai_fused` has torch's fused AdamW in place of fastai's own Adam, `fast_compile`
is `Fast(compile=True)`. Needs the extra [bench] for fastai."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

PEERS = ('fastai', 'trickbag', 'trickbag_fast')


def images(a):
    "Files of training and of validation, every k-th"
    from trickbag.data.files import find_images

    tr = find_images(a.data / 'train')
    va = find_images(a.data / 'val')
    k = max(len(tr) / a.limit, 1) if a.limit else 1
    return [[o[int(i * k)] for i in range(int(len(o) / k))] for o in (tr, va)]


def busy():
    "Seconds of work of all processes so far; NaN where the system does not tell"
    try:
        with open('/proc/stat') as f:
            v = [int(o) for o in f.readline().split()[1:8]]
    except OSError:
        return float('nan')
    return (sum(v) - v[3] - v[4]) / os.sysconf('SC_CLK_TCK')


def own():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def run(name, seed, a):
    "One training in this process"
    from trickbag.all import xresnet18

    tr, va = images(a)
    classes = sorted({Path(f).parent.name for f in tr})
    torch.manual_seed(seed)
    model = xresnet18(n_out=len(classes))
    fit, score, said = globals()[name.split('_')[0]](name, model, tr, va, seed, a)
    b = busy()
    o = own()
    t = time.perf_counter()
    fit()
    t = time.perf_counter() - t
    o = own() - o
    return dict(
        seconds=t,
        cpu=o,
        others=max(busy() - b - o, 0) / t / os.cpu_count(),
        accuracy=score(),
        judged=judge(model, tr, va, a),
        n=len(tr),
        n_valid=len(va),
        said=said,
    )


def judge(model, tr, va, a):
    from trickbag.all import DataLoaders, Learner, accuracy

    fs = tr + va
    dls = DataLoaders.from_lists(
        fs,
        [Path(f).parent.name for f in fs],
        is_valid=[False] * len(tr) + [True] * len(va),
        size=a.size,
        bs=a.bs,
        keep='none',
        verify=False,
    )
    return Learner(dls, model, metrics=accuracy, device='cpu').validate()['accuracy']


def trickbag(name, model, tr, va, seed, a):
    from trickbag.all import DataLoaders, Fast, Learner, accuracy

    lf = lambda f: Path(f).parent.name
    fast = Fast(name == 'fast_compile' or None, 'cpu', verbose=False) if name != 'trickbag' else []
    dls = DataLoaders.from_lists(
        tr + va, [lf(f) for f in tr + va], is_valid=[False] * len(tr) + [True] * len(va), size=a.size, bs=a.bs
    )
    learn = Learner(dls, model, metrics=accuracy, cbs=fast, seed=seed, device='cpu')
    return lambda: learn.fit_one_cycle(a.epochs, a.lr), lambda: learn.history[-1]['accuracy'], getattr(fast, 'said', '')


fast = trickbag


def fastai(name, model, tr, va, seed, a):
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        FlipItem,
        ImageBlock,
        Learner,
        Normalize,
        OptimWrapper,
        RandomResizedCrop,
        accuracy,
        imagenet_stats,
        parent_label,
        set_seed,
    )

    set_seed(seed)
    held = {str(f) for f in va}
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda _: [Path(f) for f in tr + va],
        get_y=parent_label,
        item_tfms=[RandomResizedCrop(a.size, min_scale=0.35), FlipItem()],
        splitter=lambda o: (
            [i for i, f in enumerate(o) if str(f) not in held],
            [i for i, f in enumerate(o) if str(f) in held],
        ),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    dls = block.dataloaders('.', bs=a.bs, val_bs=2 * a.bs, num_workers=a.workers[0], device=torch.device('cpu'))
    kw = (
        dict(
            opt_func=lambda ps, lr, **_: OptimWrapper(
                ps, torch.optim.AdamW, lr=lr, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01, fused=True
            )
        )
        if name == 'fastai_fused'
        else dict(wd=0.01, wd_bn_bias=True)
    )
    learn = Learner(dls, model, loss_func=torch.nn.CrossEntropyLoss(), metrics=accuracy, **kw)
    return (
        lambda: learn.fit_one_cycle(a.epochs, a.lr),
        lambda: float(learn.recorder.values[-1][-1]),
        f'{a.workers[0]} workers',
    )


def start(name, seed, a, **kw):
    "The quietest of up to `--tries` trainings"
    runs = []
    while len(runs) < a.tries and not any(r['others'] < 0.2 for r in runs):
        wait_quiet(a.wait)
        runs.append(process(name, seed, a, **kw))
    return min(runs, key=lambda r: r['others'])


def process(name, seed, a, **kw):
    "One training in a process of its own, with an empty store"
    o = dict(vars(a), **kw)
    cmd = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'tests.bench.training',
        '--one',
        name,
        '--data',
        str(o['data']),
        '--seeds',
        str(seed),
        '--workers',
        *map(str, o['workers']),
    ]
    for n in ('epochs', 'limit', 'size', 'bs', 'lr'):
        cmd += [f'--{n}', str(o[n])]
    with tempfile.TemporaryDirectory() as d:
        r = subprocess.run(cmd, capture_output=True, text=True, env=dict(os.environ, TRICKBAG_CACHE=d))
    if r.returncode:
        sys.exit(f'{name}: the run failed\n{r.stderr[-2000:]}')
    return json.loads(r.stdout.splitlines()[-1])


def seconds(runs):
    "Median time of the runs that had the machine to themselves, or of all if there are none"
    return statistics.median([r['seconds'] for r in runs if r['others'] < 0.2] or [r['seconds'] for r in runs])


def wait_quiet(limit):
    "Up to `limit` seconds, until others take less than a tenth of the cores for three of them"
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        b = busy()
        time.sleep(3)
        if not busy() - b > 0.3 * os.cpu_count():
            return


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    for n, v in (('epochs', 3), ('limit', 0), ('size', 64), ('bs', 64), ('wait', 0), ('tries', 1)):
        ap.add_argument(f'--{n}', type=int, default=v)
    ap.add_argument('--lr', type=float, default=4e-3)
    ap.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    ap.add_argument('--only', nargs='*', default=PEERS)
    ap.add_argument('--one', help=argparse.SUPPRESS)
    ap.add_argument('--json')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    if a.one:
        return print('\n' + json.dumps(run(a.one, a.seeds[0], a)))
    names = list(a.only)
    res = {}
    try:
        import fastai.vision.all  # noqa: F401
    except ImportError as e:
        print(f'fastai: not installed ({e})', file=sys.stderr)
        names = [n for n in names if n[:6] != 'fastai']
    trial = {}
    if any(n[:6] == 'fastai' for n in names) and len(a.workers) > 1:
        trial = {
            w: start('fastai', 0, a, workers=[w], epochs=1, limit=min(a.limit or 512, 512))['seconds']
            for w in a.workers
        }
        a.workers = [min(trial, key=trial.get)]
    for s in a.seeds:
        for n in names:
            r = start(n, s, a)
            res.setdefault(n, []).append(dict(r, seed=s))
            print(
                f"seed {s} {n:14} {r['seconds']:7.1f} s, accuracy {r['accuracy']:.4f}, judged {r['judged']:.4f}, "
                f"others {r['others']:.0%} of the cores  {r['said']}",
                file=sys.stderr,
                flush=True,
            )
            if a.json:
                save(a, res, trial)
    base = res.get('fastai')
    print(f'{"":14} {"seconds":>8} {"ratio":>6}  {"accuracy":15}  judged')
    for n, v in res.items():
        acc = [
            f"{statistics.mean(o):.4f}" + (f' ± {statistics.stdev(o):.4f}' if len(o) > 1 else '')
            for o in ([r[k] for r in v] for k in ('accuracy', 'judged'))
        ]
        print(
            f"{n:14} {seconds(v):8.1f} {seconds(v) / seconds(base) if base else float('nan'):6.2f}  {acc[0]:15}  "
            f"{acc[1]}"
        )
    r = next(iter(res.values()))[0]
    print(
        f"xresnet18, {r['n']} images of {a.size} px, batch {a.bs}, {a.epochs} epochs, {r['n_valid']} to validate, "
        f"{len(a.seeds)} seeds, {os.cpu_count()} cores, torch {torch.__version__}"
    )


def save(a, res, trial):
    with open(a.json, 'w') as f:
        json.dump(
            dict(
                runs=res,
                trial=trial,
                args={k: v for k, v in vars(a).items() if k not in ('json', 'one', 'data')},
                torch=torch.__version__,
                python=platform.python_version(),
                cores=os.cpu_count(),
                threads=torch.get_num_threads(),
                wait=os.environ.get('OMP_WAIT_POLICY'),
            ),
            f,
            indent=1,
        )


if __name__ == '__main__':
    main()
