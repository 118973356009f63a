from __future__ import annotations

from convo.capacity.levels import find_levels, find_steps
from convo.capacity.usage import Usage


def step(accepted: float, analysed: float = 0.0, seconds: float = 5.0) -> Usage:
    return Usage(at=seconds, accepted=accepted, commits=accepted / 2, analysed=analysed, calls={"llm": analysed})


def test_steps_at_one_load_are_put_together_and_the_highest_load_is_last() -> None:
    found = find_levels([step(1_000), step(50), step(52), step(48), step(0)])
    assert [(level.readings, level.accepted_per_second) for level in found] == [(3, 10.0), (1, 200.0)]
    assert [level.rows for level in found] == [2.0, 2.0]
    assert found[0].done.at == 15.0


def test_the_same_accepts_with_other_analyses_are_another_load() -> None:
    found = find_levels([step(50, 50), step(50, 400), step(50, 0)])
    assert len(found) == 3
    assert sorted(level.done.calls["llm"] for level in found) == [0.0, 50.0, 400.0]


def test_a_clock_that_stood_still_makes_no_step() -> None:
    readings = [Usage(at=1.0), Usage(at=1.0, accepted=3.0), Usage(at=2.0, accepted=4.0)]
    assert [found.accepted for found in find_steps(readings)] == [1.0]
