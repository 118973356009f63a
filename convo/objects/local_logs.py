"""How much of logs is in PostgreSQL, where ``logs.local_bytes_max`` bounds that.

Open it to change how that is found out. All rows are added up once, page by page, and after a day again; in between,
those that have come since. What has moved is taken off. What has been erased is counted until the next day.
"""

from __future__ import annotations

from functools import partial

import trio

from convo.store import log_objects
from convo.store.postgres import RELAXED, Postgres

_PAGE_ROWS = 20_000
_WHOLE_SECONDS = 86_400.0
# Logs move until so much of the bound is left.
_UNTIL_SHARE = 0.9


class LocalLogs:
    """The sum; with a bound of 0 it is never looked at."""

    def __init__(self, postgres: Postgres, bytes_max: int) -> None:
        self._postgres = postgres
        self._bytes_max = bytes_max
        self._seen_to = 0
        self._whole_at = 0.0
        self._over = False
        self.bytes = 0
        """How much it is."""

    @property
    def over(self) -> bool:
        """Whether logs have to move for the sake of the bound."""
        share = _UNTIL_SHARE if self._over else 1.0
        self._over = bool(self._bytes_max) and self.bytes > share * self._bytes_max
        return self._over

    def note_moved(self, size: int) -> None:
        """Take off what has moved."""
        self.bytes = max(0, self.bytes - size)

    def forget(self) -> None:
        """Add up anew."""
        self._seen_to, self.bytes = 0, 0

    async def look(self) -> None:
        """Add what has come since the last look.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the database does not answer.
        """
        if not self._bytes_max:
            return
        if not self._seen_to or trio.current_time() >= self._whole_at + _WHOLE_SECONDS:
            self.forget()
            self._whole_at = trio.current_time()
        while True:
            page = partial(log_objects.survey, after=self._seen_to, rows=_PAGE_ROWS)
            found = await self._postgres.run("db.pack", page, begin=RELAXED)
            if found is None:
                return
            self._seen_to = found.last_seq
            self.bytes += found.bytes
