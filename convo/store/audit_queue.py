"""Adds rows to the audit log for what has no transaction of its own: reads of logs, starts and reloads.

Open it to change how long such a row waits, and how many may. Rows wait in memory for up to a second and are stored
together, so a read waits for nothing. There is a bound: where the database takes no more rows, reads are refused (503)
until it does. They could also go on unnoticed, but then whoever wants to read without a trace would only have to keep
the database busy.

A process that is killed loses the rows of its last second. One that stops stores them, or logs how many it could not.
"""

from __future__ import annotations

from collections import deque

import trio

from convo.errors import BadRow, ConvoError, Overloaded
from convo.observe import log_records, metrics
from convo.runtime.bell import Bell
from convo.store.audit_log import ARRAYS, COLUMNS, AuditEntry, columns
from convo.store.postgres import LOCAL, Connection, Postgres

ENTRIES_MAX = 10_000
"""So many rows may wait before reads are refused: some 5 MB of memory."""

GATHER_SECONDS = 1.0
_BATCH_ROWS = 500
_RETRY_AFTER_SECONDS = 5.0


class _Waiting:
    """A row that waits, since when by ``trio.current_time()``, and the number that was drawn for it."""

    __slots__ = ("entry", "number", "since")

    def __init__(self, entry: AuditEntry) -> None:
        self.entry = entry
        self.since = trio.current_time()
        self.number: int | None = None


class AuditQueue:
    """The rows that wait to be stored, in their order.

    Nobody knows whether a transaction was committed whose connection broke. So each row has its number before the first
    try, and a second try leaves out what is stored already.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._waiting: deque[_Waiting] = deque()
        self._bell = Bell()
        self._one_at_a_time = trio.Lock()
        metrics.audit_rows_waiting.set_function(lambda: len(self._waiting))

    def add(self, entry: AuditEntry) -> None:
        """Let a row be stored soon."""
        self._waiting.append(_Waiting(entry))
        self._bell.ring()

    def check_room(self) -> None:
        """Check whether what is about to be done can be noted.

        Raises:
            Overloaded: the database has taken no rows for long.
        """
        if len(self._waiting) >= ENTRIES_MAX:
            raise Overloaded(
                f"{len(self._waiting)} rows of the audit log wait for the database, and what cannot be noted there is"
                " refused",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def forget_numbers(self) -> None:
        """Forget the numbers that were drawn: the database went back, and may have given them to others since."""
        for waiting in self._waiting:
            waiting.number = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store what waits, a second after the first of it came, until cancelled; then log what could not be stored."""
        task_status.started()
        try:
            while True:
                await self._bell.rung()
                while self._waiting:
                    await trio.sleep(GATHER_SECONDS)
                    await self.flush()
        finally:
            if self._waiting:
                log_records.audit_rows_lost(rows=len(self._waiting))

    async def flush(self) -> None:
        """Store all that waits, or log why that was not possible and keep it."""
        async with self._one_at_a_time:
            try:
                while self._waiting:
                    await self._store_good([self._waiting[at] for at in range(min(_BATCH_ROWS, len(self._waiting)))])
            except ConvoError as error:
                log_records.audit_rows_kept(rows=len(self._waiting), reason=error.detail)

    async def _store_good(self, batch: list[_Waiting]) -> None:
        try:
            await self._store(batch)
        except BadRow:
            # One that can never be stored must not hold the others back for ever.
            if len(batch) == 1:
                self._waiting.popleft()
                log_records.audit_rows_lost(rows=1)
                return
            for waiting in batch:
                await self._store_good([waiting])

    async def _store(self, batch: list[_Waiting]) -> None:
        await self._draw_numbers([waiting for waiting in batch if waiting.number is None])
        now = trio.current_time()
        ages = [now - waiting.since for waiting in batch]

        async def body(connection: Connection) -> None:
            values = await columns(connection, [waiting.entry for waiting in batch])
            await connection.execute(_STORE, *values, [waiting.number for waiting in batch], ages)

        await self._postgres.run("db.audit_rows", body, begin=LOCAL)
        for _ in batch:
            self._waiting.popleft()

    async def _draw_numbers(self, without: list[_Waiting]) -> None:
        async def body(connection: Connection) -> list[int]:
            return [row["number"] for row in await connection.fetch(_DRAW, len(without))]

        if without:
            numbers = await self._postgres.run("db.audit_rows", body, begin=LOCAL)
            for waiting, number in zip(without, numbers, strict=True):
                waiting.number = number


# A committed transaction of its own: a number that is drawn is never given to another row.
_DRAW = "SELECT nextval('audit_log_number') AS number FROM generate_series(1, $1::integer)"
# What is noted happened when it began to wait, by the database's clock.
_STORE = f"""
INSERT INTO audit_log (number, at, {COLUMNS})
SELECT number, convo_now() - make_interval(secs => age), {COLUMNS}
FROM unnest({ARRAYS}, $9::bigint[], $10::float8[]) AS entry ({COLUMNS}, number, age)
ON CONFLICT (number) DO NOTHING
"""
