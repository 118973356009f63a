"""Erases again what was erased before: after a restore, and where an erasure was broken off.

Open it to change how that is found, of which only the HMAC is known: each id is looked at once, page by page, as that
of its tenant. What is to be erased stands in the table ``erase_again``, and goes from there when it is done. So whoever
is killed in between leaves it to the next start, which does it before requests are served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation.tenant import Reach, Tenant
from convo.erasure import await_accepts, erase_conversation, older_at_work
from convo.store import erasure_list
from convo.store.audit_log import NO_CALLER
from convo.store.erasures import ErasedCounts
from convo.store.installation_key import InstallationKey, read_installation_key
from convo.store.intake import ERASE_FROM_RECEIPTS
from convo.store.lookup import OF_HASHES, older_hashes, revision_of
from convo.store.outbox import NO_EVENTS, Outbox
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.untold import Telling
from convo.user_erasure import go_on_with_user

_PAGE_ROWS = 2000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ErasedAgain(Struct, frozen=True, kw_only=True):
    """How much was erased that was stored again; what was refused anyway is not counted."""

    conversations: int = 0
    users: int = 0
    memories: int = 0

    def __bool__(self) -> bool:
        return self != ErasedAgain()


class _Wanted(Struct, frozen=True, kw_only=True):
    """What is to be found, by HMAC: of users until when, of memories (user, key) up to which ``seq``.

    ``hashes`` lead from the HMAC of an id's hash to that of the id. ``tenants`` are all that there are, by number: what
    one has that is made later was never erased.
    """

    key: InstallationKey
    tenants: Mapping[int, Tenant]
    conversations: frozenset[bytes]
    hashes: Mapping[bytes, bytes]
    users: Mapping[bytes, datetime]
    memories: Mapping[tuple[bytes, bytes], int]
    at: datetime


async def erase_again(
    postgres: Postgres,
    *,
    erased: Callable[[Sequence[int]], None],
    telling: Telling | None = None,
    outbox: Outbox = NO_EVENTS,
    in_objects: bool = False,
) -> ErasedAgain | None:
    """Erase what the table ``erase_again`` names, however long that takes; None while an older program is at work.

    Several processes may do it at the same time.
    """
    if not await postgres.run("db.erasures", _any_listed, begin=RELAXED):
        return ErasedAgain()
    if await postgres.run("db.erasures", older_at_work, begin=RELAXED):
        return None
    wanted = await postgres.run("db.erasures", _put_on_list)
    await await_accepts(postgres)
    found = await _find(postgres, wanted)
    for (tenant, user_id), hmac in found.users.items():
        until = wanted.users[hmac]
        await go_on_with_user(
            postgres,
            tenant,
            user_id,
            hmac,
            until,
            caller=NO_CALLER,
            erased=erased,
            until=inf,
            telling=telling,
            outbox=outbox,
            in_objects=in_objects,
        )
    conversations = 0
    for tenant, conversation_id in found.conversations:
        whole = Reach(tenant=tenant)
        done = await erase_conversation(
            postgres,
            whole,
            conversation_id,
            NO_CALLER,
            erased=erased,
            telling=telling,
            outbox=outbox,
            in_objects=in_objects,
        )
        conversations += not done.repeated
    memories = await postgres.run("db.erasures", partial(_end, wanted=wanted, found=found))
    return ErasedAgain(conversations=conversations, users=len(found.users), memories=memories)


async def _any_listed(connection: Connection) -> bool:
    return bool(await connection.fetchval(_ANY))


async def note_broken_off(postgres: Postgres, after_seconds: float) -> int:
    """Note as to be erased again what began so long ago and has not ended; return how much that is.

    A request that erases takes a few seconds. What began so long after now did so before the clock was set back.
    """

    async def body(connection: Connection) -> int:
        rows = await connection.fetch(_BROKEN_OFF, after_seconds)
        await erasure_list.note_again(connection, [erasure_list.listed_of(row) for row in rows])
        return len(rows)

    return await postgres.run("db.erasures", body)


async def _put_on_list(connection: Connection) -> _Wanted:
    """Put it on the list of erasures: from the commit on nothing of it is accepted; return what is to be found."""
    await connection.execute(_PUT)
    await connection.execute(_PUT_MEMORIES)
    rows = await connection.fetch(_READ)
    users: dict[bytes, datetime] = {}
    for row in rows:
        if row["kind"] == "user":
            at = _EPOCH + timedelta(microseconds=row["number"])
            users[row["hmac"]] = max(at, users.get(row["hmac"], at))
    last_seq, now = await connection.fetchval(_LAST_SEQ), await connection.fetchval("SELECT convo_now()")
    return _Wanted(
        key=await read_installation_key(connection),
        tenants={row["number"]: Tenant(**dict(row)) for row in await connection.fetch(_TENANTS)},
        conversations=frozenset(row["hmac"] for row in rows if row["kind"] == "conversation"),
        hashes={row["other"]: row["hmac"] for row in rows if row["kind"] == "conversation" and row["other"]},
        users=users,
        memories={(row["hmac"], row["other"]): min(row["number"], last_seq) for row in rows if row["kind"] == "memory"},
        at=now,
    )


# --- finding


class _Found:
    """What is stored of it: users with their HMAC, conversations, memories, receipts with the HMAC of their id."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted
        self.users: dict[tuple[Tenant, str], bytes] = {}
        self.conversations: list[tuple[Tenant, str]] = []
        self.memories: list[int] = []
        self.receipts: dict[int, bytes] = {}

    def note_user(self, row: Mapping[str, Any]) -> None:
        """Look at a user, who may be one of several tenants."""
        for tenant in self._of(*row["tenants"]):
            hmac = self._wanted.key.hmac_of("user", tenant.own(row["user_id"]))
            if hmac in self._wanted.users:
                self.users[tenant, row["user_id"]] = hmac

    def note_conversation(self, row: Mapping[str, Any]) -> None:
        """Look at a conversation."""
        for tenant in self._of(row["tenant"]):
            hmac = self._wanted.key.hmac_of("conversation", tenant.own(row["conversation_id"]))
            if hmac in self._wanted.conversations:
                self.conversations.append((tenant, row["conversation_id"]))

    def note_memory(self, row: Mapping[str, Any]) -> None:
        """Look at a memory."""
        key = self._wanted.key
        for tenant in self._of(row["tenant"]):
            own_user = tenant.own(row["user_id"])
            barred = key.hmac_of("user", own_user), key.hmac_of_memory(own_user, row["key"])
            if row["last_seq"] <= self._wanted.memories.get(barred, 0):
                self.memories.append(row["at"])

    def note_receipt(self, row: Mapping[str, Any]) -> None:
        """Look at the receipt of an expired conversation."""
        hmac = self._wanted.hashes.get(self._wanted.key.hmac_of_hash(row["id_hash"]))
        if hmac is not None:
            self.receipts[row["at"]] = hmac

    def _of(self, *numbers: int) -> list[Tenant]:
        return [self._wanted.tenants[number] for number in numbers if number in self._wanted.tenants]


async def _find(postgres: Postgres, wanted: _Wanted) -> _Found:
    found = _Found(wanted)
    if wanted.users:
        for statement in _USERS:
            await _look_through(postgres, statement, found.note_user, "")
    if wanted.conversations:
        await _look_through(postgres, _CONVERSATIONS, found.note_conversation, 0)
    if wanted.hashes:
        await _look_through(postgres, _RECEIPTS, found.note_receipt, 0)
    if wanted.memories:
        await _look_through(postgres, _MEMORIES, found.note_memory, 0)
    return found


async def _look_through(
    postgres: Postgres, statement: str, note: Callable[[Mapping[str, Any]], None], after: str | int
) -> None:
    """Look at each row, in pages behind ``after``; a statement names its order ``at``."""

    async def page(connection: Connection, after: str | int) -> Sequence[Mapping[str, Any]]:
        return await connection.fetch(statement, after, _PAGE_ROWS)

    while True:
        rows = await postgres.run("db.erasures", partial(page, after=after), begin=RELAXED)
        for row in rows:
            note(row)
        if len(rows) < _PAGE_ROWS:
            return
        after = rows[-1]["at"]


async def _end(connection: Connection, wanted: _Wanted, found: _Found) -> int:
    """Erase what goes with nothing else, end the erasures, and clear the table; return how many memories went."""
    memories = await connection.execute(_ERASE_MEMORIES, found.memories)
    receipts = await _with_older(connection, found.receipts)
    await connection.execute(ERASE_FROM_RECEIPTS, list(receipts), list(receipts.values()))
    hmacs = [*wanted.conversations, *wanted.users]
    await connection.execute(_END, hmacs, msgspec.json.encode(ErasedCounts()).decode(), wanted.at)
    # Also what had ended before it was listed.
    await connection.execute(_DONE, [*hmacs, *(user for user, _ in wanted.memories)])
    return int(memories.split()[-1])


async def _with_older(connection: Connection, receipts: Mapping[int, bytes]) -> dict[int, bytes]:
    """Add the receipts of earlier revisions to those of expired conversations, each with the HMAC of its own hash."""
    key = await read_installation_key(connection)
    found = dict(receipts)
    for row in await connection.fetch(_REVISED, list(receipts)):
        older = await connection.fetch(OF_HASHES, older_hashes(row["id_hash"], revision_of(row["notes"])))
        found |= {one["seq"]: key.hmac_of_hash(one["id_hash"]) for one in older}
    return found


_REVISED = "SELECT id_hash, notes FROM receipt WHERE seq = ANY($1::bigint[]) AND notes IS NOT NULL"
_ANY = "SELECT EXISTS (SELECT FROM erase_again)"
# What has ended on the list is not stored.
_READ = """
SELECT a.kind, a.hmac, a.number, a.other FROM erase_again a LEFT JOIN erasure e ON e.id_hmac = a.hmac
WHERE a.kind = 'memory' OR e.ended_at IS NULL
"""
_AT = "'epoch'::timestamptz + number * interval '1 microsecond'"
# A user whose erasure on the list is as new was erased then, and the list says whether all of it.
_PUT = f"""
INSERT INTO erasure AS e (id_hmac, kind, begun_at, hash_hmac)
SELECT hmac, kind, max({_AT}), (array_agg(nullif(other, '') ORDER BY other DESC))[1] FROM erase_again
WHERE kind <> 'memory' GROUP BY hmac, kind
ON CONFLICT (id_hmac) DO UPDATE SET begun_at = excluded.begun_at, ended_at = NULL, noted_by = pg_current_xact_id()
WHERE e.begun_at < excluded.begun_at AND e.kind = 'user'
"""
# In a database that went back, what is said later has lower numbers again: those must not be barred.
_LAST_SEQ = "SELECT last_value FROM conversation_seq_seq"
_PUT_MEMORIES = f"""
INSERT INTO erased_memory AS e (user_hmac, key_hmac, until_seq)
SELECT hmac, other, least(number, ({_LAST_SEQ})) FROM erase_again WHERE kind = 'memory'
ON CONFLICT (user_hmac, key_hmac) DO UPDATE
SET until_seq = excluded.until_seq, noted_by = pg_current_xact_id() WHERE e.until_seq < excluded.until_seq
"""
# erasure_not_ended
_BROKEN_OFF = """
SELECT kind, id_hmac AS hmac, (extract(epoch FROM begun_at) * 1000000)::bigint AS number, hash_hmac AS other
FROM erasure WHERE ended_at IS NULL
    AND NOT begun_at BETWEEN convo_now() - make_interval(secs => $1) AND convo_now() + make_interval(secs => $1)
ORDER BY begun_at LIMIT 1000
"""
_TENANTS = "SELECT number, name FROM tenant"
# By the index of the user in each table, one probe a user, and one more for its tenants where there is one tenant.
_USERS = tuple(
    f"""
WITH RECURSIVE users (user_id) AS (
    (SELECT user_id FROM {table} WHERE user_id > $1 ORDER BY user_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.user_id FROM {table} t WHERE t.user_id > users.user_id ORDER BY t.user_id LIMIT 1)
    FROM users WHERE users.user_id IS NOT NULL
)
SELECT user_id, user_id AS at, ARRAY(
    SELECT number FROM tenant
    WHERE (SELECT true FROM {table} t WHERE t.user_id = users.user_id AND t.tenant = tenant.number LIMIT 1)) AS tenants
FROM users WHERE user_id IS NOT NULL LIMIT $2
"""
    for table in ("conversation", "memory", "relationship")
)
_CONVERSATIONS = "SELECT conversation_id, tenant, seq AS at FROM conversation WHERE seq > $1 ORDER BY seq LIMIT $2"
_RECEIPTS = "SELECT id_hash, seq AS at FROM receipt WHERE seq > $1 AND state = 'x' ORDER BY seq LIMIT $2"
_MEMORIES = """
SELECT user_id, tenant, key, coalesce(last_seq, seq) AS last_seq, memory_seq AS at
FROM memory WHERE memory_seq > $1 ORDER BY memory_seq LIMIT $2
"""
_ERASE_MEMORIES = "DELETE FROM memory WHERE memory_seq = ANY($1::bigint[])"
# A request that began meanwhile ends its own; what began in a future did so before the clock was set back.
_END = """
UPDATE erasure SET ended_at = convo_now(), counts = coalesce(counts, $2::jsonb)
WHERE id_hmac = ANY($1::bytea[]) AND ended_at IS NULL
    AND NOT (begun_at > $3 AND begun_at < convo_now() + interval '1 minute')
"""
_DONE = """
DELETE FROM erase_again a WHERE hmac = ANY($1::bytea[])
    OR kind <> 'memory' AND EXISTS (SELECT FROM erasure e WHERE e.id_hmac = a.hmac AND e.ended_at IS NOT NULL)
"""
