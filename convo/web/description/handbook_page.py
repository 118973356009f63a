"""A page of the handbook as HTML: its Markdown rendered, in the same frame as ``/docs``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from convo.web.description.page import framed, topic_links

# As GitHub names headings, so that one link works in the repository and where the page is served.
_NOT_IN_AN_ID = re.compile(r"[^\w\- ]")
# Raw HTML is off: a page may quote text from anywhere, and what it quotes must stay text.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def handbook_page(topic: str, markdown: str, topics: Iterable[str]) -> str:
    """Return one page as HTML; its navigation links to ``topics`` and to the headings of the page."""
    tokens = _MARKDOWN.parse(markdown)
    headings = list(_name_headings(tokens))
    content = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return framed(f"convo: {topic}", ['<a href="/docs">The interface</a>', *topic_links(topics), *headings], content)


def _name_headings(tokens: list[Token]) -> Iterator[str]:
    """Give each heading an id, so that it can be linked to, and yield the links to those of the second level."""
    yield "<b>on this page</b>"
    taken: set[str] = set()
    for opening, inline in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        name = base = _NOT_IN_AN_ID.sub("", inline.content.lower()).replace(" ", "-")
        while name in taken:
            name = f"{base}-{len(taken)}"
        taken.add(name)
        opening.attrSet("id", name)
        if opening.tag == "h2":
            yield f'<a href="#{name}">{_MARKDOWN.renderer.render([inline], _MARKDOWN.options, {})}</a>'
