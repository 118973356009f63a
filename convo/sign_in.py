"""A process registers on its database, and finds out whether a living process has a copy of its data folder.

Open it to change when a start takes the leases of the start before it. Who a process is stands in ``runtime.identity``.
"""

from __future__ import annotations

import os
from datetime import datetime

import trio

from convo.observe import log_records
from convo.runtime.identity import Identity
from convo.settings import Settings
from convo.store import processes
from convo.store.jobs.table import Jobs
from convo.store.postgres import Connection, Postgres
from convo.store.processes import Namesake, ProcessEntry
from convo.store.server_settings import connections_wanted

_LOOK_SECONDS = 0.1
_SLACK_SECONDS = 1.0


async def sign_in(postgres: Postgres, jobs: Jobs, me: Identity, settings: Settings) -> int:
    """Register this process; return the connections that all living processes together may open.

    Where a living process has the same folder id, this one takes another: it got a copy of that process's folder.
    """
    entry = _entry(me, settings)
    connections = await processes.enter(postgres, entry)
    # Entered before it looks: of two copies that start at once, at least one sees the other.
    other = await _living_namesake(postgres, entry)
    if other is not None:
        await processes.leave(postgres, entry.name)
        me.take_new_folder_id()
        entry = _entry(me, settings)
        connections = await processes.enter(postgres, entry)
        log_records.folder_copied(process=entry.name, other=f"{other.host}/{other.name}")
    jobs.signed_in(entry)
    return connections


async def take_back_leases(jobs: Jobs, me: Identity) -> None:
    """Take back what earlier starts on this folder left leased: this process holds its lock, so they are dead."""
    released = await jobs.claim_folder(me.folder)
    if released:
        log_records.own_leases_released(count=released)


def _entry(me: Identity, settings: Settings) -> ProcessEntry:
    return ProcessEntry(
        name=me.name,
        folder=me.folder,
        host=me.host,
        pid=os.getpid(),
        connections_max=connections_wanted(settings.database.pool_max),
        lease_seconds=settings.jobs.lease_seconds,
        heartbeat_seconds=settings.jobs.heartbeat_seconds,
        workers=settings.jobs.workers,
    )


async def _living_namesake(postgres: Postgres, entry: ProcessEntry) -> Namesake | None:
    """Find another living process of the same folder id.

    Three cases. It has no session: it is dead, and this process goes on at once. It is seen again: it lives. It has
    sessions and is not seen for two heartbeats: its machine is gone and the server has not noticed yet, or it is
    stopped and was copied. Then it counts as living, because a new folder id is always safe: leases of the dead end.
    """

    async def body(connection: Connection) -> list[Namesake]:
        return await processes.namesakes(connection, entry.folder, entry.name)

    began = trio.current_time()
    first: dict[str, datetime] = {}
    while True:
        connected = [one for one in await postgres.run("db.enter", body) if one.connected]
        waited = trio.current_time() - began
        for one in connected:
            silent = one.seen_at == first.setdefault(one.name, one.seen_at)
            if not silent or waited > 2 * one.heartbeat_seconds + _SLACK_SECONDS:
                return one
        if not connected:
            return None
        await trio.sleep(_LOOK_SECONDS)
