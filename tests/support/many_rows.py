"""Fills a database with many conversations by SQL, in the shapes in which a backlog comes: for plans and sizes."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

import asyncpg
import msgspec
from msgspec import Struct

from convo.analysis.local import BY
from convo.analysis.part import PARTS, StoredFinding
from convo.analysis.scoring import score
from convo.conversation import transcript
from convo.conversation.decode import decode
from convo.conversation.model import Conversation
from convo.conversation.score import Weights
from convo.store import logs
from convo.store.outcomes import OutcomeDetails, PartRecord, pack_details
from convo.web.accept import make_accept
from scripts.seed_bodies import SAMPLES, read_bodies
from tests.support.receipts_by_sql import RECEIPTS

Shape = Literal["calm", "many", "one"]
SHAPES: tuple[Shape, ...] = ("calm", "many", "one")
"""``calm``: twenty jobs ready. ``many``: a fifth of all jobs ready, of many users. ``one``: the same of one user."""

HEAVY = "user-heavy"
"""The user that has a quarter of all conversations."""
_DAYS = 30
_AT = datetime(2026, 11, 22, 7, 0, 0, 123456, tzinfo=UTC)


class Sample(Struct, frozen=True, kw_only=True):
    """What the statements are asked about: rows from the middle, and what stands at the ends."""

    rows: int
    newest: int
    done: int
    ready: int
    dead: int
    leased: tuple[int, ...]
    tokens: tuple[int, ...]
    user: str
    conversation_id: str
    over_at: datetime
    ready_id: str


async def fill(connection: Any, rows: int, shape: Shape) -> Sample:
    """Make ``rows`` conversations with all that belongs to them in an empty database; return what to ask about."""
    open_from = rows - (20 if shape == "calm" else rows // 5)
    await connection.execute("SET synchronous_commit = off")
    for statement in _FILL:
        text = (
            statement.replace(":rows", str(rows))
            .replace(":open", str(open_from))
            .replace(":users", str(max(rows // 20, 20)))
            .replace(":one", str(shape == "one"))
            .replace(":rare", str(rows // 20 if shape == "calm" else 50))
        )
        await connection.execute(text, *([packed_details()] if "$1" in text else []))
    # VACUUM does not mark a page as visible to all while a commit of its rows is not on the disk: then index-only scans
    # read the table, more or less of it by chance. A commit that waits for the disk brings those before it there, too.
    await connection.execute("SET synchronous_commit = on")
    await connection.execute("SELECT pg_logical_emit_message(true, 'convo', '')")
    await connection.execute("VACUUM (ANALYZE)")
    return await _sample(connection, rows, open_from)


def packed_details() -> list[bytes]:
    """Make the details of outcomes: what the embedded analyst finds in the samples."""
    packed = []
    for body in read_bodies(SAMPLES):
        ended = make_accept(decode(msgspec.json.encode({**body, "expected": None})))
        turns = transcript.turns(logs.unpack(ended.body), ended.started_at or _AT, ended.ended_at or _AT)
        conversation = Conversation(
            conversation_id=body["conversation_id"], user_id="u", bot_id="b", digest="", turns=turns
        )
        found = {part.name: StoredFinding(part.analyst(conversation)) for part in PARTS}
        scored = score(ended.exchanges, found, Weights())
        records = tuple(
            PartRecord(name=name, made_by=BY, updated_at=_AT, result=msgspec.Raw(msgspec.json.encode(one.finding)))
            for name, one in found.items()
        )
        by = f"{uuid.uuid4().hex}.{uuid.uuid4().hex[:16]}"
        waits = {"db.log": 0.002, "db.part": 0.011}
        versions = {"weights_version": scored.weights_version, "breakdown": scored.breakdown}
        packed.append(pack_details(OutcomeDetails(by=by, waits=waits, parts=records, **versions)))
    return packed


async def _sample(connection: Any, rows: int, open_from: int) -> Sample:
    row = await connection.fetchrow(_SAMPLE, open_from, HEAVY)
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Sample(rows=rows, **found)


class Explained(Struct, frozen=True, kw_only=True):
    """What a statement cost when it was run: the buffers that it touched, its milliseconds, and its plan.

    ``rows`` were read from tables and indexes: of an index alone a buffer holds hundreds.
    """

    buffers: int
    rows: int
    milliseconds: float
    plan: str


async def explained(connection: Any, statement: str, values: tuple[object, ...]) -> Explained:
    """Run a statement and undo it; return what it cost."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}", *values)
    finally:
        await transaction.rollback()  # noqa: ASYNC102  (asyncpg, on asyncio)
    (found,) = json.loads(text)
    plan = found["Plan"]
    touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return Explained(
        buffers=touched, rows=_rows_read(plan), milliseconds=found["Execution Time"], plan=json.dumps(plan, indent=1)
    )


def _rows_read(node: Any) -> int:
    own = 0
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        a_loop = (
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        )
        own = round(a_loop * node["Actual Loops"])
    return own + sum(_rows_read(inner) for inner in node.get("Plans", ()))


async def connect(url: str) -> Any:
    """Open a connection."""
    return await asyncpg.connect(url)


_FILL = (
    """
    INSERT INTO conversation (conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
                              started_at, ended_at, received_at, turns, exchanges, log_hash)
    SELECT md5('talk-' || n)::uuid::text,
           CASE WHEN n % 4 = 0 OR (:one AND n > :open) THEN 'user-heavy' ELSE 'user-' || n % :users END,
           CASE WHEN n % (:rows / 20) = 0 THEN 'bot-rare' ELSE 'bot-' || n % 7 END,
           'Pika', 'TALK', 'companion', at, at, at, 12, 6, decode(md5(n::text), 'hex')
    FROM (SELECT n, now() - interval '30 days' * (1 - n::float8 / :rows) AS at FROM generate_series(1, :rows) AS n) AS g
    ORDER BY n
    """,
    RECEIPTS,
    "INSERT INTO conversation_log (seq, body) SELECT seq, decode(repeat(md5(seq::text), 4), 'hex') FROM conversation",
    """
    INSERT INTO outcome (seq, began_at, ended_at, score, attempts, crashes, emotion, details)
    SELECT seq, received_at, received_at, 9, 1, 0, CASE WHEN seq % 3 = 0 THEN 'happy' END,
           ($1::bytea[])[1 + seq % array_length($1::bytea[], 1)]
    FROM conversation WHERE seq <= :open AND seq % :rare <> 7 ORDER BY seq
    """,
    # One in a hundred of the ready jobs each is parked and delayed. Eight are leased, whatever the size.
    """
    INSERT INTO job (seq, fair_key, state, ended_at, attempts, available_at,
                     waits_for, parked_since, delayed, delayed_at, crashes,
                     lease_token, leased_at, leased_until, leased_by, lease_seconds, last_error)
    SELECT seq, user_id, state, CASE WHEN state = 'dead' THEN received_at END, 0, received_at,
           CASE WHEN state = 'ready' AND seq % 10 = 1 THEN 'llm' ELSE '' END,
           CASE WHEN state = 'ready' AND seq % 10 = 1 THEN received_at END,
           state = 'ready' AND seq % 10 = 3, CASE WHEN state = 'ready' AND seq % 10 = 3 THEN received_at END,
           CASE WHEN state = 'ready' AND seq BETWEEN :open + 9 AND :open + 10 THEN 2 ELSE 0 END,
           CASE WHEN state = 'leased' THEN seq END, CASE WHEN state = 'leased' THEN now() END,
           CASE WHEN state = 'leased' THEN now() + interval '1 day' END, CASE WHEN state = 'leased' THEN 'p1.x' END,
           CASE WHEN state = 'leased' THEN 86400 END, CASE WHEN state = 'dead' THEN 'llm: 400 of ' || seq END
    FROM (SELECT *, CASE WHEN seq > :open + 8 THEN 'ready' WHEN seq > :open THEN 'leased'
                         ELSE 'dead' END AS state
          FROM conversation WHERE seq > :open OR seq % :rare = 7) AS c
    ORDER BY seq
    """,
    """
    INSERT INTO part (seq, name, state, made_by, result)
    SELECT seq, name, 'done', 'local/1', '{"questions": []}'
    FROM job, unnest(ARRAY['questions', 'emotion', 'memories']) AS name
    WHERE waits_for <> '' ORDER BY seq
    """,
    """
    INSERT INTO run (seq, began_at, ended_at, ending, made_by)
    SELECT seq, coalesce(ended_at, available_at), coalesce(ended_at, available_at),
           CASE WHEN state = 'done' AND seq > :open - 8 THEN 'rescue' ELSE 'fail' END,
           CASE WHEN seq > :open - 8 THEN 'p0.w' ELSE 'p1.x' END
    FROM every_job
    WHERE state = 'dead' OR waits_for <> '' OR (state = 'done' AND (seq > :open - 8 OR seq % 20 = 0)) ORDER BY seq
    """,
    """
    INSERT INTO memory (user_id, key, kind, text, seq, last_seq, new_seq)
    SELECT user_id, 'key-' || seq, 'like', 'Likes tea', seq, seq, seq FROM conversation WHERE seq % 10 = 2 ORDER BY seq
    """,
    """
    INSERT INTO relationship (user_id, bot_id, score, conversations, last_emotion, last_seq)
    SELECT user_id, bot_id, sum(score), count(*), 'happy', max(seq)
    FROM conversation JOIN every_job USING (seq) WHERE state = 'done' GROUP BY user_id, bot_id
    """,
    """
    INSERT INTO ledger (day, kind, n, at)
    SELECT (received_at AT TIME ZONE 'UTC')::date, kind, count(*), max(received_at)
    FROM conversation JOIN every_job USING (seq), LATERAL (VALUES ('accepted'), (state)) AS booked (kind)
    WHERE kind IN ('accepted', 'done', 'dead') GROUP BY 1, 2
    """,
    """
    INSERT INTO process (name, folder, pid, host, connections_max) SELECT 'p' || n || '.x', 'p' || n, n, 'h', 9
    FROM generate_series(1, 3) AS n
    """,
    """
    INSERT INTO process_settings (name, settings, dependencies, takes_jobs, lease_seconds)
    VALUES ('p1.x', '{}', '{llm,memory}', true, 30)
    """,
    """
    INSERT INTO api_key (key_id, digest, name, scopes) SELECT 'key-' || n, 'x', 'k', '{read}'
    FROM generate_series(1, 5) AS n
    """,
    # Nearly all are reads, of one key and of a hundred users; of each other action there are a few, whatever the size.
    """
    INSERT INTO audit_log (action, key_id, address, target_kind, target, of_user)
    SELECT CASE WHEN seq % (:rows / 20) < 8 THEN
               (ARRAY['retry', 'acknowledge', 'key_made', 'key_rotated', 'key_revoked', 'restore', 'start', 'reload'])
               [1 + seq % (:rows / 20)] ELSE 'log_read' END,
           '5f0c9a7e3b1d', '192.0.2.7', 'conversation', decode(md5(seq::text), 'hex'),
           decode(md5((seq % 100)::text), 'hex')
    FROM conversation ORDER BY seq
    """,
    # Nearly all are numbered and confirmed; what is behind the cursors is as much in each database.
    """
    INSERT INTO event (salt, sequence, type, at, seq, conversation_id, user_id, bot_id, data)
    SELECT seq, CASE WHEN seq <= :rows - 20 THEN seq END, 'conversation.accepted', received_at, seq, conversation_id,
           user_id, bot_id, '{"turns": 12}'
    FROM conversation ORDER BY seq
    """,
    "UPDATE event_counter SET last_sequence = :rows - 20",
    """
    INSERT INTO webhook (webhook_id, url, types, bots, secret, state, cursor)
    SELECT 'wh_' || n, 'http://receiver.example/', '{}', '{}', 's', 'active', :rows - 100
    FROM generate_series(1, 3) AS n
    """,
    "INSERT INTO courier (name, cursor, leased_until) VALUES ('rabbitmq', :rows - 100, convo_now() + '1 hour')",
    "INSERT INTO webhook_aside (webhook_id, number) SELECT 'wh_2', seq FROM conversation WHERE seq <= :rows - 100",
    """
    INSERT INTO webhook_attempt (webhook_id, event_id, status, answer, seconds)
    SELECT 'wh_' || 1 + seq % 2, seq || '-0', 204, '', 0.1 FROM conversation ORDER BY seq
    """,
    "INSERT INTO part_ticket (seq, name, ticket) SELECT seq, 'memories', 't' FROM job WHERE state = 'leased'",
    """
    INSERT INTO part_cost (seq, call, part, made_by, tokens_in, tokens_out, tokens_cached, nano)
    SELECT seq, seq, part, 'm/1', 700, 20, 0, 5000
    FROM conversation, unnest(ARRAY['questions', 'emotion']) AS part ORDER BY seq
    """,
)
_SAMPLE = """
SELECT (SELECT max(seq) FROM conversation) AS newest,
       (SELECT max(seq) FROM outcome WHERE seq < $1 * 2 / 3) AS done,
       (SELECT min(seq) FROM job WHERE state = 'ready' AND NOT delayed AND waits_for = '' AND crashes < 2
        AND seq > $1 + 15) AS ready,
       (SELECT max(seq) FROM job WHERE state = 'dead' AND seq < $1 * 2 / 3) AS dead,
       (SELECT array_agg(seq ORDER BY seq) FROM job WHERE state = 'leased') AS leased,
       (SELECT array_agg(lease_token ORDER BY seq) FROM job WHERE state = 'leased') AS tokens,
       (SELECT user_id FROM conversation WHERE user_id <> $2 AND seq < $1 / 2 ORDER BY seq DESC LIMIT 1) AS user,
       (SELECT conversation_id FROM conversation WHERE seq = $1 / 2) AS conversation_id,
       (SELECT received_at FROM conversation WHERE seq = $1 / 2) AS over_at,
       (SELECT conversation_id FROM conversation WHERE seq = (
           SELECT max(seq) FROM job WHERE state = 'ready' AND NOT delayed AND waits_for = '' AND crashes < 2))
       AS ready_id
"""
