"""Whole months of logs and of runs: finds those of which every row is over, and drops them instead of each row.

Open it to change when a month is over. What is over at all is decided in ``retention``.

A month is over when all that was received in it has been stored for longer than the longest of the days, of whichever
bot. What belongs to a job that has not been analysed, such as a dead letter, is never over: a few such rows are kept,
and where there are many the month goes row by row. A month is read before it is locked, because that takes long. What
was over then still is when it goes: only a job that was kept can still be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from convo.retention import RetiredKind
from convo.settings import RetentionSettings
from convo.store.ledger import UNBOUND
from convo.store.log_erasing import note_dropped_logs
from convo.store.months import (
    MONTH_TABLES,
    READ_DROPPED,
    Month,
    MonthTable,
    current_month,
    drop_month,
    hold_table,
    note_dropped,
    read_months,
)
from convo.store.postgres import Connection

KIND_OF: Mapping[MonthTable, RetiredKind] = {"conversation_log": "logs", "run": "runs"}

DAYS_OF: Mapping[MonthTable, Literal["logs_days", "runs_days"]] = {"conversation_log": "logs_days", "run": "runs_days"}

READ_MONTH_SECONDS = 600.0

KEPT_MAX = 1_000
"""So many conversations of a month may have something that is kept when the rest is dropped."""


class WholeMonth(Struct, frozen=True, kw_only=True):
    """A month that may be over: it is so after ``days``. ``empty``: no conversation of it is stored any more."""

    month: Month
    days: int
    empty: bool = False


class OverMonth(Struct, frozen=True, kw_only=True):
    """A month that is over but for the conversations ``kept``; ``rows`` are those of all others."""

    month: Month
    rows: int
    kept: Sequence[int]


async def find_whole_months(connection: Connection, settings: RetentionSettings) -> Sequence[WholeMonth]:
    """Find the months that have passed whose last row is over, by a look at one row of each."""
    current = await current_month(connection)
    gone = {(row["table_name"], row["number"]) for row in await connection.fetch(READ_DROPPED)}
    found = []
    months = await read_months(connection)
    for table in MONTH_TABLES:
        days = settings.days_of_month(DAYS_OF[table])
        for number in months[table]:
            month = Month(table=table, number=number)
            if number >= current or not days:
                continue
            row = await connection.fetchrow(_LOOK, *month.seqs, 24 * days)
            if row is None or not row["is_over"]:
                continue
            if row["is_empty"] or (table, number) not in gone:
                found.append(WholeMonth(month=month, days=days, empty=row["is_empty"]))
    return found


async def read_month(connection: Connection, whole: WholeMonth) -> OverMonth | None:
    """Read all that a month has; None where something of it is not over, or too much would have to be kept."""
    await connection.execute(UNBOUND)
    first, last = whole.month.seqs
    kept = await _not_analysed(connection, whole.month)
    hours = 24 * whole.days
    if len(kept) > KEPT_MAX or await connection.fetchval(_ANY_YOUNG, first, last, hours, kept):
        return None
    if whole.month.table == "run" and await connection.fetchval(_ANY_YOUNG_RUN, first, last, hours, kept):
        return None
    rows = await connection.fetchval(_COUNT[whole.month.table], first, last, kept)
    return OverMonth(month=whole.month, rows=rows, kept=kept)


async def drop_over(connection: Connection, whole: WholeMonth, over: OverMonth) -> int:
    """Drop a month that is over, book it, and return how many rows of it went; in the caller's transaction.

    Who reads or writes the table waits meanwhile, for at most a second.
    """
    await hold_table(connection, over.month.table)
    # A job that was retried and analysed since then is not among these any more, and its last run is new.
    kept = sorted({*over.kept, *await _not_analysed(connection, over.month)})
    moved = await drop_month(connection, over.month, kept, replaced=not whole.empty)
    await note_dropped(connection, over.month, over.rows, moved)
    if over.month.table == "conversation_log":
        await note_dropped_logs(connection, over.month.number)
    return over.rows


async def _not_analysed(connection: Connection, month: Month) -> list[int]:
    return [row["seq"] for row in await connection.fetch(_NOT_ANALYSED, *month.seqs, KEPT_MAX + 1)]


# receipt_pkey and conversation_pkey: one row each. A day: what was accepted as the month ended is stored by then.
_LOOK = """
SELECT received_at < convo_now() - make_interval(hours => $3) AS is_over,
       received_at < convo_now() - interval '1 day'
           AND NOT EXISTS (SELECT FROM conversation WHERE seq >= $1 AND seq < $2) AS is_empty
FROM receipt WHERE seq >= $1 AND seq < $2 ORDER BY seq DESC LIMIT 1
"""
# job_pkey
_NOT_ANALYSED = """
SELECT seq FROM job WHERE state IN ('ready', 'leased', 'dead') AND seq >= $1 AND seq < $2 LIMIT $3
"""
# The clock may have been ahead, so each row is asked, and not the last one.
_ANY_YOUNG = """
SELECT EXISTS (
    SELECT FROM conversation WHERE seq >= $1 AND seq < $2 AND received_at >= convo_now() - make_interval(hours => $3)
      AND seq <> ALL($4::bigint[]))
"""
_ANY_YOUNG_RUN = """
SELECT EXISTS (
    SELECT FROM run WHERE seq >= $1 AND seq < $2 AND ended_at >= convo_now() - make_interval(hours => $3)
      AND seq <> ALL($4::bigint[]))
"""
_COUNT: Mapping[MonthTable, str] = {
    table: f"SELECT count(*) FROM {table} WHERE seq >= $1 AND seq < $2 AND seq <> ALL($3::bigint[])"
    for table in MONTH_TABLES
}
