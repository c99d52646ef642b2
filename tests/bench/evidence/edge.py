"""From a large network to a small one for a small device: Stanford Cars, a teacher, a student with and without it,
exported, calibrated, in ONNX, timed on one core.

    python -m tests.bench.evidence.edge --data FOLDER --work FOLDER --json FILE [--seeds 3]

FOLDER of `--data` has stanford-cars-160 and weights/; in that of `--work` the trained teacher, the networks that are
exported and links to the images are kept; the same command goes on after a kill. The first 20 of the 196 classes, 80
pixels, one thread. The teacher is EfficientNet-Lite0, the student the first 14 of the 19 parts of MobileNetV2, both
with ImageNet's weights and fine-tuned. One teacher for all seeds. The official test images are dealt into two halves,
of which one fits the temperature and both the calibration errors are of the other; accuracy is of all.

Lines: `teacher`; by seed `student` (labels only), `smoothing` (labels, smoothed: what of the gain is softer targets
alone) and `distilled`; `deployed`, of seed 0, teacher, student and distilled one: megabytes, milliseconds, eight bits.
Times are of one image of 160 x 160 pixels with preprocessing: CPU time of the process, as its core is shared."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .lines import Lines

CLASSES = 20
SIZE = 80
BATCH = 32
TEACHER: dict = dict(epochs=20, base_lr=4e-3, lr_mult=5)
STUDENT: dict = dict(epochs=12, base_lr=4e-3, lr_mult=5)
STUDENTS = ('student', 'smoothing', 'distilled')
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE0 = ((0.5,) * 3, (0.5,) * 3)


def plan(seeds: int) -> list:
    "All runs; what is deployed comes with the first seed"
    runs = [dict(row='teacher', network='teacher', seed=0)]
    for seed in range(seeds):
        runs += [dict(row=row, network='student', seed=seed) for row in STUDENTS]
        if seed == 0:
            runs += [dict(row='deployed', network=name, seed=0) for name in ('teacher', 'student', 'distilled')]
    return runs


def set_folder(data: Path, work: Path) -> Path:
    "A folder with links to the classes that are taken"
    folder = work / f'cars_{CLASSES}'
    for part in ('train', 'test'):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for class_folder in sorted((data / 'stanford-cars-160' / part).iterdir())[:CLASSES]:
            link = folder / part / class_folder.name
            if not link.is_symlink():
                link.symlink_to(class_folder.resolve())
    return folder


class Student(nn.Module):
    "The first parts of torchvision's MobileNetV2, of stride 16 together, and a linear head"

    def __init__(self, n_out: int, parts: int = 14):
        from torchvision.models import mobilenet_v2

        super().__init__()
        self.body = mobilenet_v2().features[:parts]
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(self.body[-1].out_channels, n_out)

    def forward(self, x):
        return self.head(self.pool(self.body(x)))


class Renormalized(nn.Module):
    "The teacher, for images that are normalized as the student's"

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher = teacher
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(values)[:, None, None] for values in pair] for pair in (IMAGENET, LITE0)
        )
        self.register_buffer('factor', std / own_std)
        self.register_buffer('shift', (mean - own_mean) / own_std)

    def forward(self, x):
        return self.teacher(x * self.factor + self.shift)


def loaders(folder: Path):
    from trickbag.all import DataLoaders

    return DataLoaders.from_folder(folder, valid='test', size=SIZE, presize=160, bs=BATCH)


def quiet(learn):
    import trickbag.all as tb

    learn.default_cbs = [cb for cb in learn.default_cbs if not isinstance(cb, tb.Progress)]
    return learn


def teacher_learner(folder: Path, data: Path):
    "EfficientNet-Lite0 with ImageNet's weights"
    import trickbag.all as tb

    from ..pretrained import timm_name

    settings: dict = dict(metrics=tb.accuracy, dropout=0.2, seed=0)
    state = load_file(data / 'weights' / 'efficientnet_lite0_imagenet1k_fp16.safetensors')
    with tempfile.TemporaryDirectory() as d:
        weights = Path(d) / 'weights.safetensors'
        save_file({timm_name(name): value.float() for name, value in state.items()}, weights)
        name = 'timm/tf_efficientnet_lite0'
        return quiet(
            tb.vision_learner(loaders(folder), name, pretrained=str(weights), cbs=tb.ChannelsLast(), **settings)
        )


def student_learner(folder: Path, data: Path, seed: int, cbs=()):
    "The first parts of MobileNetV2 with ImageNet's weights"
    import trickbag.all as tb
    from trickbag.runs.vision_learner import split_at

    torch.manual_seed(seed)
    dls = loaders(folder)
    model = Student(dls.c)
    state = load_file(data / 'weights' / 'mobilenet_v2_imagenet1k_features_fp16.safetensors')
    body = {name: state[f'features.{name}'].float() for name, _ in model.body.named_parameters()}
    body |= {name: state[f'features.{name}'].float() for name, _ in model.body.named_buffers() if 'running' in name}
    # the counters of batches are not kept in the file
    missing, _ = model.body.load_state_dict(body, strict=False)
    assert all(name.endswith('num_batches_tracked') for name in missing), missing

    def splitter(model):
        return split_at(model, 'head')

    return quiet(
        tb.Learner(dls, model, metrics=tb.accuracy, splitter=splitter, cbs=[tb.ChannelsLast(), *cbs], seed=seed)
    )


def quality(learn) -> dict:
    "Accuracy of all test images; of their second half loss and calibration, the temperature fitted on the first"
    from trickbag.deploy.calibration import expected_calibration_error, fit_temperature
    from trickbag.recipes.runs import halves

    probs, targets = learn.get_preds()
    logits = probs.double().clamp_min(1e-12).log()
    fitted, measured = halves(len(targets))
    temperature = fit_temperature(logits[fitted], targets[fitted])
    found = dict(accuracy=(probs.argmax(1) == targets).double().mean().item(), temperature=temperature)
    for name, divisor in (('before', 1.0), ('after', temperature)):
        part = (logits[measured] / divisor).softmax(1)
        found[f'ece_{name}'] = expected_calibration_error(part, targets[measured])
        found[f'loss_{name}'] = nn.functional.nll_loss(part.log(), targets[measured]).item()
    found = {name: round(value, 5) for name, value in found.items()}
    return found | dict(n_images=len(targets), epochs=len(learn.history))


def load_teacher(folder: Path, data: Path, work: Path):
    learn = teacher_learner(folder, data)
    learn.model.load_state_dict(load_file(work / 'teacher.safetensors'))
    return learn


def train(run: dict, folder: Path, data: Path, work: Path) -> dict:
    "A network, kept, and what it is worth"
    import trickbag.all as tb

    if run['row'] == 'teacher':
        learn = teacher_learner(folder, data)
        learn.fine_tune(**TEACHER)
    else:
        cbs = []
        if run['row'] == 'smoothing':
            cbs = [tb.LabelSmoothing()]
        if run['row'] == 'distilled':
            cbs = [tb.Distillation(Renormalized(load_teacher(folder, data, work).model))]
        learn = student_learner(folder, data, run['seed'], cbs)
        learn.fine_tune(**STUDENT)
    name = 'teacher' if run['row'] == 'teacher' else f'{run["row"]}_{run["seed"]}'
    save_file(learn.model.state_dict(), work / f'{name}.safetensors')
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, tb.Distillation)]
    return quality(learn)


def cpu_ms(session, image: torch.Tensor, calls: int = 200) -> float:
    "CPU time of a call: with one thread all of it is this one's"
    from trickbag.deploy.onnx import run_onnx

    for _ in range(5):
        run_onnx(session, image)
    start = time.process_time()
    for _ in range(calls):
        run_onnx(session, image)
    return 1e3 * (time.process_time() - start) / calls


def deploy(run: dict, folder: Path, data: Path, work: Path) -> dict:
    "Folder, ONNX file and eight bits: how large, how fast, how good"
    from trickbag.deploy.onnx import onnx_session

    if run['network'] == 'teacher':
        learn = load_teacher(folder, data, work)
        how: dict = {}
    else:
        learn = student_learner(folder, data, 0)
        learn.model.load_state_dict(load_file(work / f'{run["network"]}_0.safetensors'))
        how = dict(make=Student, args=dict(n_out=CLASSES))
    out = work / f'export_{run["network"]}'
    classifier = learn.export(out, temperature=quality(learn)['temperature'], **how)
    difference = classifier.to_onnx(out / 'float.onnx')
    images = sorted((folder / 'train').glob('*/*'))[:: CLASSES // 2]
    rows = classifier.quantize(out / 'float.onnx', out / 'int8.onnx', images, labeled=folder / 'test')
    image = torch.randint(0, 256, (1, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = dict(difference=difference, parameters=sum(p.numel() for p in learn.model.parameters()))
    found['folder_megabytes'] = os.path.getsize(out / 'model.safetensors') / 2**20
    for kind, row in zip(('float', 'int8'), rows, strict=True):
        session = onnx_session(out / f'{kind}.onnx', 1)
        found |= {f'{kind}_{name}': value for name, value in row.items() if name != 'what'}
        found[f'{kind}_cpu_ms'] = cpu_ms(session, image)
    return {name: float(f'{value:.5g}') for name, value in found.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--data', type=Path, required=True)
    ap.add_argument('--work', type=Path, required=True)
    ap.add_argument('--json', type=Path, required=True)
    ap.add_argument('--seeds', type=int, default=3)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    folder = set_folder(a.data, a.work)
    lines = Lines(a.json, ('row', 'network', 'seed'))
    for run in lines.missing(plan(a.seeds)):
        start = time.perf_counter()
        cpu_start = time.process_time()
        found = (deploy if run['row'] == 'deployed' else train)(run, folder, a.data, a.work)
        times = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu_start)
        lines.add(run | found | {name: round(value, 1) for name, value in times.items()})


if __name__ == '__main__':
    main()
