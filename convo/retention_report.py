"""What retention would remove now, and what it removes next: for ``convo retention``, which removes nothing.

Open it to show something else about it. What is over is decided in ``retention``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec import Struct

from convo.retention import RETIRED_ROWS_MAX, FindOver, RetiredKind, count_over, passes
from convo.retention_months import KIND_OF, READ_MONTH_SECONDS, find_whole_months, read_month
from convo.settings import RetentionSettings
from convo.store.postgres import RELAXED, Connection, Postgres

_DAYS: Mapping[RetiredKind, str] = {
    "conversations": "conversations_days",
    "dead_letters": "dead_days",
    "logs": "logs_days",
    "runs": "runs_days",
    "memories": "memories_days",
    "audit_rows": "audit_log_days",
}


class DueKind(Struct, frozen=True, kw_only=True):
    """What retention removes of one kind: after how many days (0: never), by bot and by tenant where that differs.

    A bot of another tenant than the default one stands as ``TENANT/BOT``.

    ``goes_at`` is when the oldest goes by ``days``, if it has ended by then; ``over`` is how many are over, None where
    they were not counted.
    """

    kind: RetiredKind
    days: int
    days_of_bots: dict[str, int]
    oldest_at: datetime | None
    goes_at: datetime | None
    over: int | None
    days_of_tenants: dict[str, int] = {}


async def read_due(postgres: Postgres, settings: RetentionSettings, *, count: bool) -> list[DueKind]:
    """Read since when the oldest of each kind is stored, and when it goes; with ``count``, how many are over."""
    oldest = await postgres.run("db.retire", read_oldest, begin=RELAXED)
    counts = await count_all_over(postgres, settings) if count else None
    return [_due(settings, kind, oldest[kind], counts) for kind in _DAYS]


def _due(
    settings: RetentionSettings, kind: RetiredKind, oldest_at: datetime | None, counts: Counter[RetiredKind] | None
) -> DueKind:
    days: int = getattr(settings, _DAYS[kind])
    bots = {**settings.bots}
    for name, tenant in settings.tenants.items():
        bots |= {bot_id if name == "default" else f"{name}/{bot_id}": bot for bot_id, bot in tenant.bots.items()}
    own = {bot_id: getattr(bot, _DAYS[kind], None) for bot_id, bot in bots.items()}
    of_tenants = {name: getattr(tenant, _DAYS[kind]) for name, tenant in settings.tenants.items()}
    return DueKind(
        kind=kind,
        days=days,
        days_of_bots={bot_id: days for bot_id, days in own.items() if days is not None},
        days_of_tenants={name: days for name, days in of_tenants.items() if days is not None},
        oldest_at=oldest_at,
        goes_at=oldest_at + timedelta(days=days) if oldest_at is not None and days else None,
        over=None if counts is None else counts[kind],
    )


async def count_all_over(postgres: Postgres, settings: RetentionSettings) -> Counter[RetiredKind]:
    """Count what is over now, page by page, without removing any of it."""
    counts = Counter[RetiredKind]()

    async def body(connection: Connection, find: FindOver, position: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        over = await find(connection, settings, position, RETIRED_ROWS_MAX)
        counts.update(await count_over(connection, over))
        return over.position

    if settings.whole_months:
        counts += await _count_months(postgres, settings)
    for find in passes(settings).values():
        position = await postgres.run("db.retire", partial(body, find=find, position=None), begin=RELAXED)
        while position is not None:
            position = await postgres.run("db.retire", partial(body, find=find, position=position), begin=RELAXED)
    return counts


async def _count_months(postgres: Postgres, settings: RetentionSettings) -> Counter[RetiredKind]:
    """Count what goes with its month. Where rows do not wait for that, they are counted one by one."""
    counts, dedicated = Counter[RetiredKind](), postgres.dedicated()
    try:
        found = partial(find_whole_months, settings=settings)
        for whole in await dedicated.run("db.retire", found, begin=RELAXED):
            read = partial(read_month, whole=whole)
            over = await dedicated.run("db.retire_month", read, begin=RELAXED, seconds=READ_MONTH_SECONDS)
            counts[KIND_OF[whole.month.table]] += over.rows if over else 0
    finally:
        await dedicated.close()  # noqa: ASYNC102  (shields itself, with a bound)
    return counts


async def read_oldest(connection: Connection) -> Mapping[RetiredKind, datetime | None]:
    """Read since when the oldest of each kind is stored, ended or not; for a dead letter, since when it is dead."""
    row = await connection.fetchrow(_OLDEST) or {}
    return {kind: row[kind] for kind in _DAYS}


# One row of an index each.
_OLDEST = """
SELECT (SELECT min(received_at) FROM conversation) AS conversations,
       (SELECT ended_at FROM job WHERE state = 'dead' ORDER BY state, seq LIMIT 1) AS dead_letters,
       (SELECT received_at FROM conversation
        WHERE seq = (SELECT min(seq) FROM conversation_log)) AS logs,
       (SELECT ended_at FROM run ORDER BY seq LIMIT 1) AS runs,
       (SELECT first_seen_at FROM memory ORDER BY memory_seq LIMIT 1) AS memories,
       (SELECT at FROM audit_log ORDER BY number LIMIT 1) AS audit_rows
"""
