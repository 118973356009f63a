from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser

import pytest

from convo import errors
from convo.web.description import openapi, page

PAGE = page.api_page()
DOCUMENT = openapi.document()
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """The ids, links and unclosed elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(PAGE)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.sources += [given["src"] or ""] if "src" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


OUTLINE = Outline()


def test_the_page_is_well_formed() -> None:
    assert OUTLINE.open == []
    assert len(OUTLINE.ids) == len(set(OUTLINE.ids))


def test_the_page_loads_nothing_else() -> None:
    assert OUTLINE.sources == []
    assert not re.search(r"@import|url\(|fetch\(|<link", PAGE)
    assert {link for link in OUTLINE.links if not link.startswith("#")} == {"/openapi.json"}


def test_every_link_within_the_page_leads_somewhere() -> None:
    assert {link[1:] for link in OUTLINE.links if link.startswith("#")} <= set(OUTLINE.ids)


def test_every_operation_and_schema_has_its_place() -> None:
    names = {one["operationId"] for methods in DOCUMENT["paths"].values() for one in methods.values()}
    assert names | {f"schema-{name}" for name in DOCUMENT["components"]["schemas"]} <= set(OUTLINE.ids)


@pytest.mark.parametrize("kind", [errors.Conflict, errors.Invalid, errors.DeadlineExceeded, errors.NotDead])
def test_the_type_of_a_problem_is_a_place_on_the_page(kind: type[errors.ConvoError]) -> None:
    assert kind.code in OUTLINE.ids


def curl(path: str, method: str) -> list[str]:
    return shlex.split(page.curl(path, method, DOCUMENT["paths"][path][method]))


def test_a_command_for_the_accept_route_holds_a_whole_request() -> None:
    words = curl("/v1/conversations/end", "post")
    assert words[:3] == ["curl", "-i", "http://127.0.0.1:30020/v1/conversations/end"]
    assert words[3:5] == ["-H", "Content-Type: application/json"]
    assert words[5] == "-d"
    assert '"conversation_id": "c-by-character"' in words[6]


def test_a_command_fills_in_path_and_query() -> None:
    words = curl("/v1/conversations/{conversation_id}", "get")
    assert words == ["curl", "-i", "http://127.0.0.1:30020/v1/conversations/c-by-character?wait=5"]
    assert curl("/v1/conversations/{conversation_id}/retry", "post")[-2:] == ["-X", "POST"]


def test_what_is_shown_is_escaped() -> None:
    assert page._prose("a < b & `<c>`") == "<p>a &lt; b &amp; <code>&lt;c&gt;</code></p>"


def test_a_problem_is_described_once_and_linked_from_each_operation() -> None:
    assert PAGE.count('id="unauthorized"') == 1
    assert PAGE.count('href="#unauthorized"') > 5
