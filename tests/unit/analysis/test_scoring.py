from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo.analysis.part import PARTS, StoredFinding
from convo.analysis.scoring import Breakdown, Score, score
from convo.conversation.model import EmotionName, Memories, Mood, PartName, Questions
from convo.conversation.score import CapShare, EmotionShare, Share, Weights, level

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WEIGHTS = Weights()
EMOTIONS = get_args(EmotionName)
INTEGER_MAX = 2_147_483_647


def found(
    questions: int | None = None, memories: int | None = None, emotion: EmotionName | None = None
) -> dict[PartName, StoredFinding]:
    """Make the stored findings of these parts; None is a part that is not found."""
    stored: dict[PartName, StoredFinding] = {}
    if questions is not None:
        stored["questions"] = StoredFinding(Questions(questions=("Why?",) * questions))
    if memories is not None:
        stored["memories"] = StoredFinding(Memories(facts=()), memories)
    if emotion is not None:
        stored["emotion"] = StoredFinding(Mood(emotion=emotion))
    return stored


def test_a_score_carries_every_input_weight_and_point_of_it() -> None:
    assert score(10, found(2, 3, "interesting"), WEIGHTS) == Score(
        value=10 + 6 + 15 + 15,
        final=True,
        breakdown=Breakdown(
            exchanges=Share(count=10, weight=1, points=10),
            questions=Share(count=2, weight=3, points=6),
            memories=Share(count=3, weight=5, points=15),
            emotion=EmotionShare(name="interesting", points=15),
            cap=CapShare(max=500, points=0),
        ),
        weights_version="w1:bf245fce",
    )


@pytest.mark.parametrize(("emotion", "value"), [("interesting", 35), ("boring", 5), *((n, 20) for n in EMOTIONS[2:])])
def test_only_an_interesting_or_a_boring_conversation_moves_the_score(emotion: EmotionName, value: int) -> None:
    assert score(20, found(0, 0, emotion), WEIGHTS).value == value


def test_a_score_is_never_below_zero() -> None:
    scored = score(3, found(0, 0, "boring"), WEIGHTS)
    assert (scored.value, scored.breakdown.emotion.points) == (0, -15)


@pytest.mark.parametrize(
    ("missing", "value"), [("questions", 10 + 15 + 15), ("memories", 10 + 6 + 15), ("emotion", 31)]
)
def test_a_missing_part_gives_nothing_and_the_score_is_not_final(missing: PartName, value: int) -> None:
    stored = found(2, 3, "interesting")
    del stored[missing]
    scored = score(10, stored, WEIGHTS)
    assert (scored.value, scored.final) == (value, False)


def test_a_part_that_found_nothing_is_not_missing() -> None:
    assert score(0, found(0, 0, "neutral"), WEIGHTS).final


def test_a_missing_part_is_shown_as_null_and_counts_are_shown_before_the_emotion() -> None:
    shown = msgspec.to_builtins(score(1, {}, WEIGHTS).breakdown)
    assert shown == {
        "exchanges": {"count": 1, "weight": 1, "points": 1},
        "questions": {"count": None, "weight": 3, "points": 0},
        "memories": {"count": None, "weight": 5, "points": 0},
        "emotion": {"name": None, "points": 0},
        "cap": {"max": 500, "points": 0},
    }
    assert list(shown) == ["exchanges", "questions", "memories", "emotion", "cap"]


def test_every_part_has_a_share() -> None:
    assert set(Breakdown.__struct_fields__) == {"exchanges", *(part.name for part in PARTS), "cap", "parts"}


def test_one_conversation_gives_at_most_the_cap_and_the_breakdown_shows_what_was_cut() -> None:
    scored = score(25_000, found(1, 0, "interesting"), WEIGHTS)
    assert (scored.value, scored.breakdown.cap) == (500, CapShare(max=500, points=-24_518))
    assert level(scored.value, WEIGHTS) == "acquaintance"


@pytest.mark.parametrize(("exchanges", "value", "cut"), [(499, 499, 0), (500, 500, 0), (501, 500, -1)])
def test_the_cap_cuts_only_what_is_above_it(exchanges: int, value: int, cut: int) -> None:
    scored = score(exchanges, found(0, 0, "neutral"), WEIGHTS)
    assert (scored.value, scored.breakdown.cap.points) == (value, cut)


def test_a_conversation_below_zero_is_not_lifted_by_the_cap() -> None:
    scored = score(3, found(0, 0, "boring"), WEIGHTS)
    assert (scored.value, scored.breakdown.cap.points) == (0, 0)


def test_a_cap_of_0_is_none() -> None:
    scored = score(25_000, found(1, 0, "interesting"), Weights(conversation_max=0))
    assert (scored.value, scored.breakdown.cap) == (25_018, None)


def test_a_breakdown_stored_before_there_was_a_cap_reads_back_as_it_was_stored() -> None:
    stored = (
        b'{"exchanges":{"count":1,"weight":1,"points":1},"questions":{"count":0,"weight":3,"points":0},'
        b'"memories":{"count":0,"weight":5,"points":0},"emotion":{"name":"neutral","points":0}}'
    )
    assert msgspec.json.encode(msgspec.json.decode(stored, type=Breakdown)) == stored


COUNTS = st.integers(0, 10**9)
POINTS = st.integers(-1000, 1000)
ANY_WEIGHTS = st.builds(
    Weights,
    conversation_max=st.integers(0, INTEGER_MAX),
    turn=st.integers(0, 1000),
    question=st.integers(0, 1000),
    memory=st.integers(0, 1000),
    **dict.fromkeys(EMOTIONS, POINTS),
)


@UNTIMED
@given(COUNTS, st.none() | st.integers(0, 500), st.none() | COUNTS, st.none() | st.sampled_from(EMOTIONS), ANY_WEIGHTS)
def test_a_score_is_the_sum_of_its_points_within_what_the_database_holds(
    count: int, questions: int | None, memories: int | None, emotion: EmotionName | None, weights: Weights
) -> None:
    scored = score(count, found(questions, memories, emotion), weights)
    shares = [one for name in Breakdown.__struct_fields__ if (one := getattr(scored.breakdown, name))]
    assert scored.value == min(max(sum(one.points for one in shares), 0), weights.conversation_max or INTEGER_MAX)
    assert msgspec.json.decode(msgspec.json.encode(scored), type=Score) == scored
