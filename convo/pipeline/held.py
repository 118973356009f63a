"""The leases that this process holds, and the heartbeat that keeps them; it knows nothing of the work itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from convo.config import JobsSettings
from convo.errors import ConvoError, LeaseLost
from convo.observe import events
from convo.store.jobs import Jobs, Lease


class Held:
    """Every lease at work, each with the cancel scope of its work.

    The scope's deadline is the end of the lease by this process's own clock, moved with each good renewal: a worker
    that could not renew stops by itself when others may take the job.
    """

    def __init__(self, jobs: Jobs, settings: JobsSettings) -> None:
        self._jobs = jobs
        self._settings = settings
        # By token: a job that was rescued can come back to this process while the work of its lost lease still ends.
        self._scopes: dict[int, tuple[Lease, trio.CancelScope]] = {}
        self._left: dict[int, Lease] = {}

    def left(self, lease: Lease) -> None:
        """Note a lease whose ending could not be stored: it is given back as soon as a heartbeat is stored again."""
        self._left[lease.token] = lease

    def __len__(self) -> int:
        return len(self._scopes)

    @contextmanager
    def hold(self, lease: Lease, since: float) -> Iterator[trio.CancelScope]:
        """Do the work of ``lease`` inside; ``since`` is when it was asked for, by ``trio.current_time()``."""
        with trio.CancelScope(deadline=since + self._settings.lease_seconds) as scope:
            self._scopes[lease.token] = (lease, scope)
            try:
                yield scope
            finally:
                self._scopes.pop(lease.token, None)

    async def beat(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew all leases at every heartbeat, and stop the work of those that are lost, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._settings.heartbeat_seconds)
            asked = trio.current_time()
            beating = dict(self._scopes)
            try:
                kept = await self._jobs.renew([lease for lease, _ in beating.values()])
            except ConvoError as error:
                events.renewal_failed(leases=len(beating), reason=error.detail)
                continue
            for token, (lease, scope) in beating.items():
                if token in kept:
                    scope.deadline = asked + self._settings.lease_seconds
                elif token in self._scopes:
                    events.lease_lost(conversation_id=lease.conversation_id, reason="the renewal found it gone")
                    scope.cancel()
            await self._give_back()

    async def _give_back(self) -> None:
        while self._left:
            token, lease = next(iter(self._left.items()))
            try:
                await self._jobs.release(lease)
            except LeaseLost:
                # Its ending was stored after all, or somebody rescued it.
                pass
            except ConvoError as error:
                events.ending_failed(conversation_id=lease.conversation_id, reason=error.detail)
                return
            else:
                events.job_released(conversation_id=lease.conversation_id, reason="its ending could not be stored")
            self._left.pop(token, None)
