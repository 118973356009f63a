from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo.conversation.model import EmotionName, Speaker
from convo.conversation.score import (
    Breakdown,
    EmotionShare,
    Score,
    Share,
    Weights,
    count_exchanges,
    level,
    score,
    weights_version,
)

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WEIGHTS = Weights()
EMOTIONS = get_args(EmotionName)
INTEGER_MAX = 2_147_483_647


def spoke(initials: str) -> list[Speaker]:
    return ["bot" if initial == "b" else "user" for initial in initials]


@pytest.mark.parametrize(
    ("speakers", "count"),
    [
        ("", 0),
        ("b", 0),
        ("bu", 1),
        ("ub", 1),
        ("bub", 1),
        ("bubu", 2),
        ("bbbb", 0),
        ("bbu", 1),
        ("buub", 2),
        ("buuub", 2),
    ],
)
def test_an_exchange_is_two_neighbours_of_different_speakers(speakers: str, count: int) -> None:
    assert count_exchanges(spoke(speakers)) == count


@UNTIMED
@given(st.text("bu", max_size=30))
def test_no_turn_is_in_two_exchanges(speakers: str) -> None:
    changes = sum(one != other for one, other in itertools.pairwise(speakers))
    assert (changes + 1) // 2 <= count_exchanges(spoke(speakers)) <= min(changes, len(speakers) // 2)


def test_a_score_carries_every_input_weight_and_point_of_it() -> None:
    found = score(exchanges=10, questions=2, new_memories=3, emotion="interesting", weights=WEIGHTS)
    assert found == Score(
        value=10 + 6 + 15 + 15,
        final=True,
        breakdown=Breakdown(
            exchanges=Share(count=10, weight=1, points=10),
            questions=Share(count=2, weight=3, points=6),
            memories=Share(count=3, weight=5, points=15),
            emotion=EmotionShare(name="interesting", points=15),
        ),
        weights_version="w1:f739acb8",
    )


@pytest.mark.parametrize(("emotion", "value"), [("interesting", 35), ("boring", 5), *((n, 20) for n in EMOTIONS[2:])])
def test_only_an_interesting_or_a_boring_conversation_moves_the_score(emotion: EmotionName, value: int) -> None:
    assert score(exchanges=20, questions=0, new_memories=0, emotion=emotion, weights=WEIGHTS).value == value


def test_a_score_is_never_below_zero() -> None:
    found = score(exchanges=3, questions=0, new_memories=0, emotion="boring", weights=WEIGHTS)
    assert (found.value, found.breakdown.emotion.points) == (0, -15)


@pytest.mark.parametrize(
    ("missing", "value"), [("questions", 10 + 15 + 15), ("new_memories", 10 + 6 + 15), ("emotion", 31)]
)
def test_a_missing_part_gives_nothing_and_the_score_is_not_final(missing: str, value: int) -> None:
    parts: dict[str, Any] = {"questions": 2, "new_memories": 3, "emotion": "interesting"} | {missing: None}
    found = score(exchanges=10, weights=WEIGHTS, **parts)
    assert (found.value, found.final) == (value, False)


def test_a_part_that_found_nothing_is_not_missing() -> None:
    assert score(exchanges=0, questions=0, new_memories=0, emotion="neutral", weights=WEIGHTS).final


def test_a_missing_part_is_shown_as_null() -> None:
    found = score(exchanges=1, questions=None, new_memories=None, emotion=None, weights=WEIGHTS)
    assert msgspec.to_builtins(found.breakdown) == {
        "exchanges": {"count": 1, "weight": 1, "points": 1},
        "questions": {"count": None, "weight": 3, "points": 0},
        "memories": {"count": None, "weight": 5, "points": 0},
        "emotion": {"name": None, "points": 0},
    }


COUNTS = st.integers(0, 10**9)
POINTS = st.integers(-1000, 1000)
ANY_WEIGHTS = st.builds(
    Weights,
    turn=st.integers(0, 1000),
    question=st.integers(0, 1000),
    memory=st.integers(0, 1000),
    **dict.fromkeys(EMOTIONS, POINTS),
)


@UNTIMED
@given(COUNTS, st.none() | COUNTS, st.none() | COUNTS, st.none() | st.sampled_from(EMOTIONS), ANY_WEIGHTS)
def test_a_score_is_the_sum_of_its_points_within_what_the_database_holds(
    count: int, questions: int | None, memories: int | None, emotion: EmotionName | None, weights: Weights
) -> None:
    found = score(exchanges=count, questions=questions, new_memories=memories, emotion=emotion, weights=weights)
    parts = found.breakdown
    points = parts.exchanges.points + parts.questions.points + parts.memories.points + parts.emotion.points
    assert found.value == min(max(points, 0), INTEGER_MAX)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Score) == found


def test_the_version_of_the_weights_is_derived_from_each_of_them() -> None:
    changed = [
        msgspec.structs.replace(WEIGHTS, **{name: getattr(WEIGHTS, name) + 1}) for name in Weights.__struct_fields__
    ]
    versions = {weights_version(weights) for weights in [WEIGHTS, *changed]}
    assert len(versions) == len(changed) + 1
    assert weights_version(Weights(turn=1)) == weights_version(WEIGHTS) == "w1:f739acb8"


@pytest.mark.parametrize(
    ("total", "name"),
    [
        (0, "stranger"),
        (499, "stranger"),
        (500, "acquaintance"),
        (2999, "acquaintance"),
        (3000, "friend"),
        (10**12, "friend"),
    ],
)
def test_a_level_begins_at_its_threshold(total: int, name: str) -> None:
    assert level(total, WEIGHTS) == name


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"turn": -1}, r"\$\.turn"),
        ({"question": 1001}, r"\$\.question"),
        ({"memory": 1.5}, r"\$\.memory"),
        ({"boring": -1001}, r"\$\.boring"),
        ({"acquaintance_from": 0}, r"\$\.acquaintance_from"),
        ({"friend_from": INTEGER_MAX + 1}, r"\$\.friend_from"),
        ({"acquaintance_from": 3000}, r"friend_from \(3000\) must be more than acquaintance_from \(3000\)"),
        ({"turns": 1}, "turns"),
    ],
)
def test_weights_that_make_no_sense_are_refused(values: dict[str, Any], path: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=path):
        msgspec.convert(values, Weights)


def test_there_are_points_for_every_emotion() -> None:
    assert set(EMOTIONS) <= set(Weights.__struct_fields__)
