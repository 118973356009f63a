"""The list of what was erased: by it an id is refused for ever, and an erasure that is repeated has its answer.

Open it to change what is refused, or what is kept of an erasure. It knows ids as HMACs alone. How rows are erased
stands in ``convo/erase.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Struct

from convo.conversation.identity import IdKind
from convo.store.installation_key import InstallationKey, read_installation_key
from convo.store.postgres import Connection


class ErasedCounts(Struct, frozen=True, kw_only=True):
    """How many rows an erasure removed and changed, by table."""

    removed: Mapping[str, int] = {}
    changed: Mapping[str, int] = {}

    def __add__(self, other: ErasedCounts) -> ErasedCounts:
        return ErasedCounts(removed=_sum(self.removed, other.removed), changed=_sum(self.changed, other.changed))


class NotedErasure(Struct, frozen=True, kw_only=True):
    """An erasure as the list has it; ``ended_at`` is None while not all of it is known to be erased."""

    begun_at: datetime
    ended_at: datetime | None
    counts: ErasedCounts


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    tables = [*one, *(table for table in other if table not in one)]
    return {table: one.get(table, 0) + other.get(table, 0) for table in tables}


# A restore needs a database without sessions of convo, so another key comes with another session.
_KEYS: WeakKeyDictionary[Connection, InstallationKey] = WeakKeyDictionary()


def met_list(connection: Connection) -> InstallationKey | None:
    """Return the key with which a dedicated session looks on the list; None while it has met no list with a row."""
    return _KEYS.get(connection)


async def meet_list(connection: Connection) -> InstallationKey | None:
    """Note that this session looks on the list from now on, unless nothing was ever erased; return the key for it."""
    if await connection.fetchval(_ANY_ERASED):
        _KEYS[connection] = await read_installation_key(connection)
    return _KEYS.get(connection)


async def erased_among(connection: Connection, hmacs: Iterable[bytes]) -> set[bytes]:
    """Return those of these HMACs that are on the list."""
    return {row["id_hmac"] for row in await connection.fetch(_AMONG, list(hmacs))}


async def noted_erasure(connection: Connection, hmac: bytes) -> NotedErasure | None:
    """Read an erasure by the HMAC of its id."""
    row = await connection.fetchrow(_NOTED, hmac)
    if row is None:
        return None
    counts = msgspec.json.decode(row["counts"] or "{}", type=ErasedCounts)
    return NotedErasure(begun_at=row["begun_at"], ended_at=row["ended_at"], counts=counts)


async def note_begin(connection: Connection, kind: IdKind, hmac: bytes) -> NotedErasure:
    """Note that an erasure begins, or begins again: from the commit on the id is refused, of a user until now."""
    row = await connection.fetchrow(_BEGIN, hmac, kind) or {}
    counts = msgspec.json.decode(row["counts"] or "{}", type=ErasedCounts)
    return NotedErasure(begun_at=row["begun_at"], ended_at=None, counts=counts)


async def note_counts(connection: Connection, hmac: bytes, counts: ErasedCounts, *, ended: bool) -> datetime | None:
    """Note what was erased so far, in the transaction that erases it; return when it ended, if this is its end."""
    text = msgspec.json.encode(counts).decode()
    at: datetime | None = await connection.fetchval(_COUNT, hmac, text, ended)
    return at


async def note_conversations(connection: Connection, hmacs: Sequence[bytes]) -> None:
    """Note the conversations that go with their user."""
    await connection.execute(_WITH_USER, list(hmacs))


_ENDED = "coalesce(ended_at, greatest(started_at, convo_now()))"
NOT_REFUSED = f"""
    (SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.id_hmac) IS NULL
    AND coalesce((SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.user_hmac) < {_ENDED}, true)
"""
"""For accept: whether neither the conversation was erased nor its user since it ended.

Sub-selects and no EXISTS: each is a probe of the primary key; an EXISTS may be hashed, with all that was ever erased.
"""
_ANY_ERASED = "SELECT EXISTS (SELECT FROM erasure)"
_AMONG = "SELECT id_hmac FROM erasure WHERE id_hmac = ANY($1::bytea[])"
_NOTED = "SELECT begun_at, ended_at, counts FROM erasure WHERE id_hmac = $1"
# One that had ended begins anew: a user may have come back since.
_BEGIN = """
INSERT INTO erasure AS e (id_hmac, kind) VALUES ($1, $2)
ON CONFLICT (id_hmac) DO UPDATE SET begun_at = convo_now(), ended_at = NULL,
    counts = CASE WHEN e.ended_at IS NULL THEN e.counts END
RETURNING begun_at, counts
"""
_COUNT = """
UPDATE erasure SET counts = $2::jsonb, ended_at = CASE WHEN $3 THEN convo_now() END
WHERE id_hmac = $1 RETURNING ended_at
"""
_WITH_USER = """
INSERT INTO erasure (id_hmac, kind, ended_at) SELECT id_hmac, 'conversation', convo_now()
FROM unnest($1::bytea[]) AS id_hmac ON CONFLICT (id_hmac) DO UPDATE SET ended_at = convo_now()
"""
