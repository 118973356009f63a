"""The keeper of the room that the table of jobs takes: gives it back when a backlog is over.

Open it to change how often it looks. When it is worth it is decided in ``store.jobs.job_room``.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError, DatabaseUnavailable
from convo.observe import log_records
from convo.store.jobs.job_room import RebuiltIndexes, rebuild_indexes
from convo.store.postgres import LOCAL, Postgres
from convo.store.postgres_errors import is_held_up

ROOM_LOOK_SECONDS = 60.0


async def keep_job_room(postgres: Postgres, leads: Callable[[], bool]) -> None:
    """Look every minute until cancelled, in the one process for which ``leads`` returns true."""
    while True:
        if leads():
            await give_job_room_back(postgres)
        await trio.sleep(ROOM_LOOK_SECONDS)


async def give_job_room_back(postgres: Postgres) -> RebuiltIndexes | None:
    """Rebuild the indexes of jobs where that gives room back; return what it gave, None where nothing was done."""
    started = trio.current_time()
    try:
        rebuilt = await postgres.run("db.job_room", rebuild_indexes, begin=LOCAL)
    except ConvoError as error:
        # Somebody uses the table for long, as pg_dump does: nothing is lost, and the next look is soon.
        if not (isinstance(error, DatabaseUnavailable) and is_held_up(error)):
            log_records.job_room_failed(reason=error.detail)
        return None
    if rebuilt is not None:
        seconds = trio.current_time() - started
        log_records.job_room_given_back(bytes_before=rebuilt.bytes_before, bytes_now=rebuilt.bytes_now, seconds=seconds)
    return rebuilt
