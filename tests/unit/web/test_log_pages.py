from __future__ import annotations

from itertools import groupby
from typing import Any

import msgspec
import pytest

from convo.conversation import transcript
from convo.errors import WrongLog
from convo.store import logs
from convo.store.conversations import FoundLog
from convo.web import log_pages, queries
from convo.web.description.views import LogView
from convo.web.log_pages import TurnsPage, sent_log, turns_of_log
from tests.support.making import AT

TEXTS = [f"turn {number}" for number in range(10)]
LOG = msgspec.json.encode([{"role": "user", "content": text} for text in TEXTS])
PACKED = logs.pack(LOG)


def found(log_hash: bytes | None = logs.hash_of(PACKED)) -> FoundLog:
    row: dict[str, Any] = {"conversation_id": "talk-1", "log_hash": log_hash, "started_at": AT, "ended_at": AT}
    return FoundLog(row=row, packed_bytes=len(PACKED), unpacked_bytes=len(LOG))


def nothing() -> None:
    pass


def page(start: int, limit: int) -> LogView:
    body = turns_of_log(found(), PACKED, TurnsPage(start=start, limit=limit), nothing)
    return msgspec.json.decode(body, type=LogView)


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 11, 1000])
def test_the_pages_together_are_the_log(limit: int) -> None:
    texts: list[str] = []
    start: int | None = 0
    while start is not None:
        one = page(start, limit)
        assert one.conversation_id == "talk-1"
        assert 0 < len(one.turns) <= limit
        texts += [turn.text for turn in one.turns]
        start = None if one.next_cursor is None else queries.cursor_of({"cursor": one.next_cursor})
    assert texts == TEXTS


def test_a_page_after_the_last_turn_is_empty() -> None:
    assert page(10, 5) == LogView(conversation_id="talk-1", turns=(), next_cursor=None)


def test_a_turn_on_a_later_page_has_the_time_that_it_has_on_the_first() -> None:
    assert page(7, 1).turns[0] == page(0, 10).turns[7]


def test_the_log_as_it_was_sent_is_whole() -> None:
    assert sent_log(found(), PACKED) == LOG


def test_another_ones_log_is_neither_shown_nor_sent() -> None:
    other = found(log_hash=bytes(16))
    with pytest.raises(WrongLog):
        sent_log(other, PACKED)
    with pytest.raises(WrongLog):
        turns_of_log(other, PACKED, TurnsPage(start=0, limit=1), nothing)


def test_other_work_may_come_in_between_at_each_step_of_a_long_log(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for module, name in ((transcript, "_kept"), (transcript, "Turn"), (log_pages, "encode")):
        monkeypatch.setattr(module, name, noting(steps, getattr(module, name)))
    log = msgspec.json.encode([{"role": "user", "content": "why?"}] * 2_000)
    packed = logs.pack(log)
    row: dict[str, Any] = {"conversation_id": "talk-1", "log_hash": None, "started_at": AT, "ended_at": AT}
    one = FoundLog(row=row, packed_bytes=len(packed), unpacked_bytes=len(log))
    turns_of_log(one, packed, TurnsPage(start=0, limit=2_000), lambda: steps.append("pause"))
    longest = max(len(list(group)) for what, group in groupby(steps) if what != "pause")
    assert steps.count("Turn") == 2_000
    assert longest <= 400
    assert steps.index("pause") < steps.index("Turn"), "while the items are read, too"


def noting(steps: list[str], function: Any) -> Any:
    def noted(*args: Any, **named: Any) -> Any:
        steps.append(function.__name__)
        return function(*args, **named)

    return noted
