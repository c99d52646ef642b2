"""Which blocks of the site are cut off at the right edge, and which links lead nowhere: python .ci/overflow.py

Opens every page of docs/ in headless Chromium, at the width of a screen (1400 px) and of a phone (420 px), and
compares `scrollWidth` with `clientWidth` of whatever holds text, tables and pictures. Needs `chromium` on the PATH, or
its name in $CHROMIUM. Exit status 1 if something is found.
"""

import functools
import html
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

docs = Path(__file__).resolve().parent.parent / 'docs'
WIDTHS = (1400, 420)
CHECK = """<!doctype html><body><script>
const pages = PAGES, widths = WIDTHS, found = [];
function look(frame, page, width) {
  const doc = frame.contentDocument, root = doc.documentElement;
  if (root.scrollWidth > width + 1) found.push([page, width, 'the page', root.scrollWidth - width]);
  const blocks = 'pre, table, .cell-output, p, li, img, svg, math'.split(', ').map(s => 'main ' + s).join();
  for (const e of doc.querySelectorAll(blocks)) {
    const inline = getComputedStyle(e).display === 'inline' || !e.clientWidth;
    const inside = inline ? 0 : e.scrollWidth - e.clientWidth;
    const cut = Math.round(Math.max(inside, e.getBoundingClientRect().right - width));
    const what = e.tagName.toLowerCase() + ': ' + e.textContent.trim().slice(0, 60);
    if (cut > 1) found.push([page, width, what, cut]);
  }
}
async function all() {
  for (const width of widths) for (const page of pages) {
    const frame = document.createElement('iframe');
    frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
    const loaded = new Promise(done => frame.onload = done);
    frame.src = '/' + page;
    document.body.append(frame);
    await loaded;
    look(frame, page, width);
    frame.remove();
  }
  document.body.innerHTML = '';
  const pre = document.createElement('pre');
  pre.id = 'found';
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
}
all();
</script></body>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    page = ''

    def do_GET(self):
        if self.path != '/__check__':
            return super().do_GET()
        body = self.page.encode()
        self.send_response(200)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def overflowing(pages):
    "[page, width of the window, what, pixels that are cut off] of all pages"
    Handler.page = CHECK.replace('PAGES', json.dumps(pages)).replace('WIDTHS', json.dumps(WIDTHS))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(docs)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = os.environ.get('CHROMIUM', 'chromium')
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, '--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={profile}']
        command += ['--window-size=1500,1000', '--timeout=600000', '--virtual-time-budget=600000', '--dump-dom']
        command += [f'http://127.0.0.1:{server.server_port}/__check__']
        dom = subprocess.run(command, capture_output=True, text=True, timeout=900).stdout
    server.shutdown()
    if not (m := re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)):
        sys.exit('Chromium gave no result')
    return json.loads(html.unescape(m[1]))


def broken_links(pages):
    "(page, link) of links within the site that lead to no file or to no heading"
    texts = {p: (docs / p).read_text() for p in pages}
    ids = {p: set(re.findall(r'\bid="([^"]+)"', s)) for p, s in texts.items()}
    for page, text in texts.items():
        for link in set(re.findall(r'<a [^>]*?href="([^"]*)"', text)):
            if re.match(r'[a-z]+:|//', link) or link in ('', '#'):
                continue
            path, _, heading = link.partition('#')
            target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
            if not (docs / target).exists() or (heading and heading not in ids.get(target, {heading})):
                yield page, link


def main():
    pages = sorted(p.relative_to(docs).as_posix() for p in docs.rglob('*.html'))
    cut = overflowing(pages)
    for page, width, what, pixels in cut:
        print(f'{page} at {width} px: {pixels} px cut off: {" ".join(what.split())}')
    links = sorted(broken_links(pages))
    for page, link in links:
        print(f'{page}: {link} leads nowhere')
    print(f'{len(pages)} pages at {WIDTHS} px: {len(cut)} blocks cut off, {len(links)} broken links')
    sys.exit(bool(cut or links))


if __name__ == '__main__':
    main()
