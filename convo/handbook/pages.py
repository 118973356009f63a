"""Finds a page of the handbook and fills its tables in; open it to add a topic.

A page is ``TOPIC.md`` beside this file. A line that ends with ``<!-- table: NAME -->`` is replaced by that table of
``tables``, so nothing that the code lists is written a second time. The text before the comment is for those who read
the file itself. ``/docs/TOPIC`` serves a page, ``convo help TOPIC`` prints it.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from convo.errors import NotFound

# In the order in which a newcomer would read them.
_TOPICS = (
    *("operating", "clients", "analysis", "parts", "resilience", "events", "logs", "promises"),
    *("capacity", "alerts", "metrics", "problems", "ladder", "settings", "performance"),
)
_MARKER = re.compile(r"^.*<!-- table: (?P<name>[a-z-]+) -->$", re.MULTILINE)
# In the repository a link leads to a file; where the page is served, to its route.
_LINK_TO_PAGE = re.compile(r"\]\((?P<topic>[a-z]+)\.md(?P<anchor>#[a-z0-9-]+)?\)")


def topics() -> tuple[str, ...]:
    """List the topics, in the order of reading."""
    return _TOPICS


@cache
def page(topic: str) -> str:
    """Return one page as Markdown, its tables filled in and its links leading to ``/docs/TOPIC``.

    The tables show the default settings, not those of a running process.

    Raises:
        NotFound: there is no such topic; the text names those that exist.
    """
    if topic not in _TOPICS:
        raise NotFound(f"the handbook has no page {topic!r}; its pages are {', '.join(_TOPICS)}")
    return _MARKER.sub(_table, _LINK_TO_PAGE.sub(r"](/docs/\g<topic>\g<anchor>)", _text(topic)))


def title(topic: str) -> str:
    """Return the first line of a page."""
    first, *_ = _text(topic).lstrip().splitlines() or [""]
    return first.lstrip("# ")


@cache
def _text(topic: str) -> str:
    return resources.files("convo.handbook").joinpath(f"{topic}.md").read_text("utf-8")


def _table(found: re.Match[str]) -> str:
    # The tables need half of convo: the list of topics, and most of the pages, are printed without it.
    from convo.handbook.tables import TABLES  # noqa: PLC0415

    return TABLES[found["name"]]()
