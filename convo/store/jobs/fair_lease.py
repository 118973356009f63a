"""Which due jobs are leased next: in rounds, so that a user with many jobs does not hold up a user with few.

Open it to change the order of work. In one round every key (``fairness.key``, by default the user) with a due job has
one job leased; a key's own jobs come oldest first. Where there are several tenants, these take turns first, each with
rounds of its own: one with a thousand users does not hold up one with a single user.

The keys are found by a skip scan: one probe of the index for each key, however many rows it has. A window function
over all ready rows would read every one of them.

Several processes can look at the same place at once, and each skips the rows that another one has locked. A process
that finds too few rows because of that looks further, at ``FURTHER_KEYS`` more keys a time, ``LOOKS_MAX`` times in all.

Each lease counts the entries of the index that it reads. Where they are too many, the next leases do not search: they
know for a moment where the due jobs stand (``store/jobs/known_queues.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from msgspec import Struct

from convo.conversation.tenant import LAST_KEY, turn_bounds
from convo.store.job_sql import DELAYED, DUE
from convo.store.jobs.known_queues import FIRST_TIME, KnownQueues
from convo.store.jobs.runs import ASKED_BEFORE
from convo.store.postgres import Connection
from convo.store.reaching import REMOTE_PREFIX, TENANT_NAME

JobRow = Mapping[str, Any]


FURTHER_KEYS = 64
"""So many keys at least are looked at in each further look."""

LOOKS_MAX = 4
"""A lease looks so many times: at as many keys as it wants jobs, then further. A key costs two probes of the index for
each value of ``waits_for``: one finds the key, one its oldest rows."""


class Rounds(Struct, frozen=True, kw_only=True):
    """Where the rounds stand: behind which key the next tenant's turn begins, and of each tenant, the last key.

    A tenant is named by the first of its ``turn_bounds``.
    """

    behind: str = ""
    last_keys: Mapping[str, str] = {}


class Taken(Struct, frozen=True, kw_only=True):
    """The leased ``rows``, round by round, and where the rounds stand now."""

    rows: Sequence[JobRow]
    rounds: Rounds


class _Look(Struct, kw_only=True):
    """Who leases, for how long, which values of ``waits_for``, and from which queues, where these are known.

    ``entries`` is the count of the index's entries that this session has read, as ``_ENTRIES`` says.
    """

    owner: str
    lease_seconds: float
    allowed: Sequence[str]
    known: KnownQueues | None
    entries: int = 0

    async def take(
        self, connection: Connection, count: int, after: str, bounds: tuple[str, str]
    ) -> tuple[list[JobRow], str]:
        """Lease up to ``count`` jobs with keys between these bounds; return them, and the key to go on behind."""
        if self.known is None:
            taken, last = await self._take_found(connection, count, after, bounds)
        else:
            taken, last = await self._take_known(connection, self.known, count, self.known.keys(after, bounds)), after
        found = in_rounds(taken, after)
        return found, found[-1]["fair_key"] if found else last

    async def _take_found(
        self, connection: Connection, count: int, after: str, bounds: tuple[str, str]
    ) -> tuple[list[JobRow], str]:
        taken: list[JobRow] = []
        last, keys = after, count
        for _ in range(LOOKS_MAX):
            rows = await connection.fetch(
                _LEASE, count - len(taken), self.owner, self.lease_seconds, last, list(self.allowed), keys, *bounds
            )
            taken += [row for row in rows if row["seq"] is not None]
            self.entries = rows[0]["entries"] if rows else 0
            if not rows or rows[0]["keys"] < keys or len(taken) >= count:
                break
            last = rows[0]["last_key"]
            keys = max(count, FURTHER_KEYS)
        return taken, last

    async def _take_known(
        self, connection: Connection, known: KnownQueues, count: int, keys: Sequence[str]
    ) -> list[JobRow]:
        """Look at all known keys, if need be: others may have leased what stood there, and each look is short."""
        taken: list[JobRow] = []
        at, looked = 0, count
        while at < len(keys) and len(taken) < count:
            some, wanted = keys[at : at + looked], count - len(taken)
            share, queues = -(-wanted // len(some)), known.queues(some)
            rows = await connection.fetch(_LEASE_KNOWN, wanted, self.owner, self.lease_seconds, share, *queues)
            known.note_taken(some, rows, wanted, share)
            taken += rows
            at, looked = at + len(some), max(count, FURTHER_KEYS)
        return taken


async def take(  # noqa: PLR0913  (who, how many, for how long, where the rounds stand, and what is known)
    connection: Connection,
    count: int,
    *,
    owner: str,
    lease_seconds: float,
    rounds: Rounds,
    allowed: Sequence[str],
    known: KnownQueues | None = None,
) -> Taken:
    """Lease up to ``count`` due jobs, by turns of the tenants, and of each those of the keys behind its last one first.

    ``allowed`` are the values of ``waits_for`` whose jobs may be leased, in the order in which a key's own jobs come.
    Where ``known`` knows where these stand, it is not searched for; where the search reads too much, it learns that.
    """
    at_work = known if known is not None and known.learned else None
    come = await connection.fetch(_COME_DUE, _COME_DUE_MAX, at_work.new_since if at_work else FIRST_TIME)
    all_due = any(row["count"] < _COME_DUE_MAX for row in come)
    if at_work is not None:
        await at_work.add_new(connection, come[0]["now"], all_due=all_due)
    look = _Look(owner=owner, lease_seconds=lease_seconds, allowed=allowed, known=at_work)
    taken = await _take(connection, count, look, rounds, several=any(row["several"] for row in come))
    if known is not None and at_work is None and all_due:
        await known.note_read(connection, look.entries - come[0]["entries"], come[0]["now"])
    return taken


async def _take(connection: Connection, count: int, look: _Look, rounds: Rounds, *, several: bool) -> Taken:
    if several:
        return await _take_by_turns(connection, count, look, rounds)
    rows, last = await look.take(connection, count, rounds.last_keys.get("", ""), ("", LAST_KEY))
    return Taken(rows=rows, rounds=Rounds(last_keys={"": last}))


async def _take_by_turns(connection: Connection, count: int, look: _Look, rounds: Rounds) -> Taken:
    turns = await _turns(connection, count, look, rounds.behind)
    of_turn: dict[tuple[str, str], list[JobRow]] = {turn: [] for turn in turns}
    last_keys = dict(rounds.last_keys)
    left, waiting = count, turns
    while left and waiting:
        share, full = -(-left // len(waiting)), []
        for turn in waiting:
            wanted = min(share, left)
            if not wanted:
                break
            rows, last = await look.take(connection, wanted, last_keys.get(turn[0], turn[0]), turn)
            of_turn[turn] += rows
            last_keys[turn[0]], left = last, left - len(rows)
            full += [turn] if len(rows) == wanted else []
        # What one tenant has no jobs for is the others'.
        waiting = full
    rows = [row for one_each in zip_longest(*of_turn.values()) for row in one_each if row is not None]
    behind = turn_bounds(rows[-1]["fair_key"])[1] if rows else rounds.behind
    return Taken(rows=rows, rounds=Rounds(behind=behind, last_keys=last_keys))


async def _turns(connection: Connection, count: int, look: _Look, behind: str) -> list[tuple[str, str]]:
    """Return whose turn it is: at most ``count`` tenants, or all that are known, for some may have no job any more."""
    if look.known is not None:
        return look.known.turns(behind)
    found = await connection.fetch(_TURNS, count, behind, list(look.allowed))
    look.entries = found[0]["entries"]
    return list(dict.fromkeys(turn_bounds(row["key"]) for row in found if row["key"] is not None))


def in_rounds(rows: Sequence[JobRow], after: str) -> list[JobRow]:
    """Sort leased rows by round: the first of each key, keys behind ``after`` first, then the second of each."""
    of_key: defaultdict[str, list[JobRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["available_at"], row["seq"])):
        of_key[row["fair_key"]].append(row)
    keys = sorted(of_key, key=lambda key: (key.encode() <= after.encode(), key.encode()))
    rounds = max(map(len, of_key.values()), default=0)
    return [of_key[key][number] for number in range(rounds) for key in keys if number < len(of_key[key])]


# How many entries of the index of due jobs this session has read; a lease takes the difference of two.
_ENTRIES = "pg_stat_get_xact_tuples_returned('job_due'::regclass) AS entries"
_COME_DUE_MAX = 1_000
# With it comes whether there are several tenants, and what is measured by, so that this costs no statement more.
_COME_DUE = f"""
WITH come AS (UPDATE job SET delayed = false WHERE seq = ANY(ARRAY(
    SELECT seq FROM job WHERE {DELAYED} AND available_at >= $2 AND available_at <= convo_now()
    ORDER BY available_at LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING 1)
SELECT (SELECT number > 0 FROM tenant ORDER BY number DESC LIMIT 1) AS several, count(*),
       convo_now() AS now, {_ENTRIES}
FROM come
"""


def _next_key(condition: str, allowed: str = "$5") -> str:
    """Return the search for the smallest key of a due job that satisfies ``condition``: a probe for each waits_for."""
    return f"""(
        SELECT min(probe.fair_key) FROM unnest({allowed}::text[]) AS allowed (waits_for), LATERAL (
            SELECT fair_key FROM job WHERE {DUE} AND job.waits_for = allowed.waits_for AND {condition}
            ORDER BY fair_key LIMIT 1) AS probe)"""


# Random and not counted: a crash of the database that forgets a lease would forget the count too, and would give the
# same number again. random() has 53 bits.
_RANDOM = "1 + floor(random() * 9007199254740991)::bigint"
TAKEN = f"""
    UPDATE job SET state = 'leased', lease_token = {_RANDOM}, leased_by = $2,
                   leased_at = convo_now(), leased_until = convo_now() + make_interval(secs => $3),
                   lease_seconds = $3
    WHERE seq = ANY(ARRAY(SELECT seq FROM due))
    RETURNING seq, lease_token, attempts, fair_key, available_at, waits_for, owed, {ASKED_BEFORE} AS asked_before
"""
"""Lease the rows of ``due``: ``$2`` is who leases, ``$3`` for how many seconds."""

LEASED = f"""
    taken.*, c.conversation_id, c.user_id, c.bot_id, c.log_hash, c.started_at, c.ended_at, c.exchanges,
    c.replaces, c.trace, c.tenant,
    {TENANT_NAME.format("nullif(c.tenant, 0)")} AS tenant_name, {REMOTE_PREFIX} AS remote_prefix,
    (SELECT digest FROM receipt WHERE receipt.seq = c.seq) AS digest"""
_LEASE = f"""
WITH RECURSIVE ahead (key, n) AS (
    SELECT {_next_key("fair_key > $4 AND fair_key < $8")}, 1
    UNION ALL SELECT {_next_key("fair_key > ahead.key AND fair_key < $8")}, n + 1
    FROM ahead WHERE key IS NOT NULL AND n < $6
), behind (key, n) AS (
    SELECT {_next_key("fair_key >= $7 AND fair_key <= $4")}, 1
    UNION ALL SELECT {_next_key("fair_key > behind.key AND fair_key <= $4")}, n + 1
    FROM behind WHERE key IS NOT NULL AND n < $6
), keys AS (
    SELECT key FROM (SELECT key FROM ahead UNION ALL SELECT key FROM behind) AS found WHERE key IS NOT NULL LIMIT $6
), looked (keys, last_key, share) AS (
    SELECT count(*), (array_agg(key))[count(*)::integer], ($1 + count(*) - 1) / greatest(count(*), 1) FROM keys
), due AS (
    SELECT mine.seq FROM keys, LATERAL (
        SELECT one.seq FROM unnest($5::text[]) AS allowed (waits_for), LATERAL (
            SELECT seq FROM job WHERE {DUE} AND job.waits_for = allowed.waits_for AND fair_key = keys.key
            ORDER BY available_at, seq LIMIT (SELECT share FROM looked) FOR UPDATE SKIP LOCKED) AS one
        LIMIT (SELECT share FROM looked)) AS mine
    LIMIT $1
), taken AS ({TAKEN})
SELECT looked.keys, looked.last_key, {_ENTRIES}, {LEASED}
FROM looked LEFT JOIN (taken JOIN conversation c USING (seq)) ON true
"""
# The same for keys that are given, with their queues: the key's own are those from its first to its last one.
_LEASE_KNOWN = f"""
WITH due AS (
    SELECT mine.seq FROM unnest($5::text[], $6::integer[], $7::integer[]) AS keys (key, starts, ends), LATERAL (
        SELECT found.seq FROM unnest(
            ($8::text[])[starts:ends], ($9::timestamptz[])[starts:ends], ($10::bigint[])[starts:ends]
        ) AS queue (waits_for, since, first), LATERAL (
            SELECT seq FROM job WHERE {DUE} AND job.waits_for = queue.waits_for AND fair_key = keys.key
              AND (available_at, seq) >= (queue.since, queue.first)
            ORDER BY available_at, seq LIMIT $4 FOR UPDATE SKIP LOCKED) AS found
        LIMIT $4) AS mine
    LIMIT $1
), taken AS ({TAKEN})
SELECT {LEASED} FROM taken JOIN conversation c USING (seq)
"""


# The key behind all those of the same tenant; null behind the default one, which is the last.
_BEHIND = "CASE WHEN {0} = '' THEN chr(31) WHEN {0} < ' ' THEN left({0}, 6) || ' ' END"
_NEXT_TURN = _next_key(f"fair_key >= {_BEHIND.format('ahead.key')}", "$3")
_NEXT_TURN_BEHIND = _next_key(f"fair_key >= {_BEHIND.format('behind.key')} AND fair_key < $2", "$3")
# A key of each tenant with a due job, those from $2 on first, at most $1 of them: a skip scan as above.
_TURNS = f"""
WITH RECURSIVE ahead (key, n) AS (
    SELECT {_next_key("fair_key >= $2", "$3")}, 1
    UNION ALL SELECT {_NEXT_TURN}, n + 1
    FROM ahead WHERE key IS NOT NULL AND n < $1
), behind (key, n) AS (
    SELECT {_next_key("fair_key < $2", "$3")}, 1
    UNION ALL SELECT {_NEXT_TURN_BEHIND}, n + 1
    FROM behind WHERE key IS NOT NULL AND n < $1
)
SELECT key, {_ENTRIES} FROM (SELECT) AS one LEFT JOIN (
    SELECT key FROM (SELECT key FROM ahead UNION ALL SELECT key FROM behind) AS found WHERE key IS NOT NULL LIMIT $1
) AS turn ON true
"""
