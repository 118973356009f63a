"""The committer: many receipts, one transaction; it knows rows and digests, not requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from msgspec import Struct

from convo.config import FairKey, IntakeSettings
from convo.conversation import digest as digests
from convo.conversation.model import ConversationEnded
from convo.errors import Conflict, DatabaseUnavailable, TransactionLost, Unavailable
from convo.observe import events, metrics
from convo.store.group import Group
from convo.store.ledger import DAY
from convo.store.postgres import SINGLE, Connection, Line

LINE_SETTINGS = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # A batch of large bodies is sorted and joined in memory.
    "work_mem": "32MB",
}
"""The session of the committer's line, whatever the server's defaults: its statements commit themselves."""

# Of a server that answers and yet stores nothing: read-only, disk full, its files cannot be read or written.
_STORES_NOTHING = ("25006", "53100", "58")
# After such a failure this process is not ready for so long, or until a batch is committed: then one may try again.
_FAILING_SECONDS = 10.0
_SLACK_SECONDS = 0.5


class Accept(Struct, frozen=True, kw_only=True, gc=False):
    """One conversation on its way in: as sent, with what the accept path found out about it.

    ``log_bytes`` is the canonical JSON of the log, ``body`` the same compressed (zstd). Times the client left open
    are None: the database's clock fills them in.
    """

    ended: ConversationEnded
    digest: str
    turns: int
    exchanges: int
    started_at: datetime | None
    ended_at: datetime | None
    log_bytes: bytes
    body: bytes


class Stored(Struct, frozen=True, kw_only=True, gc=False):
    """What the row says of an accepted conversation; ``replayed`` when it was there before this request."""

    seq: int
    conversation_id: str
    digest: str
    turns: int
    received_at: datetime
    replayed: bool


class Committer:
    """Commits conversations in groups on a connection of its own.

    ``wait_seconds`` is the longest that one waits for its outcome, as long as no row of its batch has to be refused.
    """

    def __init__(
        self, line: Line, settings: IntakeSettings, fair_key: FairKey, unit_seconds: float, taken: Callable[..., None]
    ) -> None:
        self._line = line
        self._insert = _INSERT.replace("$fair_key", _FAIR_KEYS[fair_key])
        self._taken = taken
        self._failed: tuple[float, type[DatabaseUnavailable], str] | None = None
        # The batch under way and one's own.
        self.wait_seconds = 2 * unit_seconds + _SLACK_SECONDS
        self._group: Group[Accept, Stored] = Group(
            self._commit,
            rows_max=settings.batch_rows,
            bytes_max=settings.batch_bytes,
            unit_seconds=unit_seconds,
            item_bytes=lambda accept: len(accept.body),
        )

    async def accept(self, accept: Accept, until: float | None = None) -> Stored:
        """Store one conversation, its log and its job durably, or find that it is stored already.

        ``until`` is when the request's time is over, by ``trio.current_time()``, where the caller knows it.

        Raises:
            Conflict: the id is taken by other content.
            BadRow: the database refuses this very content.
            DatabaseUnavailable, DeadlineExceeded, Draining: nothing is known to be stored; send it again.
        """
        return await self._group.submit(accept, until)

    def check(self) -> None:
        """Pass unless the last batch failed a moment ago because the database, although it answers, stores nothing.

        Raises:
            DatabaseUnavailable: what that batch failed with.
        """
        if self._failed is not None:
            at, kind, detail = self._failed
            if trio.current_time() < at + _FAILING_SECONDS:
                raise kind(detail)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batch after batch until cancelled."""
        try:
            await self._group.run(task_status=task_status)
        finally:
            await self._line.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _commit(self, batch: Sequence[Accept]) -> list[Stored | Conflict | Unavailable]:
        # Of one id's items the first makes the row; what the others are is seen by the row's digest.
        unique: dict[str, Accept] = {}
        for accept in batch:
            unique.setdefault(accept.ended.conversation_id, accept)
        rows = [unique[conversation_id] for conversation_id in sorted(unique)]
        started = trio.current_time()
        try:
            fresh, known = await self._line.run(
                "db.accept", lambda connection: _insert(connection, self._insert, rows), begin=SINGLE
            )
        except DatabaseUnavailable as error:
            if (getattr(error.__cause__, "sqlstate", None) or "").startswith(_STORES_NOTHING):
                # Not the error itself, whose traceback holds the batch.
                self._failed = (trio.current_time(), type(error), error.detail)
            raise
        self._failed = None
        self._tell(rows, fresh, trio.current_time() - started)
        outcomes = []
        for accept in batch:
            conversation_id = accept.ended.conversation_id
            mine = unique[conversation_id] is accept and conversation_id in fresh
            outcomes.append(_outcome(accept, fresh.get(conversation_id) or known[conversation_id], replayed=not mine))
        return outcomes

    def _tell(self, rows: Sequence[Accept], fresh: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
        bytes_ = sum(len(row.body) for row in rows)
        metrics.intake_batch_rows.observe(len(rows))
        metrics.intake_commit_seconds.observe(seconds)
        events.batch_committed(rows=len(rows), bytes_=bytes_, seconds=seconds)
        self._taken(
            [(fresh[row.ended.conversation_id]["seq"], row.body) for row in rows if row.ended.conversation_id in fresh]
        )


def _outcome(accept: Accept, row: Mapping[str, Any], *, replayed: bool) -> Stored | Conflict | Unavailable:
    stored: str = row["digest"]
    try:
        same = stored == accept.digest or digests.same(stored, accept.ended, accept.log_bytes)
    except Unavailable as error:
        # A newer program made that digest: this one cannot tell, and its neighbours in the batch are committed.
        return error
    if not same:
        return Conflict(
            f"conversation_id {accept.ended.conversation_id!r} is taken by other content (stored digest {stored},"
            f" sent {accept.digest}); send it under an id of its own"
        )
    return Stored(
        seq=row["seq"],
        conversation_id=accept.ended.conversation_id,
        digest=stored,
        turns=row["turns"],
        received_at=row["received_at"],
        replayed=replayed,
    )


_INSERT = f"""
WITH sent AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                         $7::timestamptz[], $8::timestamptz[], $9::integer[], $10::integer[], $11::text[], $12::bytea[])
        AS t (conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
              started_at, ended_at, turns, exchanges, digest, body)
), fresh AS (
    INSERT INTO conversation (conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
                              started_at, ended_at, received_at, turns, exchanges, digest)
    SELECT conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
           coalesce(started_at, ended_at, convo_now()), coalesce(ended_at, greatest(started_at, convo_now())),
           convo_now(), turns, exchanges, digest
    FROM sent
    ON CONFLICT (conversation_id) DO NOTHING
    RETURNING seq, conversation_id, user_id, bot_id, digest, turns, received_at
), logs AS (
    INSERT INTO conversation_log (seq, body)
    SELECT fresh.seq, sent.body FROM fresh JOIN sent USING (conversation_id)
), books AS (
    INSERT INTO ledger (day, kind, n) SELECT {DAY}, 'accepted', count(*) FROM fresh GROUP BY 1
), jobs AS (
    INSERT INTO job (seq, fair_key) SELECT seq, $fair_key FROM fresh
)
SELECT seq, conversation_id, digest, turns, received_at FROM fresh
"""
# Whose turn it is when this job is leased.
_FAIR_KEYS: dict[FairKey, str] = {"user": "user_id", "bot": "bot_id", "none": "''"}
_KNOWN = """
SELECT seq, conversation_id, digest, turns, received_at FROM conversation WHERE conversation_id = ANY($1::text[])
"""

Rows = dict[str, Mapping[str, Any]]


async def _insert(connection: Connection, insert: str, rows: Sequence[Accept]) -> tuple[Rows, Rows]:
    """Insert what is new; return the new rows and the ones that were there, by conversation id.

    Two statements, each a transaction: in one, a row that another process commits meanwhile is neither inserted nor
    visible. What the first one inserted is stored, also where the second one fails: whoever sends it again then is a
    replay. The rows come sorted, or two processes with overlapping batches would deadlock.
    """
    fresh = {row["conversation_id"]: row for row in await connection.fetch(insert, *_columns(rows))}
    missing = [row.ended.conversation_id for row in rows if row.ended.conversation_id not in fresh]
    known = {row["conversation_id"]: row for row in await connection.fetch(_KNOWN, missing)} if missing else {}
    if len(known) < len(missing):
        raise TransactionLost("a conversation was deleted while it was sent again")
    return fresh, known


def _columns(rows: Sequence[Accept]) -> tuple[list[Any], ...]:
    ended = [row.ended for row in rows]
    return (
        [e.conversation_id for e in ended],
        [e.user_id for e in ended],
        [e.bot_id for e in ended],
        [e.bot_name or None for e in ended],
        [e.bot_type or None for e in ended],
        [e.agent_tag or None for e in ended],
        [_finite(row.started_at) for row in rows],
        [_finite(row.ended_at) for row in rows],
        [row.turns for row in rows],
        [row.exchanges for row in rows],
        [row.digest for row in rows],
        [row.body for row in rows],
    )


def _finite(at: datetime | None) -> datetime | None:
    """Move the first and the last of all instants in by a microsecond: asyncpg takes them for infinities."""
    if at == _FIRST:
        return _FIRST + timedelta.resolution
    return _LAST - timedelta.resolution if at == _LAST else at


_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
