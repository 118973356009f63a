from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from convo.conversation import decode, transcript
from convo.conversation.model import EmotionName
from scripts import seed_bodies

SAMPLES: list[dict[str, Any]] = [
    json.loads(line) for line in seed_bodies.SAMPLES.read_text(encoding="utf-8").split("\n") if line
]
EMOTIONS: tuple[EmotionName, ...] = ("interesting", "boring", "neutral", "angry", "happy", "sad")


def by_id(sample: dict[str, Any]) -> str:
    return str(sample["conversation_id"])


def who_says(item: dict[str, Any]) -> str:
    return str(item.get("character") or item.get("speaker") or item.get("role") or item.get("from"))


def said_by_user(sample: dict[str, Any]) -> list[str]:
    plain = map(seed_bodies.plain_item, seed_bodies.log_of(sample))
    return [item["content"] for item in plain if item["character"] == "USER" and item["content"]]


@pytest.mark.parametrize("sample", SAMPLES, ids=by_id)
def test_a_sample_is_a_body_that_is_taken_with_the_turns_it_says(sample: dict[str, Any]) -> None:
    ended = decode.decode(seed_bodies.encode(sample))

    assert transcript.check_log(ended).turns == sample["expected"]["turns"]
    assert 6 <= sample["expected"]["turns"] <= 24


@pytest.mark.parametrize("sample", SAMPLES, ids=by_id)
def test_a_sample_expects_no_fewer_questions_than_have_a_mark_and_no_more_than_the_user_spoke(
    sample: dict[str, Any],
) -> None:
    said = said_by_user(sample)

    assert sum("?" in text for text in said) <= sample["expected"]["questions"] <= len(said)


def test_there_are_enough_samples_and_no_two_of_one_id_or_one_text() -> None:
    assert len(SAMPLES) >= 40
    assert len({sample["conversation_id"] for sample in SAMPLES}) == len(SAMPLES)
    assert len({"\n".join(said_by_user(sample)) for sample in SAMPLES}) == len(SAMPLES)


def test_both_languages_and_all_emotions_are_there_about_evenly() -> None:
    languages = Counter(sample["expected"]["language"] for sample in SAMPLES)
    emotions = Counter(sample["expected"]["emotion"] for sample in SAMPLES)

    assert set(languages) == {"en", "vi"}
    assert abs(languages["en"] - languages["vi"]) <= 2
    assert set(emotions) == set(EMOTIONS)
    assert max(emotions.values()) - min(emotions.values()) <= 2
    assert {(sample["expected"]["emotion"], sample["expected"]["language"]) for sample in SAMPLES} == {
        (emotion, language) for emotion in EMOTIONS for language in languages
    }


def test_every_shape_of_log_is_there_in_both_spellings_of_its_field() -> None:
    shapes = {tuple(sorted({who_says(item) for item in seed_bodies.log_of(sample)})) for sample in SAMPLES}
    contents = {type(item["content"]) for sample in SAMPLES for item in seed_bodies.log_of(sample) if "role" in item}
    spellings = Counter("conversation_logs" in sample for sample in SAMPLES)

    assert shapes == {
        ("BOT_RESPONSE_CONVERSATION", "USER_RESPONSE_CONVERSATION"),
        ("BOT", "USER"),
        ("PIKA", "USER"),
        ("pika", "user"),
        ("assistant", "user"),
        ("gpt", "human"),
    }
    assert contents == {str, list}
    assert min(spellings[True], spellings[False]) >= 10


@pytest.mark.parametrize("field", ["bot_name", "bot_type", "agent_tag", "start_time", "end_time"])
def test_what_may_be_missing_is_missing_somewhere_and_there_somewhere(field: str) -> None:
    assert {field in sample for sample in SAMPLES} == {True, False}


def test_several_users_have_several_conversations_with_several_bots() -> None:
    users = Counter(sample["user_id"] for sample in SAMPLES)

    assert len(users) >= 6
    assert min(users.values()) >= 3
    assert len({sample["bot_id"] for sample in SAMPLES}) >= 4
    assert max(len({s["bot_id"] for s in SAMPLES if s["user_id"] == user}) for user in users) >= 3


def test_some_items_are_empty_and_some_times_of_items_are_missing() -> None:
    items = [item for sample in SAMPLES for item in seed_bodies.log_of(sample)]

    assert any(item.get("content") == "" for item in items)
    assert {"timestamp" in item for item in items if "turn_id" in item} == {True, False}
