"""Removes events that are over, minute by minute, and reports those that a receiver would never get."""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.settings import EventsSettings
from convo.store.event_expiry import expire_events, find_expiring
from convo.store.postgres import Postgres

_LOOK_SECONDS = 30.0


async def keep_events(postgres: Postgres, settings: EventsSettings, leads: Callable[[], bool]) -> None:
    """Look every 30 s until cancelled, in the one process for which ``leads`` returns true."""
    while True:
        await trio.sleep(_LOOK_SECONDS)
        if not leads():
            continue
        try:
            for one in await find_expiring(postgres, settings.keep_days):
                log_records.events_expiring(receiver=one.receiver, at=one.at.isoformat())
            while await expire_events(postgres, settings.keep_days):
                pass
        except ConvoError as error:
            log_records.events_waiting(what="expiry", reason=error.detail)
