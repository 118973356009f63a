"""The keeper of old logs: has them packed, erased, deleted and looked for, each in its time and at low priority.

Open it to change the order of that. It runs in every process and works in the one that leads. Where the object storage
does not answer, all of it waits: accepts and analyses do not come here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from convo.errors import ConvoError, Refused
from convo.objects.packing import Packer
from convo.objects.rewriting import Rewriter
from convo.objects.storage import ObjectStorage
from convo.observe import log_records, metrics
from convo.runtime.bell import Bell
from convo.settings import LogsSettings
from convo.store import log_erasing, log_objects
from convo.store.log_refs import object_in
from convo.store.postgres import DURABLE, RELAXED, Postgres

T = TypeVar("T")

_SWEEP_SECONDS = 3_600.0
_BATCH_SECONDS = 3_600.0
_INSPECT_SECONDS = 3_600.0
# Whoever restores a backup that is too old, and so no more knows of objects, has so long to see it.
GRACE_SECONDS = 86_400.0
# A wait for an idle moment is shown from so many seconds on: shorter ones are the rule.
_SHOWN_BUSY_SECONDS = 30.0


def abandoned_seconds(settings: LogsSettings) -> float:
    """Return how long after its plan nobody writes an object any more, as far as its process lives."""
    return 30.0 + 2 * settings.attempts * settings.write_seconds


class LogsKeeper:
    """Keeps logs behind object storage while ``leads`` returns true and ``pressed`` does not."""

    def __init__(
        self,
        storage: ObjectStorage,
        postgres: Postgres,
        settings: LogsSettings,
        leads: Callable[[], bool],
        pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._storage = storage
        self._postgres = postgres
        self._settings = settings
        self._leads = leads
        self._bell = Bell()
        self._packer = Packer(storage, postgres, settings, pressed)
        self.rewriter = Rewriter(storage, postgres, settings)
        self._done_at: dict[str, float] = {}
        self._failing_since: float | None = None
        self._failed: ConvoError | None = None
        self._is_behind = False
        self._goes_on = False

    def ring(self) -> None:
        """Look now: something was erased."""
        self._bell.ring()

    def forget(self) -> None:
        """Begin anew: the database went back."""
        self._packer.forget()
        self._storage.forget()
        self._done_at.clear()

    @property
    def warning(self) -> str:
        """What ``/readyz`` shows while packing waits for the process to be idle; empty where it does not."""
        busy = self._packer.busy_seconds
        if busy < _SHOWN_BUSY_SECONDS:
            return ""
        bound = self._settings.busy_seconds
        then = f"at {bound:g} s it packs in spite of the load" if busy < bound else "it packs in spite of the load"
        return f"LOGS_BEHIND: packing waits for idle moments (busy for {busy:.0f} s; {then})"

    async def run(self) -> None:
        """Look every ``logs.look_seconds``, and when something was erased, until cancelled."""
        while True:
            if self._leads():
                await self.look()
            else:
                self._note_standing(None)
            with trio.move_on_after(0.0 if self._goes_on else self._settings.look_seconds):
                await self._bell.rung()

    async def look(self) -> int:
        """Do all that is due, and pack for a while; return how many logs have moved."""
        self._failed, self._goes_on = None, False
        moved = 0
        if await self._tried(self._inspect):
            # First what a person has asked for, last what saves room.
            await self._tried(self.rewriter.erase_urgent)
            await self._tried(self._erase_batch)
            await self._tried(self._sweep)
            await self._tried(self.rewriter.delete_leaving)
            moved = await self._tried(self._pack) or 0
        self._note_standing(self._failed)
        return moved

    async def _tried(self, step: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await step()
        except ConvoError as error:
            log_records.logs_waiting(what=step.__name__.strip("_"), reason=error.detail)
            self._failed = error
            return None

    async def _pack(self) -> int:
        if not await self._may_pack():
            return 0
        moved = await self._packer.pack()
        self._goes_on = self._packer.has_more
        return moved

    async def _inspect(self) -> bool:
        if self._is_due("inspect", _INSPECT_SECONDS):
            try:
                await self._storage.inspect()
            except Refused as error:
                self._storage.packing.note_misconfigured(error.detail)
                raise
            self._done("inspect")
        return True

    async def _may_pack(self) -> bool:
        older = await self._postgres.run("db.pack", log_objects.packing_held_back_by, begin=RELAXED)
        if older:
            # They would not find what has moved. The next look is soon enough.
            log_records.logs_waiting(what="packing", reason="; ".join(map(str, older)))
        return not older

    def _is_due(self, what: str, seconds: float) -> bool:
        return what not in self._done_at or trio.current_time() >= self._done_at[what] + seconds

    def _done(self, what: str) -> None:
        self._done_at[what] = trio.current_time()

    async def _erase_batch(self) -> None:
        """Write anew what retention has removed something of: what waits for others is looked at seldom."""
        if self._is_due("batch", min(_BATCH_SECONDS, self._settings.batch_seconds)):
            await self.rewriter.erase_batch()
            self._done("batch")

    async def _sweep(self) -> None:
        """Delete what nobody refers to: what was planned and left, and what the bucket has besides."""
        seconds = abandoned_seconds(self._settings)
        give_up = partial(log_objects.give_up_abandoned, seconds=seconds)
        abandoned = await self._postgres.run("db.pack", give_up, begin=DURABLE)
        unknown = 0
        if self._is_due("sweep", _SWEEP_SECONDS):
            unknown = await self._note_unknown()
            self._done("sweep")
        if abandoned or unknown:
            log_records.objects_swept(abandoned=abandoned, unknown=unknown)

    async def _note_unknown(self) -> int:
        count = 0
        for month in (await self._storage.list_folder(f"{await self._storage.folder()}/")).folders:
            listed = await self._storage.list_folder(month)
            found = [one for row in listed.objects if (one := object_in(row.key)) is not None]
            note = partial(log_erasing.note_unknown, objects=found, grace_seconds=GRACE_SECONDS)
            count += await self._postgres.run("db.pack", note, begin=DURABLE)
        return count

    def _note_standing(self, failed: ConvoError | None) -> None:
        """Report once that logs which should have moved long ago have not, and once that they have."""
        now = trio.current_time()
        if failed is None:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        seconds = 0.0 if self._failing_since is None else now - self._failing_since
        behind = seconds > self._settings.behind_seconds
        if behind:
            log_records.logs_behind(
                seconds=seconds,
                oldest_seconds=self._packer.oldest_seconds,
                local_bytes=self._packer.local_bytes,
                busy_seconds=self._packer.busy_longest_seconds,
                reason=failed.detail if failed is not None else "",
            )
        elif self._is_behind:
            log_records.logs_caught_up()
        self._is_behind = behind
        metrics.local_log_bytes.set(self._packer.local_bytes)
