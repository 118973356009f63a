"""What calls to language models cost: a row for each call and part, and the sum of each day for all processes.

Open it to change what is kept of a call. A row is told apart by a number that its call got when it was made, so a row
that is stored a second time is the same one, and counts once. No lease is asked for: what a worker has paid for after
it lost its job was paid all the same. Of a conversation that is gone nothing is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from msgspec import Struct

from convo.conversation.model import PartName
from convo.settings import NANO
from convo.store.postgres import RELAXED, Connection, Postgres


class CostRow(Struct, frozen=True, kw_only=True):
    """One part's share of one call; tokens are None where the server did not say, ``nano`` where it has no price."""

    seq: int
    call: int
    part: PartName
    by: str
    sent: int | None
    answered: int | None
    cached: int | None
    nano: int | None


class DaySum(Struct, frozen=True, kw_only=True):
    """What all processes have spent on a day, by the database's clock in UTC, and the seconds that are left of it."""

    day: date
    nano: int
    seconds_left: float


async def store_costs(connection: Connection, rows: Sequence[CostRow]) -> DaySum:
    """Store these rows, as far as they are new, add them to the day, and return its sum."""
    columns = [[getattr(row, name) for row in rows] for name in CostRow.__struct_fields__]
    return _day(await connection.fetchrow(_STORE, *columns, sorted({row.seq for row in rows})))


async def read_day(postgres: Postgres) -> DaySum:
    """Read what was spent today."""

    async def body(connection: Connection) -> DaySum:
        return _day(await connection.fetchrow(_READ_DAY))

    return await postgres.run("db.day_sum", body, begin=RELAXED)


async def read_costs(connection: Connection, seq: int) -> Sequence[Mapping[str, Any]]:
    """Read the sums of one conversation, by part and who answered, in the order in which they were first asked."""
    return await connection.fetch(_OF_CONVERSATION, seq)


class ComparedCost(Struct, frozen=True, kw_only=True):
    """What calls for one part took; ``unknown_calls`` said nothing of tokens, ``unpriced_calls`` have no price."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: float
    unknown_calls: int
    unpriced_calls: int


async def read_rerun_costs(postgres: Postgres, number: int) -> tuple[ComparedCost | None, ComparedCost | None]:
    """Read what the conversations that a re-run has found again cost for its part: before it, and since it began."""

    async def body(connection: Connection) -> dict[bool, ComparedCost]:
        rows = await connection.fetch(_OF_RERUN, number)
        return {row["again"]: _compared(row) for row in rows}

    found = await postgres.run("db.reruns", body, begin=RELAXED)
    return found.get(False), found.get(True)


def _compared(row: Mapping[str, Any]) -> ComparedCost:
    counts = {name: int(row[name] or 0) for name in ("calls", "tokens_in", "tokens_out")}
    unknown, unpriced = row["unknown_calls"], row["unpriced_calls"]
    return ComparedCost(**counts, cost=int(row["nano"]) / NANO, unknown_calls=unknown, unpriced_calls=unpriced)


def _day(row: Mapping[str, Any] | None) -> DaySum:
    assert row is not None  # noqa: S101  (both statements return one row)
    return DaySum(day=row["day"], nano=row["nano"], seconds_left=float(row["seconds_left"]))


_UTC = "(convo_now() AT TIME ZONE 'UTC')"
_SECONDS_LEFT = f"extract(epoch FROM date_trunc('day', {_UTC}) + interval '1 day' - {_UTC}) AS seconds_left"
# The lock keeps an erasure from passing by: it deletes the conversation before its costs (convo/erase.py).
_STORE = f"""
WITH stays AS (
    SELECT seq FROM conversation WHERE seq = ANY($9::bigint[]) ORDER BY seq FOR KEY SHARE
), stored AS (
    INSERT INTO part_cost (seq, call, part, made_by, tokens_in, tokens_out, tokens_cached, nano)
    SELECT mine.* FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::integer[], $6::integer[],
                              $7::integer[], $8::bigint[])
        AS mine (seq, call, part, made_by, tokens_in, tokens_out, tokens_cached, nano) JOIN stays USING (seq)
    ON CONFLICT DO NOTHING RETURNING nano
)
INSERT INTO spent_day AS d (day, nano) SELECT {_UTC}::date, coalesce(sum(nano), 0) FROM stored
ON CONFLICT (day) DO UPDATE SET nano = d.nano + excluded.nano
RETURNING day, nano, {_SECONDS_LEFT}
"""
_READ_DAY = f"""
SELECT {_UTC}::date AS day, {_SECONDS_LEFT},
       coalesce((SELECT nano FROM spent_day WHERE day = {_UTC}::date), 0) AS nano
"""
_SUMS = """
    count(*) AS calls, sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
    sum(tokens_cached) AS tokens_cached, coalesce(sum(nano), 0) AS nano,
    count(*) FILTER (WHERE tokens_in IS NULL) AS unknown_calls,
    count(*) FILTER (WHERE nano IS NULL AND tokens_in IS NOT NULL) AS unpriced_calls
"""
_OF_RERUN = f"""
SELECT cost.at >= rerun.made_at AS again, {_SUMS}
FROM rerun JOIN candidate ON candidate.rerun = rerun.number AND candidate.state IN ('done', 'promoted')
JOIN part_cost AS cost ON cost.seq = candidate.seq AND cost.part = candidate.part
WHERE rerun.number = $1 GROUP BY 1
"""
_OF_CONVERSATION = f"""
SELECT part, made_by, {_SUMS}
FROM part_cost WHERE seq = $1 GROUP BY part, made_by ORDER BY min(at), part, made_by
"""
ERASE_COSTS = "DELETE FROM part_cost WHERE seq = ANY($1::bigint[])"
