"What shows a run: explain, profile, show_batch."

import torch
from torch import nn

from tests.helpers import class_folders
from trickbag.all import *
from trickbag.callback import Callback
from trickbag.testing.proofs import tiny_learner


def test_show_batch_with_schedules():
    import matplotlib

    matplotlib.use('agg')
    tiny_learner([OneCycle(), ProgressiveResize(0.5, step=2), MixUp()]).show_batch(4)


def test_profile_finds_decoding(tmp_path):
    dls = DataLoaders.from_folder(class_folders(tmp_path), size=64, bs=4, keep='none')
    learn = tiny_learner([], dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    assert 'decoded anew each epoch' in learn.profile(3).notes[-1]


def test_explain_tells_a_tensor_of_one_element():
    class Tells(Callback):
        traced = ('lam',)

        def after_step(self, learn):
            self.lam = torch.tensor([0.25])

    assert 'lam = 0.25' in str(tiny_learner(Tells()).explain(step=True))
