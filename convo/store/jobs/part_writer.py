"""Storing parts for several workers at once: what they find in the same moment shares a transaction.

Open it to change how parts are batched. What storing a part means stands in ``store/jobs/parts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from convo.conversation.model import Finding, PartName
from convo.errors import LeaseLost
from convo.runtime.deadline import deadline
from convo.store.group import Group
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import FoundPart, Jobs

_ROWS_MAX = 64
# The batch under way and one's own, each once more when its transaction was lost, and half a unit for the loop.
_UNITS = 4.5


class PartWriter:
    """Stores what workers find; ``unit_seconds`` is what one transaction may take."""

    def __init__(self, jobs: Jobs, unit_seconds: float) -> None:
        self._jobs = jobs
        self._wait_seconds = _UNITS * unit_seconds
        self._group: Group[FoundPart, None] = Group(
            self._commit, rows_max=_ROWS_MAX, bytes_max=_ROWS_MAX, unit_seconds=unit_seconds, item_bytes=lambda _: 1
        )

    async def store(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        """Store what one part found, and its memories as far as they are new.

        Raises:
            LeaseLost: the job is no longer ours; nothing was stored.
            DatabaseUnavailable, Draining: nothing is known to be stored.
        """
        with deadline("job.part", self._wait_seconds):
            await self._group.submit((lease, name, by, finding))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store batch after batch until cancelled."""
        await self._group.run(task_status=task_status)

    async def _commit(self, found: Sequence[FoundPart]) -> list[LeaseLost | None]:
        return await self._jobs.store_parts(found)
