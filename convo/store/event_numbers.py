"""The numberer: gives events their ``sequence``, one rising number for the installation, after their commit.

Open it to change how events are ordered. Numbers that were given inside the transaction would let a late commit be
skipped: a courier that has confirmed 8 never looks for 7. To wait for all that may still commit a smaller one, as
``pg_snapshot_xmin`` would show it, would let any long transaction in any database of that cluster stop all couriers. So
this looks for what is visible and has no number, and numbers it in a transaction of its own.

Whoever holds the lock on the counter's row numbers. A process that dies or hangs loses it with its session, at the
latest after ``idle_in_transaction_session_timeout``, which is a few seconds; then the next one numbers. Two can never
number at once, so nothing else has to be fenced.

Of one user, numbers rise as things happened: what follows from a commit is appended after it. They rise also where the
database went back: then they go on far behind those that receivers may have seen (``begins_behind``).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.runtime.bell import Bell
from convo.store.postgres import DURABLE, RELAXED, Connection, Postgres

_BATCH_ROWS = 1000
# What other processes append rings no bell here.
_LOOK_SECONDS = 0.5
# A bell is rung before the commit, and after it others may follow in the same moment.
_GATHER_SECONDS = 0.02
_AGAIN_SECONDS = 1.0


class Numberer:
    """Numbers events as long as it runs; ``numbered`` is called when there are new ones, whoever numbered them."""

    def __init__(self, postgres: Postgres, bell: Bell, numbered: Callable[[], None]) -> None:
        self._postgres = postgres
        self._bell = bell
        self._numbered = numbered
        self.last = 0
        """The last number that was given, as far as this process knows."""

    def start_over(self) -> None:
        """Forget the last number: the database went back."""
        self.last = 0

    async def run(self) -> None:
        """Give numbers to what is committed, until cancelled."""
        while True:
            try:
                more = await self._pass()
            except ConvoError as error:
                log_records.events_waiting(what="numbering", reason=error.detail)
                await trio.sleep(_AGAIN_SECONDS)
                continue
            if not more:
                with trio.move_on_after(_LOOK_SECONDS):
                    await self._bell.rung()
                await trio.sleep(_GATHER_SECONDS)

    async def _pass(self) -> bool:
        last, count = await number_events(self._postgres)
        metrics.events_numbered_total.inc(count)
        if last != self.last:
            self.last = last
            self._numbered()
        return count == _BATCH_ROWS


async def number_events(postgres: Postgres) -> tuple[int, int]:
    """Give numbers to what is committed and has none; return the last number given, and how many this gave."""

    async def look(connection: Connection) -> tuple[int, bool]:
        row = await connection.fetchrow(_LOOK) or {}
        return row["last_sequence"], row["waiting"]

    async def number(connection: Connection) -> tuple[int, int]:
        # Two statements: the second one has a view of the database that began when the lock was held.
        last = await connection.fetchval(_LOCK)
        if last is None:
            return 0, 0
        given: int = await connection.fetchval(_NUMBER, last, _BATCH_ROWS) or 0
        return last, given

    last, waiting = await postgres.run("db.events", look, begin=RELAXED)
    if not waiting:
        return last, 0
    # Durable: a number that a receiver has seen must not be given again after a crash of the database.
    before, count = await postgres.run("db.events", number, begin=DURABLE)
    return (before + count if count else last), count


# The first entry of event_unnumbered.
_LOOK = """
SELECT last_sequence, EXISTS (SELECT FROM event WHERE sequence IS NULL) AS waiting FROM event_counter
"""
_LOCK = "SELECT greatest(last_sequence, begins_behind) FROM event_counter FOR UPDATE SKIP LOCKED"
_NUMBER = """
WITH fresh AS MATERIALIZED (
    SELECT number, row_number() OVER (ORDER BY number) AS place
    FROM (SELECT number FROM event WHERE sequence IS NULL ORDER BY number LIMIT $2) AS waiting
), numbered AS (
    UPDATE event SET sequence = $1::bigint + place FROM fresh WHERE event.number = fresh.number
)
UPDATE event_counter SET last_sequence = $1::bigint + (SELECT count(*) FROM fresh) WHERE EXISTS (SELECT FROM fresh)
RETURNING last_sequence - $1::bigint
"""
