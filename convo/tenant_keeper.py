"""The keeper of the indexes by tenant: has them made when a second tenant is there, and knows when they can be used.

Open it to change how often it looks. Which indexes they are stands in ``store.tenant_indexes``.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.store import tenant_indexes
from convo.store.postgres import RELAXED, Connection, Postgres

TENANT_LOOK_SECONDS = 60.0


class TenantIndexes:
    """The indexes of the tenant ``default``; the process for which ``leads`` returns true makes them."""

    def __init__(self, postgres: Postgres, leads: Callable[[], bool]) -> None:
        self._postgres = postgres
        self._leads = leads
        self._made = False

    def are_made(self) -> bool:
        """Return whether lists may use them; until this process has looked it is no."""
        return self._made

    def forget(self) -> None:
        """Look again before they are used: the database went back."""
        self._made = False

    async def run(self) -> None:
        """Look every minute until cancelled."""
        while True:
            try:
                await self.look()
            except ConvoError as error:
                log_records.tenant_indexes_failed(reason=error.detail)
            await trio.sleep(TENANT_LOOK_SECONDS)

    async def look(self) -> None:
        """Find out whether they can be used, and make them where they are needed and this process leads.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: they could not be looked for, or not be made now.
        """

        async def body(connection: Connection) -> tuple[bool, bool]:
            return await tenant_indexes.are_needed(connection), await tenant_indexes.are_made(connection)

        needed, self._made = await self._postgres.run("db.tenants", body, begin=RELAXED)
        if needed and not self._made and self._leads():
            started = trio.current_time()
            dedicated = self._postgres.dedicated()
            try:
                await tenant_indexes.make(dedicated)
            finally:
                await dedicated.close()  # noqa: ASYNC102  (shields itself, with a bound)
            self._made = True
            log_records.tenant_indexes_made(seconds=trio.current_time() - started)
