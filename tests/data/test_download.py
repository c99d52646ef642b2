"""untar_data against a server on this machine that breaks off, lies, dribbles, changes its mind and sends archives
that reach outside."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import trickbag.data.download as dl
from trickbag.data.download import DataURL, DownloadError, URLs, untar_data


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body`; each request takes the next mapping of `server.plan` (the last one stays if `server.stay`).
    Keys: status; cut: bytes before it hangs up; length: what it claims; etag, modified; ranges=False: knows none;
    shift: sends another piece than asked for; chunk, pause: dribbles; hold: waits first; gate: waits for this event
    after 60,000 bytes; chunked: no length at all; body, location"""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_GET(self):
        s = self.server
        rng = self.headers['Range']
        cond = self.headers['If-Range']
        with s.guard:
            s.asked.append(rng)
            o = {} if not s.plan else s.plan[0] if s.stay and len(s.plan) == 1 else s.plan.pop(0)
        self.close_connection = True
        body = o.get('body', s.body)
        mark = o.get('etag', '"v1"')
        if 'hold' in o:
            time.sleep(o['hold'])
        if (st := o.get('status', 200)) != 200:
            self.send_response(st)
            if 'location' in o:
                self.send_header('Location', o['location'])
            self.send_header('Content-Length', '0')
            return self.end_headers()
        a = 0
        if rng and o.get('ranges', True) and cond == (mark if mark.startswith('"') else o.get('modified')):
            a = int(rng.removeprefix('bytes=').removesuffix('-')) + o.get('shift', 0)
            if a >= len(body):
                self.send_response(416)
                self.send_header('Content-Length', '0')
                return self.end_headers()
            s.given.append(206)
            self.send_response(206)
            self.send_header('Content-Range', f"bytes {a}-{len(body) - 1}/{o.get('claim', len(body))}")
        else:
            s.given.append(200)
            self.send_response(200)
        if mark:
            self.send_header('ETag', mark)
        if 'modified' in o:
            self.send_header('Last-Modified', o['modified'])
        if o.get('chunked'):
            self.send_header('Transfer-Encoding', 'chunked')
        elif o.get('length', 0) is not None:
            self.send_header('Content-Length', str(o.get('length', len(body) - a)))
        self.end_headers()
        data = body[a:][: o.get('cut', len(body))]
        try:
            if o.get('chunked'):
                self.wfile.write(b'%x\r\n%s\r\n' % (len(data), data) + (b'' if 'cut' in o else b'0\r\n\r\n'))
            elif 'chunk' in o:
                for i in range(0, len(data), o['chunk']):
                    self.wfile.write(data[i : i + o['chunk']])
                    time.sleep(o['pause'])
            elif 'gate' in o:
                self.wfile.write(data[:60_000])
                self.wfile.flush()
                o['gate'].wait(30)
                self.wfile.write(data[60_000:])
            else:
                self.wfile.write(data)
            if 'stall' in o:
                self.wfile.flush()
                time.sleep(o['stall'])
        except OSError:
            pass


def tgz(members, mode='w:gz'):
    "A tar file of [(name, bytes or (type, link target))]"
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode=mode) as t:
        for name, c in members:
            m = tarfile.TarInfo(name)
            if isinstance(c, bytes):
                m.size = len(c)
                t.addfile(m, io.BytesIO(c))
            else:
                m.type, m.linkname = c
                t.addfile(m)
    return b.getvalue()


def zipped(members):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        for name, c in members:
            z.writestr(zipfile.ZipInfo(name), c)
    return b.getvalue()


FILES = [
    (f'beetles/{s}/c{c}/{i}.jpg', hashlib.shake_128(f'{s}{c}{i}'.encode()).digest(9000))
    for s in ('train', 'val')
    for c in range(2)
    for i in range(3)
]
BODY = tgz(FILES)  # about 109 kB, incompressible


class Tries(list):
    "Stands for `time.sleep`: writes down the waits"

    def __call__(self, s):
        self.append(s)


@pytest.fixture
def srv(tmp_path, monkeypatch):
    for k in 'http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY', 'TRICKBAG_DATA':
        monkeypatch.delenv(k, raising=False)
    for k in 'no_proxy', 'NO_PROXY':
        monkeypatch.setenv(k, '127.0.0.1')
    monkeypatch.setenv('TRICKBAG_CACHE', str(tmp_path / 'cache'))
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.body, s.plan, s.stay, s.asked, s.given, s.guard = BODY, [], False, [], [], threading.Lock()
    s.url, s.root, s.waits = f'http://127.0.0.1:{s.server_port}/beetles.tgz', tmp_path / 'cache/data', Tries()
    s.daemon_threads = True
    th = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
    th.start()
    yield s
    s.shutdown()
    s.server_close()


def record(s, body=BODY, **kw):
    return DataURL(s.url, len(body), 'sha256:' + hashlib.sha256(body).hexdigest(), **kw)


def get(s, d=None, **kw):
    return untar_data(d or record(s), **(dict(progress=False, timeout=5, sleep=s.waits) | kw))


def tree(p):
    return {o.relative_to(p.parent).as_posix(): o.read_bytes() for o in p.rglob('*') if o.is_file()}


def whole(p):
    assert tree(p) == dict(FILES)


def refused(s, *words, d=None, **kw):
    "It says why, in one line, and leaves no folder, no half-unpacked tree, nothing outside the cache"
    with pytest.raises(DownloadError) as e:
        get(s, d, **kw)
    assert '\n' not in str(e.value)
    for w in words:
        assert w in str(e.value), str(e.value)
    root = Path(kw.get('path', s.root))
    assert [o.name for o in root.iterdir()] == ['.downloads'] and not any(
        o.is_dir() for o in (root / '.downloads').iterdir()
    )
    assert [o.name for o in root.parent.parent.iterdir()] == ['cache']
    return str(e.value)


def arc(s, url=None):
    return f'beetles.{hashlib.sha256((url or s.url).encode()).hexdigest()[:8]}'


def leavings(s):
    return sorted(o.name for o in (s.root / '.downloads').iterdir())


# what goes well


def test_fetched_once_and_nothing_left(srv, capsys):
    seen = []
    p = get(srv, progress=lambda *a: seen.append(a))
    whole(p)
    assert p == srv.root / 'beetles' and get(srv) == p and srv.asked == [None] and srv.waits == []
    assert leavings(srv) == ['beetles.json', 'beetles.lock']
    assert seen[-1] == (len(BODY), len(BODY)) and all(a[0] < b[0] for a, b in zip(seen, seen[1:]))
    assert 'downloading' in (out := capsys.readouterr().out) and srv.url in out and str(p) in out


def test_trickbag_data_first(srv, tmp_path, monkeypatch):
    monkeypatch.setenv('TRICKBAG_DATA', str(tmp_path / 'own'))
    (tmp_path / 'own/beetles').mkdir(parents=True)  # empty: does not count
    p = get(srv)
    assert p == srv.root / 'beetles' and len(srv.asked) == 1
    (tmp_path / 'own/beetles/x.jpg').write_bytes(b'x')
    assert get(srv) == tmp_path / 'own/beetles' and len(srv.asked) == 1
    assert get(srv, path=tmp_path / 'here') == tmp_path / 'here/beetles' and len(srv.asked) == 2  # `path` is stronger
    assert [o.name for o in (tmp_path / 'own').iterdir()] == ['beetles']


@pytest.mark.parametrize('mode', ['w:', 'w:gz', 'w:bz2', 'w:xz', 'zip'])
def test_kinds_of_archive(srv, mode):
    srv.body = zipped(FILES) if mode == 'zip' else tgz(FILES, mode)
    whole(get(srv, record(srv, srv.body)))


def test_no_single_top_folder(srv):
    srv.body = tgz([('train/a.jpg', b'a'), ('val/b.jpg', b'b'), ('labels.csv', b'c')])
    assert tree(get(srv, record(srv, srv.body, folder='my set'))) == {
        'my set/train/a.jpg': b'a',
        'my set/val/b.jpg': b'b',
        'my set/labels.csv': b'c',
    }


def test_bare_address_is_remembered(srv, capsys):
    p = get(srv, srv.url, progress=None)
    whole(p)
    out = capsys.readouterr().out
    assert 'no hash is known' in out and hashlib.sha256(BODY).hexdigest() in out and '100 %' in out and '\r' not in out
    shutil.rmtree(p)
    whole(get(srv, srv.url))  # the same bytes again: welcome
    shutil.rmtree(p)
    srv.body = tgz(FILES[:2])
    refused(srv, 'when first fetched', 'to trust it', d=srv.url)
    (srv.root / '.downloads/beetles.json').unlink()
    assert len(tree(get(srv, srv.url))) == 2


def test_a_new_hash_in_the_record_beats_what_was_first_fetched(srv):
    shutil.rmtree(get(srv))
    srv.body = tgz(FILES[:2])
    assert len(tree(get(srv, record(srv, srv.body)))) == 2


def test_archive_left_by_another_address(srv, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(dl, '_unpack', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(srv, srv.url)
    srv.body = tgz(FILES[:2])
    assert len(tree(get(srv, srv.url + '?v=2'))) == 2 and len(srv.asked) == 2


def test_same_folder_from_two_addresses(srv):
    whole(get(srv, srv.url + '?key=secret'))
    with pytest.raises(DownloadError, match='came from .* give another path=') as e:
        get(srv, srv.url)
    assert 'secret' not in str(e.value) + (srv.root / '.downloads/beetles.json').read_text()
    assert len(srv.asked) == 1


def test_hash_of_first_mib(srv):
    srv.body = tgz([('d/a', os.urandom(2**20 + 5000))])
    good = hashlib.md5(srv.body[: 2**20]).hexdigest()
    assert get(srv, DataURL(srv.url, hash=f'md5_1mib:{good}')).is_dir()
    refused(srv, 'md5_1mib', path=srv.root.parent / 'two', d=DataURL(srv.url, hash='md5_1mib:' + '0' * 32))


def test_redirect_and_last_modified(srv):
    day = 'Mon, 01 Jan 2024 00:00:00 GMT'
    srv.plan = [
        dict(status=302, location='/elsewhere.tgz'),
        dict(etag='W/"weak"', modified=day, cut=50_000),
        dict(etag='W/"weak"', modified=day),
    ]
    whole(get(srv))
    assert srv.asked == [None, None, 'bytes=50000-'] and srv.given == [200, 206]


def test_all_records_are_sane():
    sets = [o for o in vars(URLs).values() if isinstance(o, DataURL)]
    assert len(sets) == len({o.folder for o in sets}) == 11
    assert all(
        o.url.endswith(f'/{o.folder}.tgz') and o.size > 9e7 and o.hash.split(':')[0] in ('sha256', 'md5_1mib')
        for o in sets
    )


# what breaks off


def test_breaks_off_once(srv):
    srv.plan = [dict(cut=60_000)]
    whole(get(srv))
    assert srv.asked == [None, 'bytes=60000-']


def test_breaks_off_always_but_gets_on(srv):
    srv.plan = [dict(cut=9_000)]
    srv.stay = True
    whole(get(srv))
    assert len(srv.asked) == -(-len(BODY) // 9000) and srv.asked[5] == 'bytes=45000-'


def test_breaks_off_always_and_gets_nowhere(srv):
    srv.plan = [dict(cut=60_000, ranges=False)]
    srv.stay = True
    refused(srv, 'broken off after 60000 of', 'gave up', 'the next call goes on from the 60000 bytes')
    assert len(srv.asked) == 6 and srv.waits == [1, 1, 2, 4, 8]  # one that got on and five that did not
    srv.plan = []
    whole(get(srv))
    assert srv.asked[6] == 'bytes=60000-'  # the next call goes on


@pytest.mark.parametrize('plan', [dict(length=10**6), dict(length=10**6, cut=500)])
def test_length_too_long(srv, plan):
    srv.plan = [plan]
    srv.stay = True
    refused(srv, f'offers 1000000 bytes, expected {len(BODY)}')
    assert len(srv.asked) == 1
    refused(srv, 'broken off', d=srv.url)
    assert len(srv.asked) < 20


def test_length_too_short(srv):
    srv.plan = [dict(length=50_000)]
    srv.stay = True
    refused(srv, f'offers 50000 bytes, expected {len(BODY)}')
    refused(srv, 'not a whole archive', d=srv.url)
    assert leavings(srv) == ['beetles.lock']


def test_no_length_at_all(srv, capsys):
    srv.plan = [dict(length=None)]
    whole(get(srv, srv.url, progress=None, path=srv.root.parent / 'a'))
    assert re.search(r'beetles: 0\.\d MB\n', capsys.readouterr().out)
    srv.plan = [dict(chunked=True)]
    whole(get(srv, path=srv.root.parent / 'b'))
    srv.plan = [dict(chunked=True, cut=40_000)]
    whole(get(srv, path=srv.root.parent / 'c'))
    srv.plan = [dict(length=None, cut=40_000)]
    whole(get(srv, path=srv.root.parent / 'd'))  # the record knows the size
    srv.plan = [dict(length=None, cut=40_000)]
    refused(srv, 'not a whole archive', d=srv.url)


def test_more_than_the_record_says(srv):
    srv.plan = [dict(length=None, body=BODY + b'junk')]
    whole(get(srv))
    assert srv.asked == [None]  # the surplus is not read


def test_truncated_plain_tar(srv):
    srv.body = tgz(FILES, 'w:')[: 512 * 19]  # ends where a header would begin: tarfile alone takes it for whole
    refused(srv, 'no end mark', d=srv.url)


def test_file_changes_between_tries(srv):
    old = os.urandom(len(BODY))
    srv.plan = [dict(body=old, cut=60_000, etag='"old"')]
    whole(get(srv))
    assert srv.asked == [None, 'bytes=60000-']  # If-Range: the server sends all of the new one
    # the server lies: a new file under the old mark
    srv.plan = [dict(body=old, cut=60_000, etag='"old"'), dict(etag='"old"'), {}]
    whole(get(srv, path=srv.root.parent / 'b'))
    assert srv.asked[2:] == [None, 'bytes=60000-', None]


def test_no_mark_no_resuming(srv):
    srv.plan = [dict(etag='', cut=60_000), dict(etag='')]
    whole(get(srv))
    assert srv.asked == [None, None]


def test_wrong_piece(srv):
    srv.plan = [dict(cut=60_000), dict(shift=7), {}]
    whole(get(srv))
    assert srv.asked == [None, 'bytes=60000-', None]
    srv.plan = [dict(cut=60_000), dict(claim=5), {}]
    whole(get(srv, path=srv.root.parent / 'b'))


def test_part_longer_than_the_file(srv):
    (srv.root / '.downloads').mkdir(parents=True)
    (srv.root / '.downloads' / f'{arc(srv)}.part').write_bytes(bytes(len(BODY) + 10))
    (srv.root / '.downloads' / f'{arc(srv)}.part.json').write_text(
        json.dumps(dict(url=srv.url, mark='"v1"', total=len(BODY) + 20))
    )
    whole(get(srv))
    assert srv.asked == [f'bytes={len(BODY) + 10}-', None]  # 416, then from the start


def test_all_there_but_not_renamed(srv):
    (srv.root / '.downloads').mkdir(parents=True)
    (srv.root / f'.downloads/{arc(srv)}.part').write_bytes(BODY)
    (srv.root / f'.downloads/{arc(srv)}.part.json').write_text(
        json.dumps(dict(url=srv.url, mark='"v1"', total=len(BODY)))
    )
    whole(get(srv))
    assert srv.asked == []


@pytest.mark.parametrize('junk', ['', '{', '[1]', '{"url": 3}'])
def test_note_that_is_junk(srv, junk):
    (srv.root / '.downloads').mkdir(parents=True)
    (srv.root / '.downloads' / f'{arc(srv)}.part').write_bytes(b'junk')
    (srv.root / '.downloads' / f'{arc(srv)}.part.json').write_text(junk)
    whole(get(srv))
    assert srv.asked == [None]


def test_damaged_part_costs_one_more_download(srv):
    srv.plan = [dict(cut=60_000, ranges=False)]
    srv.stay = True
    refused(srv, 'broken off')
    p = srv.root / f'.downloads/{arc(srv)}.part'
    p.write_bytes(bytes(60_000))
    srv.plan = []
    srv.asked[:] = []
    whole(get(srv))
    assert srv.asked == ['bytes=60000-', None]


# what the server says


def test_404_at_once(srv):
    srv.plan = [dict(status=404)]
    srv.stay = True
    assert 'unpack it to' in refused(srv, 'HTTP 404', 'check the address')
    assert len(srv.asked) == 1 and srv.waits == []


def test_500_then_fine(srv):
    srv.plan = [dict(status=500), dict(status=503), dict(status=429)]
    whole(get(srv))
    assert len(srv.asked) == 4 and srv.waits == [1, 2, 4]


def test_500_for_ever(srv):
    srv.plan = [dict(status=500)]
    srv.stay = True
    refused(srv, 'HTTP 500', 'gave up after 5 tries')
    assert len(srv.asked) == 5
    refused(srv, 'gave up after 1 tries', retries=0)


def test_nobody_there(srv):
    srv.shutdown()
    srv.server_close()
    refused(srv, 'refused', 'gave up after 3 tries', retries=2)


def test_stalls_then_fine(srv):
    srv.plan = [dict(hold=0.6), dict(cut=60_000, stall=0.6)]
    t = time.monotonic()
    whole(get(srv, timeout=0.15))
    assert srv.asked == [None, None, 'bytes=60000-'] and time.monotonic() - t < 5


def test_dribbles(srv):
    # 500 bytes a second, never silent for long
    srv.plan = [dict(chunk=20, pause=0.04)]
    srv.stay = True
    t = time.monotonic()
    refused(srv, 'less than 1 KiB/s', timeout=0.2, retries=1)
    assert time.monotonic() - t < 5


def test_a_page_in_its_place(srv):
    srv.plan = [dict(body=b'<html>please log in</html>')]
    srv.stay = True
    refused(srv, 'offers 26 bytes', 'something else answers')
    refused(srv, 'neither tar nor zip', '<html>', d=srv.url)


def test_corrupt_byte(srv):
    b = bytearray(BODY)
    b[70_000] ^= 1
    srv.plan = [dict(body=bytes(b))]
    srv.stay = True
    refused(srv, 'sha256', hashlib.sha256(BODY).hexdigest(), 'deleted')
    assert srv.asked == [None, None]  # one more chance, then no more
    refused(srv, 'not a whole archive', d=srv.url)  # gzip's own check
    z = bytearray(zipped(FILES))
    z[5000] ^= 1
    srv.plan = [dict(body=bytes(z))]
    refused(srv, 'not a whole archive', d=srv.url)  # zip's
    srv.plan = []
    whole(get(srv))


@pytest.mark.parametrize('cut', [0, 8, 30, 5_000, len(BODY) - 4])
def test_truncated_gz(srv, cut):
    srv.body = BODY[:cut]
    refused(srv, 'not a whole archive', d=srv.url)
    assert leavings(srv) == ['beetles.lock']


# archives that reach outside

SYM = tarfile.SYMTYPE
HARD = tarfile.LNKTYPE


@pytest.mark.parametrize(
    'bad',
    [
        [('../evil', b'x')],
        [('beetles/../../evil', b'x')],
        [('/evil', b'x')],
        [('../.downloads/beetles.json', b'{}')],
        [('..', (tarfile.DIRTYPE, ''))],
        [('l', (SYM, '..')), ('l/evil', b'x')],
        [('l', (SYM, '/')), ('l/evil', b'x')],
        [('l', (HARD, '../../../secret'))],
        [('l', (SYM, '/etc/passwd'))],
        [('a/b/l', (SYM, '../..')), ('a/b/m', (SYM, 'l/../../..')), ('a/b/m/evil', b'x')],
        [('l', (SYM, 'l'))],
        [('l', (SYM, 'gone'))],
        [('dev', (tarfile.CHRTYPE, ''))],
        [('dev', (tarfile.BLKTYPE, ''))],
        [('pipe', (tarfile.FIFOTYPE, ''))],
    ],
    ids=str,
)
def test_unsafe_tar(srv, bad):
    (srv.root.parent / 'secret').parent.mkdir(parents=True)
    (srv.root.parent / 'secret').write_text('s')
    srv.body = tgz([*FILES, *bad])
    refused(srv, 'unsafe archive', d=srv.url)
    assert leavings(srv) == ['beetles.lock'] and not list(srv.root.parent.parent.rglob('evil'))


def test_absolute_path_into_a_known_place(srv, tmp_path):
    srv.body = tgz([*FILES, (str(tmp_path / 'cache/evil'), b'x')])
    refused(srv, 'leads out', d=srv.url)
    srv.body = zipped([*FILES, (str(tmp_path / 'cache/evil'), b'x')])
    refused(srv, 'leads out', d=srv.url)
    assert not (tmp_path / 'cache/evil').exists()


@pytest.mark.parametrize('name', ['../evil', 'a/../../evil', '/evil'])
def test_zip_slip(srv, name):
    srv.body = zipped([*FILES, (name, 'x')])
    refused(srv, 'unsafe archive', d=srv.url)


def test_links_inside_become_copies(srv):
    srv.body = tgz(
        [
            ('d/a.jpg', b'a'),
            ('d/e/s.jpg', (SYM, '../a.jpg')),
            ('d/h.jpg', (HARD, 'd/a.jpg')),
            ('d/early', (SYM, 'late')),
            ('d/late', b'l'),
        ]
    )
    p = get(srv, srv.url)
    assert tree(p) == {
        f'beetles/{k}': v
        for k, v in {'a.jpg': b'a', 'e/s.jpg': b'a', 'h.jpg': b'a', 'early': b'l', 'late': b'l'}.items()
    }
    assert not any(o.is_symlink() or o.is_file() and o.stat().st_nlink > 1 for o in p.rglob('*'))


def test_file_where_a_folder_should_be_and_nothing_inside(srv):
    srv.body = tgz([('a', b'x'), ('a/b', b'y')])
    with pytest.raises(DownloadError):
        get(srv, srv.url)
    assert [o.name for o in srv.root.iterdir()] == ['.downloads']
    srv.body = tgz([('a', (tarfile.DIRTYPE, ''))])
    (srv.root / '.downloads' / arc(srv)).unlink()
    refused(srv, 'no files in it', d=srv.url)


# interruptions


def test_interrupted_while_downloading(srv):
    def stop(done, total):
        if done > 30_000:
            raise KeyboardInterrupt

    srv.plan = [dict(chunk=10_000, pause=0.005)]
    with pytest.raises(KeyboardInterrupt):
        get(srv, progress=stop)
    whole(get(srv))
    assert len(srv.asked) == 2 and int(srv.asked[1][6:-1]) > 30_000


@pytest.mark.parametrize(
    'err', [KeyboardInterrupt(), OSError(errno.ENOSPC, 'No space left on device')], ids=['ctrl-c', 'disk full']
)
def test_interrupted_while_unpacking(srv, monkeypatch, err):
    real = shutil.copyfileobj
    n = []

    def copy(*args):
        n.append(1)
        if len(n) == 5:
            raise err
        return real(*args)

    with monkeypatch.context() as m:
        m.setattr(dl.shutil, 'copyfileobj', copy)
        with pytest.raises((KeyboardInterrupt, DownloadError)) as e:
            get(srv)
    if isinstance(err, OSError):
        assert 'No space left' in str(e.value) and 'TRICKBAG_CACHE' in str(e.value)
    assert [o.name for o in srv.root.iterdir()] == ['.downloads'] and leavings(srv) == [arc(srv), 'beetles.lock']
    whole(get(srv))
    assert len(srv.asked) == 1  # unpacked from what had come


def test_no_room_is_known_beforehand(srv, monkeypatch):
    monkeypatch.setattr(dl.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    refused(srv, 'No space left', 'make room')
    assert len(srv.asked) == 1 and srv.waits == []


# processes: the module needs nothing but the standard library, so load it alone and quickly

RUN = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location('dl', sys.argv[1])
dl = importlib.util.module_from_spec(spec)
sys.modules['dl'] = dl
spec.loader.exec_module(dl)
"""


def proc(srv, code, **kw):
    d = record(srv)
    code = RUN + code.replace('GET()', f'dl.untar_data(dl.DataURL({d.url!r}, {d.size}, {d.hash!r}), timeout=30)')
    return subprocess.Popen(
        [sys.executable, '-S', '-c', code, dl.__file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kw,
    )


def wait_for(f, secs=10):
    t = time.monotonic()
    while not f():
        assert time.monotonic() - t < secs, 'it never came so far'
        time.sleep(0.01)


def parts(srv):
    return [o for o in (srv.root / '.downloads').glob('*.part')]


def test_processes_at_once(srv):
    srv.plan = [dict(gate=(gate := threading.Event()))]
    ps = [proc(srv, 'print(GET())')]
    wait_for(lambda: any(o.stat().st_size for o in parts(srv)))
    ps += [proc(srv, 'print(GET())') for _ in range(3)]
    assert all('waiting' in p.stdout.readline() for p in ps[1:])
    gate.set()
    outs = [p.communicate(timeout=20)[0] for p in ps]
    assert all(p.returncode == 0 for p in ps), outs
    assert srv.asked == [None] and {o.splitlines()[-1] for o in outs} == {str(srv.root / 'beetles')}
    whole(srv.root / 'beetles')


def test_killed_while_downloading(srv):
    srv.plan = [dict(gate=(gate := threading.Event()))]
    p = proc(srv, 'GET()')
    wait_for(lambda: any(o.stat().st_size for o in parts(srv)))
    p.kill()
    p.communicate()
    gate.set()
    n = parts(srv)[0].stat().st_size
    whole(get(srv))
    assert 0 < n < len(BODY) and srv.asked == [None, f'bytes={n}-']  # the lock died with the process


def test_killed_while_unpacking(srv):
    p = proc(
        srv,
        "import time, shutil; real = shutil.copyfileobj; shutil.copyfileobj = lambda *a: (real(*a), "
        "time.sleep(0.2)); GET()",
    )
    tmp = srv.root / '.downloads/beetles.tmp'
    wait_for(lambda: len(list(tmp.rglob('*.jpg'))) >= 3)
    p.kill()
    p.communicate()
    assert tmp.exists() and not (srv.root / 'beetles').exists()
    whole(get(srv))
    assert srv.asked == [None] and leavings(srv) == ['beetles.json', 'beetles.lock']


@pytest.mark.skipif(sys.platform == 'win32', reason='no limit on file sizes to set')
def test_disk_full_for_real(srv):
    "A limit on the size of files stands for a full disk: the write itself fails, half way"
    out, _ = (
        p := proc(srv, 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); GET()')
    ).communicate(timeout=20)
    assert (
        p.returncode == 1 and 'DownloadError' in out.splitlines()[-1] and 'cannot write' in out and len(srv.asked) == 1
    ), out
    whole(get(srv))
    assert srv.asked[1] == 'bytes=50000-'


def test_cache_that_cannot_be_written(srv, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DownloadError, match='cannot write to .*TRICKBAG_CACHE'):
        get(srv, path=tmp_path / 'file')
    assert srv.asked == []
