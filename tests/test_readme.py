from __future__ import annotations

import re
from pathlib import Path

import pytest

from convo import handbook
from convo.ladder import ladder
from convo.settings import Settings
from tests.support.prose import broken_links, rows, sentences, too_long

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
WORDS_MAX = 1500
PAGES = ["README.md", "tests/README.md", "scripts/README.md"]


def section(title: str) -> str:
    return README.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_readme_is_read_in_five_minutes() -> None:
    words = len(README.split())
    assert words <= WORDS_MAX, f"{words} words: move what a newcomer does not need into the handbook"


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_needs_a_second_reading(page: str) -> None:
    assert too_long((ROOT / page).read_text("utf-8")) == []


def test_a_long_sentence_is_found_in_a_paragraph_a_list_and_a_table() -> None:
    long = " ".join(["Word"] * 36) + "."
    assert too_long(f"Short.\n{long}\n\n- short\n- {long}\n\n| a | {long} |\n") == [long] * 3
    assert list(sentences("One is short. `Two` is, too: three.\n\n```\nno sentence\n```\n")) == [
        "One is short.",
        "`Two` is, too: three.",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_the_readme_shows_three_rungs_of_the_ladder_as_they_are() -> None:
    every = [
        (
            rung.inside,
            f"{rung.inside_seconds:g} s",
            f"{rung.relation} {rung.outside}",
            f"{rung.outside_seconds:g} s",
            rung.otherwise,
        )
        for rung in ladder(Settings())
    ]
    shown = rows(section("The ladder"))
    assert len(shown) == 3
    assert set(shown) <= set(every)
    assert len(every) == 13, "the README names this number"


def test_the_readme_names_every_page_of_the_handbook() -> None:
    named = re.findall(
        r"^\| \[(\w+)\]\(convo/handbook/(\w+)\.md\)", section("Where everything else stands"), re.MULTILINE
    )
    assert named == [(topic, topic) for topic in handbook.topics()]


def test_the_tree_shows_every_room_and_nothing_that_is_not_there() -> None:
    tree = re.findall(r"^((?:convo|tests|scripts)/\S*)", section("The tree"), re.MULTILINE)
    assert [path for path in tree if not (ROOT / path).exists()] == []
    rooms = {f"convo/{path.parent.name}/" for path in (ROOT / "convo").glob("*/__init__.py")}
    assert rooms <= set(tree)


def test_the_readme_s_curl_is_the_one_that_serve_prints() -> None:
    posted = re.search(r"-d '(\{.*?\})'", README, re.DOTALL)
    assert posted is not None
    printed = posted[1].replace("{", "{{").replace("}", "}}")
    assert any(printed in path.read_text("utf-8") for path in (ROOT / "convo/commands").glob("*.py"))
