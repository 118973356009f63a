from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo.conversation.model import EmotionName, Speaker
from convo.conversation.score import (
    EmotionShare,
    Share,
    Weights,
    count_exchanges,
    emotion_share,
    level,
    share,
    weights_version,
    within_bounds,
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


def test_a_share_is_its_count_by_its_weight_and_nothing_while_the_count_is_not_known() -> None:
    assert share(3, 5) == Share(count=3, weight=5, points=15)
    assert share(None, 5) == Share(count=None, weight=5, points=0)


def test_an_emotion_has_the_points_of_its_weight_and_none_while_it_is_not_known() -> None:
    assert emotion_share("boring", WEIGHTS) == EmotionShare(name="boring", points=-15)
    assert emotion_share(None, WEIGHTS) == EmotionShare(name=None, points=0)


@pytest.mark.parametrize(("points", "value"), [(-1, 0), (7, 7), (INTEGER_MAX + 1, INTEGER_MAX)])
def test_a_value_is_never_below_zero_nor_above_what_the_database_holds(points: int, value: int) -> None:
    assert within_bounds(points) == value


def test_the_version_of_the_weights_is_derived_from_each_of_them() -> None:
    changed = [
        msgspec.structs.replace(WEIGHTS, **{name: getattr(WEIGHTS, name) + 1}) for name in Weights.__struct_fields__
    ]
    versions = {weights_version(weights) for weights in [WEIGHTS, *changed]}
    assert len(versions) == len(changed) + 1
    assert weights_version(Weights(turn=1)) == weights_version(WEIGHTS) == "w1:bf245fce"


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
        ({"conversation_max": -1}, r"\$\.conversation_max"),
        ({"acquaintance_from": 3000}, r"friend_from \(3000\) must be more than acquaintance_from \(3000\)"),
        ({"turns": 1}, "turns"),
    ],
)
def test_weights_that_make_no_sense_are_refused(values: dict[str, Any], path: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=path):
        msgspec.convert(values, Weights)


def test_there_are_points_for_every_emotion() -> None:
    assert set(EMOTIONS) <= set(Weights.__struct_fields__)
