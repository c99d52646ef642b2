"What the built site holds."

import html
import re
from collections import Counter
from pathlib import Path

import pytest

SITE = Path(__file__).parent.parent / 'docs'
PAGES = sorted(SITE.rglob('*.html'))


def symbols(page):
    "Headings of symbols on a page"
    return [html.unescape(name) for name in re.findall(r'<h3 id="[^"]*"[^>]*>([\w.]+)</h3>', page.read_text())]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(SITE)))
def test_each_symbol_stands_once_on_its_page(page):
    assert not [name for name, times in Counter(symbols(page)).items() if times > 1]


def test_headings_are_found():
    assert 'Learner.fine_tune' in symbols(SITE / 'runs' / 'one_cycle.html')
