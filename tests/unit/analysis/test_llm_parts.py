from __future__ import annotations

import json
from typing import Any

import pytest

from convo.analysis.llm_parts import call_key, made_by, read_part, refused_part
from convo.conversation.model import Answered, Mood, Questions
from convo.conversation.owed import DeclaredPart
from tests.support.fakes import conversation_of

SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
QUESTIONS = DeclaredPart(name="questions", who="llm")
EMOTION = DeclaredPart(name="emotion", who="llm")
MINE = DeclaredPart(name="my_view", who="llm", version="p1:1", analyst="m", prompt="Which?", schema=SCHEMA)
TALK = conversation_of("Why?", "Because.")
GOOD = Answered(answer={"mood": "good"})


def read(part: DeclaredPart, answer: Any, *, alone: bool = False) -> object:
    return read_part(part, [answer if isinstance(answer, str) else json.dumps(answer)], alone=alone)


def test_each_part_is_read_from_under_its_name() -> None:
    answer = {"questions": ["Why?"], "emotion": "happy", "my_view": {"mood": "good"}}
    assert read(QUESTIONS, answer) == Questions(questions=("Why?",))
    assert read(EMOTION, answer) == Mood(emotion="happy")
    assert read(MINE, answer) == GOOD


@pytest.mark.parametrize(
    "answer",
    [
        {"myView": {"mood": "good"}},
        {"My View": {"mood": "good", "more": 1}},
        {"result": {"my_view": {"mood": "good"}}},
        'Here it is:\n```json\n{"my_view": {"mood": "good"},}\n```',
        '<think>{"my_view": {"mood": "bad"}}</think>{"my_view": {"mood": "good"}}',
        '{"my_view": {"mood": "bad or good"}} {"my_view": {"mood": "good"}}',
    ],
)
def test_a_name_in_another_spelling_and_prose_around_are_read(answer: Any) -> None:
    assert read(MINE, answer) == GOOD


@pytest.mark.parametrize(
    "answer", [{}, {"mood": "good"}, {"my_view": {"mood": "great"}}, {"my_view": "good"}, "good", []]
)
def test_what_does_not_fit_is_not_guessed(answer: Any) -> None:
    assert read(MINE, answer) is None


def test_a_part_that_is_asked_for_alone_may_answer_without_its_name() -> None:
    assert read(MINE, {"mood": "good"}, alone=True) == GOOD


def test_a_field_of_another_part_is_not_taken_for_a_part() -> None:
    answer = {"my_view": {"mood": "good", "questions": ["Mine?"]}, "emotions": "x"}
    assert read(EMOTION, {"my_view": {"emotion": "sad"}}) is None
    assert read(QUESTIONS, answer) is None
    # Alone, a model that calls it otherwise is understood.
    assert read(EMOTION, {"mood": "sad"}, alone=True) == Mood(emotion="sad")


def test_what_no_database_takes_is_taken_out_of_an_answer() -> None:
    part = DeclaredPart(
        name="p", who="llm", version="p1:2", schema={"type": "object", "properties": {"a": {"type": "string"}}}
    )
    assert read(part, '{"p": {"a": "x\\u0000y\\ud800z"}}') == Answered(answer={"a": "xy?z"})


def test_a_refusal_is_a_finding_of_each_part() -> None:
    assert refused_part(QUESTIONS, "no") == Questions(questions=(), refused="no")
    assert refused_part(EMOTION, "no") == Mood(emotion="neutral", judged=False, refused="no")
    assert refused_part(MINE, "no") == Answered(refused="no")


def test_the_key_of_a_call_tells_what_is_asked_of_whom_and_of_which_content() -> None:
    key = call_key(TALK, [EMOTION, MINE], "m", "http://a")
    assert call_key(TALK, [MINE, EMOTION], "m", "http://a") == key
    others = [
        call_key(TALK, [EMOTION], "m", "http://a"),
        call_key(TALK, [EMOTION, DeclaredPart(name="my_view", who="llm", version="p1:9")], "m", "http://a"),
        call_key(TALK, [EMOTION, MINE], "n", "http://a"),
        call_key(TALK, [EMOTION, MINE], "m", "http://b"),
        call_key(conversation_of("Why?", digest="1:other"), [EMOTION, MINE], "m", "http://a"),
        call_key(conversation_of("Why?", conversation_id="talk-2"), [EMOTION, MINE], "m", "http://a"),
    ]
    assert len({key, *others}) == 7
    assert key.isascii()


def test_a_maker_is_the_model_with_the_version_of_what_it_was_asked() -> None:
    assert [made_by(part, "m") for part in (EMOTION, MINE)] == ["m/prompt-3", "m/p1:1"]
