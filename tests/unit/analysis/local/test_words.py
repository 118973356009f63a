from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convo.analysis import local
from convo.analysis.local import words
from tests.support.saying import user_says


def questions(*said: str) -> list[str]:
    return list(local.questions(user_says(*said)).questions)


def texts(*said: str) -> list[str]:
    return [fact.text for fact in local.memories(user_says(*said)).facts]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_lowering_and_folding_keep_every_place(text: str) -> None:
    assert len(words.lower(text)) == len(words.fold(text)) == len(text)


def test_a_conversation_is_read_up_to_its_bound() -> None:
    full = "x " * (words.TURN_CHARACTERS_MAX // 2)
    turns = words.CONVERSATION_CHARACTERS_MAX // words.TURN_CHARACTERS_MAX + 1
    assert questions(*[full] * (turns // 2), "Who are you?") == ["Who are you?"]
    assert questions(*[full] * turns, "Who are you?") == []


def test_letters_that_grow_when_composed_do_not_move_the_bound() -> None:
    # U+0958 becomes two letters, so the last turn overshoots the bound; what follows stays unread.
    growing = "\u0958" * words.TURN_CHARACTERS_MAX
    plain = "x " * (words.TURN_CHARACTERS_MAX // 2)
    assert questions(growing, growing, growing, plain, growing, "Who are you? " + "x " * 20_000) == []


def test_decomposed_letters_are_read_as_composed_ones() -> None:
    assert texts("Mi\u0300nh thi\u0301ch phở") == ["thích phở"]


def test_marks_without_end_are_read_as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    real = unicodedata.normalize

    def noted(form: Any, text: str) -> str:
        given.append(text)
        return real(form, text)

    monkeypatch.setattr("convo.conversation.composing.unicodedata.normalize", noted)
    assert questions("Who is Zalgo" + "\u0301\u0323" * 3_000 + " to you?")
    # Sorting a run takes the square of its length.
    assert max(len(run) for text in given for run in re.findall("[\u0301\u0323]+", text)) <= 31


def test_a_conversation_is_cleaned_once_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []
    real = words.clean

    def noted(text: str) -> str:
        cleaned.append(text)
        return real(text)

    monkeypatch.setattr(words, "clean", noted)
    talk = user_says("Who are you?", "I like tea!")
    for part in (local.questions, local.emotion, local.memories, local.questions):
        part(talk)
    assert cleaned == ["Who are you?", "I like tea!"]
    assert talk == user_says("Who are you?", "I like tea!")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Nguyễn", "english"),
        ("Tên mình là Lan", "vietnamese"),
        ("bạn ổn chứ", "vietnamese"),
        ("toi rat thich bong da", "bare vietnamese"),
        ("The ban was lifted", "english"),
        ("12345", "english"),
    ],
)
def test_the_language_of_a_turn_is_guessed(text: str, expected: str) -> None:
    assert words.language(text) == expected


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("أين طلبي؟ متى يصل؟", ["أين طلبي", "متى يصل"]),
        ("کجاست؟", ["کجاست"]),
        ("Πού είναι; Γεια σου.", ["Πού είναι"]),
        ("Πού είναι\u037e", ["Πού είναι"]),
        ("你好。你在哪里？我很好！", ["你在哪里"]),
        ("ほんと⁇", ["ほんと"]),
        ("really⁉ why‽", ["really", "why"]),
        ("Ի՞նչ ես ուզում։ Լավ։", ["Ինչ ես ուզում"]),
        ("የት ነው፧", ["የት ነው"]),
        ("﹖a﹖", ["a"]),
        ("wait; stop", []),
        ("a⸮", ["a"]),
    ],
)
def test_a_question_mark_of_any_script_asks(text: str, asked: list[str]) -> None:
    assert [one.text for one in words.sentences(words.clean(text)) if one.asked and one.text.strip("﹖")] == asked


def test_in_ascii_sentences_end_where_they_do_in_all_texts() -> None:
    for length in range(1, 6):
        for letters in itertools.product('.?\n"a ;', repeat=length):
            text = "".join(letters)
            spans = [found.span() for found in words._ASCII_ENDING.finditer(text)]
            assert spans == [found.span() for found in words._ENDING.finditer(text)], repr(text)
