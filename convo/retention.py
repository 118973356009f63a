"""Retention: finds what is over, a page at a time, and removes it in the transaction that books it.

Open it to change what is over, or what goes with what. When it may run is decided in ``retention_keeper``.

Over is only what has ended. An analysed conversation goes by its receipt, with its log, parts and runs; its log and its
runs may go sooner. A dead letter goes by its death, with all that it has: until then somebody may retry it. Of both the
receipt stays, and says that the content has expired. Scores stay in the relationship, which notes how much of it comes
from rows that are gone. A memory goes when no conversation has spoken of it for so long.

A page is found by an index, in its order, and begins behind the one before it. What stays is passed over.

Logs and runs lie in partitions by month. A month that is over as a whole goes by itself (``retention_months``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from msgspec import Struct

from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import tenant_of
from convo.settings import RetentionSettings
from convo.store import ledger
from convo.store.costs import ERASE_COSTS
from convo.store.installation_key import read_installation_key
from convo.store.intake import ERASE_CONVERSATIONS, ERASE_PREFIXES
from convo.store.job_sql import QUEUED
from convo.store.jobs.part_jobs import ERASE_PART_JOBS
from convo.store.jobs.parts import ERASE_PARTS
from convo.store.jobs.reruns import ERASE_CANDIDATES
from convo.store.jobs.runs import ERASE_RUNS
from convo.store.jobs.table import ERASE_JOBS
from convo.store.jobs.tickets import ERASE_TICKETS
from convo.store.logs import LogStore
from convo.store.months import DROPPED_TABLES, MONTH_TABLES, MonthTable
from convo.store.outcomes import ERASE_OUTCOMES, hold_ended
from convo.store.postgres import Connection
from convo.store.process_programs import OlderProcess, older_processes
from convo.store.reaching import TENANT_NAME

RetiredKind = Literal["conversations", "dead_letters", "logs", "runs", "memories", "audit_rows"]
PassName = Literal["conversations", "memories", "audit_log"]

RETIRED_ROWS_MAX = 500
"""So many rows are looked at in one transaction at most."""

MIGRATION = 22
"""Programs that do not know it would take what was retired for lost."""

# One process at a time removes what is over.
_LOCK = 0x636F6E766F_06


class Over(Struct, frozen=True, kw_only=True):
    """What one page holds that is over; ``position`` is where the next page begins, None behind the last one.

    ``ended`` are conversations with the state and the end that they were judged by. ``logs`` are conversations too, and
    ``runs`` such with the time before which runs are over. ``memories`` come with the conversation that spoke last.
    """

    position: tuple[Any, ...] | None
    ended: Sequence[tuple[int, str, datetime | None]] = ()
    logs: Sequence[int] = ()
    runs: Sequence[tuple[int, datetime]] = ()
    memories: Sequence[tuple[int, int]] = ()
    audit_rows: Sequence[int] = ()


FindOver = Callable[[Connection, RetentionSettings, tuple[Any, ...] | None, int], Awaitable[Over]]


def passes(settings: RetentionSettings) -> dict[PassName, FindOver]:
    """Return what has to be looked through by these settings: nothing where all days are 0."""
    found: dict[PassName, FindOver] = {}
    if settings.shortest(*_OF_CONVERSATIONS):
        found["conversations"] = find_conversations
    if settings.shortest("memories_days"):
        found["memories"] = find_memories
    if settings.shortest("audit_log_days"):
        found["audit_log"] = find_audit_rows
    return found


async def take_turn(connection: Connection) -> bool:
    """Return whether this transaction may remove something: no other one does, and no job waits for a worker.

    A job that has been due for less than a second is one that a worker is about to take.
    """
    return bool(await connection.fetchval(ledger.TRY_LOCK, _LOCK)) and not await connection.fetchval(_LIVE_WAITS)


async def held_back_by(connection: Connection) -> Sequence[OlderProcess]:
    """Read which processes are at work whose program would take what is retired for lost."""
    return await older_processes(connection, MIGRATION)


# --- what is over


async def find_conversations(
    connection: Connection, settings: RetentionSettings, position: tuple[Any, ...] | None, rows: int
) -> Over:
    """Look at the next conversations by the time of their receipt, as far back as the shortest of the days."""
    after, seq = position or (_FIRST, 0)
    waiting = _waiting(settings)
    page = await connection.fetch(_CONVERSATIONS, after, 24 * settings.shortest(*_OF_CONVERSATIONS), seq, rows)
    ended, logs, runs = [], [], []
    for row in page:
        days = settings.of(row["tenant_name"], row["bot_id"])
        if row["user_id"] == CANARY_USER:
            continue
        if row["state"] == "dead" and _is_over(row["ended_at"], days.dead_days, row["now"]):
            ended.append((row["seq"], "dead", row["ended_at"]))
        # Of one whose newer revision is not analysed yet, the score has to stay: it is what that one's replaces.
        if row["state"] not in ("done", "superseded") or row["awaited"]:
            continue
        log_goes, runs_go = (table not in waiting or table in row["dropped"] for table in MONTH_TABLES)
        if _is_over(row["received_at"], days.conversations_days, row["now"]):
            if log_goes and runs_go:
                ended.append((row["seq"], row["state"], row["ended_at"]))
            continue
        if log_goes and not row["log_retired"] and _is_over(row["received_at"], days.logs_days, row["now"]):
            logs.append(row["seq"])
        if runs_go and _is_over(row["received_at"], days.runs_days, row["now"]):
            runs.append((row["seq"], row["now"] - timedelta(days=days.runs_days)))
    last = (page[-1]["received_at"], page[-1]["seq"]) if len(page) == rows else None
    return Over(position=last, ended=ended, logs=logs, runs=runs)


def _waiting(settings: RetentionSettings) -> set[MonthTable]:
    """Return the tables whose rows, with ``whole_months``, wait until their month goes."""
    days: Mapping[MonthTable, int] = {
        "conversation_log": settings.days_of_month("logs_days"),
        "run": settings.days_of_month("runs_days"),
    }
    return {table for table in MONTH_TABLES if settings.whole_months and days[table]}


async def find_memories(
    connection: Connection, settings: RetentionSettings, position: tuple[Any, ...] | None, rows: int
) -> Over:
    """Look at the next memories, oldest first, as far as any of them can be over."""
    (after,) = position or (0,)
    page = await connection.fetch(_MEMORIES, after, 24 * settings.shortest("memories_days"), rows)
    over = [
        (row["memory_seq"], row["last_seq"])
        for row in page
        if row["over"] and _is_over(row["said_at"], settings.of(row["tenant_name"]).memories_days, row["now"])
    ]
    more = len(page) == rows and page[-1]["old"]
    return Over(position=(page[-1]["memory_seq"],) if more else None, memories=over)


async def find_audit_rows(
    connection: Connection, settings: RetentionSettings, position: tuple[Any, ...] | None, rows: int
) -> Over:
    """Look at the next rows of the audit log, oldest first, as far as any of them can be over."""
    (after,) = position or (0,)
    page = await connection.fetch(_AUDIT_ROWS, after, 24 * settings.shortest("audit_log_days"), rows)
    over = [
        row["number"] for row in page if _is_over(row["at"], settings.of(row["tenant_name"]).audit_log_days, row["now"])
    ]
    more = len(page) == rows and page[-1]["over"]
    return Over(position=(page[-1]["number"],) if more else None, audit_rows=over)


def _is_over(since: datetime, days: int, now: datetime) -> bool:
    return days > 0 and since < now - timedelta(days=days)


# --- counting and removing


async def count_over(connection: Connection, over: Over) -> dict[RetiredKind, int]:
    """Count what ``retire`` would remove."""
    runs = await connection.fetchval(_COUNT_RUNS, *_columns(over.runs)) if over.runs else 0
    dead = sum(state == "dead" for _, state, _ in over.ended)
    return {
        "conversations": len(over.ended) - dead,
        "dead_letters": dead,
        "logs": len(over.logs),
        "runs": runs,
        "memories": len(over.memories),
        "audit_rows": len(over.audit_rows),
    }


async def retire(connection: Connection, over: Over) -> dict[RetiredKind, int]:
    """Remove what is over and book it, in the caller's transaction; return how much.

    A job is locked first, and judged again by what it then says: a dead letter may have been retried meanwhile. What
    another transaction has locked is left for the next pass.
    """
    judged = {seq: (state, at) for seq, state, at in over.ended}
    wanted = {*judged, *over.logs, *(seq for seq, _ in over.runs)}
    held = {row["seq"]: row for row in await hold_ended(connection, sorted(wanted))} if wanted else {}
    ended = [seq for seq, as_judged in judged.items() if seq in held and _state(held[seq]) == as_judged]
    if ended:
        # A newer revision may have come, too.
        awaited = {row["seq"] for row in await connection.fetch(_AWAITED_AMONG, ended)}
        ended = [seq for seq in ended if seq not in awaited]
    if ended:
        await _retire_conversations(connection, ended)
    logs = [seq for seq in over.logs if seq in held]
    if logs:
        await connection.execute(_MARK_LOGS, logs)
        await connection.execute(LogStore.ERASE, logs)
    runs = [one for one in over.runs if one[0] in held]
    dead = sum(judged[seq][0] == "dead" for seq in ended)
    return {
        "conversations": len(ended) - dead,
        "dead_letters": dead,
        "logs": len(logs),
        "runs": _rows(await connection.execute(_RETIRE_RUNS, *_columns(runs))) if runs else 0,
        "memories": _rows(await connection.execute(_RETIRE_MEMORIES, *_columns(over.memories))) if over.memories else 0,
        "audit_rows": _rows(await connection.execute(_RETIRE_AUDIT_ROWS, over.audit_rows)) if over.audit_rows else 0,
    }


async def _retire_conversations(connection: Connection, seqs: Sequence[int]) -> None:
    # Whose they were is kept as an HMAC: an erasure of the user finds their receipts.
    key = await read_installation_key(connection)
    users = {
        row["seq"]: key.hmac_of("user", tenant_of(row["tenant"], row["tenant_name"]).own(row["user_id"]))
        for row in await connection.fetch(_USERS, seqs)
    }
    await connection.execute(_EXPIRE_RECEIPTS, list(users), list(users.values()))
    await connection.execute(ledger.BOOK_RETIRED, seqs)
    await connection.execute(_HOLD_RELATIONSHIPS, seqs)
    await connection.execute(_NOTE_SCORES, seqs)
    of_job = (
        ERASE_PARTS,
        ERASE_PART_JOBS,
        ERASE_TICKETS,
        ERASE_RUNS,
        ERASE_JOBS,
        ERASE_OUTCOMES,
        ERASE_PREFIXES,
        ERASE_CANDIDATES,
    )
    for statement in (*of_job, LogStore.ERASE, ERASE_CONVERSATIONS, ERASE_COSTS):
        await connection.execute(statement, seqs)


def _state(row: Mapping[str, Any]) -> tuple[str, datetime | None]:
    return row["state"], row["ended_at"]


def _columns(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _rows(tag: str) -> int:
    return int(tag.rpartition(" ")[2])


_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_OF_CONVERSATIONS = ("logs_days", "conversations_days", "runs_days", "dead_days")
# job_queued: its first row.
_LIVE_WAITS = f"""
SELECT coalesce(min(available_at) < convo_now() - interval '1 second', false) FROM job WHERE {QUEUED}
"""
# Whether ``conversation AS c`` has a newer revision whose score is to take the place of its own.
_AWAITED = """
    (c.revised_by IS NOT NULL AND c.replaced IS NOT TRUE
     AND EXISTS (SELECT FROM job AS newer WHERE newer.seq = c.revised_by))
"""
_AWAITED_AMONG = f"SELECT seq FROM conversation AS c WHERE seq = ANY($1::bigint[]) AND {_AWAITED}"
# conversation_by_time; a batch of accepts has one time. OFFSET 0: one look-up for each, whatever the planner thinks.
_TENANT_NAME = TENANT_NAME.format("nullif(c.tenant, 0)")
_CONVERSATIONS = f"""
SELECT c.seq, c.received_at, c.user_id, c.bot_id, {LogStore.RETIRED}, {DROPPED_TABLES}, job.state,
       job.ended_at, job.state = 'done' AND {_AWAITED} AS awaited, convo_now() AS now, {_TENANT_NAME} AS tenant_name
FROM (
    SELECT seq, received_at, user_id, bot_id, log_retired, tenant, revised_by, replaced FROM conversation
    WHERE received_at >= $1 AND received_at < convo_now() - make_interval(hours => $2)
      AND (received_at, seq) > ($1, $3::bigint)
    ORDER BY received_at, seq LIMIT $4
) AS c LEFT JOIN LATERAL (SELECT state, ended_at FROM every_job WHERE seq = c.seq OFFSET 0) AS job ON true
ORDER BY c.received_at, c.seq
"""
# The receipt of the conversation that spoke of it last says when that was, also where that one is gone.
_MEMORIES = f"""
SELECT c.memory_seq, c.last_seq, c.old, c.old AND coalesce(said.received_at < c.before, true) AS over,
       coalesce(said.received_at, c.first_seen_at) AS said_at, convo_now() AS now, {_TENANT_NAME} AS tenant_name
FROM (
    SELECT memory_seq, coalesce(last_seq, seq) AS last_seq, first_seen_at < before AS old, before, first_seen_at, tenant
    FROM memory, (SELECT convo_now() - make_interval(hours => $2) AS before) AS time
    WHERE memory_seq > $1 ORDER BY memory_seq LIMIT $3
) AS c LEFT JOIN LATERAL (SELECT received_at FROM receipt WHERE seq = c.last_seq OFFSET 0) AS said ON true
ORDER BY c.memory_seq
"""
_AUDIT_ROWS = f"""
SELECT number, at, at < convo_now() - make_interval(hours => $2) AS over, convo_now() AS now,
       {_TENANT_NAME} AS tenant_name
FROM audit_log AS c WHERE number > $1 ORDER BY number LIMIT $3
"""
_USERS = f"""
SELECT seq, user_id, tenant, {_TENANT_NAME} AS tenant_name FROM conversation AS c WHERE seq = ANY($1::bigint[])
"""
_EXPIRE_RECEIPTS = """
UPDATE receipt SET state = 'x', user_hmac = gone.user_hmac
FROM unnest($1::bigint[], $2::bytea[]) AS gone (seq, user_hmac) WHERE receipt.seq = gone.seq
"""
_GONE = """
    SELECT user_id, bot_id, c.tenant, sum(job.score)::bigint AS score, count(*)::integer AS conversations
    FROM conversation c JOIN every_job AS job USING (seq)
    WHERE seq = ANY($1::bigint[]) AND state = 'done' AND replaced IS NOT TRUE GROUP BY user_id, bot_id, c.tenant
"""
# In the order in which settlers lock them.
_HOLD_RELATIONSHIPS = f"""
SELECT FROM ({_GONE}) AS gone JOIN relationship AS r USING (user_id, bot_id, tenant)
ORDER BY user_id, bot_id FOR UPDATE OF r
"""
_NOTE_SCORES = f"""
UPDATE relationship AS r SET retired_score = coalesce(r.retired_score, 0) + gone.score,
                             retired_conversations = coalesce(r.retired_conversations, 0) + gone.conversations
FROM ({_GONE}) AS gone WHERE r.user_id = gone.user_id AND r.bot_id = gone.bot_id AND r.tenant = gone.tenant
"""
_MARK_LOGS = "UPDATE conversation SET log_retired = true WHERE seq = ANY($1::bigint[])"
_RUNS_OVER = """
    unnest($1::bigint[], $2::timestamptz[]) AS over (seq, before)
    WHERE run.seq = over.seq AND run.ended_at < over.before
"""
_COUNT_RUNS = f"SELECT count(*) FROM run, {_RUNS_OVER}"
_RETIRE_RUNS = f"DELETE FROM run USING {_RUNS_OVER}"
# Not where a conversation has spoken of it since. Skipped where one just does: it locks its rows in another order.
_RETIRE_MEMORIES = """
DELETE FROM memory WHERE memory_seq = ANY(ARRAY(
    SELECT m.memory_seq FROM memory AS m
    JOIN unnest($1::bigint[], $2::bigint[]) AS over (memory_seq, last_seq) ON m.memory_seq = over.memory_seq
    WHERE coalesce(m.last_seq, m.seq) = over.last_seq FOR UPDATE OF m SKIP LOCKED))
"""
_RETIRE_AUDIT_ROWS = "DELETE FROM audit_log WHERE number = ANY($1::bigint[])"
