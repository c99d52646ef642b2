"""Build docs/ and README.md from nbs/: python .ci/docs.py

Runs the notebooks' imports, exports and show_doc only; every other output is the one saved in the notebook. Works on a
copy of nbs/ in a temporary folder and touches only files that change, so notebooks may be edited meanwhile. The same
notebooks give the same bytes.
"""

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from html import unescape
from multiprocessing import get_context
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent
join = ''.join

BY_STAGE = ('tricks', 'vision')  # rooms whose pages come in the order in which callbacks run
# Reading order of the sidebar: (section, what is in it). A folder stands for its notebooks by title; what is not there
# yet is left out.
# A page that is named nowhere goes to a section More at the end, so nothing is ever missing.
# (section, pages and rooms); a room's pages come in the order of their numbers, those without by title
ROOMS = [
    (None, ['index.ipynb']),
    (
        'Tutorials',
        [
            'tutorials/own_photographs.ipynb',
            'tutorials/fine_tune.ipynb',
            'tutorials/clothing.ipynb',
            'tutorials/several_labels.ipynb',
            'tutorials/imbalanced_classes.ipynb',
            'tutorials/small_images.ipynb',
            'tutorials/own_dataloader.ipynb',
            'tutorials/logs_and_searches.ipynb',
            'tutorials/several_gpus.ipynb',
            'tutorials/deploy.ipynb',
            'tutorials/imagenette.ipynb',
            'tutorials/recipes.ipynb',
            'tutorials/ablation.ipynb',
            'tutorials/optimizers.ipynb',
            'tutorials/gallery.ipynb',
            'tutorials/your_own_trick.ipynb',
            'tutorials/coming_from.ipynb',
            'tutorials/architecture.ipynb',
            'tutorials/promises.ipynb',
            'tutorials/performance.ipynb',
            'tutorials/glossary.ipynb',
            'tutorials',
        ],
    ),
    ('Evidence', ['evidence']),
    ('The loop', ['callback.ipynb', 'learner.ipynb', 'loop']),
    ('Recipes', ['recipes']),
    ('Deploying', ['deploy']),
    ('Runs', ['runs']),
    ('Several processes', ['parallel']),
    ('Data', ['data']),
    ('Vision', ['vision']),
    ('Models', ['models']),
    ('Boxes and masks', ['tasks']),
    ('Tricks', ['tricks']),
    ('Speed', ['speed']),
    ('Monitors', ['monitors']),
    ('Looking inside', ['look']),
    ('Proofs', ['testing']),
    ('Core', ['core']),
    ('The shell', ['cli.ipynb', 'commands.ipynb', 'demo.ipynb', 'main.ipynb']),
    ('Package', ['all.ipynb', 'functional.ipynb', 'init.ipynb']),
]


def unnumbered(path):
    "A page's address: the notebook's path without the numbers that say in which order it is read"
    return re.sub(r'(^|/)\d+_', r'\1', path)


def write(p, s):
    "Write text or bytes `s` to `p`, whole or not at all, and only if it changes"
    b = s.encode() if isinstance(s, str) else s
    if p.exists() and p.read_bytes() == b:
        return
    p.parent.mkdir(parents=True, exist_ok=True)
    tmp = p.with_name(p.name + '.tmp')
    tmp.write_bytes(b)
    os.replace(tmp, p)


def load(p, tries=20):
    "A notebook; waits for an editor that is writing it just now"
    for i in range(tries):
        try:
            return json.loads(p.read_text())
        except json.JSONDecodeError as e:
            if i == tries - 1:
                sys.exit(f'{p}: not a notebook: {e}')
            time.sleep(0.1)


def title(nb):
    for c in nb['cells']:
        if m := re.match(r'# (.+)', join(c['source'])):
            return m[1].strip()
    return ''


def snapshot(nbs, src):
    "Copy the notebooks of nbs/ to `nbs` and its other files to `src`; gives {relative path: title} of the notebooks"
    titles = {}
    for p in sorted((root / 'nbs').rglob('*')):
        rel = Path(unnumbered(p.relative_to(root / 'nbs').as_posix()))
        if (
            not p.is_file()
            or p.suffix == '.tmp'
            or any(o[0] == '.' or (o[0] == '_' and o != '_quarto.yml') for o in rel.parts)
        ):
            continue
        for dst in nbs, src:
            (dst / rel).parent.mkdir(parents=True, exist_ok=True)
        if p.suffix == '.ipynb':
            nb = load(p)
            if not (t := title(nb)):
                sys.exit(f'{p}: the first cell must be `# Title` and `> what it is` below it')
            titles[rel.as_posix()] = t
            (nbs / rel).write_text(json.dumps(nb))
        else:
            shutil.copy(p, src / rel)
    return titles


@cache
def notebook_of():
    "page -> the path of its notebook"
    return {unnumbered(p.relative_to(root / 'nbs').as_posix()): p for p in (root / 'nbs').rglob('*.ipynb')}


def stage(page):
    "The stage that a trick's page declares; None if it has no callback"
    for c in load(notebook_of()[page])['cells']:
        s = join(c['source'])
        if c['cell_type'] == 'code' and s.startswith('#| export') and (m := re.search(r"(?m)^    stage = '(\w+)'", s)):
            return m[1]


def by_stage(pages, titles):
    "A section a stage, in the order in which callbacks run; pages without a callback last"
    from trickbag.callback import STAGES

    stages = {p: stage(p) for p in sorted(pages, key=lambda p: titles[p].lower())}
    sections = [{'section': s, 'contents': [p for p in stages if stages[p] == s]} for s in STAGES]
    return [s for s in sections if s['contents']] + [p for p in stages if stages[p] is None]


def sidebar(titles):
    "sidebar.yml: ROOMS, with each folder's pages by number, stage or title, and whatever is left over at the end"
    left = dict(titles)
    res = []

    def take(o):
        return [o] if left.pop(o, None) else []

    for sec, items in ROOMS:
        pages = []
        for o in items:
            inside = [o] if o.endswith('.ipynb') else [p for p in left if p.startswith(o + '/')]
            inside = sum((take(p) for p in inside), [])
            if o in BY_STAGE:
                pages += by_stage(inside, titles)
            elif any((root / 'nbs' / o).glob('[0-9]*.ipynb')):
                pages += inside
            else:
                pages += sorted(inside, key=lambda p: titles[p].lower())
        if sec and pages:
            res.append({'section': sec, 'contents': pages})
        else:
            res += pages
    if left:
        res.append({'section': 'More', 'contents': sorted(left)})
    return yaml.safe_dump({'website': {'sidebar': {'contents': res}}}, sort_keys=False)


@cache
def links():
    "A function that links names in backticks to their pages: trickbag's names only, whatever else is installed"
    g = {}
    page = {}
    exec((root / 'trickbag' / '_modidx.py').read_text(), g)
    for mod, syms in g['d']['syms'].items():
        for k, (to, _) in syms.items():
            for name in k, k.removeprefix(mod + '.'):
                page.setdefault(name, unnumbered(to))

    def link(m):
        return f'[{m[0]}](/{page[m[1]]})' if m[1] in page else m[0]

    def linkify(md, names_parameters=False):
        "`names_parameters`: the first column of tables has names of parameters, which are no symbols of the package"
        fence = False
        res = []
        for l in md.splitlines():
            if l.startswith('```'):
                fence = not fence
            if fence or l.startswith(('    ', '#')):
                res.append(l)
                continue
            first = l.find('|', 1) if names_parameters and l.startswith('|') else 0
            res.append(l[:first] + re.sub(r'(?<![\[`])`([^`\s]+?)(?:\(\))?`(?![\]`])', link, l[first:]))
        return '\n'.join(res)

    return linkify


def process(src, dst):
    """Notebook `src` as the site shows it: hidden cells out, `show_doc` run for each export, names in backticks
    linked; gives what failed"""
    from fastcore.nbio import mk_cell, read_nb, write_nb
    from nbdev import processors as P

    class in_order(P.add_show_docs):  # nbdev shows the symbols of one cell last to first
        def begin(self):
            super().begin()
            self.without_docs_of_shown_source()
            cells = self.nb.cells
            i = 0
            while i < len(cells):
                j = i
                while j < len(cells) and getattr(cells[j], 'has_sd', 0):
                    j += 1
                cells[i:j] = cells[i:j][::-1]
                i = j + 1

        def without_docs_of_shown_source(self):
            "The source of `#| exports` has all that its symbols' docs would say; links to them go to the source"
            cells = self.nb.cells
            for cell in [c for c in cells if 'exports' in getattr(c, 'directives_', {})]:
                i = cells.index(cell)
                names = []
                while i + 1 < len(cells) and getattr(cells[i + 1], 'has_sd', 0):
                    names.append(re.sub(r'show_doc\((.+)\)', r'\1', cells.pop(i + 1).source).lower())
                anchors = join(f'<a id="{name}"></a>' for name in dict.fromkeys(reversed(names)))
                cells.insert(i, mk_cell(anchors, 'markdown'))

    class lean(P.exec_show_docs):  # nbdev runs every cell that has an import in it, tests as well
        def __call__(self, cell):
            trees = cell.parsed_() if cell.cell_type == 'code' else None
            only = trees and all(isinstance(t, (P.ast.Import, P.ast.ImportFrom)) for t in trees)
            exported = cell.directives_.keys() & {'export', 'exports', 'exporti', 'exec_doc'}
            if only or exported or P._show_docs(trees or []):
                super().__call__(cell)

    linkify = links()

    def add_links(cell):
        if cell.cell_type == 'markdown':
            cell.source = linkify(cell.source)
        for o in cell.get('outputs', []):
            if md := join(o.get('data', {}).get('text/markdown', '')):
                o['data']['text/markdown'] = linkify(md, names_parameters=True)

    def as_it_stands(cell):
        "In place of what folds the source of `#| exports` under a line to click on, and moves it behind the docs"

    swap = {'add_show_docs': in_order, 'exec_show_docs': lean, 'add_links': add_links}
    swap |= {'add_fold': as_it_stands, 'mv_exports': as_it_stands}

    class Filter(P.FilterDefaults):
        def base_procs(self):
            return [swap.get(p.__name__, p) for p in super().base_procs()]

    os.environ['IN_TEST'] = '1'
    nb = read_nb(src)
    try:
        Filter()(nb)
    except Exception as e:
        lines = str(e).splitlines() or [repr(e)]
        return f'{src.name}: {lines[0]}' + (f' {lines[-1]}' if lines[1:] else '')
    write_nb(nb, dst)


def process_all(nbs, src, pages):
    "Each page in a forked process, as many at a time as there are cores; gives what failed"
    import nbdev.processors
    import nbdev.showdoc

    import trickbag.all  # noqa: F401

    # what all pages need is imported and read once, here: a page takes no longer than what it shows
    links()
    nbdev.processors.get_config = nbdev.showdoc.get_config = cache(nbdev.processors.get_config)
    with get_context('fork').Pool(os.cpu_count(), maxtasksperchild=8) as pool:
        return [e for e in pool.starmap(process, [(nbs / p, src / p) for p in pages], chunksize=1) if e]


def tidy(nb, name):
    "`nb` as smalldocs reads it"
    for c in nb['cells']:
        s = join(c['source'])
        if c['cell_type'] == 'raw':
            c['source'] = re.sub(r'(?m)^output-file:.*\n', '', s)
        if re.search(r'(?m)^show_doc\(', s) and not any(
            'text/markdown' in o.get('data', {}) for o in c.get('outputs', [])
        ):
            sys.exit(f'{name}: `{s.splitlines()[-1]}` did not render')
    return nb


def mathml(s):
    "TeX to MathML, so that no page loads a script from elsewhere"
    from latex2mathml.converter import convert

    s = re.sub(
        r'<span class="math (inline|display)">\\[\[(](.*?)\\[\])]</span>',
        lambda m: convert(unescape(m[2]), display='block' if m[1] == 'display' else 'inline'),
        s,
        flags=re.S,
    )
    return re.sub(r'\s*<(link|script)[^>]*katex[^>]*>(</script>)?', '', s)


def breakable(s):
    "Names in tables break, where they must, after a mark or before a capital, and not within a word"

    def in_text(m):
        text = re.sub(r'(?<=[_(=/,.|])(?=[A-Za-z_])', '<wbr>', m[0])
        # a name, not arXiv in a sentence
        return text if ' ' in m[0].strip() else re.sub(r'(?<=[a-z])(?=[A-Z])', '<wbr>', text)

    def in_cell(m):
        return m[0] if '<math' in m[0] or '<svg' in m[0] else re.sub(r'(?<=>)[^<]+', in_text, m[0])

    return re.sub(r'<t[dh][ >].*?</t[dh]>', in_cell, s, flags=re.S)


def anchors(pages):
    "Links to a heading that a page lacks go to the class of that name, else to the top of the page"
    ids = {p: set(re.findall(r'\bid="([^"]+)"', s)) for p, s in pages.items()}

    def fix(p, m):
        to = os.path.normpath(os.path.join(os.path.dirname(p), m[2])) if m[2] else p
        frag = m[3]
        while to in ids and frag and frag not in ids[to]:
            frag = frag.rpartition('.')[0]
        return f'{m[1]}{m[2]}{"#" if frag else ""}{frag}"'

    return {p: re.sub(r'(<a [^>]*?href=")([^"#:]*\.html|)#([^"]+)"', lambda m: fix(p, m), s) for p, s in pages.items()}


LOADS = re.compile(
    r'<(?:script|img|iframe|source|video|audio|link)\b[^>]*?\b(?:src|href)=["\'](?:https?:)?//[^"\']*'
    r'|url\(["\']?(?:https?:)?//[^)]*|@import\s+["\'](?:https?:)?//[^"\']*'
)
FONTS = re.compile(rb'@import url\((?:https?:)?//[^)]*\);?')  # a theme's web fonts; styles.css names the system's


def site(src, out):
    "Render the Quarto project `src` into `out`"
    r = subprocess.run(
        [sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', '-q', str(src)], capture_output=True, text=True
    )
    if not (src / out.name / 'index.html').exists():
        sys.exit(f'smalldocs:\n{r.stdout}{r.stderr}')
    new = {
        p.relative_to(src / out.name).as_posix(): p.read_bytes()
        for p in sorted((src / out.name).rglob('*'))
        if p.is_file()
    }
    pages = {p: breakable(mathml(b.decode())) for p, b in new.items() if p.endswith('.html')}
    new.update({p: s.encode() for p, s in anchors(pages).items()})
    new.update({p: FONTS.sub(b'', b) for p, b in new.items() if p.endswith('.css')})
    # The search forgives so many wrong letters that it finds MixUp for "tensorboard": one in seven is enough for a slip
    # of the finger.
    script = next(p for p in new if p.endswith('smalldocs.js'))
    assert b'threshold: 0.3' in new[script], 'smalldocs: the search is set up in another way now'
    new[script] = new[script].replace(b'threshold: 0.3', b'threshold: 0.15')
    for p, b in new.items():
        if p.endswith(('.html', '.css')) and (m := LOADS.search(b.decode())):
            sys.exit(f'{p} loads from another host: {m[0]}')
    for p, b in new.items():
        write(out / p, b)
    for p in sorted(out.rglob('*'), reverse=True):
        if p.is_file() and p.relative_to(out).as_posix() not in new:
            p.unlink()
        elif p.is_dir() and not any(p.iterdir()):
            p.rmdir()
    if r.returncode:
        sys.exit(f'smalldocs:\n{r.stdout}{r.stderr}')  # the site is there to look at, but a broken link is an error


def readme(nb, out):
    "The front page as README.md; what it draws lies beside the site, where the README shows it"
    res = []
    pictures = []
    for c in nb['cells']:
        s = join(c.get('source', '')).strip()
        if c['cell_type'] == 'raw':
            front = yaml.safe_load(s.strip('-\n'))
            res += ['# ' + front['title'], '> ' + front['description']]
        elif c['cell_type'] == 'markdown':
            # a name in backticks needs no link here
            s = re.sub(r'\[(`[^`]+`)\]\(/[^)]*\)', r'\1', re.sub(r'<!--.*?-->', '', s))
            res.append(s.replace('](/', '](docs/').strip())
        elif s and 'echo: false' not in s:
            code = re.sub(r'(?m)^#\|.*\n', '', s)
            res.append(f'```python\n{code}\n```')
            for o in c.get('outputs', []):
                t = join(o.get('text') or o.get('data', {}).get('text/plain') or '')
                res.append('\n'.join('    ' + l for l in t.splitlines()))
        else:
            for o in c.get('outputs', []):
                if png := join(o.get('data', {}).get('image/png') or ''):
                    pictures.append(f'readme_{len(pictures) + 1}.png')
                    write(out / pictures[-1], base64.b64decode(png))
                    res.append(f'![]({out.name}/{pictures[-1]})')
    return '\n\n'.join(o for o in res if o) + '\n'


def main():
    os.chdir(root)
    sys.path.insert(0, str(root))
    from nbdev.config import get_config
    from nbdev.quarto import _nbdev_yml

    lock = open(__file__)
    fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time in one checkout
    with tempfile.TemporaryDirectory() as tmp:
        nbs = Path(tmp) / 'nbs'
        src = Path(tmp) / 'site'
        titles = snapshot(nbs, src)
        cfg = get_config()
        keys = 'title', 'description', 'branch', 'git_url', 'doc_host', 'doc_baseurl'
        write(root / 'nbs' / 'nbdev.yml', _nbdev_yml.format(**{k: cfg[k] for k in keys}, doc_path=cfg.doc_path.name))
        write(root / 'nbs' / 'sidebar.yml', sidebar(titles))
        for n in 'nbdev.yml', 'sidebar.yml':
            shutil.copy(root / 'nbs' / n, src / n)
        if bad := process_all(nbs, src, titles):
            sys.exit('\n'.join(bad))
        front = json.loads((src / 'index.ipynb').read_text())
        for o in titles:
            (src / o).write_text(json.dumps(tidy(json.loads((src / o).read_text()), o)))
        s = (src / 'nbdev.yml').read_text()
        (src / 'nbdev.yml').write_text(re.sub(r'(?ms)^format-links:.*|^  (site|repo)-url: "/?"\n', '', s))
        site(src, root / 'docs')
        write(root / 'README.md', readme(front, root / 'docs'))


if __name__ == '__main__':
    main()
