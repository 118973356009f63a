"""Erasing a user on request: batch by batch all conversations go, then what else is stored of the user.

Open it to change what goes with a user, or how much of it in one transaction. The order is that of ``erasure.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import trio
from msgspec import Struct, structs

from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import Tenant
from convo.erase import erase_conversations, erase_rest_of_user
from convo.erasure import Counted, Erasure, await_accepts, erased_receipt_hmacs, put_on_list, read_receipt
from convo.errors import NotFound
from convo.store import audit_log, erasures, log_erasing, outcomes, untold
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.erasures import ErasedCounts
from convo.store.installation_key import read_installation_key
from convo.store.intake import ERASE_FROM_RECEIPTS
from convo.store.jobs.memories import ERASED_AT_ONCE
from convo.store.outbox import ERASED_EVENTS_AT_ONCE, NO_EVENTS, Outbox
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.untold import Telling

_BATCH_ROWS = 200
# Receipts of expired conversations, in one transaction.
_RECEIPT_ROWS = 1000


async def erase_user(  # noqa: PLR0913  (whom, who asks, and how far)
    postgres: Postgres,
    tenant: Tenant,
    user_id: str,
    caller: Caller,
    *,
    erased: Callable[[Sequence[int]], None],
    until: float,
    telling: Telling | None = None,
    dry_run: bool = False,
    outbox: Outbox = NO_EVENTS,
    in_objects: bool = False,
) -> Erasure:
    """Erase all of a user that was received or ended until now, as far as there is time until ``until``.

    ``in_objects`` is as for ``erase_conversation``.

    What ends later is accepted. Conversations go batch by batch; ``erased`` is called with the ``seq`` of each batch.

    Raises:
        NotFound: nothing of this user is stored, and nothing was erased.
        Unavailable: an older program is at work, which would store it anew.
    """

    async def begin(connection: Connection) -> tuple[bytes, erasures.NotedErasure | None]:
        hmac = (await read_installation_key(connection)).hmac_of("user", tenant.own(user_id))
        if await connection.fetchval(_ANY_LEFT, user_id, tenant.number, hmac) and user_id != CANARY_USER:
            return hmac, await put_on_list(connection, "user", hmac, dry_run=dry_run)
        noted = await erasures.noted_erasure(connection, hmac)
        if noted is None:
            raise NotFound(f"nothing is stored of a user {user_id!r}")
        if noted.ended_at is None:
            noted = await put_on_list(connection, "user", hmac, dry_run=dry_run)
        return hmac, noted

    hmac, noted = await postgres.run("db.erase", begin)
    if dry_run:
        counts = await _count_user(postgres, tenant, user_id, hmac)
        return Erasure(kind="user", hmac=hmac, begun_at=None, ended_at=None, counts=counts, dry_run=True)
    if noted is None or noted.ended_at is not None:
        return await read_receipt(postgres, "user", hmac, repeated=True)
    await await_accepts(postgres)
    return await go_on_with_user(
        postgres,
        tenant,
        user_id,
        hmac,
        noted.begun_at,
        caller=caller,
        erased=erased,
        until=until,
        telling=telling,
        outbox=outbox,
        in_objects=in_objects,
    )


async def go_on_with_user(  # noqa: PLR0913  (whom, who asks, and how far)
    postgres: Postgres,
    tenant: Tenant,
    user_id: str,
    hmac: bytes,
    begun_at: datetime,
    *,
    caller: Caller,
    erased: Callable[[Sequence[int]], None],
    until: float,
    telling: Telling | None = None,
    outbox: Outbox = NO_EVENTS,
    in_objects: bool = False,
) -> Erasure:
    """Erase of a user what was received or ended until ``begun_at``: of an erasure that is on the list."""
    batch = _UserBatch(
        tenant=tenant,
        user_id=user_id,
        hmac=hmac,
        begun_at=begun_at,
        caller=caller,
        telling=telling,
        outbox=outbox,
        in_objects=in_objects,
    )
    untold.note_trace(telling, hmac)
    # One at least: whoever has little time and asks again must come to an end, too.
    while True:
        seqs, nothing_left = await batch.erase(postgres)
        erased(seqs)
        if nothing_left or trio.current_time() >= until:
            break
    return await read_receipt(postgres, "user", hmac)


class _UserBatch(Struct, frozen=True, kw_only=True):
    """A batch of a user's conversations, or, where there is none left, all else of the user."""

    tenant: Tenant
    user_id: str
    hmac: bytes
    begun_at: datetime
    caller: Caller
    telling: Telling | None = None
    outbox: Outbox = NO_EVENTS
    in_objects: bool = False

    async def erase(self, postgres: Postgres) -> tuple[list[int], bool]:
        """Erase it; return which conversations went, and whether nothing is left."""
        batch = await postgres.run("db.erase", self._put_on_list)
        if batch:
            await await_accepts(postgres)

        async def body(connection: Connection) -> tuple[list[int], bool]:
            await outcomes.lock_jobs(connection, batch)
            # Another request, or retention, may have removed some of them while this one waited. In a database that
            # went back meanwhile, such a number may be that of another user's conversation.
            found = await connection.fetch(_LEFT, self.user_id, self.begun_at, batch, self.tenant.number)
            seqs = [row["seq"] for row in found]
            if self.telling is not None:
                await untold.note_user(connection, self.telling, self.hmac, self.tenant, self.user_id, seqs=seqs)
            if batch:
                counts, ended = await self._erase_conversations(connection, found), False
            else:
                counts, ended = await self._erase_rest(connection)
            await erasures.note_counts(connection, self.hmac, counts, ended=ended, begun_at=self.begun_at)
            target = AuditTarget(kind="user", id=self.user_id, user_id=self.user_id)
            detail = {"conversations": len(seqs), "ended": ended}
            entry = AuditEntry(action="erase", tenant=self.tenant, caller=self.caller, target=target, detail=detail)
            await audit_log.append(connection, entry)
            return seqs, ended

        return await postgres.run("db.erase", body)

    async def _put_on_list(self, connection: Connection) -> list[int]:
        """Put the ids of the next conversations on the list; return the ``seq`` of each.

        Before they are erased, and not with it: one that is sent again meanwhile, without saying when it ended, ended
        after its user was put on the list, and its accept sees nothing of what is not committed.
        """
        rows = await connection.fetch(_BATCH, self.user_id, self.begun_at, _BATCH_ROWS, self.tenant.number)
        if rows:
            key = await read_installation_key(connection)
            ids = sorted({row["conversation_id"] for row in rows})
            await erasures.note_conversations(
                connection,
                [key.hmac_of("conversation", self.tenant.own(one)) for one in ids],
                [key.hmac_of_hash(self.tenant.id_hash(one)) for one in ids],
            )
        return [row["seq"] for row in rows]

    async def _erase_conversations(self, connection: Connection, found: Sequence[Mapping[str, Any]]) -> ErasedCounts:
        key = await read_installation_key(connection)
        hashes = {row["seq"]: row["id_hash"] for row in found}
        # Of an id with several revisions, one has its hash: the newest, if it is in this batch.
        newest = {row["seq"]: row["conversation_id"] for row in found if self._is_newest(row)}
        hmacs = {seq: key.hmac_of("conversation", self.tenant.own(one)) for seq, one in newest.items()}
        await self.outbox.append_erased(connection, self.tenant, newest)
        of_receipts = await erased_receipt_hmacs(connection, hashes, hmacs)
        counts = await erase_conversations(connection, self.tenant, list(of_receipts), list(of_receipts.values()))
        if self.in_objects:
            await log_erasing.note_erased(connection, self.hmac, list(of_receipts))
        return _of_batch(counts)

    def _is_newest(self, row: Mapping[str, Any]) -> bool:
        found: bool = row["id_hash"] == self.tenant.id_hash(row["conversation_id"])
        return found

    async def _erase_rest(self, connection: Connection) -> tuple[ErasedCounts, bool]:
        counts = await erase_rest_of_user(connection, self.tenant, self.user_id, self.begun_at)
        receipts = await self._erase_receipts(connection)
        if receipts:
            counts += ErasedCounts(changed={"receipt": receipts})
        events = counts.changed.get("event", 0)
        ended = counts.removed.get("memory", 0) < ERASED_AT_ONCE and receipts < _RECEIPT_ROWS
        ended = ended and events < ERASED_EVENTS_AT_ONCE
        if ended:
            await self.outbox.append_user_erased(connection, self.tenant, self.user_id)
        return counts, ended

    async def _erase_receipts(self, connection: Connection) -> int:
        """Take the hashes of ids out of the receipts of expired conversations; return how many those were."""
        found = await connection.fetch(_EXPIRED, self.hmac, self.begun_at, _RECEIPT_ROWS)
        if found:
            key = await read_installation_key(connection)
            hmacs = [key.hmac_of_hash(row["id_hash"]) for row in found]
            await connection.execute(ERASE_FROM_RECEIPTS, [row["seq"] for row in found], hmacs)
        return len(found)


def _of_batch(counts: ErasedCounts) -> ErasedCounts:
    """Leave out memories and relationships that were changed: a later batch may remove them, or change them again."""
    return structs.replace(counts, changed={name: n for name, n in counts.changed.items() if name == "receipt"})


async def _count_user(postgres: Postgres, tenant: Tenant, user_id: str, hmac: bytes) -> ErasedCounts:
    """Count what an erasure of this user would remove, batch by batch, and keep nothing of it."""
    after, counts = 0, ErasedCounts()

    async def body(connection: Connection) -> None:
        found = await connection.fetch(_BATCH_AFTER, user_id, after, _BATCH_ROWS, tenant.number)
        if found:
            seqs = [row["seq"] for row in found]
            await outcomes.lock_jobs(connection, seqs)
            batch = await erase_conversations(connection, tenant, seqs, [b"%d" % seq for seq in seqs])
            raise Counted(batch, found[-1]["seq"])

    async def whole(connection: Connection) -> ErasedCounts:
        row = await connection.fetchrow(_COUNT_OF_USER, user_id, tenant.number) or {}
        expired = await connection.fetchval(_COUNT_EXPIRED, hmac)
        changed = {"receipt": expired} if expired else {}
        return ErasedCounts(removed={name: n for name, n in row.items() if n}, changed=changed)

    while True:
        try:
            await postgres.run("db.erase", body)
        except Counted as counted:
            # What batches share is counted once, below.
            own = {name: n for name, n in counted.counts.removed.items() if name not in ("memory", "relationship")}
            counts += structs.replace(_of_batch(counted.counts), removed=own)
            after = counted.last_seq
        else:
            return counts + await postgres.run("db.erase", whole, begin=RELAXED)


_ANY_LEFT = """
SELECT EXISTS (SELECT FROM conversation WHERE user_id = $1 AND tenant = $2)
    OR EXISTS (SELECT FROM memory WHERE user_id = $1 AND tenant = $2)
    OR EXISTS (SELECT FROM relationship WHERE user_id = $1 AND tenant = $2)
    OR EXISTS (SELECT FROM receipt WHERE user_hmac = $3)
"""
_UNTIL_THEN = "c.user_id = $1 AND c.tenant = $4 AND (c.ended_at <= $2 OR c.received_at <= $2)"
# conversation_by_user
_BATCH = f"SELECT c.seq, c.conversation_id FROM conversation c WHERE {_UNTIL_THEN} ORDER BY c.seq LIMIT $3"
_LEFT = f"""
SELECT seq, c.conversation_id, r.id_hash FROM conversation c JOIN receipt r USING (seq)
WHERE seq = ANY($3::bigint[]) AND {_UNTIL_THEN} ORDER BY seq
"""
_BATCH_AFTER = """
SELECT c.seq FROM conversation c WHERE c.user_id = $1 AND c.tenant = $4 AND c.seq > $2 ORDER BY c.seq LIMIT $3
"""
_COUNT_OF_USER = """
SELECT (SELECT count(*) FROM memory WHERE user_id = $1 AND tenant = $2) AS memory,
       (SELECT count(*) FROM relationship WHERE user_id = $1 AND tenant = $2) AS relationship
"""
# receipt_of_user; the HMAC is that of the user of one tenant.
_EXPIRED = "SELECT seq, id_hash FROM receipt WHERE user_hmac = $1 AND received_at <= $2 LIMIT $3 FOR UPDATE"
_COUNT_EXPIRED = "SELECT count(*) FROM receipt WHERE user_hmac = $1"
