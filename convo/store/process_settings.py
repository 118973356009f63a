"""The settings that processes on one database must share: which they are, and a table to compare them in.

Open it to add a setting that would give other results where two processes have it differently. What a process does when
it differs from the others stands in ``pipeline/agreement.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from convo.analysis.declared import served_dependencies
from convo.conversation.digest import DIGEST_VERSION
from convo.settings import Settings
from convo.store.postgres import RELAXED, Connection, Postgres

Value = str | int

ACCEPTING = frozenset({"fairness.key", "digest", "events.types"})
"""What a process that only accepts must share with those that take jobs."""

# Any number that no other lock of ours has.
_LOCK = 0x636F6E766F_07

LIVING = "seen_at > convo_now() - make_interval(secs => lease_seconds)"
"""The rows of processes that count: a process that was not seen for its lease has no lease that is good."""


class Difference(Struct, frozen=True, kw_only=True):
    """One setting that this process has differently from a process that takes jobs."""

    key: str
    here: Value
    there: Value
    process: str

    def __str__(self) -> str:
        return f"{self.key} is {self.here} here and {self.there} in {self.process}"


class Comparison(Struct, frozen=True, kw_only=True):
    """Whether this process may take jobs, what it has differently from those that do, and whether there are others."""

    takes_jobs: bool
    others_take: bool = False
    differences: tuple[Difference, ...] = ()


def shared_settings(settings: Settings) -> dict[str, Value]:
    """Return what all processes that take jobs must have the same, by the names of the settings.

    Of the memory service only its dialect counts, not its address: one service can have several addresses.
    """
    return {
        "digest": DIGEST_VERSION,
        "events.types": " ".join(sorted(settings.events.types)) or "none",
        "fairness.key": settings.fairness.key,
        "jobs.attempts_max": settings.jobs.attempts_max,
        "jobs.give_up_seconds": f"{settings.jobs.give_up_seconds:g}",
        "llm.model": settings.llm.model or "none",
        "logs.store": f"s3 {settings.logs.bucket}" if settings.logs.in_objects else "postgres",
        "memory.url": settings.memory.dialect if settings.memory.url else "none",
        **{f"score.{name}": weight for name, weight in msgspec.structs.asdict(settings.score).items()},
    }


def differences(
    mine: Mapping[str, Value], others: Mapping[str, Mapping[str, Value]], *, only: frozenset[str] | None = None
) -> tuple[Difference, ...]:
    """Compare the settings of this process with those of others, by their names; ``only`` these keys where given.

    A key that one of two does not know is of another version of convo, and is not compared.
    """
    return tuple(
        Difference(key=key, here=here, there=theirs[key], process=process)
        for process, theirs in sorted(others.items())
        for key, here in mine.items()
        if key in theirs and theirs[key] != here and (only is None or key in only)
    )


async def compare(postgres: Postgres, name: str, settings: Settings) -> Comparison:
    """Compare the settings of the process ``name`` with those that take jobs, and note that it lives.

    It may take jobs if it differs from none of them. One process at a time compares: of two that come at once and
    differ, the first one takes jobs.
    """
    workers = settings.jobs.workers
    mine = shared_settings(settings)
    used = served_dependencies(settings)

    async def body(connection: Connection) -> Comparison:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        rows = await connection.fetch(_TAKERS, name)
        others = {row["name"]: msgspec.json.decode(row["settings"], type=dict[str, Value]) for row in rows}
        found = differences(mine, others, only=None if workers else ACCEPTING)
        takes = bool(workers) and not found
        values = msgspec.json.encode(mine).decode()
        if await connection.fetchval(_NOTE, name, values, used, takes, settings.jobs.lease_seconds):
            await connection.execute(_TIDY, name)
        return Comparison(takes_jobs=takes, others_take=bool(others), differences=found)

    return await postgres.run("db.settings", body, begin=RELAXED)


async def forget(postgres: Postgres, name: str) -> None:
    """Remove a process that stops: from now on it stands in nobody's way."""

    async def body(connection: Connection) -> None:
        await connection.execute("DELETE FROM process_settings WHERE name = $1", name)

    await postgres.run("db.settings", body, begin=RELAXED)


async def unserved(connection: Connection, waits_for: Sequence[str]) -> list[str]:
    """Return which of these dependencies no living process that takes jobs has."""
    return [row["name"] for row in await connection.fetch(_UNSERVED, list(waits_for))]


# Earlier starts on the same folder are dead: this process holds the folder's lock. The host is for a person.
_TAKERS = f"""
SELECT coalesce((SELECT host || '/' FROM process WHERE process.name = taker.name), '')
       || split_part(taker.name, '.', 1) AS name, settings
FROM process_settings AS taker
WHERE split_part(taker.name, '.', 1) <> split_part($1, '.', 1) AND takes_jobs AND {LIVING}
"""
_NOTE = """
INSERT INTO process_settings (name, settings, dependencies, takes_jobs, lease_seconds) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO UPDATE SET settings = $2, dependencies = $3, takes_jobs = $4, lease_seconds = $5,
                                 seen_at = convo_now()
RETURNING xmax = 0 -- whether the row is new
"""
# What killed processes left: earlier ones on this folder, and those that were not seen for a day.
_TIDY = """
DELETE FROM process_settings WHERE name = ANY(ARRAY(
    SELECT name FROM process_settings
    WHERE seen_at < convo_now() - interval '1 day'
       OR (split_part(name, '.', 1) = split_part($1, '.', 1) AND name <> $1)
    LIMIT 1000))
"""
_UNSERVED = f"""
SELECT wanted.name FROM unnest($1::text[]) AS wanted (name)
WHERE wanted.name <> '' AND NOT EXISTS (
    SELECT FROM process_settings WHERE takes_jobs AND {LIVING} AND wanted.name = ANY(dependencies))
"""
