"""Contract steps of migrations that wait for older processes: reports who holds them back, and applies them later.

Open it to change how a process waits. Which step waits for whom is in ``store/migrate.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.store.migrate import ContractWait, contract_wait, migrate
from convo.store.postgres import DedicatedConnection, Postgres

_AGAIN_SECONDS = 5.0
_NEEDED_AGAIN_SECONDS = 1.0


class Contracts:
    """The contract step that waits, if there is one; ``changed`` is called with what a person should know, or ''."""

    def __init__(self, postgres: Postgres, process: str, changed: Callable[[str], None] = lambda _reason: None) -> None:
        self._postgres = postgres
        self._process = process
        self._changed = changed
        self._waits: ContractWait | None = None

    async def migrate(self, connection: DedicatedConnection) -> ContractWait | None:
        """Apply what can be applied now; return what waits.

        Raises:
            Refused, DatabaseUnavailable: as ``store.migrate.migrate``.
        """
        before, after = await migrate(connection, self._process)
        self._waits = await contract_wait(connection)
        if self._waits is not None:
            log_records.contract_waits(number=self._waits.number, reason=str(self._waits))
        if before != after:
            log_records.migrated(from_version=before, to_version=after)
        self._changed(f"MIGRATION_WAITS: {self._waits}" if self._waits else "")
        return self._waits

    async def until_served(self, connection: DedicatedConnection) -> None:
        """Apply what can be applied, until nothing waits that this program cannot serve without.

        Raises:
            Refused, DatabaseUnavailable: as ``migrate``.
        """
        while (waits := await self.migrate(connection)) is not None and waits.needed:  # noqa: ASYNC110  (no event)
            await trio.sleep(_NEEDED_AGAIN_SECONDS)

    async def run(self) -> None:
        """Try again every 5 s while a step waits, until cancelled; where none waits, nothing is asked."""
        while True:
            await trio.sleep(_AGAIN_SECONDS)
            if self._waits is None:
                continue
            connection = self._postgres.dedicated()
            try:
                await self.migrate(connection)
            except ConvoError as error:
                log_records.contract_waits(number=self._waits.number, reason=error.detail)
            finally:
                await connection.close()  # noqa: ASYNC102  (shields itself, with a bound)
