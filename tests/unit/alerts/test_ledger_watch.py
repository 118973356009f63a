from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from convo.alerts.ledger_watch import watch_ledger
from convo.errors import ConvoError, DatabaseUnavailable
from convo.observe import metrics
from convo.store import ledger
from convo.store.ledger import Gap

GAP = Gap(day=date(2026, 11, 24), what="jobs", booked=2, found=1)
INTERVAL_SECONDS = 60.0


class FakePostgres:
    """Hands out a connection that only counts its closing."""

    def __init__(self) -> None:
        self.closed = 0

    def dedicated(self) -> FakePostgres:
        return self

    async def close(self) -> None:
        self.closed += 1
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()


async def watched(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[list[Gap] | None | ConvoError], *, leads: bool = True
) -> tuple[list[Any], list[float]]:
    """Run the watch once for each answer; return the log records, and the gauge after each comparison."""
    left, postgres, gauge = list(answers), FakePostgres(), list[float]()

    async def compare_recent(_: object) -> list[Gap] | None:
        await trio.lowlevel.checkpoint()
        answer = left.pop(0)
        if isinstance(answer, ConvoError):
            raise answer
        return answer

    monkeypatch.setattr(ledger, "compare_recent", compare_recent)
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_ledger, cast("Any", postgres), lambda: leads)
            for _ in answers:
                await trio.sleep(INTERVAL_SECONDS + 0.01)
                gauge.append(metrics.ledger_gaps._value.get())
            nursery.cancel_scope.cancel()
    assert postgres.closed == 1
    return records, gauge


async def test_each_gap_is_logged_and_counted(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    records, gauge = await watched(monkeypatch, [[GAP], []])
    assert [(record["event"], record["day"], record["what"]) for record in records] == [
        ("ledger_gap", "2026-11-24", "jobs")
    ]
    assert gauge == [1, 0]


async def test_a_comparison_that_fails_or_that_another_process_makes_changes_no_figure(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    records, gauge = await watched(monkeypatch, [[GAP], None, DatabaseUnavailable("it is away"), []])
    assert [record["event"] for record in records] == ["ledger_gap", "books_failed"]
    assert gauge == [1, 1, 1, 0]


async def test_a_process_that_does_not_lead_compares_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    metrics.ledger_gaps.set(3)
    records, gauge = await watched(monkeypatch, [[GAP]], leads=False)
    assert (records, gauge) == ([], [0])
