from __future__ import annotations

import re

from convo.web.description.handbook_page import handbook_page

TEXT = """\
# Alerts & more

## Dead letters `dead`

| alert | what to do |
|---|---|
| `DEAD_LETTER` | read *why* |

## Dead letters dead
"""


def page(markdown: str = TEXT) -> str:
    return handbook_page("alerts", markdown, ("alerts", "operating"))


def main_of(html: str) -> str:
    return html.partition("<main>")[2].partition("</main>")[0]


def test_markdown_becomes_html_with_tables() -> None:
    shown = main_of(page())
    assert "<h1" in shown
    assert "<td><code>DEAD_LETTER</code></td>" in shown
    assert "<td>read <em>why</em></td>" in shown


def test_every_heading_has_an_id_of_its_own_that_the_navigation_links_to() -> None:
    shown = page()
    ids = re.findall(r'<h\d id="([^"]*)"', main_of(shown))
    assert ids[:2] == ["alerts--more", "dead-letters-dead"]
    assert len(set(ids)) == len(ids) == 3
    navigation = shown.partition("<nav>")[2].partition("</nav>")[0]
    assert re.findall(r'href="#([^"]*)"', navigation) == ids[1:]


def test_the_navigation_links_to_the_other_pages() -> None:
    assert '<a href="/docs/operating">operating</a>' in page()
    assert '<a href="/docs">' in page()


def test_html_in_markdown_stays_text() -> None:
    shown = main_of(page("<script>alert(1)</script>\n\n# <b>x\n\n[x](javascript:alert(1)) <img src=y>"))
    assert not re.search(r"<(script|img|b)\b", shown)
    assert 'href="javascript' not in shown


def test_the_page_loads_nothing_else() -> None:
    assert not re.search(r"<link|@import|url\(|src=|fetch\(", page())
