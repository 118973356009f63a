"""Erasing in the bucket: writes an object anew without the logs that are gone, then deletes the old one.

Open it to change what happens to an object some of whose logs were erased. In this order: the new object is planned,
written, and referred to in the transaction in which the old one is leaving; the old one is deleted with all its
versions; then its row goes, and the receipts of the erasures say so. The process may die after each step. Two processes
may do it side by side: only one of them has the old object leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from convo.errors import ConvoError, RemoteDown, RemoteError
from convo.objects.joining import damaged_in, join_anew
from convo.objects.storage import ObjectStorage
from convo.observe import log_records, metrics
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings
from convo.store import log_erasing, log_objects
from convo.store.log_erasing import ObjectGivenUp
from convo.store.log_objects import LogObject
from convo.store.log_refs import LogRef
from convo.store.postgres import DURABLE, RELAXED, Postgres

_JOIN_SECONDS = 60.0
_LATER_SECONDS = 60.0
# What is erased while an object is written anew stands in the new one, too.
_ROUNDS_MAX = 5


class Rewriter:
    """Erases in the objects of this installation."""

    def __init__(self, storage: ObjectStorage, postgres: Postgres, settings: LogsSettings) -> None:
        self._storage = storage
        self._postgres = postgres
        self._settings = settings

    async def erase_for(self, hmac: bytes, until: float) -> None:
        """Erase what one erasure waits for, as far as there is time until ``until``; the rest goes on by itself.

        It raises nothing: the receipt says what waits.
        """
        # From a request, which may have no time left. A deadline of its own would be one more name for the same wait.
        with trio.move_on_at(until):
            try:
                for _ in range(_ROUNDS_MAX):
                    await self._erase_urgent(hmac)
                    if not await self.delete_leaving():
                        return
            except ConvoError as error:
                log_records.logs_waiting(what="erasing in object storage", reason=error.detail)

    async def erase_urgent(self) -> int:
        """Write anew or let go all objects in which something has to be erased at once; return how many.

        Raises:
            RemoteError, DatabaseUnavailable, DeadlineExceeded: not all of it was possible now.
        """
        return await self._erase_urgent(None)

    async def _erase_urgent(self, hmac: bytes | None) -> int:
        urgent = partial(log_erasing.urgent_objects, hmac=hmac)
        names = await self._postgres.run("db.pack", urgent, begin=RELAXED)
        await self._write_all_anew(names)
        return len(names)

    async def erase_batch(self) -> int:
        """Do the same to objects of which nothing is left, or in which something has been over for long.

        Raises:
            RemoteError, DatabaseUnavailable, DeadlineExceeded: not all of it was possible now.
        """
        after: str | None = ""
        count = 0
        while after is not None:
            page = partial(log_erasing.due_objects, after=after, batch_seconds=self._settings.batch_seconds)
            names, after = await self._postgres.run("db.pack", page, begin=RELAXED)
            await self._write_all_anew(names)
            count += len(names)
        return count

    async def delete_leaving(self) -> int:
        """Delete the objects that are leaving, with all their versions; return how many.

        Raises:
            RemoteError, DatabaseUnavailable, DeadlineExceeded: not all of it was possible now.
        """
        count, failed = 0, None
        while leaving := await self._postgres.run("db.pack", log_erasing.leaving_objects, begin=RELAXED):
            for one in leaving:
                try:
                    await self._delete(one)
                except RemoteDown:
                    raise
                except RemoteError as error:
                    # One that cannot be deleted must not hold up the others.
                    later = partial(log_erasing.postpone, name=one.name, seconds=_LATER_SECONDS)
                    await self._postgres.run("db.pack", later, begin=RELAXED)
                    failed = error
                else:
                    count += 1
        if failed is not None:
            raise failed
        return count

    async def _delete(self, leaving: LogObject) -> None:
        await self._storage.erase(leaving)
        await self._postgres.run("db.pack", partial(log_erasing.forget_object, name=leaving.name), begin=DURABLE)
        metrics.log_objects_erased_total.inc()

    async def _write_all_anew(self, names: Sequence[str]) -> None:
        """Write these objects anew; one that cannot be written does not hold up the others."""
        failed = None
        for name in names:
            try:
                await self._write_anew(name)
            except RemoteDown:
                raise
            except RemoteError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _write_anew(self, name: str) -> None:
        read = partial(log_erasing.read_object_row, name=name)
        old = await self._postgres.run("db.pack", read, begin=RELAXED)
        # Another process was faster, or nothing of it is left.
        if old is None or await self._postgres.run(
            "db.pack", partial(log_erasing.leave_object, stored=old), begin=DURABLE
        ):
            return
        body = await self._storage.read_whole(old)
        refs = await self._postgres.run("db.pack", partial(log_erasing.read_refs, stored=old), begin=RELAXED)
        if not refs:
            return
        if body is None:
            # It is gone, and with it what was to be erased. What else it held is missed, by the audit and by readers.
            log_records.log_not_found(seq=refs[0][0], storage_ref=str(refs[0][1]))
            body = b""
        seqs = sorted(seq for seq, _ in refs)
        plan = partial(log_objects.plan, tenant=old.tenant, seqs=seqs)
        new = await self._postgres.run("db.pack", plan, begin=DURABLE)
        if new is not None:
            await self._replace(old, new, body, refs)

    async def _replace(self, old: LogObject, new: LogObject, body: bytes, refs: Sequence[tuple[int, LogRef]]) -> None:
        later_seconds = 2 * self._settings.write_seconds + _LATER_SECONDS
        replaced = False
        try:
            with deadline("logs.pack", _JOIN_SECONDS):
                for seq in await threads.MOVES.call_behind(damaged_in, body, refs):
                    log_records.log_not_found(seq=seq, storage_ref=str(dict(refs)[seq]))
                joined = await threads.MOVES.call_behind(join_anew, new.name, body, refs)
            await self._storage.write(new, joined.body)
            later_seconds = 0.0
            replace = partial(log_erasing.replace, old=old, new=new, refs=joined.refs, size=len(joined.body))
            replaced = await self._postgres.run("db.pack", replace, begin=DURABLE)
        except ObjectGivenUp:
            pass
        finally:
            # Nobody else knows of it, but for the time after which planned objects count as abandoned.
            if not replaced:
                give_up = partial(log_objects.give_up, name=new.name, later_seconds=later_seconds)
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self._postgres.unit_seconds):
                    await self._postgres.run("db.pack", give_up, begin=DURABLE)
        if replaced:
            log_records.object_rewritten(
                old=old.name, into=new.name, logs=len(refs), left_out=len(old.seqs) - len(refs)
            )
