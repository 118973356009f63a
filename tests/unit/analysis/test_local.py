from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convo.analysis import local
from convo.analysis.local import asked, stated, words
from tests.support.saying import user_says

PIECES = st.sampled_from(
    ["I like ", "my name is ", "I'm ", "mình thích ", "tên tôi là ", "do you ", "không ", "? ", ". ", ", ", "\x00",
     "\ud800", '"', "’", "İ", "ﬃ", "é", "e\u0301", "😀", "\u200d", "１２", " tuổi", " and i ", "pizza", "Lan", "\n",
     "the "]
)  # fmt: skip
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(PIECES, max_size=30).map("".join),
)


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=6))
def test_any_text_is_analysed_within_bounds_and_can_be_stored(said: list[str]) -> None:
    whole = user_says(*said)
    found, facts = local.questions(whole).questions, local.memories(whole).facts
    assert local.emotion(whole) == local.emotion(whole)
    assert (found, facts) == (local.questions(whole).questions, local.memories(whole).facts)
    for text in (*found, *(fact.text for fact in facts), *(fact.key for fact in facts)):
        assert text.strip()
        assert "\x00" not in text
        assert len(text.encode()) <= 4 * (asked.QUESTION_CHARACTERS_MAX + 1)
    assert len({fact.key for fact in facts}) == len(facts)
    assert all(len(fact.text) <= stated.FACT_CHARACTERS_MAX for fact in facts)


@pytest.mark.parametrize(
    "unit",
    ["a?", "?", ".", "a\n", "i like ", "my name is ", " and i ", "do you ", "what a a ", "isnt you ", "không ",
     "là gì ", '"', "(", "İ", "😀", "i am really ", "mr. ", "haha ", " - ", "\u0301"],
)  # fmt: skip
def test_a_megabyte_of_hostile_text_is_read_to_its_bound_and_no_further(unit: str) -> None:
    # The reach is asserted, not the clock: what stands behind the bound changes nothing.
    whole = unit * (1_000_000 // len(unit))
    short = whole[: words.TURN_CHARACTERS_MAX]
    for analyse in (local.questions, local.emotion, local.memories):
        assert analyse(user_says(whole)) == analyse(user_says(short))


def test_the_analyst_names_itself_and_its_rules_version() -> None:
    assert local.BY == "local/2"
    assert msgspec.json.encode(local.emotion(user_says("ok"))) == b'{"emotion":"neutral"}'
