"""What becomes of files that are damaged or made to do harm: 1,000 images and 300 files of weights, runs and archives.

    python -m tests.bench.fuzz [--only KIND] [--images 1000] [--files 75] [--seed 0] [--json FILE]
    python -m tests.bench.fuzz --table

Each file is made by a seeded change of a good one (bits flipped, bytes overwritten, put in, taken out or moved, cut,
numbers of the header replaced) and read in a process of its own. Right is: what an independent reader makes of the same
bytes (Pillow for images; of a file with checksums, what was written), or one error that names the file. Wrong is
anything else: other pixels, other weights, another error, a process that dies or takes more than 20 s, a file outside
the folder, code that runs. One JSON line a kind."""

import argparse
import io
import json
import multiprocessing
import pickle
import random
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from trickbag.all import ImageError, Learner, decode
from trickbag.core.plain_files import DamagedFile, content_digest, read_file, read_weights, write_weights
from trickbag.data.download import DownloadError, _unpack
from trickbag.testing.proofs import tiny_learner

RESULTS = Path(__file__).parent / 'results' / 'fuzz.jsonl'
LIMIT = 20  # seconds for one file
SIDE = 48  # pixels of the square that images are squashed to
NEAR = 4.0  # mean difference in levels that another decoder's rounding and reduction may make of an intact image


def photograph(width, height, rng) -> Image.Image:
    "Shapes and noise, so that all parts of a file matter"
    x = np.linspace(0, 6, width)[None, :, None] + np.linspace(0, 4, height)[:, None, None]
    pixels = 127 + 90 * np.sin(x + np.arange(3)) + rng.normal(0, 9, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def image_files() -> dict:  # name -> bytes
    "Good images of the usual kinds"
    rng = np.random.default_rng(0)
    picture = photograph(97, 64, rng)
    large = photograph(330, 240, rng)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 257)
    made = dict(
        jpeg=(picture, 'JPEG', dict(quality=88)),
        large_jpeg=(large, 'JPEG', dict(quality=80)),
        progressive=(picture, 'JPEG', dict(progressive=True)),
        gray_jpeg=(picture.convert('L'), 'JPEG', {}),
        cmyk_jpeg=(picture.convert('CMYK'), 'JPEG', {}),
        turned_jpeg=(picture, 'JPEG', dict(exif=turned)),
        png=(picture, 'PNG', {}),
        alpha_png=(picture.convert('RGBA'), 'PNG', {}),
        palette_png=(picture.convert('P'), 'PNG', {}),
        deep_png=(deep, 'PNG', {}),
        gif=(picture, 'GIF', {}),
        bmp=(picture, 'BMP', {}),
        webp=(picture, 'WEBP', {}),
        tiff=(picture, 'TIFF', dict(compression='tiff_lzw')),
        ppm=(picture, 'PPM', {}),
    )
    found = {}
    for name, (image, form, options) in made.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        found[name] = file.getvalue()
    return found


def changed(data: bytes, rng: random.Random) -> bytes:
    "A file with one to three changes"
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(CHANGES)(bytearray(data), rng)
    return bytes(data)


def _flip(data, rng):
    for _ in range(rng.choice((1, 1, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _overwrite(data, rng):
    start = rng.randrange(len(data))
    n = min(rng.choice((1, 4, 64)), len(data) - start)
    data[start : start + n] = rng.choice((bytes(n), b'\xff' * n, rng.randbytes(n)))
    return data


def _cut(data, rng):
    return data[: rng.randrange(1, len(data))]


def _take_out(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 16, 300)) :] or b'\0'


def _put_in(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice((1, 16, 300))) + data[start:]


def _move(data, rng):
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _header(data, rng):
    "Lengths and sizes stand at the beginning"
    start = rng.randrange(min(64, len(data)))
    number = rng.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    written = number.to_bytes(4, rng.choice(('little', 'big')))
    return (data[:start] + written + data[start + 4 :])[: max(len(data), 1)]


CHANGES = (_flip, _overwrite, _cut, _take_out, _put_in, _move, _header)


def pillow_says(data: bytes, reduced: int = 1) -> tuple:
    "Pixels of the square and size of a plain use of Pillow, which reads a JPEG at a half, a fourth or an eighth, too"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with Image.open(io.BytesIO(data)) as im:
            size = im.size
            im.draft('RGB', (size[0] // reduced, size[1] // reduced))
            im.load()
            im = ImageOps.exif_transpose(im)
            if im.mode.startswith('I'):
                im = Image.fromarray((np.asarray(im).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            pixels = im.convert('RGB')
    return np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(float), pixels.size


def read_image(data: bytes, place: Path) -> str:
    "How an image ends"
    file = place / 'image'
    file.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            pixels, size = decode(file, SIDE)
    except ImageError as e:
        return 'refused' if str(file) in str(e) and '\n' not in str(e) else f'WRONG: error without the file: {e}'
    try:
        expected, expected_size = pillow_says(data)
    except Exception as e:
        return f'WRONG: decoded, although Pillow says {type(e).__name__}: {e}'
    if tuple(size) != expected_size:
        return f'WRONG: {tuple(size)}, Pillow has {expected_size}'
    # what a decoder makes of a damaged block differs with the scale at which it reads it
    others = [pillow_says(data, reduced)[0] for reduced in (2, 4, 8)]
    difference = min(float(np.abs(pixels.numpy().astype(float) - other).mean()) for other in (expected, *others))
    return 'as Pillow' if difference <= NEAR else f'WRONG: {difference:.1f} levels from Pillow'


class Harm:
    "Would write a file if it were unpickled"

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), 'w')


def good_learner(place) -> Learner:
    return tiny_learner(path=place).fit(1)


def checkpoint_file(place: Path) -> bytes:
    good_learner(place).save('good.pt')
    return (place / 'good.pt').read_bytes()


def read_checkpoint(data: bytes, place: Path, truth: str) -> str:
    "How a file of a run ends; a learner that refuses one is as before"
    file = place / 'run.pt'
    file.write_bytes(data)
    learn = tiny_learner(path=place)
    before = content_digest(learn.model.state_dict())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content = content_digest(read_file(file))
            learn.load('run.pt')
    except DamagedFile as e:
        if content_digest(learn.model.state_dict()) != before:
            return 'WRONG: refused, and the learner has changed'
        return 'refused' if str(file) in str(e) and '\n' not in str(e) else f'WRONG: error without the file: {e}'
    return 'as written' if content == truth else 'WRONG: other content'


def weights_file(place: Path) -> bytes:
    file = place / 'good.safetensors'
    write_weights(good_learner(place).model.state_dict(), file, ['a', 'b', 'c', 'd'])
    return file.read_bytes()


def read_weights_file(data: bytes, place: Path, truth: str) -> str:
    file = place / 'w.safetensors'
    file.write_bytes(data)
    try:
        state, vocab = read_weights(file)
    except DamagedFile as e:
        return 'refused' if str(file) in str(e) and '\n' not in str(e) else f'WRONG: error without the file: {e}'
    return 'as written' if content_digest(state) == truth else 'WRONG: other weights'


def archive_file(place: Path, form: str) -> bytes:
    "Two classes of three images"
    folder = place / 'set'
    rng = np.random.default_rng(1)
    for i in range(6):
        file = folder / 'ab'[i % 2] / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph(24, 20, rng).save(file)
    archive = place / f'good.{form}'
    if form == 'zip':
        with zipfile.ZipFile(archive, 'w') as z:
            for file in sorted(folder.rglob('*.png')):
                z.write(file, file.relative_to(place))
    else:
        with tarfile.open(archive, 'w:gz') as tar:
            tar.add(folder, 'set')
    return archive.read_bytes()


def read_archive(data: bytes, place: Path, truth: set) -> str:
    "How an archive ends: unpacked within its folder, each file one of those that were packed, or refused"
    archive = place / 'archive'
    archive.write_bytes(data)
    inside = place / 'inside' / 'deep'
    inside.mkdir(parents=True)
    before = {file for file in place.rglob('*')}
    ended = 'refused'
    try:
        _unpack(archive, inside)
    # `untar_data` takes every error for damage, and loads the archive once more
    except Exception:
        shutil.rmtree(inside)
    else:
        other = [file for file in inside.rglob('*') if file.is_file() and file.read_bytes() not in truth]
        ended = f'WRONG: {other[0]} is another file' if other else 'as written'
    outside = [file for file in {*place.rglob('*')} - before if not file.is_relative_to(inside)]
    return f'WRONG: {outside[0]} was written' if outside else ended


def in_own_process(work, *args) -> str:
    "What `work` returns, or how its process ended"
    context = multiprocessing.get_context('fork')
    mine, theirs = context.Pipe(duplex=False)

    def run():
        try:
            text = work(*args)
        except BaseException as e:
            text = f'WRONG: {type(e).__name__}: {e}'
        theirs.send(text)
        theirs.close()

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        text = mine.recv() if mine.poll(LIMIT) else f'WRONG: no end within {LIMIT} s'
    except EOFError:
        process.join()
        text = f'WRONG: the process died ({process.exitcode})'
    process.kill()
    process.join()
    return text


def trial(kind, name, good, work, rng, n, *args) -> dict:
    "Counts of how `n` changed files ended"
    ends = {}
    wrong = []
    start = time.perf_counter()
    for i in range(n):
        data = changed(good, rng)
        with tempfile.TemporaryDirectory() as folder:
            text = in_own_process(work, data, Path(folder), *args)
        end = 'WRONG' if text.startswith('WRONG') else text
        ends[end] = ends.get(end, 0) + 1
        if end == 'WRONG':
            wrong.append(f'{name} {i}: {text[7:300]}')
    return dict(kind=kind, name=name, n=n, ends=ends, wrong=wrong, seconds=round(time.perf_counter() - start, 1))


def harmful() -> dict:
    "Files that would run code or write elsewhere, each refused, and nothing done"
    wrong = []
    n = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        trace = place / 'trace'
        torch.save(dict(model=Harm(trace)), place / 'harm.pt')
        (place / 'plain.pt').write_bytes(pickle.dumps(Harm(trace)))
        for file in ('harm.pt', 'plain.pt'):
            n += 1
            try:
                tiny_learner(path=place).load(file)
                wrong.append(f'{file} was loaded')
            except DamagedFile:
                pass
            if trace.exists():
                wrong.append(f'{file} ran its code')
        for name, link in (('../out', None), ('/tmp/out of fuzz', None), ('in', '../../out'), ('in', '/etc/passwd')):
            n += 1
            member = tarfile.TarInfo(name)
            if link:
                member.type = tarfile.SYMTYPE
                member.linkname = link
            with tarfile.open(place / 'harm.tar', 'w') as tar:
                tar.addfile(member, io.BytesIO())
            inside = place / 'inside'
            inside.mkdir(exist_ok=True)
            try:
                _unpack(place / 'harm.tar', inside)
                wrong.append(f'an archive with {name!r} -> {link!r} was unpacked')
            except DownloadError:
                pass
        # 16 million pixels of nothing in a few kB, and 400 million, which Pillow calls a bomb
        for side, is_fine in ((4000, True), (20000, False)):
            n += 1
            Image.new('1', (side, side)).save(place / 'bomb.png')
            try:
                decode(place / 'bomb.png', 32)
                ended = True
            except ImageError:
                ended = False
            if ended != is_fine:
                wrong.append(f'a PNG of {side} x {side} pixels was {"decoded" if ended else "refused"}')
    return dict(kind='harmful', name='harmful', n=n, ends={'refused or fine': n - len(wrong)}, wrong=wrong, seconds=0)


def write(row, file):
    print(json.dumps(row), flush=True)
    if file:
        with open(file, 'a') as f:
            f.write(json.dumps(row) + '\n')


def run(a):
    rng = random.Random(a.seed)
    torch.set_num_threads(1)
    rows = []

    def done(row):
        rows.append(row)
        write(row, a.json)

    if a.only in (None, 'images'):
        good = image_files()
        for i, (name, data) in enumerate(good.items()):
            n = a.images // len(good) + (i < a.images % len(good))
            done(trial('image', name, data, read_image, rng, n))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if a.only in (None, 'runs'):
            data = checkpoint_file(place)
            truth = content_digest(read_file(place / 'good.pt'))
            done(trial('run', 'checkpoint', data, read_checkpoint, rng, a.files, truth))
        if a.only in (None, 'weights'):
            data = weights_file(place)
            truth = content_digest(read_weights(place / 'good.safetensors')[0])
            done(trial('weights', 'safetensors', data, read_weights_file, rng, a.files, truth))
        if a.only in (None, 'archives'):
            for form in ('tgz', 'zip'):
                data = archive_file(place, form)
                packed = {file.read_bytes() for file in (place / 'set').rglob('*.png')}
                done(trial('archive', form, data, read_archive, rng, a.files, packed))
    if a.only in (None, 'harmful'):
        done(harmful())
    wrong = [text for row in rows for text in row['wrong']]
    print(f"{sum(row['n'] for row in rows)} files, {len(wrong)} wrong")
    return bool(wrong)


def table():
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    for row in rows:
        ends = ', '.join(f'{n} {end}' for end, n in sorted(row['ends'].items()))
        print(f"{row['kind']:9s} {row['name']:12s} {row['n']:5d}  {ends}")
    print(f"{sum(row['n'] for row in rows)} files, {sum(len(row['wrong']) for row in rows)} wrong")


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('images', 'runs', 'weights', 'archives', 'harmful'))
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--files', type=int, default=75)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--table', action='store_true')
    arguments = parser.parse_args()
    sys.exit(table() if arguments.table else run(arguments))
