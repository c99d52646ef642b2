"""A store on disk that is broken, outdated or not writable is made anew, or done without, with one warning; `trickbag
cache` survives all of it."""

import json
import os
import shutil
import warnings

import PIL
import pytest
import torch
from PIL import Image

from trickbag.cli import main
from trickbag.data import decode as decoding
from trickbag.data.decode import decode
from trickbag.data.sources import FileSource
from trickbag.data.store import Store, cache_dir, cached_sets, clear_cache

N = 5
P = 8
ALL = torch.arange(5)


class Counted(FileSource):
    n = 0

    def get(self, i, P):
        self.n += 1
        return super().get(i, P)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'images').mkdir()
    paths = [tmp_path / 'images' / f'{i}.png' for i in range(N)]
    for i, f in enumerate(paths):
        Image.new('RGB', (10 + i, 9), (40 * i, 200 - 30 * i, 7)).save(f)
    return paths


def opened(files):
    "A store, how many warnings its opening and first batch gave, and how many images it decoded; its pixels are right"
    source = Counted(files)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        store = Store(source, P, 'disk')
        x = store.submit(ALL)()
    want = torch.stack([decode(f, P)[0] for f in files]).permute(0, 3, 1, 2)
    assert (
        torch.equal(x, want)
        and torch.equal(store.submit(ALL)(), want)
        and store.wh.tolist() == [[10 + i, 9] for i in range(N)]
    )
    return store, [str(w.message) for w in said], source.n


def filled(files):
    store, said, n = opened(files)
    assert not said and n == N
    store.saved.result()
    return store.arrays.folder


def rewrite(folder, **kw):
    note = json.loads((folder / 'about.json').read_text())
    (folder / 'about.json').write_text(json.dumps({k: v for k, v in {**note, **kw}.items() if v is not None}))


def folder_instead(name):
    def damage(d):
        (d / name).unlink()
        (d / name).mkdir()

    return damage


def cut(name):
    return lambda d: os.truncate(d / name, (d / name).stat().st_size - 3)


DAMAGE = dict(
    about_empty=lambda d: (d / 'about.json').write_text(''),
    about_no_json=lambda d: (d / 'about.json').write_text('{"n": 5'),
    about_list=lambda d: (d / 'about.json').write_text('[1, 2]'),
    about_number=lambda d: (d / 'about.json').write_text('3'),
    about_binary=lambda d: (d / 'about.json').write_bytes(bytes(range(128, 256))),
    about_deep=lambda d: (d / 'about.json').write_text('[' * 100_000),
    about_lost=lambda d: (d / 'about.json').unlink(),
    about_folder=folder_instead('about.json'),
    about_no_n=lambda d: rewrite(d, n=None),
    about_n_text=lambda d: rewrite(d, n='5'),
    about_other_n=lambda d: rewrite(d, n=4),
    about_n_negative=lambda d: rewrite(d, n=-1),
    about_other_P=lambda d: rewrite(d, P=16),
    about_no_first=lambda d: rewrite(d, first=None),
    about_first_number=lambda d: rewrite(d, first=1),
    format_lost=lambda d: rewrite(d, format=None),
    format_old=lambda d: rewrite(d, format=1),
    format_new=lambda d: rewrite(d, format=99),
    decoder_lost=lambda d: rewrite(d, decoder=None),
    decoder_text=lambda d: rewrite(d, decoder='pillow'),
    decoder_other=lambda d: rewrite(d, decoder=dict(decoding.decoder_versions(), pillow='0.1')),
    index_cut=cut('index'),
    index_empty=lambda d: os.truncate(d / 'index', 0),
    index_lost=lambda d: (d / 'index').unlink(),
    index_folder=folder_instead('index'),
    pixels_cut=cut('pixels'),
    pixels_long=lambda d: os.truncate(d / 'pixels', 10**5),
    pixels_lost=lambda d: (d / 'pixels').unlink(),
    pixels_folder=folder_instead('pixels'),
    lock_folder=folder_instead('lock'),
    only_whole=lambda d: [(d / n).unlink() for n in ('about.json', 'index', 'pixels')],
    a_file=lambda d: (shutil.rmtree(d), d.write_text('x')),
    restarted=lambda d: ((d / 'whole').unlink(), rewrite(d, boot='another')),
)


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_broken_set_is_made_anew_with_one_warning(kind, files, capsys):
    folder = filled(files)
    DAMAGE[kind](folder)
    main(['cache'])  # before it is mended
    assert 'sets of decoded images' in capsys.readouterr().out.replace('set of', 'sets of')
    store, said, n = opened(files)
    assert len(said) == 1 and str(folder) in said[0] and said[0].endswith('decoded anew') and n == N, said
    store.saved.result()
    assert opened(files)[1:] == ([], 0)  # and is whole again
    assert sorted(f.name for f in folder.iterdir()) == ['about.json', 'index', 'lock', 'pixels', 'whole']
    assert [f.name for f in cache_dir().iterdir()] == [folder.name]  # nothing left of the old one


@pytest.mark.parametrize('kind', [k for k in DAMAGE if k != 'a_file'])
def test_a_broken_set_can_be_listed_and_cleared(kind, files, capsys):
    folder = filled(files)
    DAMAGE[kind](folder)
    (row,) = cached_sets()
    assert row['name'] == folder.name and (row['broken'] is None) == (
        kind.split('_')[0] in ('format', 'decoder', 'restarted', 'lock')
    ), row
    main(['cache', '--clear', folder.name])
    assert cached_sets() == [] and not list(cache_dir().iterdir())
    capsys.readouterr()


def test_a_lost_index_while_another_process_has_it(files):
    "The one that has it goes on with what it has open"
    a = opened(files)[0]
    (a.arrays.folder / 'about.json').unlink()
    b, said, n = opened(files)
    assert n == N and len(said) == 1 and a.arrays.folder == b.arrays.folder
    assert torch.equal(a.submit(ALL)(), b.submit(ALL)())


@pytest.mark.parametrize('what', ['pillow', 'torchvision', 'rules'])
def test_another_decoder_decodes_anew_and_says_which(what, files, monkeypatch):
    import torchvision

    filled(files)
    if what == 'pillow':
        monkeypatch.setattr(PIL, '__version__', '0.9')
    if what == 'torchvision':
        monkeypatch.setattr(torchvision, '__version__', '0.9')
    if what == 'rules':
        monkeypatch.setattr(decoding, 'DECODE_RULES', 0.9)
    _, said, n = opened(files)
    assert n == N and len(said) == 1 and f'{what} ' in said[0] and 'now 0.9' in said[0]
    assert opened(files)[1:] == ([], 0)


def test_the_same_package_for_another_device_is_the_same_decoder(files, monkeypatch):
    filled(files)
    monkeypatch.setattr(torch, '__version__', torch.__version__.split('+')[0] + '+rocm7')
    assert opened(files)[1:] == ([], 0)


@pytest.mark.parametrize('replace', [shutil.copyfile, os.replace], ids=['in place', 'moved there'])
def test_a_replaced_file_of_the_same_size_and_date(replace, files):
    filled(files)
    f = files[1]
    new = files[1].with_name('new')
    was = os.stat(f)
    Image.new('RGB', (11, 9), 'white').save(new, 'PNG', compress_level=0)
    packed = new.read_bytes()
    Image.new('RGB', (11, 9), 'black').save(f, 'PNG', compress_level=0)
    os.utime(f, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert len(packed) == f.stat().st_size and opened(files)[1:] == ([], 1)
    os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
    replace(new, f)
    os.utime(f, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert opened(files)[1:] == ([], 1)


NO_FOLDER = dict(
    cache_is_a_file=lambda root: root.write_text('x'),
    store_is_a_file=lambda root: (root.mkdir(), (root / 'store').write_text('x')),
    link_to_nowhere=lambda root: root.symlink_to(root.parent / 'no' / 'where'),
    link_to_itself=lambda root: root.symlink_to(root),
)


@pytest.mark.parametrize('kind', NO_FOLDER)
def test_a_cache_that_cannot_be_there_is_done_without(kind, files, tmp_path, capsys):
    NO_FOLDER[kind](tmp_path / 'cache')
    store, said, n = opened(files)
    if kind != 'link_to_nowhere':
        assert store.kind == 'memory' and len(said) == 1 and 'kept in memory, for this run' in said[0] and n == N
    try:
        main(['cache'])
    except SystemExit as e:
        assert str(e).startswith('cache: ')
    capsys.readouterr()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may do anything')
@pytest.mark.parametrize('mode', [0o000, 0o500])
def test_a_cache_without_rights_is_done_without(mode, files, capsys):
    folder = filled(files)
    folder.chmod(mode)
    try:
        store, said, _ = opened(files)
        assert len(said) == 1
        main(['cache'])
    finally:
        folder.chmod(0o700) if folder.exists() else None
    capsys.readouterr()


def test_a_set_of_another_user(files, monkeypatch):
    "Its files may not be opened for writing, its folder not be moved"
    folder = filled(files)
    own = os.open

    def refuse(path, flags, *a, **kw):
        if flags & os.O_RDWR:
            raise PermissionError(13, 'Permission denied', str(path))
        return own(path, flags, *a, **kw)

    monkeypatch.setattr(os, 'open', refuse)
    store, said, n = opened(files)
    assert store.kind == 'memory' and n == N and len(said) == 1 and 'Permission denied' in said[0]
    assert [r['decoded'] for r in cached_sets()] == [0]
    with pytest.warns(UserWarning, match="cannot be removed"):
        assert clear_cache() == 0


def test_names_that_are_no_utf8_are_listed(files, capsys, tmp_path):
    f = tmp_path / 'images' / os.fsdecode(b'caf\xe9.png')
    shutil.copy(files[0], f)
    Store(FileSource([f]), P, 'disk')
    main(['cache'])
    print(capsys.readouterr().out.encode('utf-8').decode())  # would fail at a lone surrogate


def test_what_a_killed_removal_left_is_removed(files):
    filled(files)
    left = cache_dir() / '.gone-x'
    (left / 'set').mkdir(parents=True)
    (left / 'set' / 'pixels').write_bytes(bytes(10))
    assert len(cached_sets()) == 1
    clear_cache()
    assert not list(cache_dir().iterdir())
