"""The leases that this process holds, and the heartbeat that renews them.

Open it to change when the work on a lost lease stops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import trio

from convo.conversation.model import Finding, PartName
from convo.errors import BadRow, ConvoError, LeaseLost
from convo.observe import log_records
from convo.pipeline.at_work import JobAtWork
from convo.settings import JobsSettings
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs


class HeldLeases:
    """Every lease that this process has, each with the cancel scope of its work, which may not have begun.

    The scope's deadline is the end of the lease by this process's own clock. Each good renewal moves it. So a worker
    that could not renew stops by itself when other processes may take the job.
    """

    def __init__(self, jobs: Jobs, settings: JobsSettings) -> None:
        self._jobs = jobs
        self._settings = settings
        # By token: a rescued job can come back to this process while the work under its lost lease still ends.
        self._scopes: dict[int, tuple[Lease, trio.CancelScope]] = {}
        self._unended: dict[int, JobAtWork] = {}

    def give_back_later(self, job: JobAtWork) -> None:
        """Note a job whose ending could not be stored: it is given back when a heartbeat can be stored again."""
        self._unended[job.lease.token] = job

    def __len__(self) -> int:
        return len(self._scopes)

    def keep(self, lease: Lease, since: float) -> None:
        """Renew ``lease`` from now on; ``since`` is when it was asked for, by ``trio.current_time()``."""
        self._scopes[lease.token] = (lease, trio.CancelScope(deadline=since + self._settings.lease_seconds))

    def let_go(self, leases: Collection[Lease]) -> None:
        """Renew these no longer: nobody has begun to work on them, or their jobs are ending."""
        for lease in leases:
            self._scopes.pop(lease.token, None)

    @contextmanager
    def hold(self, lease: Lease, since: float) -> Iterator[trio.CancelScope]:
        """Do the work of ``lease`` inside; as ``keep`` where it is not kept yet."""
        if lease.token not in self._scopes:
            self.keep(lease, since)
        with self._scopes[lease.token][1] as scope:
            try:
                yield scope
            finally:
                self._scopes.pop(lease.token, None)

    def drop(self) -> None:
        """Stop the work of all leases: the database went back, and nobody knows what it says of them."""
        self._unended.clear()
        for lease, scope in self._scopes.values():
            log_records.lease_lost(conversation_id=lease.conversation_id, reason="the database went back")
            scope.cancel()

    def stop_gone(self, seqs: Collection[int], reason: str = "the conversation was erased") -> None:
        """Stop the work on these jobs at once: they are gone. In other processes the next heartbeat finds it."""
        for lease, scope in list(self._scopes.values()):
            if lease.seq in seqs:
                log_records.lease_lost(conversation_id=lease.conversation_id, reason=reason)
                scope.cancel()

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
                log_records.renewal_failed(leases=len(beating), reason=error.detail)
                continue
            for token, (lease, scope) in beating.items():
                if token in kept:
                    scope.deadline = asked + self._settings.lease_seconds
                elif token in self._scopes:
                    log_records.lease_lost(conversation_id=lease.conversation_id, reason="the renewal found it gone")
                    scope.cancel()
            await self._give_back()

    async def _store_part(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        (error,) = await self._jobs.store_parts([(lease, name, by, finding)])
        if error is not None:
            raise error

    async def _give_back(self) -> None:
        while self._unended:
            token, job = next(iter(self._unended.items()))
            lease = job.lease
            try:
                # Or what was paid for would be asked for again.
                with suppress(BadRow):
                    await job.store_found(self._store_part)
                await self._jobs.release(lease)
            except LeaseLost:
                # Its ending was stored after all, or another process rescued it.
                pass
            except ConvoError as error:
                log_records.ending_failed(conversation_id=lease.conversation_id, reason=error.detail)
                return
            else:
                log_records.job_released(conversation_id=lease.conversation_id, reason="its ending could not be stored")
            self._unended.pop(token, None)
