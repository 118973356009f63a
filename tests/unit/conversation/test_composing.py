from __future__ import annotations

import sys
import unicodedata
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convo.conversation.composing import MARKS_MAX, compose

EVERY = map(chr, range(sys.maxunicode + 1))
MARKS = [character for character in EVERY if unicodedata.combining(unicodedata.normalize("NFD", character)[0])]
JOINER = "\N{COMBINING GRAPHEME JOINER}"
LETTERS = ["a", "ế", "ΐ", "ᾢ", "≮", "가", "ก", "क", " ", "\n", "👍", "𝅗𝅥"]


def longest_run(text: str) -> int:
    runs = groupby(unicodedata.normalize("NFD", text), key=lambda character: bool(unicodedata.combining(character)))
    return max((len(list(run)) for marked, run in runs if marked), default=0)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("mark", ["\u0301", "\u0301\u0323", "\u0344", "\u0f73", "\u20d0", "\U0001e944", "\u302e"])
@pytest.mark.parametrize("count", [1, 14, 15, 27, 30, 31, 32, 200])
def test_no_run_of_marks_is_over_the_bound_and_none_below_it_is_changed(letter: str, mark: str, count: int) -> None:
    text = f"x{letter}{mark * count}{letter}"
    composed = compose(text)
    assert longest_run(composed) <= MARKS_MAX
    assert unicodedata.is_normalized("NFC", composed)
    if longest_run(text) <= MARKS_MAX:
        assert composed == unicodedata.normalize("NFC", text)
    else:
        # Nothing is lost, and nothing but joiners is added.
        assert sorted(unicodedata.normalize("NFD", composed.replace(JOINER, ""))) == sorted(
            unicodedata.normalize("NFD", text)
        )


def test_every_mark_is_counted() -> None:
    assert all(longest_run(compose("a" + mark * 100)) <= MARKS_MAX for mark in MARKS)
    assert longest_run(compose("a" + "".join(MARKS))) <= MARKS_MAX


@settings(deadline=None)
@given(
    st.text(st.sampled_from(["a", "\u1fa2", "\u0301", "\u0323", "\u0344", "\u0f73", JOINER, "👍", "!"]), max_size=120)
)
def test_composed_text_is_in_nfc_without_long_runs_and_stays_as_it_is(text: str) -> None:
    composed = compose(text)
    assert longest_run(composed) <= MARKS_MAX
    assert compose(composed) == composed


@given(st.text())
def test_other_text_is_plain_nfc(text: str) -> None:
    assert compose(text) == unicodedata.normalize("NFC", text)
