from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from convo import handbook
from convo.errors import NotFound
from convo.handbook.tables import TABLES
from tests.support.prose import broken_links, too_long

FOLDER = Path(str(resources.files("convo.handbook")))
TOPICS = handbook.topics()


def test_every_file_of_the_handbook_is_a_topic() -> None:
    assert sorted(TOPICS) == sorted(path.stem for path in FOLDER.glob("*.md"))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_begins_with_its_title_and_has_no_marker_left(topic: str) -> None:
    page = handbook.page(topic)
    assert re.match(r"# \w", page)
    assert "<!--" not in page


@pytest.mark.parametrize("topic", TOPICS)
def test_every_line_for_readers_of_the_file_is_replaced(topic: str) -> None:
    assert "shows the table" not in handbook.page(topic)
    assert "shows one table" not in handbook.page(topic)


def test_every_table_stands_on_a_page() -> None:
    whole = "\n".join(handbook.page(topic) for topic in TOPICS)
    assert [name for name, table in TABLES.items() if table() not in whole] == []


@pytest.mark.parametrize("topic", TOPICS)
def test_every_link_of_a_page_leads_somewhere(topic: str) -> None:
    assert broken_links(FOLDER / f"{topic}.md") == []


@pytest.mark.parametrize("topic", TOPICS)
def test_a_served_page_links_to_routes_and_not_to_files(topic: str) -> None:
    page = handbook.page(topic)
    assert ".md)" not in page
    assert set(re.findall(r"\]\(/docs/(\w+)", page)) <= set(TOPICS)


@pytest.mark.parametrize("topic", TOPICS)
def test_no_sentence_of_a_page_needs_a_second_reading(topic: str) -> None:
    assert too_long((FOLDER / f"{topic}.md").read_text("utf-8")) == []


@pytest.mark.parametrize("topic", ["", "nothing", "../pages", "operating.md"])
def test_an_unknown_topic_is_not_found_and_the_known_ones_are_named(topic: str) -> None:
    with pytest.raises(NotFound, match="operating, page, clients"):
        handbook.page(topic)
