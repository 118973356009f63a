"""Packing: moves logs that have been stored for a while out of PostgreSQL into objects, many at a time.

Open it to change which logs move, or when. An object is planned, written and referred to, in this order, each by a step
after which the process may die: an object that was planned only is deleted, and its logs are where they were.

Logs move in the order of their ``seq``, those of one month and tenant into one object. What had not ended when it was
passed is looked at again after a day, and at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import trio

from convo.errors import ConvoError, Unavailable
from convo.objects.joining import JoinedLogs, join_logs
from convo.objects.local_logs import LocalLogs
from convo.objects.pace import PackingPace
from convo.objects.storage import ObjectStorage
from convo.observe import log_records, metrics
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.runtime.idle import IdleMoments
from convo.settings import LogsSettings
from convo.store import log_objects
from convo.store.log_objects import LogObject, MovingLog, WaitingLog
from convo.store.log_refs import month_of
from convo.store.postgres import DURABLE, RELAXED, Postgres

_PAGE_ROWS = 1_000
# After so long other work on objects has its turn: erasures come first.
_TURN_SECONDS = 5.0
_JOIN_SECONDS = 60.0
_WHOLE_SECONDS = 86_400.0
# A log that has waited for others so long after its time moves with those that there are.
_PARTLY_SECONDS = 86_400.0
# Under pressure all goes, but for what a worker is about to read.
_PRESSED_SECONDS = 60.0
# What was received later than now was so before a clock was set back: those behind it must not wait for that time.
_FUTURE_SECONDS = 60.0


class Packer:
    """Moves logs, as long as it is called; ``pressed`` says when something else comes first."""

    def __init__(
        self, storage: ObjectStorage, postgres: Postgres, settings: LogsSettings, pressed: Callable[[], bool]
    ) -> None:
        self._storage = storage
        self._postgres = postgres
        self._settings = settings
        self._moments = IdleMoments(pressed, settings.busy_seconds)
        self._local = LocalLogs(postgres, settings.local_bytes_max)
        self._groups: dict[tuple[int, int], list[WaitingLog]] = {}
        self._position = 0
        self._whole_at = 0.0
        self._pace = PackingPace()
        self.has_more = False
        """Whether the last call of ``pack`` has left some for the next one."""
        self.oldest_seconds = 0.0
        """For how long the oldest log that should move by now has been stored; 0 where none should."""

    def forget(self) -> None:
        """Begin anew: the database went back."""
        self._groups.clear()
        self._position = 0
        self._local.forget()

    @property
    def local_bytes(self) -> int:
        """How much of logs is in PostgreSQL, as far as that is looked at."""
        return self._local.bytes

    @property
    def busy_seconds(self) -> float:
        """For how long it has waited for an idle moment; 0 where it does not."""
        return self._moments.busy_seconds

    @property
    def busy_longest_seconds(self) -> float:
        """The longest that it waited for an idle moment, since ``pack`` was called last."""
        return self._moments.longest_seconds

    async def pack(self) -> int:
        """Move the logs that may move now, until there are none or for a while; return how many did.

        Raises:
            RemoteError: an object could not be written.
            Unavailable: too many objects wait to be deleted.
            DatabaseUnavailable, DeadlineExceeded: the database does not answer.
        """
        moved, until = 0, trio.current_time() + _TURN_SECONDS
        front: float | None = None
        self.has_more = False
        self._moments.begin()
        try:
            await self._local.look()
            self._note_whole()
            while True:
                self._pace.hurries = self._local.over
                more = await self._find()
                for group in self._full(more=more):
                    front = group[0].seconds
                    moved += await self._move(group)
                    if trio.current_time() >= until:
                        # The others stay where they are, and are the first of the next turn.
                        more = True
                        break
                if not more or trio.current_time() >= until:
                    break
        finally:
            self._moments.end()
        self.has_more = more
        self._pace.note_turn(front if more else None)
        if not more:
            self.oldest_seconds = 0.0
        return moved

    def _note_whole(self) -> None:
        now = trio.current_time()
        if not self._position or now >= self._whole_at + _WHOLE_SECONDS:
            self._position, self._whole_at = 0, now
            self._groups.clear()

    # --- which

    async def _find(self) -> bool:
        """Find the next logs that may move; return whether there may be more behind them."""
        await self._moments.next_one()
        began = trio.current_time()
        least = self._least_seconds()
        page, following = await self._postgres.run(
            "db.pack", partial(log_objects.read_movable, after=self._position, rows=_PAGE_ROWS), begin=RELAXED
        )
        if page:
            await self._rest(began)
        for one in page:
            if -_FUTURE_SECONDS < one.seconds < least:
                return False
            if one.ended or self._local.over:
                self._groups.setdefault((month_of(one.seq), one.tenant), []).append(one)
            self._position = one.seq
        if following is not None:
            self._position = following
        return following is not None

    def _least_seconds(self) -> float:
        after = self._settings.pack_after_seconds
        return min(after, _PRESSED_SECONDS) if self._local.over else after

    def _full(self, *, more: bool) -> Iterator[Sequence[WaitingLog]]:
        """Yield what fills an object each, and at the end what waits no longer for more; it is taken out."""
        for key, group in list(self._groups.items()):
            while group:
                count = self._count_of_full(group)
                if not count and (more or not self._goes_partly(group[0])):
                    break
                taken = group[: count or len(group)]
                self.oldest_seconds = max(self.oldest_seconds, taken[0].seconds)
                del group[: len(taken)]
                yield taken
            if not group:
                del self._groups[key]

    def _count_of_full(self, group: Sequence[WaitingLog]) -> int:
        size = 0
        for count, one in enumerate(group):
            if count and (size + one.bytes > self._settings.pack_bytes or count == self._pace.logs_max):
                return count
            size += one.bytes
        return 0

    def _goes_partly(self, oldest: WaitingLog) -> bool:
        return self._local.over or oldest.seconds > self._settings.pack_after_seconds + _PARTLY_SECONDS

    # --- moving

    async def _move(self, group: Sequence[WaitingLog]) -> int:
        """Move these logs into one object; return how many did. They are found again where that fails."""
        try:
            return await self._move_into(group)
        except ConvoError:
            firsts = [group[0].seq, *(others[0].seq for others in self._groups.values() if others)]
            self._position = min(self._position, min(firsts) - 1)
            self._groups.clear()
            raise

    async def _move_into(self, group: Sequence[WaitingLog]) -> int:
        seqs = [one.seq for one in group]
        planned = await self._postgres.run(
            "db.pack", partial(log_objects.plan, tenant=group[0].tenant, seqs=seqs), begin=DURABLE
        )
        if planned is None:
            raise Unavailable("too many objects of logs wait to be deleted; no more are written until they are")
        try:
            joined = await self._join(planned, await self._bodies(group))
            if not joined.refs:
                await self._give_up(planned, 0.0)
                return 0
            await self._storage.write(planned, joined.body)
            moved = await self._refer(planned, joined)
        except ConvoError:
            # Written it may be, or be still on its way.
            await self._give_up(planned, 2 * self._settings.write_seconds + 60.0)
            raise
        self._local.note_moved(len(joined.body))
        metrics.logs_packed_total.inc(moved)
        log_records.logs_packed(into=planned.name, logs=moved, bytes=len(joined.body))
        return moved

    async def _bodies(self, group: Sequence[WaitingLog]) -> Sequence[MovingLog]:
        found: list[MovingLog] = []
        for piece in _pieces(group, self._pace.piece_bytes):
            await self._moments.next_one()
            began = trio.current_time()
            found += await self._postgres.run(
                "db.pack", partial(log_objects.read_moving, seqs=[one.seq for one in piece]), begin=RELAXED
            )
            await self._rest(began)
        return found

    async def _join(self, planned: LogObject, logs: Sequence[MovingLog]) -> JoinedLogs:
        with deadline("logs.pack", _JOIN_SECONDS):
            joined = await threads.MOVES.call_behind(join_logs, planned.name, logs)
        for log in joined.wrong:
            log_records.log_mismatch(conversation_id=log.conversation_id)
        return joined

    async def _refer(self, planned: LogObject, joined: JoinedLogs) -> int:
        await self._moments.next_one()
        refer = partial(log_objects.refer, planned=planned, refs=joined.refs, size=len(joined.body))
        began = trio.current_time()
        moved = await self._postgres.run("db.pack", refer, begin=DURABLE)
        if moved is None:
            raise Unavailable(f"the object {planned.name} took so long that it was given up")
        self._pace.note_refer(len(joined.refs), trio.current_time() - began)
        await self._rest(began)
        return moved

    async def _rest(self, began: float) -> None:
        """Rest after a step that the database has been at work for since ``began``."""
        await trio.sleep(self._pace.rest_seconds(trio.current_time() - began))

    async def _give_up(self, planned: LogObject, later_seconds: float) -> None:
        give_up = partial(log_objects.give_up, name=planned.name, later_seconds=later_seconds)
        await self._postgres.run("db.pack", give_up, begin=DURABLE)


def _pieces(group: Sequence[WaitingLog], piece_bytes: int) -> Iterator[Sequence[WaitingLog]]:
    piece: list[WaitingLog] = []
    size = 0
    for one in group:
        if piece and size + one.bytes > piece_bytes:
            yield piece
            piece, size = [], 0
        piece.append(one)
        size += one.bytes
    if piece:
        yield piece
