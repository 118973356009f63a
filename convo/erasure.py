"""Erasing on request: a conversation goes from every table, is refused from then on, and a receipt says so.

Open it to change the order of an erasure. That of a user, batch by batch, stands in ``user_erasure.py``. It has three
steps, each a transaction:

1. The id is put on the list of what was erased. From then on no accept stores it anew.
2. Accepts that were under way are waited for: they may not have seen the list.
3. The rows go, the receipt's hash becomes the HMAC of the id, and the audit log has its row.

An erasure that ends in between has erased nothing, or, of a user, some conversations whole. It goes on when it is
asked for again, or by itself after a minute (``erasure_keeper.py``). Work under way on an erased job is fenced: its
job's row is gone, so no write of its holder finds it. What a memory service has to be told is noted with the rows that
go (``store/untold.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import trio
from msgspec import Struct

from convo.conversation.identity import IdKind
from convo.conversation.tenant import Reach, Tenant
from convo.erase import erase_conversations
from convo.errors import ConvoError, NotFound, Unavailable
from convo.runtime.deadline import deadline
from convo.store import audit_log, erasures, log_erasing, outcomes, untold
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.erasures import ErasedCounts
from convo.store.installation_key import read_installation_key
from convo.store.jobs.erased_memories import erase_outliving
from convo.store.lookup import SEQ, receipt_hashes
from convo.store.outbox import NO_EVENTS, Outbox
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import reached
from convo.store.untold import Telling

_LOOK_SECONDS = 0.01


class Erasure(Struct, frozen=True, kw_only=True):
    """What an erasure did; ``ended_at`` is None where it goes on, or only counted.

    ``hmac`` is what the audit log knows the id by. ``repeated``: an earlier request erased it, and this is its answer.
    ``waiting`` is how many deletions each service has yet to be told.
    """

    kind: IdKind
    hmac: bytes
    begun_at: datetime | None
    ended_at: datetime | None
    counts: ErasedCounts
    waiting: Mapping[str, int] = {}
    dry_run: bool = False
    repeated: bool = False


class Counted(ConvoError):
    """Ends the transaction of a dry run, so that nothing of it is kept."""

    def __init__(self, counts: ErasedCounts, last_seq: int) -> None:
        super().__init__()
        self.counts = counts
        self.last_seq = last_seq


async def erase_conversation(  # noqa: PLR0913  (which one, who asks, and how far; its units of work)
    postgres: Postgres,
    reach: Reach,
    conversation_id: str,
    caller: Caller,
    *,
    erased: Callable[[Sequence[int]], None],
    telling: Telling | None = None,
    dry_run: bool = False,
    outbox: Outbox = NO_EVENTS,
    in_objects: bool = False,
) -> Erasure:
    """Erase one conversation with all its revisions, or with ``dry_run`` count the rows.

    ``erased`` is called with the ``seq`` of each revision, the newest first.

    ``in_objects``: its log may lie in object storage, which the receipt then waits for.

    Raises:
        NotFound: no conversation that is reached has this id, and none had it that was erased.
        Unavailable: an older program is at work, which would store it anew.
    """
    tenant = reach.tenant
    hashed = tenant.id_hash(conversation_id)

    async def begin(connection: Connection) -> tuple[bytes, erasures.NotedErasure | None]:
        key = await read_installation_key(connection)
        hmac = key.hmac_of("conversation", tenant.own(conversation_id))
        # Of what has gone nothing says which bot's it was, so whoever reaches some bots only does not learn of it.
        if reach.bots is not None and not await connection.fetchval(_REACHED, hashed, *reach.values):
            raise NotFound(f"there is no conversation {conversation_id!r}")
        if await connection.fetchval(_STORED, hashed):
            hash_hmac = key.hmac_of_hash(hashed)
            return hmac, await put_on_list(connection, "conversation", hmac, hash_hmac, dry_run=dry_run)
        noted = await erasures.noted_erasure(connection, hmac)
        if noted is None:
            raise NotFound(f"there is no conversation {conversation_id!r}")
        return hmac, noted

    async def rows(connection: Connection) -> list[int]:
        hashes = await receipt_hashes(connection, hashed)
        await outcomes.lock_jobs(connection, list(hashes))
        # Another request may have erased it meanwhile: then this is its receipt.
        locked = await connection.fetch(_LOCK_RECEIPTS, list(hashes))
        if len(locked) < len(hashes) or not locked:
            return []
        seqs = list(hashes)
        user_id = await connection.fetchval(_USER, seqs[0])
        await outbox.append_erased(connection, tenant, {seqs[0]: conversation_id})
        points = await connection.fetchval(_POINTS, seqs)
        hmacs = await erased_receipt_hmacs(connection, hashes, {seqs[0]: hmac})
        counts = await _erase_rows(connection, tenant, hmacs, hmac, telling, in_objects=in_objects)
        await outbox.append_levels(connection, {(tenant.number, user_id): -points} if points else {})
        if dry_run:
            raise Counted(counts, 0)
        await erasures.note_counts(connection, hmac, counts, ended=True)
        target = AuditTarget(kind="conversation", id=conversation_id, user_id=user_id or "")
        await audit_log.append(connection, AuditEntry(action="erase", tenant=tenant, caller=caller, target=target))
        return seqs

    hmac, noted = await postgres.run("db.erase", begin)
    if noted is not None and noted.ended_at is not None:
        return await read_receipt(postgres, "conversation", hmac, repeated=True)
    if noted is None:
        counts = await _count_conversation(postgres, rows)
        return Erasure(kind="conversation", hmac=hmac, begun_at=None, ended_at=None, counts=counts, dry_run=True)
    await await_accepts(postgres)
    untold.note_trace(telling, hmac)
    seqs = await postgres.run("db.erase", rows)
    erased(seqs)
    return await read_receipt(postgres, "conversation", hmac, repeated=not seqs)


async def erased_receipt_hmacs(
    connection: Connection, hashes: Mapping[int, bytes], known: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Return, by ``seq``, the HMAC under which each receipt stays: ``known`` ones, of all others that of its hash.

    Earlier revisions have hashes of their own, and nobody looks for them any more.
    """
    key = await read_installation_key(connection)
    return {seq: known.get(seq) or key.hmac_of_hash(hashed) for seq, hashed in hashes.items()}


async def _erase_rows(  # noqa: PLR0913  (whose, which, and how)
    connection: Connection,
    tenant: Tenant,
    hmacs: Mapping[int, bytes],
    hmac: bytes,
    telling: Telling | None,
    *,
    in_objects: bool,
) -> ErasedCounts:
    """Erase all revisions of a conversation; of those that have expired, what is remembered from them."""
    stored = [row["seq"] for row in await connection.fetch(_STORED_AMONG, list(hmacs))]
    expired = [seq for seq in hmacs if seq not in stored]
    if telling is not None:
        await untold.note_deletions(connection, telling, hmac, stored)
        await untold.note_outliving(connection, telling, hmac, expired)
    counts = await erase_conversations(connection, tenant, list(hmacs), list(hmacs.values()))
    if in_objects:
        await log_erasing.note_erased(connection, hmac, list(hmacs))
    outliving = await erase_outliving(connection, tenant, expired) if expired else 0
    return counts + ErasedCounts(removed={"memory": outliving}) if outliving else counts


async def put_on_list(
    connection: Connection, kind: IdKind, hmac: bytes, hash_hmac: bytes | None = None, *, dry_run: bool
) -> erasures.NotedErasure | None:
    """Put an id on the list, in the caller's transaction; None where nothing is to be changed.

    Raises:
        Unavailable: an older program is at work, which would store it anew.
    """
    if dry_run:
        return None
    if await older_at_work(connection):
        raise Unavailable(
            "a program is at work that would store again what is erased: an older version of convo; stop it. The"
            " warnings of /readyz (MIGRATION_WAITS) name it"
        )
    return await erasures.note_begin(connection, kind, hmac, hash_hmac)


async def older_at_work(connection: Connection) -> bool:
    """Return whether a program may be at work that does not look on the list of erasures."""
    older: bool = await connection.fetchval(_OLDER_AT_WORK)
    return older


async def await_accepts(postgres: Postgres) -> None:
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
    except Counted as counted:
        return counted.counts
    return ErasedCounts()


async def read_receipt(postgres: Postgres, kind: IdKind, hmac: bytes, *, repeated: bool = False) -> Erasure:
    """Read the receipt of an erasure that is on the list, with what waits now."""

    async def body(connection: Connection) -> Erasure:
        # In this order: what is told in between is not missing in both.
        waiting = await untold.waiting_for(connection, hmac)
        noted = await erasures.noted_erasure(connection, hmac)
        assert noted is not None  # noqa: S101  (nothing goes from the list)
        return Erasure(
            kind=kind,
            hmac=hmac,
            begun_at=noted.begun_at,
            ended_at=noted.ended_at,
            counts=noted.counts,
            waiting=waiting,
            repeated=repeated,
        )

    return await postgres.run("db.erase", body, begin=RELAXED)


_STORED = "SELECT seq FROM receipt WHERE id_hash = $1"
_REACHED = f"SELECT seq FROM conversation AS c WHERE seq = {SEQ} AND {reached('c', 2)}"
_LOCK_RECEIPTS = "SELECT seq FROM receipt WHERE seq = ANY($1::bigint[]) AND state <> 'e' ORDER BY seq FOR UPDATE"
_STORED_AMONG = "SELECT seq FROM conversation WHERE seq = ANY($1::bigint[]) ORDER BY seq"
_USER = "SELECT user_id FROM conversation WHERE seq = $1"
# That of the revision that counts.
_POINTS = """
SELECT sum(job.score)::bigint FROM conversation JOIN every_job AS job USING (seq)
WHERE seq = ANY($1::bigint[]) AND state = 'done' AND replaced IS NOT TRUE
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
