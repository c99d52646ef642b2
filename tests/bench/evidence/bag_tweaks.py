"""Bag of Tricks (He et al. 2019), table 5 in small: ResNet-B, C and D.

    python -m tests.bench.evidence.bag_tweaks --data FOLDER --json tests/bench/results/evidence_bag_tweaks.jsonl

Imagenette, 120 images a class, 64 px, 12 epochs; 18 layers of a quarter of the width, trained as the paper's efficient
training with the cosine (the paper: ImageNet, 50 layers, 224 px, 120 epochs). A network of 18 layers has no
bottlenecks, so that what the paper calls B, the stride in the 3x3 convolution, is in it from the start: the row B is
the plain network. Five seeds."""

from dataclasses import replace

from trickbag.recipes.ladder import Row

from .bag_stack import COSINE, PICTURES
from .common import SEEDS, asked, measure_rows


def network(name: str, stem: str, shortcut: str):
    return replace(COSINE, name=name, arch_args=dict(widen=0.25, stem=stem, shortcut=shortcut))


B = network('ResNet-B', '7x7', 'B')
C = network('ResNet-C', 'deep', 'C')
D = network('ResNet-D', 'deep', 'D')
ROWS = [
    Row('base', 'ResNet-B', B),
    Row('ladder', 'ResNet-C: + deep stem', C, B, 'deep stem'),
    Row('ladder', 'ResNet-D: + mean in the shortcut', D, C, 'mean in the shortcut'),
    Row('other', 'ResNet-B with the mean', network('mean', '7x7', 'D'), B, 'mean in the shortcut'),
]

if __name__ == '__main__':
    measure_rows(ROWS, PICTURES, asked(__doc__), seeds=(*SEEDS, 45, 46))
