"""The audit: whether the tables agree with each other, row by row; the ledger's own comparison stands in ``ledger``.

Open it to look for something else that must not be. It reads everything, in pages: each is one statement with a
deadline of its own, so that an audit ends at every size, and holds no snapshot for longer than a page takes.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from convo.store.ledger import COMPARE_SECONDS, UNBOUND
from convo.store.months import DROPPED_LOG, first_seq_of_next
from convo.store.postgres import RELAXED, Connection, DedicatedConnection

PAGE_ROWS = 100_000
"""So many conversations are looked at in one statement, by their ``seq``: a quarter of a second each."""
PAGE_USERS = 2_000
"""So many relationships are looked at in one statement, by their users."""
_EXAMPLES_MAX = 10


class Anomaly(Struct, frozen=True, kw_only=True):
    """Rows that should not be there, or are missing; ``examples`` are at most ten of their ids or numbers."""

    what: str
    count: int
    examples: tuple[str, ...]


async def anomalies(dedicated: DedicatedConnection) -> list[Anomaly]:
    """Look for missing logs and receipts, orphans, and relationships that are not the sum of their scores."""
    found: dict[str, Anomaly] = {}
    pages = await _pages(dedicated)
    for what, query in _BY_SEQ.items():
        for first, last in pages:
            await _look(dedicated, found, what, query, first, last)
    for what, query in _WHOLE.items():
        await _look(dedicated, found, what, query)
    after = ""
    while after is not None:
        last = await _value(dedicated, _LAST_USER, after, PAGE_USERS)
        await _look(dedicated, found, _UNEQUAL, _SUMS, after, last)
        after = last
    return list(found.values())


async def _pages(dedicated: DedicatedConnection) -> list[tuple[int, int]]:
    """List the pages: each begins behind a number, and ends with one. Between two months lie billions of no numbers."""
    pages, first = [], 0
    while (oldest := await _value(dedicated, _OLDEST_SEQ, first)) is not None:
        border = first_seq_of_next(oldest)
        newest = await _value(dedicated, _NEWEST_SEQ, border)
        pages += [(after, min(after + PAGE_ROWS, border - 1)) for after in range(oldest - 1, newest, PAGE_ROWS)]
        first = border
    return pages


async def _look(
    dedicated: DedicatedConnection, found: dict[str, Anomaly], what: str, query: str, *values: object
) -> None:
    """Run one page, and add what it finds."""

    async def body(connection: Connection) -> Any:
        await connection.execute(UNBOUND)
        return await connection.fetchrow(_EXAMPLES.format(query), *values)

    row = await dedicated.run("db.audit", body, begin=RELAXED, seconds=COMPARE_SECONDS)
    if row["n"]:
        before = found.get(what, Anomaly(what=what, count=0, examples=()))
        examples = (*before.examples, *row["examples"])[:_EXAMPLES_MAX]
        found[what] = Anomaly(what=what, count=before.count + row["n"], examples=examples)


async def _value(dedicated: DedicatedConnection, query: str, *values: object) -> Any:
    async def body(connection: Connection) -> Any:
        return await connection.fetchval(query, *values)

    return await dedicated.run("db.audit", body, begin=RELAXED, seconds=COMPARE_SECONDS)


_EXAMPLES = f"SELECT count(*) AS n, (array_agg(name))[1:{_EXAMPLES_MAX}] AS examples FROM ({{}}) AS odd"
_TABLES = (
    *("receipt", "conversation", "conversation_log", "log_prefix", "job", "outcome"),
    *("part", "part_job", "part_cost", "run"),
)
_OLDEST_SEQ = f"SELECT least({', '.join(f'(SELECT min(seq) FROM {name} WHERE seq >= $1)' for name in _TABLES)})"
_NEWEST_SEQ = f"SELECT greatest({', '.join(f'(SELECT max(seq) FROM {name} WHERE seq < $1)' for name in _TABLES)})"
_BY_SEQ = {
    # The hash, too, is made again: a receipt under another hash would let its id be stored a second time.
    "conversations without their receipt": """
        SELECT conversation_id AS name FROM conversation c LEFT JOIN tenant ON tenant.number = c.tenant
        WHERE c.seq > $1 AND c.seq <= $2
          AND NOT EXISTS (
              SELECT FROM receipt r WHERE r.seq = c.seq AND r.seq > $1 AND r.seq <= $2 AND r.state = ''
                AND (r.turns, r.received_at) = (c.turns, c.received_at)
                AND r.id_hash = CASE
                    WHEN c.revised_by IS NULL THEN convo_id_hash(tenant.name, c.conversation_id)
                    ELSE substring(sha256(convert_to(format('revision %s:',
                        coalesce(convert_from(r.notes, 'UTF8')::json ->> 'revision', '1')), 'UTF8')
                        || convo_id_hash(tenant.name, c.conversation_id)) FROM 1 FOR 16) END)""",
    # What has expired keeps its receipt; that one says so.
    "receipts without a conversation": """
        SELECT seq::text AS name FROM receipt r
        WHERE r.seq > $1 AND r.seq <= $2 AND r.state = ''
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = r.seq AND c.seq > $1 AND c.seq <= $2)""",
    "conversations without a log": f"""
        SELECT conversation_id AS name FROM conversation c
        WHERE c.seq > $1 AND c.seq <= $2 AND c.log_retired IS NOT TRUE AND NOT {DROPPED_LOG}
          AND NOT EXISTS (SELECT FROM conversation_log l WHERE l.seq = c.seq AND l.seq > $1 AND l.seq <= $2)""",
    "conversations without a job": """
        SELECT conversation_id AS name FROM conversation c
        WHERE c.seq > $1 AND c.seq <= $2
          AND NOT EXISTS (SELECT FROM job WHERE job.seq = c.seq AND job.seq > $1 AND job.seq <= $2)
          AND NOT EXISTS (SELECT FROM outcome o WHERE o.seq = c.seq AND o.seq > $1 AND o.seq <= $2)""",
    "older revisions without a newer one": """
        SELECT seq::text AS name FROM conversation c
        WHERE c.seq > $1 AND c.seq <= $2 AND c.revised_by IS NOT NULL
          AND NOT EXISTS (SELECT FROM receipt r WHERE r.seq = c.revised_by)""",
    "jobs that are open and have an outcome": """
        SELECT seq::text AS name FROM job
        WHERE job.seq > $1 AND job.seq <= $2
          AND EXISTS (SELECT FROM outcome o WHERE o.seq = job.seq AND o.seq > $1 AND o.seq <= $2)""",
    # As the trigger job_rules (0040) keeps it of updates. Beside older programs, done jobs may stand here (0019).
    "jobs in a state that cannot be": """
        SELECT seq::text AS name FROM job
        WHERE job.seq > $1 AND job.seq <= $2
          AND (state NOT IN ('ready', 'leased', 'done', 'dead', 'superseded')
               OR (state = 'leased') <> (lease_token IS NOT NULL)
               OR (state IN ('done', 'dead')) <> (ended_at IS NOT NULL)
               OR (reviewed_at IS NOT NULL AND state <> 'dead')
               OR (waits_for <> '' AND parked_since IS NULL))""",
    "receipts in a state that there is not": """
        SELECT seq::text AS name FROM receipt r
        WHERE r.seq > $1 AND r.seq <= $2 AND r.state NOT IN ('', 'x', 'e')""",
    "logs that are stored and count as expired": """
        SELECT conversation_id AS name FROM conversation c
        WHERE c.seq > $1 AND c.seq <= $2 AND c.log_retired
          AND EXISTS (SELECT FROM conversation_log l WHERE l.seq = c.seq AND l.seq > $1 AND l.seq <= $2)""",
    "logs without a conversation": """
        SELECT seq::text AS name FROM conversation_log l
        WHERE l.seq > $1 AND l.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = l.seq AND c.seq > $1 AND c.seq <= $2)""",
    "logs that refer to an object that is not stored": """
        SELECT seq::text AS name FROM conversation_log l
        WHERE l.seq > $1 AND l.seq <= $2 AND l.storage_ref IS NOT NULL
          AND NOT EXISTS (
              SELECT FROM log_object o WHERE o.name = split_part(l.storage_ref, ':', 1) AND o.state = 'stored')""",
    "jobs without a conversation": """
        SELECT seq::text AS name FROM job
        WHERE job.seq > $1 AND job.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = job.seq AND c.seq > $1 AND c.seq <= $2)""",
    "outcomes without a conversation": """
        SELECT seq::text AS name FROM outcome o
        WHERE o.seq > $1 AND o.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = o.seq AND c.seq > $1 AND c.seq <= $2)""",
    "digests of logs without a conversation": """
        SELECT seq::text AS name FROM log_prefix p
        WHERE p.seq > $1 AND p.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = p.seq AND c.seq > $1 AND c.seq <= $2)""",
    "parts without a conversation": """
        SELECT seq::text || ' ' || name AS name FROM part
        WHERE part.seq > $1 AND part.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = part.seq AND c.seq > $1 AND c.seq <= $2)""",
    "part jobs without a conversation": """
        SELECT seq::text || ' ' || name AS name FROM part_job
        WHERE part_job.seq > $1 AND part_job.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = part_job.seq AND c.seq > $1 AND c.seq <= $2)""",
    "costs without a conversation": """
        SELECT DISTINCT seq::text AS name FROM part_cost
        WHERE part_cost.seq > $1 AND part_cost.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = part_cost.seq AND c.seq > $1 AND c.seq <= $2)""",
    "runs without a conversation": """
        SELECT DISTINCT seq::text AS name FROM run
        WHERE run.seq > $1 AND run.seq <= $2
          AND NOT EXISTS (SELECT FROM conversation c WHERE c.seq = run.seq AND c.seq > $1 AND c.seq <= $2)""",
}
# The days are found by one probe of conversation_by_time each; of job_apart the few leased rows are read.
_WHOLE = {
    "days with conversations that were never booked": """
        WITH RECURSIVE days (day) AS (
            SELECT (min(received_at) AT TIME ZONE 'UTC')::date FROM conversation
            UNION ALL
            SELECT (SELECT (min(received_at) AT TIME ZONE 'UTC')::date FROM conversation
                    WHERE received_at >= (day + 1)::timestamp AT TIME ZONE 'UTC')
            FROM days WHERE day IS NOT NULL
        )
        SELECT day::text AS name FROM days
        WHERE day IS NOT NULL AND NOT EXISTS (SELECT FROM ledger WHERE ledger.day = days.day)""",
    "leases that ended over five minutes ago": """
        SELECT seq::text AS name FROM job
        WHERE state = 'leased' AND leased_until < convo_now() - interval '5 minutes'""",
}
_LAST_USER = "SELECT user_id FROM relationship WHERE user_id > $1 ORDER BY user_id OFFSET $2 LIMIT 1"
_UNEQUAL = "relationships that are not the sum of their scores"
# What was retired stands in the relationship itself. By users, those above $1 up to $2; the last page has no end.
# conversation_by_user, and the relationships' own key.
_SUMS = """
    SELECT coalesce(r.user_id, s.user_id) || ' ' || coalesce(r.bot_id, s.bot_id) AS name
    FROM (SELECT * FROM relationship WHERE user_id > $1 AND ($2::text IS NULL OR user_id <= $2)) AS r
    FULL JOIN (
        SELECT user_id, bot_id, tenant, sum(score) AS score, count(*) AS conversations
        FROM conversation JOIN every_job USING (seq)
        WHERE state = 'done' AND replaced IS NOT TRUE AND user_id > $1 AND ($2::text IS NULL OR user_id <= $2)
        GROUP BY user_id, bot_id, tenant
    ) AS s USING (user_id, bot_id, tenant)
    WHERE r.conversations = 0 OR (r.score, r.conversations) IS DISTINCT FROM (
        coalesce(s.score, 0) + coalesce(r.retired_score, 0),
        coalesce(s.conversations, 0) + coalesce(r.retired_conversations, 0))"""
