from __future__ import annotations

import contextvars

import pytest

from convo.analysis import local
from convo.analysis.local import slices
from convo.conversation.model import Conversation, Finding
from tests.support.fakes import conversation_of


@pytest.mark.parametrize("find", [local.questions, local.emotion, local.memories])
def test_each_part_gives_way_before_each_turn(find: object) -> None:
    talk = conversation_of(*["I like tea.", "So do I."] * 5)
    calls: list[int] = []

    def look() -> Finding:
        slices.between_turns.set(lambda: calls.append(1))
        return find(talk)  # type: ignore[operator,no-any-return]

    assert contextvars.copy_context().run(look) == find(again(talk))  # type: ignore[operator]
    # Once while the turns are prepared, once while they are looked at.
    assert len(calls) == 5 + 5


def again(talk: Conversation) -> Conversation:
    return conversation_of(*[turn.text for turn in talk.turns])
