"""Erasing in objects, as the database knows it: which objects have to be written anew, and which are to be deleted.

Open it to change what an erasure notes of a log that has moved. What holds at every moment stands in ``log_objects``.
"""

from __future__ import annotations

from collections.abc import Sequence

from convo.dependencies import OLD_LOGS
from convo.store import erasures
from convo.store.log_objects import LogObject, note_vanished, store_object
from convo.store.log_refs import LogRef, parse_ref
from convo.store.postgres import Connection


async def note_erased(connection: Connection, hmac: bytes, seqs: Sequence[int]) -> None:
    """Note of logs that this transaction has deleted which erasure they went with: their objects are urgent."""
    await connection.execute(_NOTE_IN_FLIGHT, list(seqs))
    await connection.execute(_NOTE_ERASURE, hmac, list(seqs))


async def note_dropped_logs(connection: Connection, month: int) -> None:
    """Note that a month's rows are gone, but for a few, so that its objects are looked at."""
    await connection.execute(_NOTE_DROPPED, month)


async def urgent_objects(connection: Connection, hmac: bytes | None = None) -> Sequence[str]:
    """List objects that have to be written anew now; with ``hmac`` those of one erasure."""
    return [row["name"] for row in await connection.fetch(_URGENT, hmac)]


async def due_objects(connection: Connection, after: str, batch_seconds: float) -> tuple[Sequence[str], str | None]:
    """Look at the next objects in which something is over: list those that nothing of is left, or that wait for long.

    Return where to go on, too; None behind the last one.
    """
    rows = await connection.fetch(_DUE, after, batch_seconds)
    return [row["name"] for row in rows if row["due"]], rows[-1]["name"] if len(rows) == _DUE_ROWS else None


async def read_object_row(connection: Connection, name: str) -> LogObject | None:
    """Read a stored object; None where it is none any more."""
    row = await connection.fetchrow(_OBJECT, name)
    return None if row is None else LogObject(**dict(row))


async def read_refs(connection: Connection, stored: LogObject) -> Sequence[tuple[int, LogRef]]:
    """Read which logs refer to an object, in its order."""
    rows = await connection.fetch(_REFS, list(stored.seqs), f"{stored.name}:", min(stored.seqs), max(stored.seqs))
    found = [(row["seq"], parse_ref(row["storage_ref"])) for row in rows]
    return sorted(found, key=lambda one: one[1].offset)


async def replace(
    connection: Connection, old: LogObject, new: LogObject, refs: Sequence[tuple[int, LogRef]], size: int
) -> bool:
    """Have logs refer to the object that was written anew instead; return whether they do.

    The old one is leaving. What was erased meanwhile stands in the new one: that is noted, for the same erasure.
    """
    if not await connection.fetchval(_LEAVE, old.name):
        return False
    seqs = [seq for seq, _ in refs]
    if not await store_object(connection, new.name, seqs, size):
        raise ObjectGivenUp(f"the object {new.name} was given up before it was referred to")
    moved = await connection.fetch(
        _REFER_ANEW, seqs, [str(ref) for _, ref in refs], f"{old.name}:", min(seqs), max(seqs)
    )
    await note_vanished(connection, new.name, old.name, set(seqs) - {row["seq"] for row in moved})
    return True


async def leave_object(connection: Connection, stored: LogObject) -> bool:
    """Have an object deleted to which nothing refers; return whether that is so."""
    if await read_refs(connection, stored):
        return False
    return bool(await connection.fetchval(_LEAVE, stored.name))


async def leaving_objects(connection: Connection) -> Sequence[LogObject]:
    """List objects that are to be deleted now, the oldest first."""
    return [LogObject(**dict(row)) for row in await connection.fetch(_LEAVING)]


async def postpone(connection: Connection, name: str, seconds: float) -> None:
    """Have an object deleted later: it could not be now."""
    await connection.execute(_POSTPONE, name, seconds)


async def forget_object(connection: Connection, name: str) -> None:
    """Note that an object is gone with all its versions; the receipts of the erasures that waited for it say so."""
    if not await connection.fetchval(_FORGET, name):
        return
    for row in await connection.fetch(_FORGET_ERASED, name):
        await erasures.note_confirmed(connection, row["erasure"], OLD_LOGS, row["count"])


async def note_unknown(connection: Connection, objects: Sequence[tuple[int, str]], grace_seconds: float) -> int:
    """Have objects deleted that were listed and that the database does not know; return how many those are.

    They were listed before: whoever has written one since has planned it since. The grace is for whoever sees that a
    backup was restored which is too old.
    """
    months, names = [month for month, _ in objects], [name for _, name in objects]
    tag = await connection.execute(_NOTE_UNKNOWN, months, names, grace_seconds)
    return int(tag.rpartition(" ")[2])


class ObjectGivenUp(Exception):
    """Ends the transaction of ``replace``: nothing of it is kept."""


# Few are under way: each holds some thousand numbers. They are locked: one that is forgotten meanwhile waits, and takes
# the notes along. Without that they would stay for ever, and their receipt would wait for ever.
_NOTE_IN_FLIGHT = """
INSERT INTO erased_log (name, seq)
SELECT o.name, gone.seq FROM (SELECT name, seqs FROM log_object WHERE state <> 'stored' FOR KEY SHARE) AS o
JOIN unnest($1::bigint[]) AS gone (seq) ON gone.seq = ANY(o.seqs) ON CONFLICT DO NOTHING
"""
# Every object that one of them stands in has a note by now. erased_log_pkey
_NOTE_ERASURE = "UPDATE erased_log SET erasure = $1, urgent = true WHERE seq = ANY($2::bigint[])"
_NOTE_DROPPED = """
INSERT INTO erased_log (name, seq, urgent) SELECT name, seqs[1], true FROM log_object
WHERE month = $1 AND state = 'stored' ON CONFLICT (seq, name) DO UPDATE SET urgent = true
"""
_URGENT = """
SELECT DISTINCT name FROM erased_log JOIN log_object USING (name)
WHERE urgent AND state = 'stored' AND ($1::bytea IS NULL OR erasure = $1) ORDER BY name LIMIT 20
"""
_DUE_ROWS = 100
# One probe for each object: erased_log_by_name.
_DUE = f"""
WITH RECURSIVE noted (name) AS (
    (SELECT name FROM erased_log WHERE name > $1 ORDER BY name LIMIT 1)
    UNION ALL
    SELECT (SELECT e.name FROM erased_log AS e WHERE e.name > noted.name ORDER BY e.name LIMIT 1)
    FROM noted WHERE noted.name IS NOT NULL
)
SELECT o.name, gone.count >= cardinality(o.seqs) OR gone.since < convo_now() - make_interval(secs => $2)
               OR gone.since > convo_now() + interval '1 minute' AS due
FROM (SELECT name FROM noted WHERE name IS NOT NULL LIMIT {_DUE_ROWS}) AS noted
JOIN log_object AS o ON o.name = noted.name AND o.state = 'stored',
LATERAL (SELECT count(*) AS count, min(at) AS since FROM erased_log AS e WHERE e.name = o.name OFFSET 0) AS gone
ORDER BY o.name
"""
_OBJECT = "SELECT name, month, tenant, seqs, bytes FROM log_object WHERE name = $1 AND state = 'stored'"
_REFS = """
SELECT seq, storage_ref FROM conversation_log AS l JOIN unnest($1::bigint[]) AS own (seq) USING (seq)
WHERE seq BETWEEN $3 AND $4 AND starts_with(storage_ref, $2)
"""
_REFER_ANEW = """
UPDATE conversation_log AS l SET storage_ref = moved.ref
FROM unnest($1::bigint[], $2::text[]) AS moved (seq, ref)
WHERE l.seq = moved.seq AND l.seq BETWEEN $4 AND $5 AND starts_with(l.storage_ref, $3) RETURNING l.seq
"""
_LEAVE = "UPDATE log_object SET state = 'leaving', at = convo_now() WHERE name = $1 AND state = 'stored' RETURNING true"
_LEAVING = """
SELECT name, month, tenant, seqs, bytes FROM log_object
WHERE state = 'leaving' AND at <= convo_now() ORDER BY at LIMIT 20
"""
_POSTPONE = """
UPDATE log_object SET at = convo_now() + make_interval(secs => $2) WHERE name = $1 AND state = 'leaving'
"""
_FORGET = "DELETE FROM log_object WHERE name = $1 AND state = 'leaving' RETURNING true"
_FORGET_ERASED = """
WITH gone AS (DELETE FROM erased_log WHERE name = $1 RETURNING erasure)
SELECT erasure, count(*) AS count FROM gone WHERE erasure IS NOT NULL GROUP BY erasure ORDER BY erasure
"""
_NOTE_UNKNOWN = """
INSERT INTO log_object (name, state, month, tenant, seqs, at)
SELECT listed.name, 'leaving', listed.month, 0, '{}', convo_now() + make_interval(secs => $3)
FROM unnest($1::bigint[], $2::text[]) AS listed (month, name) ON CONFLICT DO NOTHING
"""
