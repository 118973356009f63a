"""Which due jobs are leased next: by turns, so that nobody's many hold up anybody's few; it knows no worker.

Between two jobs of one key (``fairness.key``, by default the user) every other key with a due job has its turn. The
keys are found by a skip scan: one probe of the index a key, however many rows it has. A window function over all
ready rows would read them all. A key's jobs come oldest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from convo.store.postgres import Connection
from convo.store.states import SUSPECT_AT

Row = Mapping[str, Any]


async def take(  # noqa: PLR0913  (who, how many, for how long, and whose turn it is)
    connection: Connection, count: int, *, owner: str, lease_seconds: float, after: str, lines: Sequence[str]
) -> list[Row]:
    """Lease up to ``count`` due jobs, the keys ``after`` the one served last first; return them in the order of turns.

    ``lines`` are the values of ``waits_for`` that may go on, in the order in which a key's own jobs come.
    """
    await connection.execute(_COME_DUE)
    rows = await connection.fetch(_LEASE, count, owner, lease_seconds, after, list(lines))
    return in_turns(rows, after)


async def take_suspect(connection: Connection, *, owner: str, lease_seconds: float, lines: Sequence[str]) -> list[Row]:
    """Lease the suspect that is due longest, if there is one."""
    return await connection.fetch(_LEASE_SUSPECT, 1, owner, lease_seconds, list(lines))


def in_turns(rows: Sequence[Row], after: str) -> list[Row]:
    """Put leased rows into the order of turns: the first of each key, keys after ``after`` first, then the second."""
    of_key: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["available_at"], row["seq"])):
        of_key[row["fair_key"]].append(row)
    keys = sorted(of_key, key=lambda key: (key.encode() <= after.encode(), key.encode()))
    rounds = max(map(len, of_key.values()), default=0)
    return [of_key[key][turn] for turn in range(rounds) for key in keys if turn < len(of_key[key])]


_DUE = f"state = 'ready' AND NOT delayed AND crashes < {SUSPECT_AT}"
_COME_DUE = """
UPDATE job SET delayed = false WHERE seq = ANY(ARRAY(
    SELECT seq FROM job WHERE state = 'ready' AND delayed AND available_at <= convo_now()
    ORDER BY available_at LIMIT 1000 FOR UPDATE SKIP LOCKED))
"""


def _next_key(condition: str) -> str:
    """Write the search for the smallest key of a due job that satisfies ``condition``, one index probe a line."""
    return f"""(
        SELECT min(probe.fair_key) FROM unnest($5::text[]) AS line (waits_for), LATERAL (
            SELECT fair_key FROM job WHERE {_DUE} AND job.waits_for = line.waits_for AND {condition}
            ORDER BY fair_key LIMIT 1) AS probe)"""


# By chance, not by counting: a crash of the database that forgets a lease would forget the count, too, and give the
# same number again. 53 bits are what random() has.
_CHANCE = "1 + floor(random() * 9007199254740991)::bigint"
_TAKEN = f"""
    UPDATE job SET state = 'leased', lease_token = {_CHANCE}, leased_by = $2,
                   leased_at = convo_now(), leased_until = convo_now() + make_interval(secs => $3)
    WHERE seq = ANY(ARRAY(SELECT seq FROM due))
    RETURNING seq, lease_token, attempts, crashes, fair_key, available_at, waits_for
"""
_LEASED = """
SELECT taken.*, c.conversation_id, c.user_id, c.bot_id, c.digest, c.started_at, c.ended_at, c.exchanges
FROM taken JOIN conversation c USING (seq)
"""
_LEASE = f"""
WITH RECURSIVE ahead (key, n) AS (
    SELECT {_next_key("fair_key > $4")}, 1
    UNION ALL SELECT {_next_key("fair_key > ahead.key")}, n + 1 FROM ahead WHERE key IS NOT NULL AND n < $1
), behind (key, n) AS (
    SELECT {_next_key("fair_key <= $4")}, 1
    UNION ALL SELECT {_next_key("fair_key > behind.key AND fair_key <= $4")}, n + 1
    FROM behind WHERE key IS NOT NULL AND n < $1
), keys AS (
    SELECT key FROM (SELECT key FROM ahead UNION ALL SELECT key FROM behind) AS found WHERE key IS NOT NULL LIMIT $1
), share (jobs) AS (
    SELECT ($1 + count(*) - 1) / greatest(count(*), 1) FROM keys
), due AS (
    SELECT mine.seq FROM keys, LATERAL (
        SELECT one.seq FROM unnest($5::text[]) AS line (waits_for), LATERAL (
            SELECT seq FROM job WHERE {_DUE} AND job.waits_for = line.waits_for AND fair_key = keys.key
            ORDER BY available_at, seq LIMIT (SELECT jobs FROM share) FOR UPDATE SKIP LOCKED) AS one
        LIMIT (SELECT jobs FROM share)) AS mine
    LIMIT $1
), taken AS ({_TAKEN}) {_LEASED}
"""
_LEASE_SUSPECT = f"""
WITH due AS (
    SELECT seq FROM job
    WHERE state = 'ready' AND NOT delayed AND crashes >= {SUSPECT_AT} AND waits_for = ANY($4::text[])
    ORDER BY available_at, seq LIMIT $1 FOR UPDATE SKIP LOCKED
), taken AS ({_TAKEN}) {_LEASED}
"""
