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
    """How many rows an erasure removed and changed, by table, and how many deletions each service has confirmed."""

    removed: Mapping[str, int] = {}
    changed: Mapping[str, int] = {}
    told: Mapping[str, int] = {}

    def __add__(self, other: ErasedCounts) -> ErasedCounts:
        return ErasedCounts(
            removed=_sum(self.removed, other.removed),
            changed=_sum(self.changed, other.changed),
            told=_sum(self.told, other.told),
        )


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
    """Return those of these HMACs that are on the list, or those of hashes under which receipts are.

    Of what had expired when its user was erased, nothing is known but the hash of its id.
    """
    return {row["id_hmac"] for row in await connection.fetch(_AMONG, list(hmacs))}


async def noted_erasure(connection: Connection, hmac: bytes) -> NotedErasure | None:
    """Read an erasure by the HMAC of its id."""
    return await _read_noted(connection, _NOTED, hmac)


async def _read_noted(connection: Connection, statement: str, hmac: bytes) -> NotedErasure | None:
    row = await connection.fetchrow(statement, hmac)
    if row is None:
        return None
    counts = msgspec.json.decode(row["counts"] or "{}", type=ErasedCounts)
    return NotedErasure(begun_at=row["begun_at"], ended_at=row["ended_at"], counts=counts)


async def note_begin(connection: Connection, kind: IdKind, hmac: bytes, hash_hmac: bytes | None = None) -> NotedErasure:
    """Note that an erasure begins, or begins again: from the commit on the id is refused, of a user until now."""
    row = await connection.fetchrow(_BEGIN, hmac, kind, hash_hmac) or {}
    counts = msgspec.json.decode(row["counts"] or "{}", type=ErasedCounts)
    return NotedErasure(begun_at=row["begun_at"], ended_at=None, counts=counts)


async def note_counts(
    connection: Connection, hmac: bytes, more: ErasedCounts, *, ended: bool, begun_at: datetime | None = None
) -> None:
    """Add to the counts what was erased, in the transaction that erases it, and whether that was all.

    Two requests may erase one user at the same time: each adds its own, and only the one that began last, at
    ``begun_at``, ends it.
    """
    noted = await _locked(connection, hmac)
    text = msgspec.json.encode(noted.counts + more).decode()
    await connection.execute(_COUNT, hmac, text, ended, begun_at)


async def note_confirmed(connection: Connection, hmac: bytes, service: str, count: int = 1) -> None:
    """Count deletions that a service has confirmed."""
    noted = await _locked(connection, hmac)
    text = msgspec.json.encode(noted.counts + ErasedCounts(told={service: count})).decode()
    await connection.execute(_TOLD, hmac, text)


async def _locked(connection: Connection, hmac: bytes) -> NotedErasure:
    noted = await _read_noted(connection, _LOCKED, hmac)
    assert noted is not None  # noqa: S101  (nothing goes from the list)
    return noted


async def note_conversations(connection: Connection, hmacs: Sequence[bytes], hash_hmacs: Sequence[bytes]) -> None:
    """Note the conversations that go with their user."""
    await connection.execute(_WITH_USER, list(hmacs), list(hash_hmacs))


_ENDED = "coalesce(ended_at, greatest(started_at, convo_now()))"
NOT_REFUSED = f"""
    (SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.id_hmac) IS NULL
    AND coalesce((SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.user_hmac) < {_ENDED}, true)
"""
"""For accept: whether neither the conversation was erased nor its user since it ended.

Sub-selects and no EXISTS: each is a probe of the primary key; an EXISTS may be hashed, with all that was ever erased.
"""
_ANY_ERASED = "SELECT EXISTS (SELECT FROM erasure)"
_AMONG = """
SELECT id_hmac FROM erasure WHERE id_hmac = ANY($1::bytea[])
UNION ALL SELECT id_hash FROM receipt WHERE id_hash = ANY($1::bytea[])
"""
_NOTED = "SELECT begun_at, ended_at, counts FROM erasure WHERE id_hmac = $1"
# One that had ended begins anew: a user may have come back since.
_BEGIN = """
INSERT INTO erasure AS e (id_hmac, kind, hash_hmac) VALUES ($1, $2, $3)
ON CONFLICT (id_hmac) DO UPDATE SET begun_at = convo_now(), ended_at = NULL, noted_by = pg_current_xact_id(),
    hash_hmac = coalesce(excluded.hash_hmac, e.hash_hmac), counts = CASE WHEN e.ended_at IS NULL THEN e.counts END
RETURNING begun_at, counts
"""
_LOCKED = f"{_NOTED} FOR UPDATE"
_COUNT = """
UPDATE erasure SET counts = $2::jsonb,
    ended_at = CASE WHEN $3 AND begun_at = coalesce($4, begun_at) THEN convo_now() ELSE ended_at END
WHERE id_hmac = $1
"""
_TOLD = "UPDATE erasure SET counts = $2::jsonb WHERE id_hmac = $1"
_WITH_USER = """
INSERT INTO erasure (id_hmac, kind, ended_at, hash_hmac) SELECT id_hmac, 'conversation', convo_now(), hash_hmac
FROM unnest($1::bytea[], $2::bytea[]) AS gone (id_hmac, hash_hmac)
ON CONFLICT (id_hmac) DO UPDATE SET ended_at = convo_now()
"""
