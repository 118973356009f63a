"""Erasing on request: a conversation or a user goes from every table, is refused from then on, and a receipt says so.

Open it to change the order of an erasure. It has three steps, each a transaction:

1. The id is put on the list of what was erased. From then on no accept stores it anew.
2. Accepts that were under way are waited for: they may not have seen the list.
3. The rows go, the receipt's hash becomes the HMAC of the id, and the audit log has its row.

An erasure that ends in between has erased nothing, or, of a user, some conversations whole. It is to be asked for
again, and goes on then. Work under way on an erased job is fenced: its job's row is gone, so no write of its holder
finds it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import trio
from msgspec import Struct

from convo.conversation.identity import IdKind
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import Reach, Tenant
from convo.erase import erase_conversations, erase_rest_of_user
from convo.errors import ConvoError, NotFound, Unavailable
from convo.runtime.deadline import deadline
from convo.store import audit_log, erasures, outcomes
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.erasures import ErasedCounts
from convo.store.installation_key import read_installation_key
from convo.store.jobs.erased_memories import erase_outliving
from convo.store.jobs.memories import ERASED_AT_ONCE
from convo.store.lookup import SEQ
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import reached

_BATCH_ROWS = 200
_LOOK_SECONDS = 0.01


class Erasure(Struct, frozen=True, kw_only=True):
    """What an erasure did; ``ended_at`` is None where it has to be asked for again, or only counted.

    ``hmac`` is what the audit log knows the id by. ``repeated``: an earlier request erased it, and this is its answer.
    """

    kind: IdKind
    hmac: bytes
    begun_at: datetime | None
    ended_at: datetime | None
    counts: ErasedCounts
    dry_run: bool = False
    repeated: bool = False


class _Counted(ConvoError):
    """Ends the transaction of a dry run, so that nothing of it is kept."""

    def __init__(self, counts: ErasedCounts, last_seq: int) -> None:
        super().__init__()
        self.counts = counts
        self.last_seq = last_seq


async def erase_conversation(  # noqa: C901, PLR0913  (which one, who asks, and how far; its units of work)
    postgres: Postgres,
    reach: Reach,
    conversation_id: str,
    caller: Caller,
    *,
    erased: Callable[[Sequence[int]], None],
    dry_run: bool = False,
) -> Erasure:
    """Erase one conversation, or with ``dry_run`` count its rows; ``erased`` is called with its ``seq``.

    Raises:
        NotFound: no conversation that is reached has this id, and none had it that was erased.
        Unavailable: an older program is at work, which would store it anew.
    """
    tenant = reach.tenant
    hashed = tenant.id_hash(conversation_id)

    async def begin(connection: Connection) -> tuple[bytes, erasures.NotedErasure | None]:
        hmac = (await read_installation_key(connection)).hmac_of("conversation", tenant.own(conversation_id))
        # Of what has gone nothing says which bot's it was, so whoever reaches some bots only does not learn of it.
        if reach.bots is not None and not await connection.fetchval(_REACHED, hashed, *reach.values):
            raise NotFound(f"there is no conversation {conversation_id!r}")
        if await connection.fetchval(_STORED, hashed):
            return hmac, await _noted_begin(connection, "conversation", hmac, dry_run=dry_run)
        noted = await erasures.noted_erasure(connection, hmac)
        if noted is None:
            raise NotFound(f"there is no conversation {conversation_id!r}")
        return hmac, noted

    async def rows(connection: Connection) -> tuple[list[int], ErasedCounts, datetime | None]:
        seq = await connection.fetchval(_STORED, hashed)
        await outcomes.lock_jobs(connection, [seq])
        # Another request may have erased it meanwhile: then this is its receipt.
        if await connection.fetchval(_LOCK_RECEIPT, seq) is None:
            return [], ErasedCounts(), None
        seqs = [seq]
        user_id = await connection.fetchval(_USER, seq)
        counts = await _erase_rows(connection, tenant, seq, hmac, expired=user_id is None)
        if dry_run:
            raise _Counted(counts, 0)
        at = await erasures.note_counts(connection, hmac, counts, ended=True)
        target = AuditTarget(kind="conversation", id=conversation_id, user_id=user_id or "")
        await audit_log.append(connection, AuditEntry(action="erase", tenant=tenant, caller=caller, target=target))
        return seqs, counts, at

    hmac, noted = await postgres.run("db.erase", begin)
    if noted is not None and noted.ended_at is not None:
        return _answer("conversation", hmac, noted, repeated=True)
    if noted is None:
        counts = await _count_conversation(postgres, rows)
        return Erasure(kind="conversation", hmac=hmac, begun_at=None, ended_at=None, counts=counts, dry_run=True)
    await _await_accepts(postgres)
    seqs, counts, ended_at = await postgres.run("db.erase", rows)
    if not seqs:
        return _answer("conversation", hmac, (await postgres.run("db.erase", begin))[1], repeated=True)
    erased(seqs)
    return Erasure(kind="conversation", hmac=hmac, begun_at=noted.begun_at, ended_at=ended_at, counts=counts)


async def _erase_rows(connection: Connection, tenant: Tenant, seq: int, hmac: bytes, *, expired: bool) -> ErasedCounts:
    """Erase a conversation; of one that has expired, what is remembered from it."""
    counts = await erase_conversations(connection, tenant, [seq], [hmac])
    outliving = await erase_outliving(connection, tenant, [seq]) if expired else 0
    return counts + ErasedCounts(removed={"memory": outliving}) if outliving else counts


async def erase_user(  # noqa: PLR0913  (whom, who asks, and how far)
    postgres: Postgres,
    tenant: Tenant,
    user_id: str,
    caller: Caller,
    *,
    erased: Callable[[Sequence[int]], None],
    until: float,
    dry_run: bool = False,
) -> Erasure:
    """Erase all of a user that was received or ended until now, as far as there is time until ``until``.

    What ends later is accepted. Conversations go batch by batch; ``erased`` is called with the ``seq`` of each batch.

    Raises:
        NotFound: nothing of this user is stored, and nothing was erased.
        Unavailable: an older program is at work, which would store it anew.
    """

    async def begin(connection: Connection) -> tuple[bytes, erasures.NotedErasure | None]:
        hmac = (await read_installation_key(connection)).hmac_of("user", tenant.own(user_id))
        if await connection.fetchval(_ANY_LEFT, user_id, tenant.number) and user_id != CANARY_USER:
            return hmac, await _noted_begin(connection, "user", hmac, dry_run=dry_run)
        noted = await erasures.noted_erasure(connection, hmac)
        if noted is None:
            raise NotFound(f"nothing is stored of a user {user_id!r}")
        if noted.ended_at is None:
            noted = await _noted_begin(connection, "user", hmac, dry_run=dry_run)
        return hmac, noted

    hmac, noted = await postgres.run("db.erase", begin)
    if dry_run:
        counts = await _count_user(postgres, tenant, user_id)
        return Erasure(kind="user", hmac=hmac, begun_at=None, ended_at=None, counts=counts, dry_run=True)
    if noted is None or noted.ended_at is not None:
        return _answer("user", hmac, noted, repeated=True)
    await _await_accepts(postgres)
    batch = _UserBatch(tenant=tenant, user_id=user_id, hmac=hmac, begun_at=noted.begun_at, caller=caller)
    counts = noted.counts
    # One at least: whoever has little time and asks again must come to an end, too.
    while True:
        seqs, counts, ended_at = await batch.erase(postgres, counts)
        erased(seqs)
        if ended_at is not None or trio.current_time() >= until:
            break
    return Erasure(kind="user", hmac=hmac, begun_at=noted.begun_at, ended_at=ended_at, counts=counts)


class _UserBatch(Struct, frozen=True, kw_only=True):
    """A batch of a user's conversations, or, where there is none left, all else of the user."""

    tenant: Tenant
    user_id: str
    hmac: bytes
    begun_at: datetime
    caller: Caller

    async def erase(self, postgres: Postgres, before: ErasedCounts) -> tuple[list[int], ErasedCounts, datetime | None]:
        async def body(connection: Connection) -> tuple[list[int], ErasedCounts, datetime | None]:
            key = await read_installation_key(connection)
            batch = [
                row["seq"]
                for row in await connection.fetch(_BATCH, self.user_id, self.begun_at, _BATCH_ROWS, self.tenant.number)
            ]
            await outcomes.lock_jobs(connection, batch)
            # Another request, or retention, may have removed some of them while this one waited.
            found = await connection.fetch(_LEFT, batch)
            seqs, ended = [row["seq"] for row in found], False
            if batch:
                gone = [key.hmac_of("conversation", self.tenant.own(row["conversation_id"])) for row in found]
                counts = before + await erase_conversations(connection, self.tenant, seqs, gone)
                await erasures.note_conversations(connection, gone)
            else:
                rest = await erase_rest_of_user(connection, self.tenant, self.user_id, self.begun_at)
                counts = before + rest
                ended = rest.removed.get("memory", 0) < ERASED_AT_ONCE
            at = await erasures.note_counts(connection, self.hmac, counts, ended=ended)
            target = AuditTarget(kind="user", id=self.user_id, user_id=self.user_id)
            detail = {"conversations": len(seqs), "ended": ended}
            entry = AuditEntry(action="erase", tenant=self.tenant, caller=self.caller, target=target, detail=detail)
            await audit_log.append(connection, entry)
            return seqs, counts, at

        return await postgres.run("db.erase", body)


async def _noted_begin(
    connection: Connection, kind: IdKind, hmac: bytes, *, dry_run: bool
) -> erasures.NotedErasure | None:
    """Put an id on the list, in the caller's transaction; None where nothing is to be changed.

    Raises:
        Unavailable: an older program is at work, which would store it anew.
    """
    if dry_run:
        return None
    if await connection.fetchval(_OLDER_AT_WORK):
        raise Unavailable(
            "a program is at work that would store again what is erased: an older version of convo; stop it. The"
            " warnings of /readyz (MIGRATION_WAITS) name it"
        )
    return await erasures.note_begin(connection, kind, hmac)


async def _await_accepts(postgres: Postgres) -> None:
    """Wait until each accept that was under way has ended: such a one may store an id that is on the list since.

    An accept locks ``receipt`` before it takes its view of the database, so one that begins later sees the list.
    """

    async def under_way(connection: Connection) -> set[str]:
        return {row["transaction"] for row in await connection.fetch(_ACCEPTS)}

    begun = await postgres.run("db.erase", under_way, begin=RELAXED)
    with deadline("erase.accepts", postgres.unit_seconds):
        while begun:
            await trio.sleep(_LOOK_SECONDS)
            begun &= await postgres.run("db.erase", under_way, begin=RELAXED)


async def _count_conversation(postgres: Postgres, erase: Callable[[Connection], Awaitable[object]]) -> ErasedCounts:
    """Count what this would remove, and keep nothing of it."""
    try:
        await postgres.run("db.erase", erase)
    except _Counted as counted:
        return counted.counts
    return ErasedCounts()


async def _count_user(postgres: Postgres, tenant: Tenant, user_id: str) -> ErasedCounts:
    """Count what an erasure of this user would remove, batch by batch, and keep nothing of it."""
    after, counts = 0, ErasedCounts()

    async def body(connection: Connection) -> None:
        found = await connection.fetch(_BATCH_AFTER, user_id, after, _BATCH_ROWS, tenant.number)
        if found:
            seqs = [row["seq"] for row in found]
            await outcomes.lock_jobs(connection, seqs)
            batch = await erase_conversations(connection, tenant, seqs, [b"%d" % seq for seq in seqs])
            raise _Counted(batch, found[-1]["seq"])

    async def whole(connection: Connection) -> ErasedCounts:
        row = await connection.fetchrow(_COUNT_OF_USER, user_id, tenant.number) or {}
        return ErasedCounts(removed={name: n for name, n in row.items() if n})

    while True:
        try:
            await postgres.run("db.erase", body)
        except _Counted as counted:
            # What batches share is counted once, below.
            own = {name: n for name, n in counted.counts.removed.items() if name not in ("memory", "relationship")}
            receipts = {name: n for name, n in counted.counts.changed.items() if name == "receipt"}
            counts += ErasedCounts(removed=own, changed=receipts)
            after = counted.last_seq
        else:
            return counts + await postgres.run("db.erase", whole, begin=RELAXED)


def _answer(kind: IdKind, hmac: bytes, noted: erasures.NotedErasure | None, *, repeated: bool) -> Erasure:
    counts = noted.counts if noted else ErasedCounts()
    begun_at, ended_at = (noted.begun_at, noted.ended_at) if noted else (None, None)
    return Erasure(kind=kind, hmac=hmac, begun_at=begun_at, ended_at=ended_at, counts=counts, repeated=repeated)


_STORED = "SELECT seq FROM receipt WHERE id_hash = $1"
_REACHED = f"SELECT seq FROM conversation AS c WHERE seq = {SEQ} AND {reached('c', 2)}"
_LOCK_RECEIPT = "SELECT seq FROM receipt WHERE seq = $1 AND state <> 'e' FOR UPDATE"
_USER = "SELECT user_id FROM conversation WHERE seq = $1"
_ANY_LEFT = """
SELECT EXISTS (SELECT FROM conversation WHERE user_id = $1 AND tenant = $2)
    OR EXISTS (SELECT FROM memory WHERE user_id = $1 AND tenant = $2)
    OR EXISTS (SELECT FROM relationship WHERE user_id = $1 AND tenant = $2)
"""
# conversation_by_user
_BATCH = """
SELECT c.seq FROM conversation c
WHERE c.user_id = $1 AND c.tenant = $4 AND (c.ended_at <= $2 OR c.received_at <= $2) ORDER BY c.seq LIMIT $3
"""
_LEFT = "SELECT seq, conversation_id FROM conversation WHERE seq = ANY($1::bigint[]) ORDER BY seq"
_BATCH_AFTER = """
SELECT c.seq FROM conversation c WHERE c.user_id = $1 AND c.tenant = $4 AND c.seq > $2 ORDER BY c.seq LIMIT $3
"""
_COUNT_OF_USER = """
SELECT (SELECT count(*) FROM memory WHERE user_id = $1 AND tenant = $2) AS memory,
       (SELECT count(*) FROM relationship WHERE user_id = $1 AND tenant = $2) AS relationship
"""
# Migration 14 waits until no older program is left, and then this column goes.
_OLDER_AT_WORK = """
SELECT EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'conversation'::regclass AND attname = 'digest' AND NOT attisdropped)
"""
_ACCEPTS = """
SELECT virtualtransaction AS transaction FROM pg_locks
WHERE relation = 'receipt'::regclass AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
