"""Compares the tables with the ledger once a minute, and reports each difference as a log record and a metric."""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.store import ledger
from convo.store.postgres import Postgres

_INTERVAL_SECONDS = 60.0


async def watch_ledger(postgres: Postgres, leads: Callable[[], bool]) -> None:
    """Compare every minute until cancelled, in the one process for which ``leads`` returns true."""
    connection = postgres.dedicated()
    try:
        while True:
            await trio.sleep(_INTERVAL_SECONDS)
            if not leads():
                metrics.ledger_gaps.set(0)
                continue
            try:
                gaps = await ledger.compare_recent(connection)
            except ConvoError as error:
                log_records.books_failed(reason=error.detail)
                continue
            # None: another process compares at this moment, so nothing is known here.
            if gaps is not None:
                metrics.ledger_gaps.set(len(gaps))
            for gap in gaps or ():
                log_records.ledger_gap(day=gap.day.isoformat(), what=gap.what, booked=gap.booked, found=gap.found)
    finally:
        await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)
