"""The objects of logs, as the database knows them: planned before they are written, stored, and leaving.

Open it to change how a log moves into an object, or out of one. Each function is one transaction or a part of one, and
after each of them the process may die. So this holds at every moment:

- A row refers to an object only where that one is ``stored``, and an object is written only where it was ``planned``.
- A log's body goes in the transaction that refers to its object, and an object's name is never used again.
- What is deleted out of ``conversation_log`` and stands in an object has a row in ``erased_log``: of a stored object by
  a trigger, whoever deletes it; of one that is being written, in the transaction that would refer to it, and by
  ``log_erasing.note_erased`` at once. It stays until the object has been written anew without it, or deleted.

What an object is called, and what is in it, stands in ``log_refs``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec import Struct

from convo.conversation.model import CANARY_USER
from convo.store.installation_key import read_installation_key
from convo.store.log_refs import LogRef, month_of
from convo.store.migrations import number_of
from convo.store.postgres import Connection
from convo.store.process_programs import OlderProcess, older_processes

_OPEN_MAX = 20


class LogObject(Struct, frozen=True, kw_only=True):
    """An object of logs: those of one month and tenant; ``seqs`` are the logs that were written into it."""

    name: str
    month: int
    tenant: int
    seqs: Sequence[int]
    bytes: int = 0


class WaitingLog(Struct, frozen=True, kw_only=True, gc=False):
    """A log that may move: how long it is packed, whose it is, and for how many seconds it has been stored."""

    seq: int
    bytes: int
    tenant: int
    seconds: float
    ended: bool


class MovingLog(Struct, frozen=True, kw_only=True, gc=False):
    """A log that moves, with the hash that was stored when it was acknowledged; None for an old one."""

    seq: int
    conversation_id: str
    body: bytes
    acknowledged_hash: bytes | None


class LogsHere(Struct, frozen=True, kw_only=True):
    """Of a part of the table: up to which ``seq`` it goes, and how many bytes of logs are in PostgreSQL there."""

    last_seq: int
    bytes: int


async def fingerprint(connection: Connection) -> str:
    """Read what this installation's objects are kept apart by."""
    return (await read_installation_key(connection)).fingerprint


async def any_stored(connection: Connection) -> bool:
    """Return whether any log lies in an object."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM log_object)")
    return found


async def packing_held_back_by(connection: Connection) -> Sequence[OlderProcess]:
    """Read which processes are at work whose program would not find a log that has moved."""
    return await older_processes(connection, number_of("log_objects"))


# --- which logs may move


async def read_movable(connection: Connection, after: int, rows: int) -> tuple[Sequence[WaitingLog], int | None]:
    """Read the next logs that are in PostgreSQL, and behind which ``seq`` to go on; None behind the last one."""
    page = await connection.fetch(_WAITING, after, rows)
    waiting = [
        WaitingLog(
            seq=row["seq"],
            bytes=row["bytes"],
            tenant=row["tenant"],
            seconds=row["seconds"],
            ended=row["state"] in ("done", "dead"),
        )
        for row in page
        # What is not a conversation, or a canary, goes by itself.
        if row["bytes"] is not None and row["tenant"] is not None and row["user_id"] != CANARY_USER
    ]
    return waiting, page[-1]["seq"] if len(page) == rows else None


async def survey(connection: Connection, after: int, rows: int) -> LogsHere | None:
    """Add up how much the next logs take in PostgreSQL; None where there are none."""
    row = await connection.fetchrow(_SURVEY, after, rows) or {}
    return None if row["last_seq"] is None else LogsHere(last_seq=row["last_seq"], bytes=row["bytes"])


# --- into an object


async def plan(connection: Connection, tenant: int, seqs: Sequence[int]) -> LogObject | None:
    """Plan an object of these logs of one month, before it is written.

    None where too many are under way or to be deleted: then the bucket does not do its part, and first it has to.
    """
    if await connection.fetchval(_COUNT_OPEN) >= _OPEN_MAX:
        return None
    planned = LogObject(name=secrets.token_hex(8), month=month_of(seqs[0]), tenant=tenant, seqs=seqs)
    await connection.execute(_PLAN, planned.name, planned.month, tenant, list(seqs))
    return planned


async def read_moving(connection: Connection, seqs: Sequence[int]) -> Sequence[MovingLog]:
    """Read the logs themselves, as far as they are still there.

    The locks keep an erasure under way from being passed by: it ends before, or finds the planned object.
    """
    rows = await connection.fetch(_MOVING, list(seqs), seqs[0], seqs[-1])
    return [
        MovingLog(
            seq=row["seq"], conversation_id=row["conversation_id"], body=row["body"], acknowledged_hash=row["log_hash"]
        )
        for row in rows
    ]


async def refer(
    connection: Connection, planned: LogObject, refs: Sequence[tuple[int, LogRef]], size: int
) -> int | None:
    """Have the logs refer to their object, which is written, and let their bodies go; return how many did.

    Those that were erased meanwhile are noted. Return None where the object was given up meanwhile.
    """
    seqs = [seq for seq, _ in refs]
    if not await store_object(connection, planned.name, seqs, size):
        return None
    moved = await connection.fetch(_REFER, seqs, [str(ref) for _, ref in refs], seqs[0], seqs[-1])
    await note_vanished(connection, planned.name, "", set(seqs) - {row["seq"] for row in moved})
    return len(moved)


async def store_object(connection: Connection, name: str, seqs: Sequence[int], size: int) -> bool:
    """Note that a planned object is written, with these logs; return False where it was given up meanwhile."""
    return bool(await connection.fetchval(_STORE, name, size, seqs))


async def give_up(connection: Connection, name: str, later_seconds: float) -> None:
    """Have a planned object deleted, after so many seconds: its writing failed, and may still come through."""
    await connection.execute(_GIVE_UP, name, later_seconds)


async def give_up_abandoned(connection: Connection, seconds: float) -> int:
    """Have the objects deleted that were planned so long ago and are not referred to; return how many those are.

    Whoever is at work on one still finds that out when it would be referred to.
    """
    tag = await connection.execute(_GIVE_UP_ABANDONED, seconds)
    return int(tag.rpartition(" ")[2])


async def stored_behind(connection: Connection, after: str, rows: int) -> Sequence[LogObject]:
    """Read the next stored objects in the order of their names."""
    return [LogObject(**dict(row)) for row in await connection.fetch(_STORED, after, rows)]


async def known_among(connection: Connection, names: Sequence[str]) -> set[str]:
    """Return which of these objects the database knows, in whichever state."""
    return {row["name"] for row in await connection.fetch(_KNOWN, list(names))}


async def note_vanished(connection: Connection, name: str, before: str, seqs: set[int]) -> None:
    """Note that logs stand in an object to which they do not refer: they were erased while it was written.

    ``before`` is the object that they referred to; the erasure that has noted them for that one goes on.
    """
    if seqs:
        await connection.execute(_NOTE_VANISHED, name, before, sorted(seqs))


# conversation_log_pkey, in its order: one partition after the other. The sizes of what is stored out of line are known
# without reading it. OFFSET 0: one look-up for each, whatever the planner thinks.
_WAITING = """
SELECT l.seq, l.bytes, c.tenant, c.user_id, job.state,
       extract(epoch FROM convo_now() - c.received_at)::float8 AS seconds
FROM (SELECT seq, octet_length(body) AS bytes FROM conversation_log WHERE seq > $1 ORDER BY seq LIMIT $2) AS l
LEFT JOIN LATERAL (SELECT tenant, user_id, received_at FROM conversation WHERE seq = l.seq OFFSET 0) AS c ON true
LEFT JOIN LATERAL (SELECT state FROM every_job WHERE seq = l.seq AND l.bytes IS NOT NULL OFFSET 0) AS job ON true
ORDER BY l.seq
"""
_SURVEY = """
SELECT max(seq) AS last_seq, coalesce(sum(octet_length(body)), 0)::bigint AS bytes
FROM (SELECT seq, body FROM conversation_log WHERE seq > $1 ORDER BY seq LIMIT $2) AS l
"""
_COUNT_OPEN = "SELECT count(*) FROM log_object WHERE state <> 'stored' AND at <= convo_now()"
_PLAN = "INSERT INTO log_object (name, month, tenant, seqs) VALUES ($1, $2, $3, $4)"
# The bounds say which partition it is.
_MOVING = """
SELECT l.seq, c.conversation_id, l.body, c.log_hash FROM conversation_log AS l JOIN conversation AS c USING (seq)
WHERE l.seq = ANY($1::bigint[]) AND l.seq BETWEEN $2 AND $3 AND l.body IS NOT NULL
ORDER BY l.seq FOR KEY SHARE OF l
"""
_STORE = """
UPDATE log_object SET state = 'stored', bytes = $2, seqs = $3, at = convo_now()
WHERE name = $1 AND state = 'planned' RETURNING true
"""
_REFER = """
UPDATE conversation_log AS l SET body = NULL, storage_ref = moved.ref
FROM unnest($1::bigint[], $2::text[]) AS moved (seq, ref)
WHERE l.seq = moved.seq AND l.seq BETWEEN $3 AND $4 AND l.body IS NOT NULL RETURNING l.seq
"""
_GIVE_UP = """
UPDATE log_object SET state = 'leaving', at = convo_now() + make_interval(secs => $2)
WHERE name = $1 AND state = 'planned'
"""
# What is from a time to come was noted before a clock was set back.
_GIVE_UP_ABANDONED = """
UPDATE log_object SET state = 'leaving', at = convo_now()
WHERE state = 'planned' AND (at < convo_now() - make_interval(secs => $1) OR at > convo_now() + interval '1 minute')
"""
_KNOWN = "SELECT name FROM log_object WHERE name = ANY($1::text[])"
_STORED = """
SELECT name, month, tenant, seqs, bytes FROM log_object WHERE name > $1 AND state = 'stored' ORDER BY name LIMIT $2
"""
# The erasure that has noted it for the object before goes on.
_NOTE_VANISHED = """
INSERT INTO erased_log (name, seq, erasure, urgent)
SELECT $1, gone.seq, before.erasure, true FROM unnest($3::bigint[]) AS gone (seq)
LEFT JOIN erased_log AS before ON before.name = $2 AND before.seq = gone.seq ON CONFLICT DO NOTHING
"""
