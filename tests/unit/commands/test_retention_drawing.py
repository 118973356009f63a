from __future__ import annotations

from datetime import UTC, datetime

from msgspec import structs

from convo.commands import output
from convo.commands.retention_drawing import draw_retention
from convo.retention_report import DueKind
from tests.support.answers import AT
from tests.unit.commands.test_drawing import drawn, rows_of


def test_it_shows_when_the_oldest_goes_and_what_is_over_only_where_it_was_counted() -> None:
    later = datetime(2026, 4, 1, 8, tzinfo=UTC)
    logs = DueKind(
        kind="logs",
        days=30,
        days_of_bots={"pika": 0, "tom": 1},
        oldest_at=AT,
        goes_at=later,
        over=7,
        days_of_tenants={"acme": 9},
    )
    dead = DueKind(kind="dead_letters", days=0, days_of_bots={}, oldest_at=None, goes_at=None, over=0)

    counted = drawn(draw_retention([logs, dead]))
    plain = drawn(draw_retention([structs.replace(one, over=None) for one in (logs, dead)]))

    shown = [
        ["logs", "30 days", "pika: never, tom: 1 day", "acme: 9 days", output.utc_text(AT), "2026-04-01 08:00:00Z"],
        ["dead letters", "never", "–", "–", "–", "–"],
    ]
    assert rows_of(plain) == shown
    assert rows_of(counted) == [[*shown[0], "7"], [*shown[1], "0"]]
