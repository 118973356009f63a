"""Tombstones of erased memories: what went with a conversation is not brought back by an older one.

Open it to change when a memory may be known again. A tombstone is an HMAC of the user and one of the memory's key. It
bars what conversations say of that key that were received before the erasure, at their retry too. What a later one adds
is new. It bars besides what no conversation adds, but a memory service still lists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from convo.conversation.tenant import Tenant
from convo.store.installation_key import InstallationKey, read_installation_key
from convo.store.postgres import Connection


class Tombstones:
    """The tombstones of some users, who stand here as ``Tenant.own`` has them."""

    __slots__ = ("_key", "_until")

    def __init__(self, key: InstallationKey | None, until: Mapping[tuple[bytes, bytes], int]) -> None:
        self._key = key
        self._until = until

    def until_seq(self, own_user: str, key: str) -> int:
        """Return up to which ``seq`` conversations are barred from this memory of the user; 0 where none is."""
        if self._key is None or not self._until:
            return 0
        hmacs = self._key.hmac_of("user", own_user), self._key.hmac_of_memory(own_user, key)
        return self._until.get(hmacs, 0)


async def read_tombstones(connection: Connection, own_users: Collection[str]) -> Tombstones:
    """Read the tombstones of these users: one look at an empty table where nothing was ever erased."""
    if not await connection.fetchval(_ANY):
        return Tombstones(None, {})
    key = await read_installation_key(connection)
    rows = await connection.fetch(_OF_USERS, [key.hmac_of("user", own) for own in own_users])
    return Tombstones(key, {(row["user_hmac"], row["key_hmac"]): row["until_seq"] for row in rows})


async def leave_tombstones(connection: Connection, tenant: Tenant, seqs: Sequence[int]) -> None:
    """Leave one for each memory that goes with these conversations of a tenant, before it goes."""
    await _leave(connection, tenant, await connection.fetch(_GOING, seqs))


async def erase_outliving(connection: Connection, tenant: Tenant, seqs: Sequence[int]) -> int:
    """Erase what is remembered from conversations of a tenant that have expired; return how many memories that were."""
    gone = await connection.fetch(_ERASE_OUTLIVING, seqs)
    await _leave(connection, tenant, gone)
    return len(gone)


async def _leave(connection: Connection, tenant: Tenant, going: Sequence[Mapping[str, Any]]) -> None:
    if going:
        key = await read_installation_key(connection)
        users = [key.hmac_of("user", tenant.own(row["user_id"])) for row in going]
        keys = [key.hmac_of_memory(tenant.own(row["user_id"]), row["key"]) for row in going]
        await connection.execute(_LEAVE, users, keys)


_ANY = "SELECT EXISTS (SELECT FROM erased_memory)"
_OF_USERS = "SELECT user_hmac, key_hmac, until_seq FROM erased_memory WHERE user_hmac = ANY($1::bytea[])"
# The same as memories.ERASE_MEMORIES removes.
_GOING = """
SELECT DISTINCT m.user_id, m.key FROM memory m JOIN conversation c ON c.user_id = m.user_id
WHERE c.seq = ANY($1::bigint[]) AND (m.seq = c.seq OR m.last_seq = c.seq)
"""
# Nothing says any more whose they are, so all memories are looked through: a second for some millions.
_ERASE_OUTLIVING = """
DELETE FROM memory WHERE seq = ANY($1::bigint[]) OR last_seq = ANY($1::bigint[]) RETURNING user_id, key
"""
# The last number that was given: what has a higher one is received after this.
_LEAVE = """
INSERT INTO erased_memory (user_hmac, key_hmac, until_seq)
SELECT user_hmac, key_hmac, (SELECT last_value FROM conversation_seq_seq)
FROM unnest($1::bytea[], $2::bytea[]) AS going (user_hmac, key_hmac)
ON CONFLICT (user_hmac, key_hmac) DO UPDATE SET until_seq = excluded.until_seq, noted_by = pg_current_xact_id()
"""
