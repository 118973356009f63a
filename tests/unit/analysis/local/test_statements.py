from __future__ import annotations

import pytest

from scripts.bench import statements

OUTCOMES = statements.measured()


def test_the_set_is_large_enough_and_half_vietnamese() -> None:
    every = list(statements.statements())
    assert len(every) >= 200
    assert 0.4 < sum(one.group.startswith("vietnamese") for one in every) / len(every) < 0.6
    assert sum(not one.facts for one in every) >= 50


@pytest.mark.parametrize("group", OUTCOMES)
def test_what_is_remembered_is_right_and_most_of_what_was_said(group: str) -> None:
    outcome = OUTCOMES[group]
    assert outcome.precision >= 0.9, outcome.notes
    assert outcome.recall >= 0.6, outcome.notes
