from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from convo.analysis.part import FINDINGS, PARTS, Part, PartsView, StoredFinding, emotion_of
from convo.conversation.model import Answered, Finding, Memories, MemoryFact, Mood, Questions
from convo.conversation.owed import DEFAULT_PARTS
from convo.conversation.score import Weights
from tests.support.making import THREE

COMMON = {"state", "by", "version", "error", "updated_at"}
"""The fields of a view that are the same for every part."""


def test_every_name_of_a_part_has_one_and_every_kind_of_finding_too() -> None:
    assert tuple(part.name for part in PARTS) == DEFAULT_PARTS
    assert {*FINDINGS.values(), Answered} == set(get_args(Finding))


def test_answers_show_the_parts_in_their_order() -> None:
    waiting = PartsView(**{part.name: part.view(state="waiting") for part in PARTS})
    assert list(msgspec.to_builtins(waiting)) == ["questions", "emotion", "memories"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_view_shows_what_is_common_and_what_is_the_parts_own(part: Part) -> None:
    stored = StoredFinding(THREE[part.name], 1)
    own = part.shown(stored)
    assert set(part.view.__struct_fields__) == COMMON | set(own)
    part.view(state="done", **own)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_that_is_not_found_gives_no_points(part: Part) -> None:
    assert part.points(None, Weights()).points == 0


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_points_of_a_part_are_of_the_kind_that_it_declares(part: Part) -> None:
    assert type(part.points(StoredFinding(THREE[part.name], 2), Weights())) is part.share


def test_questions_count_each_and_memories_those_that_were_new() -> None:
    points = {part.name: part.points for part in PARTS}
    asked = StoredFinding(Questions(questions=("Why?", "How?")))
    facts = StoredFinding(Memories(facts=(MemoryFact(key="a", text="a"), MemoryFact(key="b", text="b"))), 1)
    assert points["questions"](asked, Weights()).points == 2 * 3
    assert points["memories"](facts, Weights()).points == 1 * 5


def test_only_a_mood_has_an_emotion() -> None:
    assert emotion_of(StoredFinding(Mood(emotion="sad"))) == "sad"
    assert emotion_of(StoredFinding(Questions(questions=()))) is None


@pytest.mark.parametrize("part", PARTS[:2], ids=lambda part: part.name)
def test_a_part_that_the_analyst_refused_is_shown_as_refused_and_gives_no_points(part: Part) -> None:
    refused: dict[str, Finding] = {
        "questions": Questions(questions=(), refused="a content filter refuses it"),
        "emotion": Mood(emotion="neutral", refused="a content filter refuses it"),
    }
    stored = StoredFinding(refused[part.name])
    shown = dict(part.shown(stored))
    assert shown.pop("judged", False) is False
    assert shown == {"state": "refused", "error": "a content filter refuses it"}
    assert part.points(stored, Weights()).points == 0
    assert emotion_of(stored) is None


def test_what_is_stored_of_a_part_is_the_same_as_before_there_were_refusals() -> None:
    assert msgspec.json.encode(Questions(questions=())) == b'{"questions":[]}'
    assert msgspec.json.encode(Mood(emotion="sad")) == b'{"emotion":"sad"}'
