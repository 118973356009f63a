"""A user's memories: how what each conversation says of them is put together, and which count as new.

Open it to change when a memory counts as new. It knows no leases: its callers hold the job.

Parts of one user's conversations arrive in any order: a job that failed once comes after newer ones. So what they say
is ordered by ``seq``. Of each key stands what the newest conversation said, ADD, UPDATE or DELETE. A DELETE leaves a
tombstone, so that an older ADD that comes later does not bring the memory back. A key counts as new once for a user:
for the conversation whose ADD arrived first. The sum over all conversations is then the same in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from convo.analysis.part import StoredFinding
from convo.conversation.model import Memories, MemoryFact, bounded_key
from convo.conversation.tenant import Tenant
from convo.store.jobs.erased_memories import Tombstones, read_tombstones
from convo.store.postgres import Connection


class MemoriesRow(Struct, frozen=True, kw_only=True):
    """The memories part of one conversation, before it is known which of it is new.

    ``again``: an earlier run, or an earlier revision, of this conversation may have told some of them.
    """

    seq: int
    tenant: Tenant
    user_id: str
    memories: Memories
    again: bool = False

    @property
    def own_user(self) -> str:
        """Its user, apart from the same id of another tenant."""
        return self.tenant.own(self.user_id)


Revised = tuple[Tenant, str, int]
"""A conversation that has a newer revision: its tenant, its user, and its ``seq``."""


class _Said(Struct, frozen=True, kw_only=True):
    """What one conversation says of one key in the end, and whether it told the fact and added it on the way."""

    row: MemoriesRow
    key: str
    fact: MemoryFact
    told: bool
    added: bool


async def remember(connection: Connection, found: Sequence[MemoriesRow]) -> dict[int, StoredFinding]:
    """Apply these findings to the users' memories; return each as it is to be stored, by ``seq``.

    One conversation of a user at a time, also among processes: two of them can touch the same rows in different orders.
    """
    stored = {one.seq: StoredFinding(one.memories) for one in found}
    # Most conversations say nothing to remember.
    found = sorted(
        (one for one in found if one.memories.facts or one.memories.listed or one.again), key=lambda one: one.own_user
    )
    if not found:
        return stored
    await lock_users(connection, [one.own_user for one in found])
    tombstones = await read_tombstones(connection, {one.own_user for one in found})
    for batch in _rounds(found):
        resolved = await _resolve(connection, batch, tombstones)
        words = [said for one in resolved for said in _said(one)]
        new = await _merge(
            connection, [one for one in words if one.row.seq > tombstones.until_seq(one.row.own_user, one.key)]
        )
        new |= await first_seen_in(connection, [one for one in resolved if one.again])
        stored |= {one.seq: StoredFinding(one.memories, new[one.seq]) for one in resolved}
    return stored


async def first_seen_in(connection: Connection, again: Sequence[MemoriesRow]) -> Counter[int]:
    """Count all that was first seen in these conversations: this run may be told less of it than an earlier one."""
    if not again:
        return Counter()
    users, tenants = [one.user_id for one in again], [one.tenant.number for one in again]
    rows = await connection.fetch(_FIRST_SEEN_IN, users, tenants, [one.seq for one in again])
    return Counter({row["seq"]: row["n"] for row in rows})


async def lock_users(connection: Connection, own_users: Collection[str]) -> None:
    """Keep all others from the memories of these users (``Tenant.own``) until the end of this transaction."""
    # The database takes no NUL. Two users whose texts were the same then would only wait for each other.
    await connection.execute(_LOCK_USERS, [one.replace("\0", "\n") for one in own_users])


async def carry_over(connection: Connection, revised: Sequence[Revised], seqs: Sequence[int]) -> None:
    """Let the memories that count as new for the conversations ``revised`` count for their revisions ``seqs``."""
    await lock_users(connection, [tenant.own(user_id) for tenant, user_id, _ in revised])
    users, tenants = [user_id for _, user_id, _ in revised], [tenant.number for tenant, _, _ in revised]
    await connection.execute(_CARRY_OVER, users, tenants, [seq for _, _, seq in revised], list(seqs))


def _rounds(found: Sequence[MemoriesRow]) -> Iterator[list[MemoriesRow]]:
    """Divide them so that each round holds a user once; mostly there is one round."""
    while found:
        first = list({one.own_user: one for one in reversed(found)}.values())[::-1]
        yield first
        found = [one for one in found if one not in first]


async def _resolve(
    connection: Connection, batch: Sequence[MemoriesRow], tombstones: Tombstones
) -> Sequence[MemoriesRow]:
    """Read a NONE as the ADD that it was, where the service lists the memory and nothing here counts it.

    Not where it was erased here, and the service lists it still.
    """
    listed = [(one, key) for one in batch for key in one.memories.listed]
    if not listed:
        return batch
    seqs, users, keys = [one.seq for one, _ in listed], [one.user_id for one, _ in listed], [key for _, key in listed]
    tenants = [one.tenant.number for one, _ in listed]
    known = {(row["seq"], row["key"]) for row in await connection.fetch(_KNOWN, seqs, users, keys, tenants)}
    lost = {(one.seq, key) for one, key in listed if not tombstones.until_seq(one.own_user, bounded_key(key))} - known
    return [
        replace(one, memories=_restored(one.memories, {key for seq, key in lost if seq == one.seq})) for one in batch
    ]


def _restored(memories: Memories, lost: Collection[str]) -> Memories:
    facts = tuple(
        replace(fact, operation="ADD") if fact.operation == "NONE" and fact.key in lost else fact
        for fact in memories.facts
    )
    return replace(memories, facts=facts, listed=())


def _said(row: MemoriesRow) -> list[_Said]:
    """List what a conversation says, the last word of each key, in the order in which rows are locked."""
    of_key: dict[str, list[MemoryFact]] = {}
    for fact in row.memories.facts:
        if fact.operation != "NONE":
            of_key.setdefault(bounded_key(fact.key), []).append(fact)
    return [
        _Said(
            row=row,
            key=key,
            fact=facts[-1],
            told=any(fact.operation != "DELETE" for fact in facts),
            added=any(fact.operation == "ADD" for fact in facts),
        )
        for key, facts in sorted(of_key.items())
    ]


async def _merge(connection: Connection, said: Sequence[_Said]) -> Counter[int]:
    """Store what is said as of its conversation; return how many memories count as new for each ``seq``."""
    if not said:
        return Counter()
    rows = await connection.fetch(
        _MERGE,
        [one.row.user_id for one in said],
        [one.key for one in said],
        [one.fact.kind for one in said],
        # What a user had deleted is not kept.
        ["" if one.fact.operation == "DELETE" else one.fact.text for one in said],
        [one.row.seq if one.told else None for one in said],
        [one.row.seq for one in said],
        [one.row.seq if one.added else None for one in said],
        [one.fact.operation == "DELETE" for one in said],
        [one.row.tenant.number for one in said],
    )
    here = {one.row.seq for one in said}
    return Counter(row["new_seq"] for row in rows if row["new_seq"] in here)


# By the user too, for there is no index on seq alone (memory_by_user). A memory goes with the conversation that told it
# first and with the one that spoke of it last, whose words it has; tombstones too.
ERASE_MEMORIES = (
    """
    DELETE FROM memory USING conversation c
    WHERE c.seq = ANY($1::bigint[]) AND memory.user_id = c.user_id AND (memory.seq = c.seq OR memory.last_seq = c.seq)
    """,
    """
    UPDATE memory SET new_seq = NULL FROM conversation c
    WHERE c.seq = ANY($1::bigint[]) AND memory.user_id = c.user_id AND memory.new_seq = c.seq
    """,
)
ERASED_AT_ONCE = 1000
"""So many memories of a user go in one transaction; where there were so many, there may be more."""
# What has no conversation any more, or none that was erased with it.
# An analysis may end long after its conversation was received: then the receipt says that it was before.
ERASE_USER_MEMORIES = f"""
DELETE FROM memory WHERE memory_seq = ANY(ARRAY(
    SELECT memory_seq FROM memory AS m
    WHERE user_id = $1 AND tenant = $2 AND (first_seen_at <= $3 OR EXISTS (
        SELECT FROM receipt AS r WHERE r.seq = m.seq AND (r.state = 'e' OR r.received_at <= $3)))
    LIMIT {ERASED_AT_ONCE}))
"""
_LOCK_USERS = """
SELECT pg_advisory_xact_lock(key)
FROM (SELECT DISTINCT hashtextextended(user_id, 0) AS key FROM unnest($1::text[]) AS user_id ORDER BY key) AS sorted
"""
# A row without last_seq was stored by an earlier program (migration 9).
_LAST_SEQ = "coalesce(m.last_seq, m.seq)"
_NEW_SEQ = "CASE WHEN m.last_seq IS NULL THEN m.seq ELSE m.new_seq END"
_FIRST_SEEN_IN = f"""
SELECT mine.seq, count(*) AS n
FROM unnest($1::text[], $2::smallint[], $3::bigint[]) AS mine (user_id, tenant, seq)
JOIN memory m ON m.user_id = mine.user_id AND m.tenant = mine.tenant AND {_NEW_SEQ} = mine.seq GROUP BY mine.seq
"""
_CARRY_OVER = f"""
UPDATE memory AS m SET new_seq = moved.to_seq, last_seq = {_LAST_SEQ}
FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bigint[]) AS moved (user_id, tenant, from_seq, to_seq)
WHERE m.user_id = moved.user_id AND m.tenant = moved.tenant AND {_NEW_SEQ} = moved.from_seq
"""
# least and greatest leave NULL out.
_MERGE = f"""
INSERT INTO memory AS m (user_id, key, kind, text, seq, last_seq, new_seq, deleted, tenant)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::boolean[], $9::smallint[])
ON CONFLICT (user_id, key, tenant) DO UPDATE SET
    kind = CASE WHEN excluded.last_seq >= {_LAST_SEQ} THEN excluded.kind ELSE m.kind END,
    text = CASE WHEN excluded.last_seq >= {_LAST_SEQ} THEN excluded.text ELSE m.text END,
    deleted = CASE WHEN excluded.last_seq >= {_LAST_SEQ} THEN excluded.deleted ELSE m.deleted END,
    seq = least(m.seq, excluded.seq),
    last_seq = greatest({_LAST_SEQ}, excluded.last_seq),
    new_seq = coalesce({_NEW_SEQ}, excluded.new_seq),
    first_seen_at = CASE WHEN m.seq IS NULL THEN excluded.first_seen_at ELSE m.first_seen_at END
RETURNING new_seq
"""
# A memory that counts for another conversation, unless an older one deleted it.
_KNOWN = f"""
SELECT mine.seq, mine.key
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::smallint[]) AS mine (seq, user_id, key, tenant)
JOIN memory m USING (user_id, key, tenant)
WHERE {_NEW_SEQ} <> mine.seq AND (NOT m.deleted OR {_LAST_SEQ} > mine.seq)
"""
