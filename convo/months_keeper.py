"""The keeper of the months: prepares the partitions of the next ones, and begins a month when it has come.

Open it to change how often it looks. When a month begins is decided in ``store.months``.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError, DatabaseUnavailable
from convo.observe import log_records
from convo.store.months import prepare_months
from convo.store.postgres import LOCAL, Postgres
from convo.store.postgres_errors import is_held_up

LOOK_SECONDS = 60.0


async def keep_months(postgres: Postgres, leads: Callable[[], bool]) -> None:
    """Look every minute until cancelled, in the one process for which ``leads`` returns true."""
    while True:
        if leads():
            await look_for_month(postgres)
        await trio.sleep(LOOK_SECONDS)


async def look_for_month(postgres: Postgres) -> int | None:
    """Prepare and begin what is due; return the number of the month that has begun, None where none has."""
    try:
        number = await postgres.run("db.months", prepare_months, begin=LOCAL)
    except ConvoError as error:
        # A lock that is taken is free at the next look, and there is time.
        if not (isinstance(error, DatabaseUnavailable) and is_held_up(error)):
            log_records.months_failed(reason=error.detail)
        return None
    if number is not None:
        log_records.month_begun(number=number)
    return number
