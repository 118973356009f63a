"""Re-runs: which conversations a part is found for again, and who works on each.

Open it to change which conversations a re-run looks at, or how its work is shared out. What is found is a candidate: it
stands beside the current result, and changes nothing before it is promoted (``store/jobs/promotion.py``).

One re-run of a part is open at a time. Any number of processes work on it: each takes a few conversations for a while,
under a token that every write of its taker names, and renews that. Whoever is silent for longer has lost them. The next
conversations are looked at when there is nothing left to take: a re-run of millions has a few hundred rows that wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from convo.analysis.declared import sampled_at
from convo.conversation.model import CANARY_USER, Finding, PartName
from convo.conversation.owed import Owed, result_version
from convo.conversation.tenant import tenant_of
from convo.store.job_sql import QUEUED
from convo.store.jobs.part_jobs import StoredConversation
from convo.store.logs import LogStore
from convo.store.outcomes import PartRecord, unpack_details
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import REMOTE_PREFIX, TENANT_NAME

RerunState = Literal["running", "paused", "ended"]

LOOKED_AT_ROWS = 500
"""So many conversations are looked at in one transaction."""
# A job that has been due for less is one that a worker is about to take.
_LIVE_SECONDS = 0.2
# Of the start by time: numbers are given in the order of their accepts, but for those of a moment.
_MARGIN_SEQS = 10_000


class RerunOrder(Struct, frozen=True, kw_only=True):
    """What is asked again, and of which conversations; ``version`` is that of what is asked, and of whom."""

    part: PartName
    version: str
    owed: Owed
    received_since: datetime | None = None
    bot_id: str | None = None
    sample: float = 1.0
    rate: float = 0.0


class Rerun(Struct, frozen=True, kw_only=True):
    """A re-run as it stands; ``counts`` are its candidates by state."""

    number: int
    part: PartName
    version: str
    owed: int
    received_since: datetime | None
    bot_id: str | None
    sample: float
    rate: float
    state: RerunState
    after_seq: int
    until_seq: int
    total: int
    looked_at: int
    made_at: datetime
    counts: Mapping[str, int] = {}

    @property
    def looked_at_all(self) -> bool:
        """Whether every conversation has been looked at."""
        return self.after_seq >= self.until_seq

    @property
    def settled(self) -> int:
        """How many conversations need nothing more."""
        return self.looked_at - self.counts.get("waiting", 0)


class TakenCandidate(StoredConversation, frozen=True, kw_only=True):
    """One conversation of a re-run that was taken."""

    part: PartName
    token: int
    attempts: int


class Taking(Struct, frozen=True, kw_only=True):
    """What a process was given: some work, or none because of ``reason``."""

    taken: Sequence[TakenCandidate] = ()
    reason: Literal["", "live", "rate", "later", "paused", "ended"] = ""


class Reruns:
    """The tables of re-runs, as one process works on them."""

    def __init__(self, postgres: Postgres, owed_sets: OwedSets) -> None:
        self._postgres = postgres
        self._owed_sets = owed_sets

    async def begin(self, order: RerunOrder) -> tuple[Rerun, bool]:
        """Begin a re-run, or go on with the open one of this version; return it, and whether it is new.

        One of another version is ended: its declaration is not what is wanted any more.
        """

        async def body(connection: Connection) -> bool:
            await self._owed_sets.store(connection, [order.owed])
            await connection.execute(_END_OTHERS, order.part, order.version)
            if await connection.fetchval(_GO_ON, order.part, order.rate) is not None:
                return False
            # Two that begin it at the same moment: the second one goes on with the first one's.
            begun = await connection.fetchval(
                _BEGIN,
                *(order.part, order.version, order.owed.number, order.received_since, order.bot_id),
                *(order.sample, order.rate, _MARGIN_SEQS),
            )
            return begun is not None

        new = await self._postgres.run("db.reruns", body)
        found = await self.read(order.part)
        assert found is not None  # noqa: S101  (none is ever removed)
        return found, new

    async def pause(self, part: PartName) -> Rerun | None:
        """Let nobody take anything more of the open re-run of a part; None where there is none."""

        async def body(connection: Connection) -> None:
            await connection.execute(_PAUSE, part)

        await self._postgres.run("db.reruns", body)
        found = await self.read(part)
        return found if found is not None and found.state == "paused" else None

    async def read(self, part: PartName) -> Rerun | None:
        """Read the newest re-run of a part, but for those of a single conversation."""

        async def body(connection: Connection) -> Rerun | None:
            row = await connection.fetchrow(_NEWEST, part)
            if row is None:
                return None
            counts = await connection.fetch(_COUNTS, row["number"])
            return Rerun(**dict(row), counts={one["state"]: one["n"] for one in counts})

        return await self._postgres.run("db.reruns", body, begin=RELAXED)

    async def take(self, rerun: Rerun, count: int, lease_seconds: float) -> Taking:
        """Take up to ``count`` conversations that are due; nothing while live work waits, or where all is done."""

        async def body(connection: Connection) -> Taking:
            # Locked: whoever looks at the next page is alone, and so is whoever spends what the rate allows.
            row = await connection.fetchrow(_LOCK, rerun.number)
            if row is None or row["state"] != "running":
                return Taking(reason="ended" if row is None or row["state"] == "ended" else "paused")
            # Somebody waits for a single one: it is live work, too.
            if row["sample"] and await connection.fetchval(_LIVE_WAITS, _LIVE_SECONDS):
                return Taking(reason="live")
            allowed = min(count, row["allowed"]) if row["rate"] else count
            if allowed < 1:
                return Taking(reason="rate")
            taken = await connection.fetch(_TAKE, rerun.number, allowed, lease_seconds)
            if not taken and not await self._look_at_page(connection, row):
                return await _end_or_wait(connection, rerun.number)
            if row["rate"] and taken:
                await connection.execute(_SPEND, rerun.number, len(taken) / row["rate"])
            return Taking(taken=[_taken(one) for one in taken])

        return await self._postgres.run("db.reruns", body, begin=RELAXED)

    async def _look_at_page(self, connection: Connection, row: Mapping[str, Any]) -> bool:
        """Look at the next conversations, and let those wait whose result is of another version; False at the end."""
        if row["after_seq"] >= row["until_seq"]:
            return False
        name, version = row["part"], row["version"]
        page = await connection.fetch(_PAGE, row["after_seq"], row["until_seq"], LOOKED_AT_ROWS, name)
        await self._owed_sets.load(connection, {one["found_owed"] for one in page})
        chosen = [one for one in page if is_chosen(one, row["received_since"], row["bot_id"], row["sample"])]
        chosen = [one for one in chosen if not _has_version(one, name, version)]
        adopted = [one["seq"] for one in chosen if self._found_by_itself(one, name, version)]
        await connection.execute(ADD_CANDIDATES, [one["seq"] for one in chosen], name, row["number"])
        await connection.execute(_ADOPT, adopted, name)
        last = page[-1]["seq"] if len(page) == LOOKED_AT_ROWS else row["until_seq"]
        await connection.execute(_LOOKED_AT, row["number"], last, len(page))
        return True

    def _found_by_itself(self, row: Mapping[str, Any], name: PartName, version: str) -> bool:
        """Return whether a part job has found it already, as it is declared now."""
        owed = row["found_owed"]
        return (
            owed is not None
            and result_version(name, row["found_by"], self._owed_sets.get(owed).version(name)) == version
        )

    async def renew(self, taken: Collection[TakenCandidate], lease_seconds: float) -> set[int]:
        """Keep what was taken for longer; return the ``seq`` of those that are still ours."""

        async def body(connection: Connection) -> set[int]:
            columns = [one.seq for one in taken], [one.part for one in taken], [one.token for one in taken]
            return {row["seq"] for row in await connection.fetch(_RENEW, *columns, lease_seconds)}

        return await self._postgres.run("db.reruns", body, begin=RELAXED)

    async def give_back(self, taken: Collection[TakenCandidate]) -> None:
        """Let others take these at once."""
        await self.renew(taken, 0.0)

    async def done(self, one: TakenCandidate, by: str, finding: Finding, seconds: float) -> bool:
        """Store what was found; return false where it is no longer ours."""
        return await self._write(_DONE, one, by, msgspec.json.encode(finding).decode(), seconds)

    async def failed(
        self, one: TakenCandidate, by: str, reason: str, *, later: float | None, spent: bool = True
    ) -> bool:
        """Note why it was not found: it is due again in ``later`` seconds, or has failed where that is None."""
        return await self._write(_FAILED, one, by, reason, later, int(spent))

    async def _write(self, statement: str, one: TakenCandidate, *values: Any) -> bool:
        async def body(connection: Connection) -> bool:
            return bool(await connection.fetch(statement, one.seq, one.part, one.token, *values))

        # As parts: a crash of the database may lose the last moments, which are then found again.
        return await self._postgres.run("db.reruns", body, begin=RELAXED)

    async def count(self, order: RerunOrder) -> tuple[int, int]:
        """Count what a re-run would find again, and what has this version already; nothing is written."""
        after, until = 0, 0
        again = up_to_date = 0

        async def bounds(connection: Connection) -> tuple[int, int]:
            row = await connection.fetchrow(_BOUNDS, order.received_since, _MARGIN_SEQS) or {}
            return row["after_seq"], row["until_seq"]

        async def page(connection: Connection) -> Sequence[Mapping[str, Any]]:
            return await connection.fetch(_PAGE, after, until, LOOKED_AT_ROWS, order.part)

        after, until = await self._postgres.run("db.reruns", bounds, begin=RELAXED)
        while after < until:
            rows = await self._postgres.run("db.reruns", page, begin=RELAXED)
            for one in rows:
                if is_chosen(one, order.received_since, order.bot_id, order.sample):
                    same = _has_version(one, order.part, order.version)
                    again, up_to_date = again + (not same), up_to_date + same
            after = rows[-1]["seq"] if len(rows) == LOOKED_AT_ROWS else until
        return again, up_to_date


def is_chosen(row: Mapping[str, Any], since: datetime | None, bot_id: str | None, sample: float) -> bool:
    """Return whether a re-run is of this conversation: analysed, with its log, and the newest revision."""
    return (
        row["details"] is not None
        and not row["log_retired"]
        and row["revised_by"] is None
        and row["user_id"] != CANARY_USER
        and (since is None or row["received_at"] >= since)
        and (bot_id is None or row["bot_id"] == bot_id)
        and (sample >= 1 or sampled_at(row["conversation_id"]) < sample)
    )


def _has_version(row: Mapping[str, Any], name: PartName, version: str) -> bool:
    record = current_record(row["details"], name)
    return record is not None and result_version(name, record.made_by, record.version) == version


async def _end_or_wait(connection: Connection, number: int) -> Taking:
    # What was erased at the moment at which it was looked at.
    await connection.execute(_DROP_ORPHANS, number)
    if await connection.fetchval(_ANY_WAITING, number):
        return Taking(reason="later")
    await connection.execute(_END, number)
    return Taking(reason="ended")


def current_record(details: bytes, name: PartName) -> PartRecord | None:
    """Return the current result of a part; None where there is none."""
    return next((one for one in unpack_details(details).parts if one.name == name and one.state == "done"), None)


def _taken(row: Mapping[str, Any]) -> TakenCandidate:
    same = {name: row[name] for name in TakenCandidate.__struct_fields__ if name in row}
    return TakenCandidate(**{**same, "tenant": tenant_of(row["tenant"], row["tenant_name"])})


# conversation_by_time: one row. Of no time at all everything is looked at.
_AFTER = """
greatest(0, coalesce((SELECT seq FROM conversation WHERE received_at >= $1::timestamptz ORDER BY received_at LIMIT 1),
                     (SELECT last_value FROM conversation_seq_seq)) - $2::bigint)
"""
_BOUNDS = f"""
SELECT CASE WHEN $1::timestamptz IS NULL THEN 0 ELSE {_AFTER} END AS after_seq,
       (SELECT last_value FROM conversation_seq_seq) AS until_seq
"""
# Of a single conversation (single_reruns), too: what it has found already is not lost by that.
_END_OTHERS = """
UPDATE rerun SET state = 'ended' WHERE part = $1 AND (version <> $2 OR sample = 0) AND state <> 'ended'
"""
_GO_ON = "UPDATE rerun SET state = 'running', rate = $2 WHERE part = $1 AND state <> 'ended' RETURNING number"
_PAUSE = "UPDATE rerun SET state = 'paused' WHERE part = $1 AND state = 'running' AND sample > 0"
_BEGIN = f"""
INSERT INTO rerun (part, version, owed, received_since, bot_id, sample, rate, after_seq, until_seq, total)
SELECT $1, $2, $3, $4, $5, $6, $7, bounds.after_seq, bounds.until_seq,
       (SELECT count(*) FROM conversation WHERE seq > bounds.after_seq AND seq <= bounds.until_seq)
FROM ({_BOUNDS.replace("$2", "$8").replace("$1", "$4")}) AS bounds
ON CONFLICT DO NOTHING RETURNING number
"""
RERUN_FIELDS = """
number, part, version, owed, received_since, bot_id, sample, rate, state, after_seq, until_seq, total, looked_at,
made_at
"""
"""The columns of a ``Rerun``."""
_NEWEST = f"SELECT {RERUN_FIELDS} FROM rerun WHERE part = $1 AND sample > 0 ORDER BY number DESC LIMIT 1"
_COUNTS = "SELECT state, count(*) AS n FROM candidate WHERE rerun = $1 GROUP BY state"
# From when on the next ones count: however long nothing was taken, no more than those of one second.
_COUNTED_FROM = """
greatest(next_at, convo_now() - make_interval(secs => greatest(rate - 1, 0) / nullif(rate, 0)))
"""
_LOCK = f"""
SELECT {RERUN_FIELDS},
       CASE WHEN next_at > convo_now() THEN 0
            ELSE 1 + floor(extract(epoch FROM convo_now() - {_COUNTED_FROM}) * rate)::integer END AS allowed
FROM rerun WHERE number = $1 FOR UPDATE
"""
_SPEND = f"UPDATE rerun SET next_at = {_COUNTED_FROM} + make_interval(secs => $2) WHERE number = $1"
_END = "UPDATE rerun SET state = 'ended' WHERE number = $1"
_LOOKED_AT = "UPDATE rerun SET after_seq = $2, looked_at = looked_at + $3 WHERE number = $1"
# job_queued: its first row.
_LIVE_WAITS = f"""
SELECT coalesce(min(available_at) < convo_now() - make_interval(secs => $1), false) FROM job WHERE {QUEUED}
"""
# OFFSET 0: one look-up for each, whatever the planner thinks.
_PAGE = f"""
SELECT c.seq, c.conversation_id, c.user_id, c.bot_id, c.received_at, c.revised_by, {LogStore.RETIRED}, o.details,
       found.owed AS found_owed, found.made_by AS found_by
FROM (SELECT * FROM conversation WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3) AS c
LEFT JOIN part_job AS found ON found.seq = c.seq AND found.name = $4 AND found.state = 'done'
LEFT JOIN LATERAL (SELECT details FROM outcome WHERE outcome.seq = c.seq OFFSET 0) AS o ON true
ORDER BY c.seq
"""
ADD_CANDIDATES = """
INSERT INTO candidate AS c (seq, part, rerun) SELECT seq, $2, $3 FROM unnest($1::bigint[]) AS found (seq)
ON CONFLICT (seq, part) DO UPDATE SET rerun = excluded.rerun, state = 'waiting', attempts = 0,
    available_at = convo_now(), token = c.token + 1, made_by = NULL, result = NULL, seconds = NULL, points = NULL,
    error = NULL
WHERE c.rerun <> excluded.rerun
"""
"""Let these conversations ($1) wait for a part ($2) in a re-run ($3)."""
# What a part job has found already is a candidate as it is: nothing is asked a second time.
_ADOPT = """
UPDATE candidate SET state = 'done', made_by = found.made_by, result = found.result, seconds = 0
FROM part_job AS found
WHERE candidate.seq = ANY($1::bigint[]) AND candidate.part = $2 AND candidate.state = 'waiting'
  AND found.seq = candidate.seq AND found.name = candidate.part AND found.state = 'done'
"""
_DROP_ORPHANS = """
DELETE FROM candidate WHERE (seq, part) IN (
    SELECT seq, part FROM candidate AS c WHERE rerun = $1 AND state = 'waiting'
        AND NOT EXISTS (SELECT FROM conversation WHERE conversation.seq = c.seq) LIMIT 1000)
"""
_TAKE = f"""
WITH taken AS (
    UPDATE candidate SET token = token + 1, available_at = convo_now() + make_interval(secs => $3)
    WHERE (seq, part) IN (
        SELECT seq, part FROM candidate WHERE rerun = $1 AND state = 'waiting' AND available_at <= convo_now()
        ORDER BY available_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING seq, part, token, attempts
)
SELECT taken.*, c.conversation_id, c.user_id, c.bot_id, c.log_hash, c.started_at, c.ended_at, c.tenant,
       {TENANT_NAME.format("nullif(c.tenant, 0)")} AS tenant_name, {REMOTE_PREFIX} AS remote_prefix,
       (SELECT digest FROM receipt WHERE receipt.seq = c.seq) AS digest
FROM taken JOIN conversation c USING (seq)
"""
_ANY_WAITING = "SELECT EXISTS (SELECT FROM candidate WHERE rerun = $1 AND state = 'waiting')"
_RENEW = """
UPDATE candidate SET available_at = convo_now() + make_interval(secs => $4)
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS mine (seq, part, token)
WHERE candidate.seq = mine.seq AND candidate.part = mine.part AND candidate.token = mine.token AND state = 'waiting'
RETURNING candidate.seq
"""
_DONE = """
UPDATE candidate SET state = 'done', attempts = attempts + 1, made_by = $4, result = $5::jsonb, seconds = $6,
                     error = NULL, updated_at = convo_now()
WHERE seq = $1 AND part = $2 AND token = $3 AND state = 'waiting' RETURNING 1
"""
_FAILED = """
UPDATE candidate SET state = CASE WHEN $6::float8 IS NULL THEN 'failed' ELSE 'waiting' END, attempts = attempts + $7,
                     made_by = $4, error = $5, updated_at = convo_now(),
                     available_at = convo_now() + make_interval(secs => coalesce($6::float8, 0))
WHERE seq = $1 AND part = $2 AND token = $3 AND state = 'waiting' RETURNING 1
"""
ERASE_CANDIDATES = "DELETE FROM candidate WHERE seq = ANY($1::bigint[])"
