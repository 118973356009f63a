"""Retention's keeper: looks every few minutes for what is over, and removes it a few rows at a time.

Open it to change when it runs, and what it gives way to. What is over is decided in ``retention``.

It is never urgent, so it gives way to everything. A page begins in a moment in which this process has nothing to do,
while no request is refused and no job waits for a worker. Between pages it pauses for as long as the page took. One
process removes: the one that leads (``alerts.shared``).

Whole months of logs and runs go first, each at once. Where one cannot be locked now, nothing of a conversation goes row
by row until the next look: it would be deleted at great cost, and dropped a little later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import trio

from convo.errors import ConvoError, DatabaseUnavailable
from convo.observe import log_records, metrics
from convo.retention import (
    RETIRED_ROWS_MAX,
    FindOver,
    Over,
    PassName,
    RetiredKind,
    held_back_by,
    passes,
    retire,
    take_turn,
)
from convo.retention_months import (
    KIND_OF,
    READ_MONTH_SECONDS,
    OverMonth,
    WholeMonth,
    drop_over,
    find_whole_months,
    read_month,
)
from convo.runtime.idle import GIVE_WAY_SECONDS, until_idle
from convo.settings import RetentionSettings
from convo.store.postgres import DURABLE, RELAXED, Connection, Postgres
from convo.store.postgres_errors import is_held_up

_PAUSE_SECONDS_MIN = 0.01
# A page that removes many rows takes longer than one that removes none. The next one has as many rows as fit.
_PAGE_SECONDS = 0.1
_PAGE_ROWS_FIRST, _PAGE_ROWS_MIN = 100, 20
# What was passed over, because it had not ended or was spoken of since, is looked at again after a day.
_WHOLE_SECONDS = 86_400.0
# Each try holds accepts up for less than a second: so few, and with pauses.
_DROP_TRIES = 5


class RetentionKeeper:
    """Removes what is over by these settings, while ``leads`` returns true and ``pressed`` does not."""

    def __init__(
        self,
        settings: RetentionSettings,
        postgres: Postgres,
        leads: Callable[[], bool],
        pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._leads = leads
        self._pressed = pressed
        self._rows = min(_PAGE_ROWS_FIRST, RETIRED_ROWS_MAX)
        # By pass, where the last page began, and when the first row was last looked at.
        self._positions: dict[PassName, tuple[object, ...] | None] = {}
        self._whole_at: dict[PassName, float] = {}

    async def run(self) -> None:
        """Look every ``retention.look_seconds`` until cancelled."""
        while True:
            if self._leads():
                await self.look()
            await trio.sleep(self._settings.look_seconds)

    async def look(self) -> Counter[RetiredKind]:
        """Remove all that is over, however long that takes; return how much."""
        started, counts = trio.current_time(), Counter[RetiredKind]()
        try:
            left = await self._months(counts)
            for name, find in passes(self._settings).items():
                if name != "conversations" or not left:
                    await self._pass(name, find, counts)
        except ConvoError as error:
            # Perhaps the page was too large for its deadline: the next one must not fail for that again.
            self._rows = max(_PAGE_ROWS_MIN, self._rows // 4)
            log_records.retention_failed(reason=error.detail)
        removed = +counts
        if removed:
            by_kind = {str(kind): count for kind, count in removed.items()}
            log_records.retired(seconds=trio.current_time() - started, **by_kind)
        return removed

    async def _months(self, counts: Counter[RetiredKind]) -> bool:
        """Drop the months that are over; return whether one is left that could not be locked."""
        left = False
        for whole in await self._postgres.run("db.retire", self._find_months, begin=RELAXED):
            over = await self._read_month(whole)
            if over is not None and not await self._drop(whole, over, counts):
                left = True
        return left

    async def _find_months(self, connection: Connection) -> Sequence[WholeMonth]:
        # Whoever is older is reported by the first page.
        return [] if await held_back_by(connection) else await find_whole_months(connection, self._settings)

    async def _read_month(self, whole: WholeMonth) -> OverMonth | None:
        connection = self._postgres.dedicated()
        try:
            await until_idle(self._pressed)
            read = partial(read_month, whole=whole)
            return await connection.run("db.retire_month", read, begin=RELAXED, seconds=READ_MONTH_SECONDS)
        finally:
            await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _drop(self, whole: WholeMonth, over: OverMonth, counts: Counter[RetiredKind]) -> bool:
        async def body(connection: Connection) -> int | None:
            if not await take_turn(connection) or await held_back_by(connection):
                return None
            return await drop_over(connection, whole, over)

        reason = "something else comes first"
        for _ in range(_DROP_TRIES):
            await until_idle(self._pressed)
            started = trio.current_time()
            try:
                rows = await self._postgres.run("db.retire", body, begin=DURABLE)
            except DatabaseUnavailable as error:
                if not is_held_up(error):
                    raise
                reason = f"another session holds a lock on it ({error.__cause__})"
                rows = None
            if rows is not None:
                kind = KIND_OF[over.month.table]
                counts[kind] += rows
                metrics.retired_total.labels(kind).inc(rows)
                seconds = trio.current_time() - started
                log_records.month_dropped(month=over.month.name, rows=rows, seconds=seconds)
                return True
            await trio.sleep(GIVE_WAY_SECONDS)
        log_records.retention_waits(reason=f"{over.month.name} is over and cannot be dropped now: {reason}")
        return False

    async def _pass(self, name: PassName, find: FindOver, counts: Counter[RetiredKind]) -> None:
        now = trio.current_time()
        if now >= self._whole_at.get(name, now) + _WHOLE_SECONDS or name not in self._positions:
            self._positions[name], self._whole_at[name] = None, now
        while self._leads():
            await until_idle(self._pressed)
            page = partial(self._page, find=find, position=self._positions[name])
            started = trio.current_time()
            done = await self._postgres.run("db.retire", page, begin=RELAXED)
            if done is None:
                await trio.sleep(GIVE_WAY_SECONDS)
                continue
            over, removed = done
            seconds = trio.current_time() - started
            for kind, count in removed.items():
                counts[kind] += count
                metrics.retired_total.labels(kind).inc(count)
            if over.position is None:
                return
            self._positions[name] = over.position
            self._rows = max(
                _PAGE_ROWS_MIN, min(RETIRED_ROWS_MAX, int(self._rows * _PAGE_SECONDS / max(seconds, 1e-6)))
            )
            await trio.sleep(max(seconds, _PAUSE_SECONDS_MIN))

    async def _page(
        self, connection: Connection, *, find: FindOver, position: tuple[object, ...] | None
    ) -> tuple[Over, dict[RetiredKind, int]] | None:
        """Remove what one page holds; None where something else comes first."""
        if not await take_turn(connection):
            return None
        older = await held_back_by(connection)
        if older:
            # They would take what is gone for lost. The next look is soon enough.
            log_records.retention_waits(reason="; ".join(map(str, older)))
            return Over(position=None), {}
        over = await find(connection, self._settings, position, self._rows)
        return over, await retire(connection, over)
