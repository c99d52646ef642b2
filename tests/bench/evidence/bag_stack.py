"""Bag of Tricks (He et al. 2019), table 6 in small: efficient training, then refinements one after the other.

    python -m tests.bench.evidence.bag_stack --data FOLDER --json tests/bench/results/evidence_bag_stack.jsonl

Imagenette, 120 images a class, 64 px; an xresnet18 (ResNet-18-D) of a quarter of the width, batch 64, 12 epochs and,
with MixUp, 20, as the paper's 120 and 200 (the paper: ImageNet, ResNet-50-D, 224 px, batch 1024). The score is of all
3,925 validation images. The teacher is an xresnet18 of half the width, trained on the same images for 30 epochs; its
accuracy is in the lines of what it taught. It lies beside the log, in bag_stack_teacher.pt."""

from dataclasses import replace

import torch

from trickbag.core.threads import preserve_rng
from trickbag.loop.metrics import accuracy
from trickbag.recipes.ladder import Row
from trickbag.recipes.recipe import Recipe

from .common import Pictures, asked, measure_rows

PICTURES = Pictures('imagenette2-160', per_class=120)
# 30, 60 and 90 of 120 epochs; a warm-up of 5
EFFICIENT = Recipe(
    'efficient',
    source='He et al. 2019, arXiv 1812.01187, in small',
    arch='xresnet18',
    arch_args=dict(widen=0.25),
    size=64,
    scale=(0.35, 1.0),
    n_images=1200,
    bs=64,
    epochs=12,
    lr=0.1,
    opt='SGD(momentum=0.9, nesterov=True, weight_decay=0.0005)',
    tricks=(
        "StepDecay(['25%', '50%', '75%'], warmup='4%', warmup_start=0.0)",
        'NoBiasDecay()',
        'ChannelsLast()',
    ),
)
COSINE = EFFICIENT - 'StepDecay' + "Cosine(warmup='4%', warmup_start=0.0)"
SMOOTHING = COSINE + 'LabelSmoothing(0.1)'
DISTILLED = SMOOTHING + 'Distillation(teacher, T=20)'
LONGER = replace(SMOOTHING, epochs=20)
MIXED = LONGER + 'MixUp(0.2)'
BOTH = MIXED + 'Distillation(teacher, T=20)'
ROWS = [
    Row('base', 'efficient', EFFICIENT),
    Row('ladder', '+ cosine', COSINE, EFFICIENT, 'cosine'),
    Row('ladder', '+ smoothing', SMOOTHING, COSINE, 'smoothing'),
    Row('ladder', '+ distillation', DISTILLED, SMOOTHING, 'distillation'),
    Row('ladder', '+ MixUp, 20 epochs', MIXED, SMOOTHING, 'MixUp'),
    Row('ladder', '+ MixUp, 20 epochs + distillation', BOTH, MIXED, 'distillation with MixUp'),
    # what the longer run itself brings, which the paper's table does not say
    Row('other', 'smoothing, 20 epochs', LONGER, SMOOTHING, 'longer'),
    Row('other', '20 epochs: + MixUp', MIXED, LONGER, 'MixUp'),
]
TEACHER = replace(COSINE, name='teacher', arch_args=dict(widen=0.5), epochs=30)


def teacher_of(file):
    "`teacher` for `measure_rows`: trained once, and kept in a file"

    def teacher(dls_fn):
        dls = dls_fn(TEACHER)
        with preserve_rng():
            torch.manual_seed(0)
            learn = TEACHER.learner(dls, seed=0, device='cpu', metrics=accuracy)
        if file.exists():
            learn.model.load_state_dict(torch.load(file, weights_only=True))
        else:
            valid, dls.valid = dls.valid, None
            TEACHER.fit(learn)
            dls.valid = valid
            torch.save(learn.model.state_dict(), file)
        return learn.model, dict(teacher=learn.validate()['accuracy'])

    return teacher


if __name__ == '__main__':
    args = asked(__doc__)
    measure_rows(ROWS, PICTURES, args, teacher=teacher_of(args.json.parent / 'bag_stack_teacher.pt'))
