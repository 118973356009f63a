from __future__ import annotations

from typing import Any

import pytest

from convo.analysis.part import StoredFinding
from convo.analysis.part_points import PartShare, declared_shares
from convo.analysis.scoring import score
from convo.conversation.model import Answered, Finding
from convo.conversation.owed import DeclaredPart, Points, owed_of
from convo.conversation.score import Weights
from tests.support.making import THREE


def share_of(rule: Points, answer: dict[str, Any]) -> PartShare:
    owed = owed_of([DeclaredPart(name="p", who="llm", version="p1:0", points=rule)])
    return declared_shares(owed, {"p": StoredFinding(Answered(answer=answer))})["p"]


@pytest.mark.parametrize(
    ("rule", "answer", "counted", "points"),
    [
        (Points(field="a", each=10), {"a": 3}, 3, 30),
        (Points(field="a", each=10), {"a": 0.25}, 0.25, 2),
        (Points(field="a", each=-5), {"a": True}, True, -5),
        (Points(field="a", each=10), {"a": {"grade": 4, "reason": "x"}}, 4, 40),
        (Points(field="a", each=10), {}, None, 0),
        (Points(field="a", each=10), {"a": float("nan")}, None, 0),
        (Points(field="a", each=10), {"a": 1e300}, 1e300, 1_000_000),
        (Points(field="a", each=10), {"a": "3"}, "3", 0),
        (Points(field="a", values={"gold": 20, "basic": -1}), {"a": "gold"}, "gold", 20),
        (Points(field="a", values={"gold": 20}), {"a": "other"}, "other", 0),
        (Points(field="a", values={"true": 7}), {"a": True}, True, 7),
        (Points(count="a", each=5), {"a": [1, 2]}, 2, 10),
        (Points(count="a", each=5), {"a": "no list"}, None, 0),
    ],
)
def test_points_are_for_a_number_a_value_or_a_count(
    rule: Points, answer: dict[str, Any], counted: object, points: int
) -> None:
    assert share_of(rule, answer) == PartShare(counted=counted, points=points)  # type: ignore[arg-type]


def test_a_part_that_is_missing_or_refused_gives_nothing() -> None:
    owed = owed_of([DeclaredPart(name="p", who="llm", version="p1:0", points=Points(field="a", each=1))])
    nothing = {"p": PartShare(counted=None, points=0)}
    assert declared_shares(owed, {}) == nothing
    assert declared_shares(owed, {"p": StoredFinding(Answered(refused="no"))}) == nothing


def test_a_score_adds_the_points_of_declared_parts_and_waits_for_the_required_ones_alone() -> None:
    rule = Points(field="a", each=10)
    parts = [DeclaredPart(name="must", who="llm", version="p1:0", points=rule, required=True)]
    parts += [DeclaredPart(name="may", who="llm", version="p1:1", points=rule)]
    owed = owed_of(parts)
    found: dict[str, Finding] = {"must": Answered(answer={"a": 2})}
    scored = score(1, {name: StoredFinding(one) for name, one in found.items()}, Weights(), owed)
    assert (scored.value, scored.final) == (1 + 20, True)
    assert not score(1, {}, Weights(), owed).final


def test_the_version_of_the_weights_is_of_the_points_too_and_as_ever_without_any() -> None:
    stored = {name: StoredFinding(one) for name, one in THREE.items()}
    plain = score(1, stored, Weights())
    points = [Points(field="a", each=each) for each in (1, 2)]
    with_points = [
        score(1, stored, Weights(), owed_of([DeclaredPart(name="p", who="llm", version="p1:0", points=one)]))
        for one in points
    ]
    assert len({plain.weights_version, *(one.weights_version for one in with_points)}) == 3
    assert plain.breakdown.parts == {}
