"""What `decode` gives is what a viewer shows (Pillow's exif_transpose, and depth scaled by numpy), or an ImageError
that names the file."""

import errno
import io
import os
import random
import shutil
import signal
import socket
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from tests.helpers import start, wait_for
from trickbag.data import decode as decoding
from trickbag.data.datasets import DatasetSource
from trickbag.data.decode import ImageError, decode, find_bad, quick_check, to_rgb
from trickbag.data.jpeg import _jpeg_frame
from trickbag.data.sources import FileSource

SIDE = 24
# no two corners alike: each turn of it is another picture
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) ** 1.3
COLORS = np.stack([RAMP, RAMP.T, np.full_like(RAMP, 0.4)], -1)


def bytes_of(values):
    return (values * 255).round().astype(np.uint8)


def picture(mode):
    "A square picture in a mode of Pillow's, and what it looks like as 8-bit RGB before it is turned"
    sixteen = (RAMP * 65535).round().astype(np.uint16)
    if mode in ('I;16', 'I;16B'):
        return Image.frombytes(
            mode, (SIDE, SIDE), sixteen.astype('<u2' if mode == 'I;16' else '>u2').tobytes()
        ), gray_rgb(sixteen >> 8)
    if mode == 'I':
        return Image.fromarray(sixteen.astype(np.int32)), gray_rgb(sixteen >> 8)
    if mode == 'I 0..255':
        return Image.fromarray(bytes_of(RAMP).astype(np.int32)), gray_rgb(bytes_of(RAMP))
    if mode == 'F 0..1':
        return Image.fromarray(RAMP.astype(np.float32)), gray_rgb(bytes_of(RAMP))
    if mode == 'F 0..255':
        return Image.fromarray(bytes_of(RAMP).astype(np.float32)), gray_rgb(bytes_of(RAMP))
    im = Image.fromarray(bytes_of(COLORS)).convert(mode)
    if mode in ('RGBA', 'LA'):
        im.putalpha(Image.fromarray(bytes_of(RAMP.T)))
    if mode in ('L', 'LA'):
        return im, gray_rgb(np.asarray(im.getchannel(0)))
    if mode == '1':
        return im, gray_rgb(np.asarray(im).astype(np.uint8) * 255)
    if mode in ('RGB', 'RGBA'):
        return im, np.asarray(im)[..., :3]
    if mode == 'P':
        return im, np.array(im.getpalette()).reshape(-1, 3)[np.asarray(im)]
    if mode == 'CMYK':
        return im, 255 - np.asarray(im)[..., :3]  # with no black, as Pillow makes it
    return im, np.asarray(im.convert('RGB'))  # YCbCr, LAB, HSV: their own arithmetic is Pillow's


def gray_rgb(gray):
    return np.stack([gray] * 3, -1)


# format, modes that it stores, and how far off the pixels may be: what is lossy is compared with a file of the same
# quality
TABLE = [
    ('PNG', ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'), 0),
    (
        'TIFF',
        (
            '1',
            'L',
            'LA',
            'P',
            'RGB',
            'RGBA',
            'CMYK',
            'YCbCr',
            'LAB',
            'I;16',
            'I;16B',
            'I',
            'I 0..255',
            'F 0..1',
            'F 0..255',
        ),
        0,
    ),
    ('JPEG', ('L', 'RGB', 'CMYK'), 12),
    ('WEBP', ('RGB', 'RGBA'), 0),
    ('MPO', ('RGB',), 12),
]
CASES = [(fmt, mode, near) for fmt, modes, near in TABLE for mode in modes]
OPTIONS = dict(
    WEBP=dict(lossless=True, exact=True), JPEG=dict(quality=100, subsampling=0), MPO=dict(quality=100, subsampling=0)
)


@pytest.mark.parametrize('fmt,mode,near', CASES, ids=[f'{f}-{m}' for f, m, _ in CASES])
def test_modes_formats_and_rotation_marks(fmt, mode, near, tmp_path):
    im, plain = picture(mode)
    for mark in range(10):
        exif = Image.Exif()
        exif[0x112] = mark
        f = tmp_path / f'{mark}.jpg'  # the content counts, not the name
        im.save(f, fmt, exif=exif, **OPTIONS.get(fmt, {}))
        # the right picture, turned by Pillow as a plain array of bytes
        carrier = Image.fromarray(np.ascontiguousarray(plain).astype(np.uint8))
        carrier.getexif()[0x112] = mark
        want = np.asarray(ImageOps.exif_transpose(carrier)).astype(int)
        got, size = decode(f, SIDE)
        assert np.abs(got.numpy().astype(int) - want).max() <= near, (fmt, mode, mark)
        assert size == (SIDE, SIDE)
        # opened by Pillow first, and copies of that
        opened = Image.open(f)
        assert torch.equal(decode(opened, SIDE)[0], decode(opened.copy(), SIDE)[0])
        assert np.abs(decode(opened, SIDE)[0].numpy().astype(int) - want).max() <= near, (fmt, mode, mark)


@pytest.mark.parametrize('depth', ['I;16', 'I;16B', 'I;16L', 'I;16N'])
def test_16_bits_in_any_byte_order(depth):
    values = (RAMP * 65535).astype('>u2' if depth[-1] == 'B' else '<u2')
    assert np.array_equal(
        np.asarray(to_rgb(Image.frombytes(depth, (SIDE, SIDE), values.tobytes())))[..., 0], values >> 8
    )


@pytest.mark.parametrize('mode', ['La', 'RGBa', 'RGBX', 'PA', 'HSV'])
def test_modes_that_no_file_holds(mode):
    im = (
        Image.fromarray(bytes_of(COLORS))
        .convert('RGBA' if mode == 'RGBa' else 'LA' if mode == 'La' else 'RGB')
        .convert(mode)
    )
    want = np.asarray(
        Image.fromarray(bytes_of(COLORS))
        .convert('L' if mode == 'La' else 'P' if mode == 'PA' else 'RGB')
        .convert('RGB')
    ).astype(int)
    assert np.abs(decode(im, SIDE)[0].numpy() - want).max() <= (8 if mode == 'HSV' else 1)


def tiff(values, photometric, bits, sample=1, order='>'):
    "A plain TIFF, written by hand"
    d = values.tobytes()
    tags = [
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 134),
        (277, 3, 1),
        (278, 4, SIDE),
        (279, 4, len(d)),
        (339, 3, sample),
    ]

    def entry(t, kind, v):
        return struct.pack(order + 'HHI', t, kind, 1) + (
            struct.pack(order + 'HH', v, 0) if kind == 3 else struct.pack(order + 'I', v)
        )

    head = (b'MM' if order == '>' else b'II') + struct.pack(order + 'HIH', 42, 8, len(tags))
    return head + b''.join(entry(*t) for t in tags) + bytes(4) + d


@pytest.mark.parametrize('order', '<>')
def test_tiffs_in_which_0_is_white_or_white_has_12_bits(order, tmp_path):
    f = tmp_path / 'a.tif'
    values = (RAMP * 65535).astype(order + 'u2')
    f.write_bytes(tiff(values, 0, 16, order=order))
    if order == '<':  # Pillow reads only the little-endian one
        assert np.array_equal(decode(f, SIDE)[0][..., 0].numpy(), 255 - (values >> 8))
        twelve = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
        a = twelve[:, 0]
        b = twelve[:, 1]
        packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8)
        f.write_bytes(tiff(packed, 1, 12, order='<'))
        assert np.array_equal(decode(f, SIDE)[0][..., 0].numpy().ravel(), twelve.ravel() >> 4)
    else:
        with pytest.raises(ImageError, match=r'a\.tif: '):
            decode(f, SIDE)
    f.write_bytes(tiff(RAMP.astype(order + 'f4'), 0, 32, sample=3, order=order))
    assert np.abs(decode(f, SIDE)[0][..., 0].numpy().astype(int) - (255 - bytes_of(RAMP))).max() <= 1


UNKNOWN = dict(
    negative=RAMP - 0.5,
    large=RAMP * 1000,
    nan=np.where(RAMP > 0.5, np.nan, RAMP),
    inf=np.where(RAMP > 0.5, np.inf, RAMP),
)


@pytest.mark.parametrize('kind', UNKNOWN)
def test_floats_that_do_not_say_what_is_white_are_refused(kind, tmp_path):
    Image.fromarray(UNKNOWN[kind].astype(np.float32)).save(tmp_path / 'a.tif')
    with pytest.raises(ImageError, match=r'a\.tif: .*say it: levels='):
        decode(tmp_path / 'a.tif', 8)
    with pytest.raises(ImageError, match=r'say it: levels='):
        decode(UNKNOWN[kind], 8)
    assert len(find_bad([tmp_path / 'a.tif'])) == 1


def test_whole_numbers_that_do_not_say_what_is_white_are_refused(tmp_path):
    for values in (RAMP * 70000, RAMP * 65535 - 9):
        Image.fromarray(values.astype(np.int32)).save(tmp_path / 'a.tif')
        with pytest.raises(ImageError, match=r'a\.tif: .*say it: levels='):
            decode(tmp_path / 'a.tif', 8)


def test_a_dark_pgm_of_16_bits_stays_dark(tmp_path):
    (tmp_path / 'a.pgm').write_bytes(b'P5 24 24 65535\n' + np.full((24, 24), 200, '>u2').tobytes())
    assert decode(tmp_path / 'a.pgm', 8)[0].max() == 0


# arrays and tensors

GREY = bytes_of(RAMP)
RGB = bytes_of(COLORS)
ARRAYS = dict(
    gray=(GREY, GREY),
    gray_with_a_channel=(GREY[..., None], GREY),
    color=(RGB, RGB),
    alpha=(np.dstack([RGB, GREY]), RGB),
    gray_alpha=(np.dstack([GREY, GREY]), GREY),
    flipped=(RGB[::-1, ::-1], RGB[::-1, ::-1]),
    transposed=(RGB.transpose(1, 0, 2), RGB.transpose(1, 0, 2)),
    every_other=(np.repeat(RGB, 2, 1)[:, ::2], RGB),
    bgr=(RGB[..., ::-1], RGB[..., ::-1]),
    fortran=(np.asfortranarray(RGB), RGB),
    readonly=(np.frombuffer(RGB.tobytes(), np.uint8).reshape(RGB.shape), RGB),
    bool=(RAMP > 0.5, np.where(RAMP > 0.5, 255, 0)),
    float32=(COLORS.astype(np.float32), RGB),
    float64=(COLORS, RGB),
    float16=(RAMP.astype(np.float16), GREY),
    float_255=(RGB.astype(np.float32), RGB),
    uint16=((RAMP * 65535).astype(np.uint16), (RAMP * 65535).astype(np.uint16) >> 8),
    big_endian=((COLORS * 65535).astype('>u2'), (COLORS * 65535).astype(np.uint16) >> 8),
    int64=(RGB.astype(np.int64), RGB),
    int32=((RAMP * 65535).astype(np.int32), (RAMP * 65535).astype(np.int32) >> 8),
)


@pytest.mark.parametrize('kind', ARRAYS)
def test_arrays(kind):
    a, want = ARRAYS[kind]
    if want.ndim == 2:
        want = gray_rgb(want)
    assert np.abs(decode(a, SIDE)[0].numpy().astype(int) - want).max() <= (kind == 'float16')


@pytest.mark.parametrize(
    'item',
    [
        np.float64(3),
        np.zeros((0, 5), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4), complex),
        np.full((4, 4), 'x'),
        np.full((4, 4), None),
        torch.rand(3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.int64),
        torch.zeros(3, 4, 4, dtype=torch.bool),
        torch.zeros(4, 4, 5, dtype=torch.uint8)[:, :, None],
        torch.zeros(3, 0, 4, dtype=torch.uint8),
        torch.zeros(9, 4, 4, dtype=torch.uint8),
        Image.new('RGB', (0, 4)),
        None,
        3,
        b'x',
        [1],
    ],
    ids=lambda o: type(o).__name__,
)
def test_what_is_no_image_is_refused(item):
    with pytest.raises(ImageError) as e:
        decode(item, 8)
    assert '\n' not in str(e.value)


def test_tensors():
    t = torch.from_numpy(RGB.copy())
    for x, want in (
        (t.permute(2, 0, 1), t),
        (t[..., 0], t[..., :1].expand(-1, -1, 3)),
        (t[None, ..., 0], t[..., :1].expand(-1, -1, 3)),
        (torch.cat([t, t[..., :1]], 2).permute(2, 0, 1), t),
    ):
        assert torch.equal(decode(x, SIDE)[0], want)


def test_an_item_of_a_dataset_that_cannot_be_used_is_named():
    ds = [(np.full((4, 4), i - 1.0), 0) for i in (1, 2, 0)]
    with pytest.raises(ImageError, match='item 2 of list: .*say it: levels='):
        DatasetSource(ds, labels=[0] * 3).get(2, 4)


# rotation


def upright(mark, f, size=(40, 24), **kw):
    "A picture of four colored quarters with a rotation mark, and how it is viewed"
    im = Image.new('RGB', size, 'red')
    im.paste('lime', (size[0] // 2, 0, *size))
    im.paste('blue', (0, size[1] // 2, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x112] = mark
    im.save(f, exif=exif, **kw)
    return ImageOps.exif_transpose(Image.open(f))


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF', 'JPEG', 'WEBP'])
def test_a_box_counts_in_pixels_of_the_picture_as_viewed(fmt, tmp_path):
    for mark in range(10):
        seen = upright(mark, tmp_path / 'a', format=fmt, **({'lossless': True} if fmt == 'WEBP' else {}))
        assert decode(tmp_path / 'a', 8)[1] == seen.size
        for box in ((2, 3, 20, 18), (-5, 2, 100, 21), (seen.size[0] - 8, seen.size[1] - 9, *seen.size)):
            got, wh = decode(tmp_path / 'a', 16, box)
            clipped = (max(box[0], 0), max(box[1], 0), min(box[2], seen.size[0]), min(box[3], seen.size[1]))
            want = np.asarray(seen.convert('RGB').resize((16, 16), Image.BILINEAR, clipped)).astype(int)
            assert np.abs(got.numpy() - want).mean() < (8 if fmt == 'JPEG' else 1), (fmt, mark, box)
            assert wh == (clipped[2] - clipped[0], clipped[3] - clipped[1])
        with pytest.raises(ImageError, match='lies outside'):
            decode(tmp_path / 'a', 8, (seen.size[0], 0, seen.size[0] + 9, 9))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    'how', ['exif text', 'xmp text', 'xmp jpeg', 'xmp webp', 'exif after the frame', 'lzw', 'two pages', 'xmp tiff']
)
def test_marks_in_unusual_places(how, tmp_path):
    f = tmp_path / 'a'
    im = Image.fromarray(RGB[:16])
    exif = Image.Exif()
    exif[0x112] = 6
    if how == 'exif text':
        info = PngImagePlugin.PngInfo()
        raw = exif.tobytes()
        info.add_text('Raw profile type exif', f'\nexif\n{len(raw):8}\n{raw.hex()}\n', zip=True)
        im.save(f, 'PNG', pnginfo=info)
    if how == 'xmp text':
        info = PngImagePlugin.PngInfo()
        info.add_itxt('XML:com.adobe.xmp', XMP.decode())
        im.save(f, 'PNG', pnginfo=info)
    if how == 'xmp jpeg':
        im.save(f, 'JPEG', quality=100, subsampling=0, xmp=XMP)
    if how == 'xmp webp':
        im.save(f, 'WEBP', lossless=True, xmp=XMP)
    if how == 'xmp tiff':
        im.save(f, 'TIFF', tiffinfo={700: XMP})
    if how == 'lzw':
        im.save(f, 'TIFF', compression='tiff_lzw', exif=exif)
    if how == 'two pages':
        im.save(f, 'TIFF', exif=exif, save_all=True, append_images=[im])
    if how == 'exif after the frame':
        im.save(f, 'JPEG', quality=100, subsampling=0)
        b = f.read_bytes()
        mark = b'Exif\0\0' + exif.tobytes().removeprefix(b'Exif\0\0')
        at = b.index(b'\xff\xda')
        f.write_bytes(b[:at] + b'\xff\xe1' + (len(mark) + 2).to_bytes(2, 'big') + mark + b[at:])
    want = ImageOps.exif_transpose(Image.open(f))
    assert want.size == (16, 24) and decode(f, 24)[1] == want.size
    got = decode(f, 24)[0].numpy().astype(int)
    assert np.abs(got - np.asarray(want.convert('RGB').resize((24, 24), Image.BILINEAR))).mean() < 2


def test_exif_that_cannot_be_read_is_said(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.png', exif=b'Exif\0\0nothing of the kind')
    with pytest.warns(UserWarning, match=r'a\.png: its Exif cannot be read'):
        x, _ = decode(tmp_path / 'a.png', SIDE)
    assert np.array_equal(x, RGB)


def test_first_frame_of_animations(tmp_path):
    a = Image.fromarray(RGB)
    b = Image.fromarray(RGB[::-1].copy())
    for fmt, kw in (('GIF', {}), ('WEBP', dict(lossless=True)), ('PNG', {}), ('TIFF', {})):
        a.save(tmp_path / 'a', fmt, save_all=True, append_images=[b], **kw)
        want = np.asarray(Image.open(tmp_path / 'a').convert('RGB')).astype(int)
        assert np.array_equal(decode(tmp_path / 'a', SIDE)[0], want) and np.abs(want - RGB).mean() < 9


# damage


def noisy(w, h, mode='RGB', seed=0):
    "A picture whose last pixel is not gray by itself"
    small = np.random.default_rng(seed).integers(0, 256, (h // 8 + 2, w // 8 + 2, 3), dtype=np.uint8)
    small[-1] = 255
    return Image.fromarray(small).resize((w, h), Image.BICUBIC).convert(mode)


def encoded(im, fmt='JPEG', **kw):
    s = io.BytesIO()
    im.save(s, fmt, **kw)
    return s.getvalue()


JPEGS = dict(
    plain={},
    fine=dict(quality=97, subsampling=0),
    progressive=dict(progressive=True),
    restarts=dict(restart_marker_blocks=3),
    optimized=dict(optimize=True),
)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('kind', JPEGS)
def test_a_jpeg_that_is_cut_before_its_end_mark_is_said(kind, mode, tmp_path):
    """The end of the data is cut off by something that closes the file properly, an upload for one. libjpeg and
    viewers show gray from there"""
    f = tmp_path / 'a.jpg'
    for w, h in ((96, 64), (61, 45), (16, 16)):
        whole = encoded(noisy(w, h, mode), **JPEGS[kind])
        start = whole.index(b'\xff\xda')
        for P in (16, 96):  # by Pillow at a smaller scale, and by torchvision
            f.write_bytes(whole)
            decode(f, P)
            for keep in (0.03, 0.3, 0.6, 0.9):
                if kind == 'progressive' and keep == 0.9:
                    continue  # within the last scan: the last bit of some coefficients
                if (w, h) == (16, 16) and keep > 0.5:
                    continue  # within the last block
                f.write_bytes(whole[: start + 14 + int((len(whole) - start - 16) * keep)] + b'\xff\xd9')
                with pytest.raises(
                    ImageError,
                    match=r'a\.jpg: not a readable image \((it is cut short before its '
                    r'end mark|image file is truncated)',
                ):
                    decode(f, P)
                if P == 16:
                    assert [name for name, _ in find_bad([f])] == [f]


def test_gray_pictures_are_not_taken_for_cut_ones(tmp_path):
    "Random sizes, qualities and subsamplings, all of them ending in exactly the gray that libjpeg fills with"
    r = random.Random(0)
    for i in range(60):
        im = noisy(r.randrange(1, 70), r.randrange(1, 70), seed=i)
        im.paste((128, 128, 128), (im.size[0] // 2, 0, *im.size))
        (tmp_path / 'a.jpg').write_bytes(
            encoded(
                im.convert(r.choice(['RGB', 'L', 'CMYK'])),
                quality=r.choice([20, 75, 96]),
                subsampling=r.randrange(3),
                progressive=r.random() < 0.3,
                optimize=r.random() < 0.5,
            )
        )
        for P in (8, 70):
            decode(tmp_path / 'a.jpg', P)


def test_what_follows_the_end_mark_does_not_matter(tmp_path):
    whole = encoded(noisy(40, 30))
    for more in (b'\0', b'\0' * 300, b'\xff\xd9', whole):
        (tmp_path / 'a.jpg').write_bytes(whole + more)
        assert (
            decode(tmp_path / 'a.jpg', 40)[0].int() - decode(Image.open(io.BytesIO(whole)), 40)[0].int()
        ).abs().max() <= 2


def test_cut_files_load_if_pillow_was_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = encoded(noisy(64, 64))
    for cut in (whole[: len(whole) // 2], whole[: len(whole) // 2] + b'\xff\xd9'):
        (tmp_path / 'a.jpg').write_bytes(cut)
        assert decode(tmp_path / 'a.jpg', 64)[0].shape == (64, 64, 3)


BARE = dict(
    head=b'P6 20 2x0 255\n' + bytes(1200),
    values=b'P2 20 20 255\n1 2 3',
    maxval=b'P5 4 4 70000\n' + bytes(99),
    digits=b'P5 99999999999999999999 4 255\n',
    pfm=b'Pf 4 4\n0\n' + bytes(64),
    empty=b'',
    zeros=bytes(500),
    bmp=b'BM' + bytes(12) + (999).to_bytes(4, 'little') + bytes(60),
    bmp_deep=b'BM' + bytes(12) + (40).to_bytes(4, 'little') + (4).to_bytes(4, 'little') * 2 + b'\1\0\x11\0' + bytes(60),
    gif=b'GIF89a\4\0\4\0\0\0\0,',
    tiff=b'II*\0\xff\xff\xff\x7f',
    tiff_tag=b'II*\0\x08\0\0\0\1\0\0\1\3\0',
    png=b'\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR' + bytes(17),
    webp=b'RIFF\x10\0\0\0WEBPVP8 ',
    bomb=b'P5 60000 60000 255\n',
    soi=b'\xff\xd8',
    soi_eoi=b'\xff\xd8\xff\xd9',
)


@pytest.mark.parametrize('kind', BARE)
def test_bytes_that_pillow_has_its_own_errors_for(kind, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(BARE[kind])
    with pytest.raises(ImageError, match=r'a\.jpg: .*find_bad') as e:
        decode(tmp_path / 'a.jpg', 8)
    assert '\n' not in str(e.value) and len(find_bad([tmp_path / 'a.jpg'])) == 1


@pytest.mark.parametrize(
    'error',
    [
        ValueError('v'),
        EOFError(),
        IndexError('i'),
        KeyError('k'),
        ZeroDivisionError(),
        OverflowError(),
        MemoryError(),
        RecursionError(),
        AttributeError('a'),
        NotImplementedError(),
        AssertionError(),
        Image.DecompressionBombError('b'),
        Image.DecompressionBombWarning('w'),
        UnicodeDecodeError('utf8', b'', 0, 1, 'u'),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_decoder_raises_names_the_file(error, tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / 'a.png')

    def broken(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', broken)
    with pytest.raises(ImageError, match=r'a\.png: not a readable image \(.+\)'):
        decode(tmp_path / 'a.png', 8)
    assert len(find_bad([tmp_path / 'a.png'] * 3)) == 3


def test_ctrl_c_is_no_bad_file(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / 'a.png')

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', stop)
    with pytest.raises(KeyboardInterrupt):
        decode(tmp_path / 'a.png', 8)


FUZZ = dict(
    jpeg=encoded(noisy(40, 33)),
    progressive=encoded(noisy(40, 33), progressive=True),
    cmyk=encoded(noisy(40, 33, 'CMYK')),
    png=encoded(noisy(20, 13), 'PNG'),
    palette=encoded(noisy(20, 13, 'P'), 'PNG', transparency=1),
    tiff=encoded(noisy(20, 13), 'TIFF'),
    lzw=encoded(noisy(20, 13), 'TIFF', compression='tiff_lzw'),
    float_tiff=encoded(noisy(20, 13, 'F'), 'TIFF'),
    gif=encoded(noisy(20, 13), 'GIF'),
    webp=encoded(noisy(20, 13), 'WEBP'),
    bmp=encoded(noisy(20, 13), 'BMP'),
    ppm=encoded(noisy(20, 13), 'PPM'),
    plain_pgm=b'P2 9 9 255\n' + b'100 ' * 81,
)


@pytest.mark.parametrize('kind', FUZZ)
def test_damaged_files_give_pixels_or_an_image_error(kind, tmp_path):
    "Flips, cuts, insertions and deletions; and torchvision's decoder accepts what Pillow accepts, with the same pixels"
    r = random.Random(kind)
    f = tmp_path / 'a.jpg'
    for _ in range(60):
        b = bytearray(FUZZ[kind])
        i = r.randrange(len(FUZZ[kind]))
        how = r.randrange(5)
        if how == 0:
            b[i] ^= 1 << r.randrange(8)
        if how == 1:
            b = b[:i]
        if how == 2:
            b = b[:i] + b'\xff\xd9'
        if how == 3:
            b[i : i + r.randrange(9)] = r.randbytes(r.randrange(9))
        if how == 4:
            b[i % 60] = r.randrange(256)
        f.write_bytes(b)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                x, wh = decode(f, 40)
            except ImageError as e:
                assert str(f) in str(e) and '\n' not in str(e)
                continue
            assert x.shape == (40, 40, 3) and x.dtype == torch.uint8 and min(wh) > 0
            frame = _jpeg_frame(b)
            if not decoding._by_turbo(b, frame, 40):
                continue
            y, wh2 = decoding._by_pillow(Image.open(io.BytesIO(b)), 40, None, 'a', b, frame)
            assert wh == wh2 and (x.int() - y.int()).abs().max() <= 6


def test_torchvision_does_what_pillow_does(tmp_path):
    "Of plain JPEGs of every kind"
    for i, kw in enumerate((*JPEGS.values(), dict(keep_rgb=True), dict(subsampling=1))):
        b = bytearray(encoded(noisy(61, 45), **kw))
        x, wh = decoding._by_turbo(b, _jpeg_frame(b), 61)
        assert wh == (61, 45) and (x.int() - decode(Image.open(io.BytesIO(b)), 61)[0].int()).abs().max() <= 2


# what is no file


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'loop.jpg').symlink_to(tmp_path / 'loop.jpg')
    (tmp_path / 'device.jpg').symlink_to('/dev/zero')
    (tmp_path / 'lost.jpg').symlink_to(tmp_path / 'nowhere')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / 's.jpg'))
        files = sorted(tmp_path.iterdir()) + ['a\0b.jpg', 'x' * 300]
        start = time.monotonic()
        bad = find_bad(files)
        assert [f for f, _ in bad] == files and time.monotonic() - start < 5
        for f, why in bad:
            assert str(f) in why and '\n' not in why
        for f in files:
            with pytest.raises(ImageError):
                quick_check([f])
    said = dict((Path(f).name, why) for f, why in bad)
    assert (
        'a named pipe' in said['pipe.jpg']
        and 'a folder' in said['folder.jpg']
        and 'a device' in said['device.jpg']
        and 'a socket' in said['s.jpg']
    )


SLOW = """
import time
from trickbag.data import decode as decoding


def slow(f, P):
    time.sleep(0.2)


decoding.decode = slow
print('go', flush=True)
decoding.find_bad(['x'] * 1000, 2)
"""


def test_ctrl_c_ends_find_bad(tmp_path):
    output = tmp_path / 'output'
    process = start(SLOW, output)
    wait_for('go', output, process)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    process.join(40)  # a thousand files would take 100 s
    assert not process.is_alive() and 'KeyboardInterrupt' in output.read_text()


def test_find_bad_takes_a_list(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'')
    with pytest.raises(TypeError, match='takes a list'):
        find_bad(tmp_path / 'a.jpg')
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        find_bad(tmp_path / 'b')
    assert len(find_bad([None, 3])) == 2


@pytest.mark.parametrize('P', [0, -1, 2.5, 'x', None])
def test_the_side_is_checked(P):
    with pytest.raises(ValueError, match='whole number'):
        decode(RGB, P)


@pytest.mark.parametrize(
    'box',
    [
        (1, 2, 3),
        (1, 2, 3, 4, 5),
        3,
        'abcd',
        (float('nan'), 0, 4, 4),
        (5, 5, 5, 9),
        (9, 9, 2, 2),
        (None,) * 4,
        (float('inf'),) * 4,
    ],
)
def test_boxes_are_checked(box):
    with pytest.raises(ImageError, match='box'):
        decode(RGB, 8, box)


def test_boxes_of_any_numbers():
    want = decode(RGB, 8, (2, 3, 15, 20))[0]
    for box in (np.array([2, 3, 15, 20]), torch.tensor([2.0, 3, 15, 20]), [2.0, 3.0, 15.0, 20.0]):
        assert torch.equal(decode(RGB, 8, box)[0], want)


# what is kept of a file


def test_a_stamp_changes_with_the_file(tmp_path):
    a = tmp_path / 'a.bmp'
    b = tmp_path / 'b.bmp'
    for f, color in ((a, 'red'), (b, 'blue')):
        Image.new('RGB', (8, 8), color).save(f)
    source = FileSource([a])

    def stamp():
        return source.stamp(0)

    first = stamp()
    was = os.stat(a)
    assert stamp() == first

    def restore():
        os.utime(a, ns=(was.st_atime_ns, was.st_mtime_ns))

    shutil.copy(b, a)  # as `cp -p`, `tar` and `rsync -t --inplace` do
    restore()
    second = stamp()
    shutil.copy(b, tmp_path / 'new')  # as `rsync -t` and `mv` do
    os.utime(tmp_path / 'new', ns=(was.st_atime_ns, was.st_mtime_ns))
    os.replace(tmp_path / 'new', a)
    third = stamp()
    a.write_bytes(b.read_bytes() + b'\0')
    restore()
    assert len({first, second, third, stamp()}) == 4 and all(s & 1 for s in (first, second, third))
    a.unlink()
    assert stamp() == -1


@pytest.mark.parametrize('code', [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize('call', ['open', 'read'])
def test_a_network_file_system_that_fails_for_a_moment_is_asked_again(code, call, tmp_path, monkeypatch):
    file = tmp_path / 'a.png'
    Image.new('RGB', (8, 8), (1, 2, 3)).save(file)
    whole = decode(file, 4)[0]
    real = getattr(os, call)
    failures = [code, code]
    waited = []

    def failing(path, *args, **kw):
        if failures and (call == 'read' or os.fspath(path) == str(file)):
            raise OSError(failures.pop(), 'gone')
        return real(path, *args, **kw)

    monkeypatch.setattr(os, call, failing)
    monkeypatch.setattr(time, 'sleep', waited.append)
    assert torch.equal(decode(file, 4)[0], whole) and waited == [0.1, 1.0]
    failures += [code] * 3
    with pytest.raises(ImageError, match=f'{file}: cannot be read .gone, 3 times in a row'):
        decode(file, 4)
    assert waited == [0.1, 1.0] * 2
    # what will not pass is said at once
    failures[:] = [errno.EACCES]
    with pytest.raises(ImageError, match=str(file)):
        decode(file, 4)
    assert waited == [0.1, 1.0] * 2
