"What trains or predicts without an error, and cannot be meant, is refused in one line that names the remedy."

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tests.helpers import check_line, class_folders, image_files, one_line
from trickbag.all import *
from trickbag.testing import prove, prove_data_kept, tiny_learner
from trickbag.testing.pairs import BAG, Trial, prove_writes

x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
y = torch.arange(16) % 3


def net(n_out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_out))


def cnn(n_out=2, n_in=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(n_in, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n_out))


def learner(y=y, n_out=3, **kw):
    dls = DataLoaders([(x, y)], [(x, y)])
    return tiny_learner(dls=dls, model=net(n_out), **kw)


# Callbacks


class InPlace(Callback):
    stage = 'erase'
    reads = writes = ('x',)
    train_only = True

    def before_batch(self, learn):
        learn.xb.mul_(0.5)


class LabelsInPlace(Callback):
    "In validation alone"

    stage = 'smooth'
    writes = ('y',)

    def before_batch(self, learn):
        if not learn.training:
            learn.yb[0] = 0


class Shrinks(Callback):
    monitor = True

    def after_step(self, learn):
        for param in learn.model.parameters():
            param.data.mul_(0.5)


@pytest.mark.parametrize('kind', [InPlace, LabelsInPlace])
def test_a_batch_changed_in_place_is_proved_wrong(kind):
    with pytest.raises(AssertionError, match=f"^{kind.__name__}.before_batch changes the batch's tensors in place"):
        prove(kind, at=[(0, 0)], events=['before_batch'])


def test_a_batch_changed_in_place_is_no_declared_write():
    with pytest.raises(AssertionError, match='InPlace.before_batch changes'):
        prove_writes('InPlace', BAG | dict(InPlace=Trial(InPlace)))


def test_new_tensors_in_place_of_the_old_are_right():
    class Anew(InPlace):
        def before_batch(self, learn):
            learn.xb = (learn.xb * 0.5).add_(1)

    prove_data_kept(lambda: [Anew()])


def test_a_monitor_that_trains_is_proved_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match='^Shrinks says monitor = True, but without it the weights differ'):
        prove(Shrinks, at=[(0, 0)], events=['before_batch'])
    for monitor in (SaveBest, Recorder, TerminateOnNaN):
        prove(monitor, at=[(0, 0)], events=['before_batch'])
    assert not list(tmp_path.iterdir())  # what SaveBest writes is not left here


def test_a_monitor_writes_nothing():
    def declared():
        class Wrong(Callback):
            monitor = True
            writes = ('x',)

    one_line(declared, 'says monitor = True and writes x', exc=TypeError)


def test_declarations_of_an_object_are_looked_at():
    class Stage(Callback):
        def __init__(self):
            self.stage = 'nonsense'

    class State(Callback):
        state = ('k',)

    class Traced(Callback):
        traced = ('zz',)

    class Lost(Callback):
        writes = ('loss',)

        def after_loss(self, learn):
            learn.loss = None

    one_line(lambda: tiny_learner(Stage()), "stage is 'nonsense'", 'one of surgery', exc=TypeError)
    one_line(lambda: tiny_learner().fit(1, cbs=Stage()), "stage is 'nonsense'", exc=TypeError)
    one_line(lambda: tiny_learner(State()).save('f'), "state names 'k'", 'self.k', exc=AttributeError)
    one_line(lambda: tiny_learner(Traced()).explain(step=True), "traced names 'zz'")
    one_line(lambda: tiny_learner(Lost()).fit(1), 'learn.loss is None', 'look at Lost', exc=TypeError)


# Batches


@pytest.mark.parametrize(
    'more,says',
    [
        ((torch.rand(16),), '16 (float32), where sample numbers belong'),
        ((np.random.rand(16),), '16 (float64), where'),
        ((torch.ones(16, dtype=torch.bool),), '16 (bool), where'),
        ((torch.zeros(16, 8, 8, dtype=torch.int64),), '16 x 8 x 8 (int64), where'),
        ((torch.arange(3),), '3 (int64), where'),
        ((torch.arange(16), torch.rand(16)), 'has 4 parts'),
    ],
)
def test_a_third_part_of_a_batch_is_sample_numbers(more, says):
    learn = tiny_learner(dls=DataLoaders([(x, y, *more)]), model=net())
    one_line(lambda: learn.fit(1), says, 'WeightedRandomSampler', exc=TypeError)
    assert learn.step == 0


@pytest.mark.parametrize('third', [torch.arange(16), ['path'] * 16, np.array(['path'] * 16), None])
def test_sample_numbers_and_paths_train(third):
    assert tiny_learner(dls=DataLoaders([(x, y, third)]), model=net()).fit(1).step == 1


def test_targets_and_images_that_are_swapped():
    for swapped in ((y, x), (F.one_hot(y).float(), x)):
        one_line(lambda: tiny_learner(dls=DataLoaders([swapped]), model=net()).fit(1), 'swapped', '(images, targets)')


@pytest.mark.parametrize('metrics', [None, accuracy])
@pytest.mark.parametrize(
    'y,n_out,says',
    [
        (y[:, None], 3, 'y.squeeze(1)'),
        (y.float(), 3, '.long()'),
        (F.one_hot(y, 3), 3, 'one class a row; write y.argmax(1)'),
        (F.one_hot(y, 3) + F.one_hot(y * 0, 3), 3, 'several labels'),
        (y, 1, 'n_out=2'),
        (y + 1, 3, 'class index 3'),
        (y * 0, 1, 'softmax of it, which is always 1'),
        ((y * 0 + 1.0)[:, None], 1, 'softmax of it, which is always 1'),
    ],
)
def test_metrics_do_not_hide_what_is_wrong_with_targets(y, n_out, says, metrics):
    learn = learner(y, n_out, metrics=metrics)
    with pytest.raises(ValueError) as e:
        learn.fit(1)
    check_line(e.value, 'Learner: ', says)
    assert learn.step == 0


def test_a_metric_that_fails_on_right_targets_is_named_itself():
    many = (torch.rand(16, 3) > 0.5).float()
    loss = nn.BCEWithLogitsLoss()
    one_line(lambda: learner(many, metrics=accuracy, loss_func=loss).fit(1), 'accuracy: ', 'threshold=0.')
    metric = partial(accuracy, threshold=0.0)
    assert learner(many, metrics=metric, loss_func=loss).fit(1).step == 1


def test_labels_that_are_all_ignored():
    one_line(lambda: learner(y * 0 - 100).fit(1), 'fit: ', 'ignores the labels of all 1 batches of epoch 0 (-100)')
    some = DataLoaders([(x, y * 0 - 100), (x, y)])
    assert tiny_learner(dls=some, model=net()).fit(1).step == 2


def test_validation_without_targets():
    learn = learner()
    one_line(lambda: learn.validate(learn.dls.test_dl([x[0]])), 'without targets', 'get_preds')
    assert learn.get_preds(learn.dls.test_dl([x[0]]))[0].shape == (1, 3)


# Predictions


@pytest.mark.parametrize('n', [1, 2])
def test_numbers_have_no_class(n):
    learn = learner(torch.rand(16, n), n, loss_func=nn.MSELoss()).fit(1)
    one_line(lambda: learn.predict(x[0]), 'predict: MSELoss', 'get_preds')
    assert learn.predict(x[0], act=torch.sigmoid)[1] in range(2)
    learn.dls.vocab = ['a', 'b']
    assert n == 1 or learn.predict(x[0])[0] in 'ab'


def test_several_labels_have_no_single_class():
    learn = learner(F.one_hot(y, 3).float(), loss_func=nn.BCEWithLogitsLoss())
    with pytest.warns(UserWarning, match='^predict: the loss takes a sigmoid'):
        learn.predict(x[0])


@pytest.mark.parametrize(
    'item,says',
    [
        ('a.jpg', 'got a str'),
        (['a.jpg'], 'got a list'),
        (None, 'got None'),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), 'permute(2, 0, 1)'),
    ],
)
def test_predict_and_test_dl_with_loaders_of_tensors(item, says):
    learn = tiny_learner(dls=DataLoaders([(x, y)], None), model=net())
    one_line(lambda: learn.predict(item), 'predict: ', says, exc=(TypeError, ValueError))
    one_line(lambda: learn.dls.test_dl([item]), 'test_dl: ', says, exc=(TypeError, ValueError))
    for items in ('a.jpg', None):
        one_line(lambda: learn.dls.test_dl(items), 'test_dl: takes a list', exc=TypeError)


def test_images_that_are_none(tmp_path):
    folder = class_folders(tmp_path)
    dls = DataLoaders.from_folder(folder, size=16, bs=4)
    learn = tiny_learner(dls=dls, model=cnn())
    some = str(folder / 'train')
    one_line(lambda: learn.predict(some), 'is a folder', f'find_images({some!r})', exc=TypeError)
    one_line(lambda: dls.test_dl(some), 'got a folder', f'find_images({some!r})', exc=TypeError)
    one_line(lambda: dls.test_dl('a.jpg'), "write ['a.jpg']", exc=TypeError)
    for item, says in (
        ('https://a.org/b.jpg', 'is an address, not a file; download it'),
        ('b.jpg', 'no such file'),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), 'permute(2, 0, 1)'),
    ):
        with pytest.raises(ValueError) as e:
            learn.predict(item)
        assert says in str(e.value)
    with pytest.raises(ValueError) as e:
        learn.get_preds(dls.test_dl([some]))
    assert 'find_images' in str(e.value) and 'remove' not in str(e.value)
    one_line(lambda: tiny_learner(dls=dls, model=cnn(n_in=1)).fit(1), 'build the model for 3 channels')


def test_an_output_without_a_name(tmp_path):
    learn = tiny_learner(dls=DataLoaders.from_folder(class_folders(tmp_path), size=16, bs=4), model=cnn(5))
    learn.model[-1].bias.data[4] = 99
    assert learn.predict(Image.new('RGB', (9, 9)))[:2] == ('output 4', 4)


def test_bad_files_of_a_folder(tmp_path):
    files = image_files(tmp_path, 2)
    (tmp_path / 'bad.jpg').write_bytes(b'none')
    ((path, message),) = find_bad(tmp_path)
    assert path.endswith('bad.jpg') and 'find_bad(folder)' in message
    one_line(lambda: find_bad(files[0]), 'a list of paths or a folder', exc=TypeError)


# Numbers from 0 to 255


@pytest.mark.parametrize('mean,std', [((127, 127, 127), (0.2, 0.2, 0.2)), ((0.5,), (50,))])
def test_mean_and_deviation_are_of_values_up_to_1(mean, std, tmp_path):
    one_line(lambda: Normalize(mean, std), 'Normalize: ', 'divide them by 255')
    one_line(lambda: DataLoaders.from_folder(class_folders(tmp_path), mean=mean, std=std), 'divide them by 255')
    from trickbag.vision.preprocess import ImageSpec

    one_line(lambda: ImageSpec(mean=mean, std=std), 'ImageSpec: ', 'divide them by 255')
    assert Normalize((0.0,), (1.0,)).mean == (0.0,)


def test_lighting_with_one_deviation_for_all_channels():
    def after(std):
        return tiny_learner(PCALighting(0.5, std=std)).fit(1).history[-1]['train_loss']

    assert after((0.5,)) == after((0.5, 0.5, 0.5))
    one_line(lambda: PCALighting(std=(0.5, 0.5)), 'std is a value a channel, 3 or one for all, got 2')
    uint8 = (x * 50 + 100).clamp(0, 255).byte()
    dls = DataLoaders([(uint8, y)], cbs=[Normalize((0.5,), (0.5,))])
    assert tiny_learner(PCALighting(), dls, net()).fit(1).step == 1


def test_a_file_to_resume_that_is_named_from_another_folder(tmp_path, monkeypatch):
    "It would not be found, and the run would start anew over it"
    monkeypatch.chdir(tmp_path)
    tiny_learner([Checkpoint(file='last')], path='run').fit(2)
    with pytest.raises(ValueError, match='relative to learn.path .*is last.pt from there'):
        tiny_learner([Checkpoint(file='last')], path='run').fit(2, resume='run/last.pt')
    with pytest.raises(ValueError, match='is last from there'):
        tiny_learner([Checkpoint(file='last')], path='run').fit(2, resume=Path('run/last'))
    # of v1.2 the 2 is no suffix
    tiny_learner([Checkpoint(file='v1.2')], path='run').fit(2)
    with pytest.raises(ValueError, match='relative to learn.path'):
        tiny_learner([Checkpoint(file='v1.2')], path='run').fit(2, resume='run/v1.2')


def test_the_home_folder_in_names_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    learn = tiny_learner([Checkpoint(file='last.pt')], path='~/runs').fit(2)
    assert learn.path == tmp_path / 'runs' and (tmp_path / 'runs' / 'last.pt').is_file()
    again = tiny_learner([Checkpoint(file='last.pt')], path=tmp_path / 'runs').fit(2, resume='~/runs/last.pt')
    assert again.epochs_run == 2 and again.history == learn.history
