"""What a memory service has to be told of erasures: a row for each deletion, until the service has confirmed it.

Open it to change what a service is told, or when again. Who calls the service is ``telling.py``. A row holds the id by
which the service knows what is to go: this is the one place where an id outlives its erasure, and the receipt says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Literal

from msgspec import Struct, field

from convo.conversation.tenant import Tenant
from convo.dependencies import OLD_LOGS
from convo.observe import tracing
from convo.store import erasures
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import OF_REMOTE, REMOTE_PREFIX, remote_prefix

UntoldKind = Literal["memory", "conversation", "user"]

# A row that a process has taken is due again after this time: the process may have died.
_TAKEN_SECONDS = 60.0
_AGAIN_SECONDS, _AGAIN_SECONDS_MAX = 5.0, 900.0
_REASON_CHARS_MAX = 300
_TRACES_MAX = 1000


class ErasureTraces:
    """In which trace each of the last erasures was asked for at this process, where that is recorded.

    In memory: the table has no trace, and a deletion that another process goes on with has a trace of its own.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, str] = OrderedDict()

    def note(self, hmac: bytes) -> None:
        """Note that the running task erases this, where it has a span."""
        span = tracing.current_span()
        if span is not None:
            self._kept[hmac] = span.context.stored
            if len(self._kept) > _TRACES_MAX:
                self._kept.popitem(last=False)

    def of(self, hmac: bytes) -> str | None:
        """Return the stored context of the trace, None where none is known."""
        return self._kept.get(hmac)


class Telling(Struct, frozen=True, kw_only=True):
    """Which service is told of erasures by this process; ``lists``: it shows what it has of a conversation."""

    service: str
    lists: bool
    traces: ErasureTraces = field(default_factory=ErasureTraces)


class Untold(Struct, frozen=True, kw_only=True):
    """One deletion that a service has to be told."""

    number: int
    erasure: bytes
    service: str
    kind: UntoldKind
    whose: str
    what: str
    attempts: int


class Waiting(Struct, frozen=True, kw_only=True):
    """What waits to be told, at most ``_COUNTED_MAX`` of it, since when, and what the oldest was last answered."""

    count: int = 0
    seconds: float = 0.0
    reason: str = ""


_COUNTED_MAX = 10_000


def note_trace(telling: Telling | None, hmac: bytes) -> None:
    """Note that the running task erases this: what the service is told of it is part of the same trace."""
    if telling is not None:
        telling.traces.note(hmac)


async def note_deletions(connection: Connection, telling: Telling, hmac: bytes, seqs: Sequence[int]) -> None:
    """Note what goes with these conversations, before it goes, in the transaction that erases them.

    It is due when no worker can be at work on them any more, which might have the service remember them anew.
    """
    await connection.execute(_MEMORIES, hmac, telling.service, seqs)
    if telling.lists:
        await connection.execute(_CONVERSATIONS, hmac, telling.service, seqs)


async def note_outliving(connection: Connection, telling: Telling, hmac: bytes, seqs: Sequence[int]) -> None:
    """Note the memories of conversations that have expired, before they go."""
    await connection.execute(_OUTLIVING, hmac, telling.service, seqs)


async def note_user(  # noqa: PLR0913  (who is told, and of whom)
    connection: Connection, telling: Telling, hmac: bytes, tenant: Tenant, user_id: str, *, seqs: Sequence[int] = ()
) -> None:
    """Note that a user goes, with these conversations among others."""
    await connection.execute(_USER, hmac, telling.service, user_id, list(seqs), tenant.number)


async def waiting_for(connection: Connection, hmac: bytes) -> dict[str, int]:
    """Count what waits of one erasure, by service."""
    return {row["service"]: row["count"] for row in await connection.fetch(_WAITING_FOR, hmac)}


async def read_waiting(connection: Connection) -> Waiting:
    """Read how much waits to be told, and since when."""
    row = await connection.fetchrow(_WAITING, _COUNTED_MAX)
    return Waiting(**dict(row or {}))


async def take_due(postgres: Postgres, service: str) -> Untold | None:
    """Take the next that is due; nobody else has it for a while."""

    async def body(connection: Connection) -> Untold | None:
        row = await connection.fetchrow(_TAKE, service, _TAKEN_SECONDS)
        return Untold(**dict(row)) if row else None

    return await postgres.run("db.untold", body)


async def confirmed(postgres: Postgres, one: Untold) -> None:
    """Remove what the service has confirmed, and count it in the receipt of its erasure."""

    async def body(connection: Connection) -> None:
        if await connection.fetchval(_DELETE, one.number):
            await erasures.note_confirmed(connection, one.erasure, one.service)

    await postgres.run("db.untold", body)


async def failed(postgres: Postgres, one: Untold, reason: str, *, later_seconds: float = 0.0) -> None:
    """Note why it could not be told; it is due again after a while that grows, and not before ``later_seconds``."""
    pause = max(later_seconds, min(_AGAIN_SECONDS * 2.0 ** min(one.attempts, 10), _AGAIN_SECONDS_MAX))

    async def body(connection: Connection) -> None:
        await connection.execute(_FAILED, one.number, reason[:_REASON_CHARS_MAX], pause)

    await postgres.run("db.untold", body)


async def stored_of_user(postgres: Postgres, whose: str, conversation_ids: Collection[str]) -> tuple[bool, set[str]]:
    """Return whether any conversation of a user is stored, and which of these are; all ids as the service has them."""

    async def body(connection: Connection) -> tuple[bool, set[str]]:
        user = await connection.fetchrow(OF_REMOTE, whose) or {}
        any_stored = await connection.fetchval(_ANY_STORED, user["user_id"], user["tenant"])
        if not any_stored:
            return False, set()
        rows = await connection.fetch(_STORED, user["user_id"], user["tenant"], user["prefix"], list(conversation_ids))
        return True, {row["remote_id"] for row in rows}

    return await postgres.run("db.untold", body, begin=RELAXED)


_DUE = "greatest(convo_now(), (SELECT max(leased_until) FROM job WHERE seq = ANY($3::bigint[])))"
_AGAIN = "ON CONFLICT (erasure, kind, what) DO UPDATE SET due_at = greatest(untold.due_at, excluded.due_at)"
# By the user too, as memories.ERASE_MEMORIES. A service's ids have no spaces; the key of what has no id is its text.
_MEMORIES = f"""
INSERT INTO untold (erasure, service, kind, whose, what, due_at)
SELECT DISTINCT $1::bytea, $2::text, 'memory', {REMOTE_PREFIX} || m.user_id, m.key, {_DUE}
FROM memory m JOIN conversation c ON c.user_id = m.user_id
WHERE c.seq = ANY($3::bigint[]) AND (m.seq = c.seq OR m.last_seq = c.seq) AND m.key !~ '\\s'
{_AGAIN}
"""
_OUTLIVING = f"""
INSERT INTO untold (erasure, service, kind, whose, what)
SELECT $1::bytea, $2::text, 'memory', {remote_prefix("memory.tenant", "memory.user_id")} || user_id, key FROM memory
WHERE (seq = ANY($3::bigint[]) OR last_seq = ANY($3::bigint[])) AND key !~ '\\s'
{_AGAIN}
"""
_CONVERSATIONS = f"""
INSERT INTO untold (erasure, service, kind, whose, what, due_at)
SELECT $1::bytea, $2::text, 'conversation', {REMOTE_PREFIX} || user_id, {REMOTE_PREFIX} || conversation_id, {_DUE}
FROM conversation AS c WHERE seq = ANY($3::bigint[])
{_AGAIN}
"""
_USER = f"""
INSERT INTO untold (erasure, service, kind, whose, what, due_at)
SELECT $1::bytea, $2::text, 'user', {remote_prefix("$5::smallint", "$3::text")} || $3::text, '',
       greatest(convo_now(), (SELECT max(leased_until) FROM job WHERE seq = ANY($4::bigint[])))
{_AGAIN}
"""
# With the logs that stand in objects still.
_WAITING_FOR = f"""
SELECT service, count(*) FROM untold WHERE erasure = $1 GROUP BY service
UNION ALL SELECT '{OLD_LOGS}', count(*) FROM erased_log WHERE erasure = $1 HAVING count(*) > 0
"""
# untold_due: the first is tried the longest.
_WAITING = """
SELECT (SELECT count(*) FROM (SELECT FROM untold LIMIT $1) AS counted) AS count,
       coalesce((SELECT extract(epoch FROM convo_now() - made_at)::float8 FROM untold ORDER BY number LIMIT 1), 0)
           AS seconds,
       coalesce((SELECT last_error FROM untold ORDER BY number LIMIT 1), '') AS reason
"""
_TAKE = """
UPDATE untold SET due_at = convo_now() + make_interval(secs => $2)
WHERE number = (SELECT number FROM untold WHERE service = $1 AND due_at <= convo_now()
                ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING number, erasure, service, kind, whose, what, attempts
"""
_DELETE = "DELETE FROM untold WHERE number = $1 RETURNING number"
_FAILED = """
UPDATE untold SET attempts = attempts + 1, last_error = $2, due_at = convo_now() + make_interval(secs => $3)
WHERE number = $1
"""
_ANY_STORED = "SELECT EXISTS (SELECT FROM conversation WHERE user_id = $1 AND tenant = $2)"
# conversation_by_user
_STORED = """
SELECT $3::text || conversation_id AS remote_id FROM conversation
WHERE user_id = $1 AND tenant = $2 AND $3::text || conversation_id = ANY($4::text[])
"""
