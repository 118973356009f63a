"""The jobs and their leases: who works on what, until when, and how each piece of work ends.

A job is one row: one conversation to analyse. It knows nothing of what an analysis is.

**States.** ``ready`` (now, or from ``available_at`` on when ``delayed``), ``leased`` (somebody's until
``leased_until``), ``done``, ``dead``.

    ready --lease--> leased --settle--> done
      ^                |------bury----> dead --retry--> ready
      |                |
      +---- fail (attempt spent, later), park (a dependency is out), release (we stop), rescue (the holder is silent)

**Fencing.** Every lease carries a token that no other lease ever had. Every write of a lease's holder names the token,
and finds no row when the lease is no longer his: a late worker can store nothing. He learns it as ``LeaseLost``.

**Attempts** count what was spent: an ending that is the job's own doing (settle, fail, bury) adds one. Park, release
and rescue add none, so that there is nothing to give back and a crash cannot forget to.

**Parking.** A parked job ``waits_for`` a dependency since ``parked_since``. Nothing touches its row while it waits: a
lease leaves out the lines of the dependencies that are out in the leasing process, but for one job that probes. Jobs
parked for ``jobs.give_up_seconds`` are buried.

**Poison.** A job that takes its process down must not take all of them down, and its neighbours must not be blamed.
A lease that ends because its process is *gone* counts a crash; gone is a process whose folder another one holds now,
or that has no session on the database any more. After two crashes a job is a suspect, leased only when its process
does nothing else; a suspect that is leased when its process dies three times more is buried as poison.

**Clocks.** ``available_at`` and ``leased_until`` are the database's clock and compared with nothing else. When that
clock was stepped back, a time further away than it could legally be counts as come: ``rescue`` sees to it.

Lease, renewal, park, release and rescue commit without waiting for the disk: losing one means that work is done again,
under another token. Settle, fail and bury wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.config import JobsSettings
from convo.conversation.model import Finding, PartName
from convo.errors import LeaseLost, NotDead, NotFound
from convo.store import ledger, parts, processes, rescue, runs, turns
from convo.store.parts import Found
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.rescue import Rescue
from convo.store.runs import Waits
from convo.store.states import DEAD, FREE, NOT_PARKED, SUSPECT_AT, later

DEPENDENCIES = ("llm", "memory")
"""What a job can wait for."""


_NO_WAITS: Waits = {}


class Lease(Struct, frozen=True, kw_only=True):
    """The right to work on one job until the lease ends; ``parts`` are the findings that are stored already."""

    seq: int
    token: int
    attempts: int
    fair_key: str
    conversation_id: str
    user_id: str
    bot_id: str
    digest: str
    started_at: datetime
    ended_at: datetime
    exchanges: int
    parts: dict[PartName, Finding]
    suspect: bool = False


FoundPart = tuple[Lease, PartName, str, Finding]
"""Under which lease which part was found, by whom, and what it is."""


class Jobs:
    """The job table, as the process called ``owner`` works on it."""

    def __init__(self, postgres: Postgres, settings: JobsSettings, owner: str) -> None:
        self._postgres = postgres
        self._settings = settings
        self.owner = owner
        # Whose job was leased last: the next turn is the one's after it.
        self._served = ""

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        """Take up to ``count`` due jobs by turns, but none that waits for a dependency that is ``out``."""
        leases = await self._lease(count, _lines(out))
        if leases:
            self._served = leases[-1].fair_key
        return leases

    async def lease_probe(self, dependency: str) -> list[Lease]:
        """Take one job that waits for this dependency, to find out whether it is back."""
        return await self._lease(1, [dependency])

    async def lease_suspect(self, *, out: Collection[str] = ()) -> list[Lease]:
        """Take the suspect that is due longest, if there is one; nothing else may be at work beside it."""

        async def body(connection: Connection) -> list[Mapping[str, Any]]:
            seconds = self._settings.lease_seconds
            return await turns.take_suspect(connection, owner=self.owner, lease_seconds=seconds, lines=_lines(out))

        return await self._leased(body)

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        """Tell whether a suspect waits for its turn, but for those that wait for a dependency that is ``out``."""

        async def body(connection: Connection) -> bool:
            found: bool = await connection.fetchval(_HAS_SUSPECTS, _lines(out))
            return found

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def _lease(self, count: int, lines: Sequence[str]) -> list[Lease]:
        async def body(connection: Connection) -> list[Mapping[str, Any]]:
            return await turns.take(
                connection,
                count,
                owner=self.owner,
                lease_seconds=self._settings.lease_seconds,
                after=self._served,
                lines=lines,
            )

        return await self._leased(body)

    async def _leased(self, take: Callable[[Connection], Awaitable[list[Mapping[str, Any]]]]) -> list[Lease]:
        async def body(connection: Connection) -> list[Lease]:
            rows = await take(connection)
            stored = await parts.found(connection, [row["seq"] for row in rows]) if rows else {}
            return [_lease(row, stored.get(row["seq"], {})) for row in rows]

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def renew(self, leases: Sequence[Lease]) -> set[int]:
        """Renew these leases in one statement, and say that this process lives; return the tokens still good."""

        async def body(connection: Connection) -> set[int]:
            await processes.seen(connection, self.owner)
            rows = await connection.fetch(
                _RENEW, [lease.seq for lease in leases], [lease.token for lease in leases], self._settings.lease_seconds
            )
            return {row["lease_token"] for row in rows}

        return await self._postgres.run("db.renew", body, begin=RELAXED)

    async def store_part(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        """Store what one part found, and its memories as far as they are new.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        (lost,) = await self.store_parts([(lease, name, by, finding)])
        if lost is not None:
            raise lost

    async def store_parts(self, found: Sequence[FoundPart]) -> list[LeaseLost | None]:
        """Store parts of several jobs in one transaction; return, in their order, which leases were lost."""

        async def body(connection: Connection) -> set[int]:
            held = await hold(connection, [lease for lease, _, _, _ in found])
            mine = [
                Found(seq=lease.seq, user_id=lease.user_id, name=name, by=by, finding=finding)
                for lease, name, by, finding in found
                if lease.token in held
            ]
            if mine:
                await parts.store(connection, mine)
            return held

        held = await self._postgres.run("db.part", body, begin=RELAXED)
        return [None if lease.token in held else lost(lease) for lease, _, _, _ in found]

    async def fail(
        self,
        lease: Lease,
        reason: str,
        failed: Mapping[PartName, tuple[str, str]],
        *,
        later: float,
        waits: Waits = _NO_WAITS,
    ) -> bool:
        """Spend an attempt: try again in ``later`` seconds, or bury the job when that was the last attempt.

        ``failed`` holds the parts that failed, each with who tried and why; ``waits``, here and in the other endings,
        are the seconds that the work spent in each named wait. Return whether the job is dead.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        last = lease.attempts + 1 >= self._settings.attempts_max

        async def body(connection: Connection) -> None:
            await _hold_one(connection, lease)
            await parts.store_failures(connection, lease.seq, failed)
            await runs.note(connection, "bury" if last else "fail", lease.seq, reason, waits)
            if last:
                await connection.execute(_BURY, lease.seq, reason)
                await ledger.book(connection, "dead", [lease.seq])
            else:
                await connection.execute(_FAIL, lease.seq, reason, later)

        await self._postgres.run("db.fail", body)
        return last

    async def release(
        self, lease: Lease, *, later: float = 0.0, reason: str | None = None, waits: Waits = _NO_WAITS
    ) -> None:
        """Give a job back, to be taken again at once or in ``later`` seconds; no attempt spent.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await _hold_one(connection, lease)
            await runs.note(connection, "release", lease.seq, reason, waits)
            await connection.execute(_RELEASE, lease.seq, later)

        await self._postgres.run("db.release", body, begin=RELAXED)

    async def park(
        self, lease: Lease, dependency: str, reason: str, *, later: float = 0.0, waits: Waits = _NO_WAITS
    ) -> None:
        """Let a job wait until ``dependency`` is back, at least ``later`` seconds; no attempt spent, its place kept.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await _hold_one(connection, lease)
            await runs.note(connection, "park", lease.seq, reason, waits)
            await connection.execute(_PARK, lease.seq, dependency, reason, later)

        await self._postgres.run("db.park", body, begin=RELAXED)

    async def release_all(self, *, crashed: bool) -> int:
        """Give back every job leased under this process's name; as ``rescue.release_owned``."""
        return await rescue.release_owned(self._postgres, self.owner, crashed=crashed)

    async def rescue(self) -> Rescue:
        """Take back and bury what nobody works on any more; as ``rescue.rescue``."""
        return await rescue.rescue(self._postgres, self._settings)

    async def retry(self, conversation_id: str) -> None:
        """Make a dead letter ready again, with all its attempts; its stored parts stay.

        Raises:
            NotFound: there is no such conversation.
            NotDead: it is not a dead letter.
        """

        async def body(connection: Connection) -> str | None:
            row = await connection.fetchrow(_RETRY, conversation_id)
            if row is not None:
                await ledger.book(connection, "dead", [row["seq"]], -1)
                return None
            state: str | None = await connection.fetchval(_STATE, conversation_id)
            if state is None:
                raise NotFound(f"there is no conversation {conversation_id!r}")
            return state

        state = await self._postgres.run("db.retry", body)
        if state is not None:
            raise NotDead(f"conversation {conversation_id!r} is {state}; only a dead letter can be retried")

    async def acknowledge(self, conversation_id: str) -> int:
        """Note that somebody has reviewed a dead letter, which stays dead; return the attempts spent on it.

        A second time changes nothing. Whoever retries it has reviewed it, too.

        Raises:
            NotFound: there is no such conversation.
            NotDead: it is not a dead letter.
        """

        async def body(connection: Connection) -> tuple[str, int]:
            row = await connection.fetchrow(_ACKNOWLEDGE, conversation_id)
            if row is not None:
                return "dead", row["attempts"]
            state: str | None = await connection.fetchval(_STATE, conversation_id)
            if state is None:
                raise NotFound(f"there is no conversation {conversation_id!r}")
            return state, 0

        state, attempts = await self._postgres.run("db.acknowledge", body)
        if state != "dead":
            raise NotDead(f"conversation {conversation_id!r} is {state}; only a dead letter can be acknowledged")
        return attempts

    async def count(self) -> tuple[dict[str, int], float]:
        """Count the jobs that are not done by state, and the age in seconds of the one that is due longest.

        Parked ones are ready ones, too, and counted besides.
        """

        async def body(connection: Connection) -> tuple[dict[str, int], float]:
            counts = {row["state"]: row["n"] for row in await connection.fetch(_COUNT)}
            return counts, float(await connection.fetchval(_OLDEST))

        return await self._postgres.run("db.sample", body)


def _lines(out: Collection[str]) -> list[str]:
    """List what may go on; who was parked came before those who never were."""
    return [line for line in (*DEPENDENCIES, "") if line not in out]


def _lease(row: Mapping[str, Any], stored: dict[PartName, Finding]) -> Lease:
    same = {name: row[name] for name in _SAME}
    return Lease(**same, token=row["lease_token"], parts=stored, suspect=row["crashes"] >= SUSPECT_AT)


_SAME = (
    *("seq", "attempts", "fair_key", "conversation_id", "user_id", "bot_id", "digest"),
    *("started_at", "ended_at", "exchanges"),
)


async def hold(connection: Connection, leases: Iterable[Lease]) -> set[int]:
    """Lock the rows of the leases that are still good, for as long as this transaction lasts; return their tokens.

    A lost lease may stand beside the good one of the same job: only tokens tell them apart.
    """
    by_token = {lease.token: lease.seq for lease in leases}
    rows = await connection.fetch(_HOLD, list(by_token.values()), list(by_token))
    return {row["lease_token"] for row in rows}


def lost(lease: Lease) -> LeaseLost:
    """Return the error that says so."""
    return LeaseLost(f"the lease on conversation {lease.conversation_id!r} is lost")


async def _hold_one(connection: Connection, lease: Lease) -> None:
    if not await hold(connection, [lease]):
        raise lost(lease)


# The lease ends by the row's token, not by its time: past its time it is good until somebody rescues it, and a rescue
# takes the token away.
_HOLD = """
SELECT job.lease_token FROM job
JOIN unnest($1::bigint[], $2::bigint[]) AS mine (seq, token) ON job.seq = mine.seq AND job.lease_token = mine.token
ORDER BY job.seq FOR UPDATE OF job
"""
_RENEW = """
UPDATE job SET leased_until = convo_now() + make_interval(secs => $3)
FROM (
    SELECT job.seq FROM job
    JOIN unnest($1::bigint[], $2::bigint[]) AS held (seq, token) ON job.seq = held.seq AND job.lease_token = held.token
    ORDER BY job.seq FOR UPDATE OF job -- in the order in which settles lock them
) AS mine
WHERE job.seq = mine.seq
RETURNING job.lease_token
"""
_FAIL = f"""
UPDATE job SET {FREE}, {NOT_PARKED}, attempts = attempts + 1, last_error = $2, delayed = true,
               available_at = convo_now() + make_interval(secs => $3)
WHERE seq = $1
"""
_BURY = f"UPDATE job SET {DEAD}, attempts = attempts + 1, last_error = $2 WHERE seq = $1"
_PARK = f"""
UPDATE job SET {FREE}, waits_for = $2, parked_since = coalesce(parked_since, convo_now()), last_error = $3,
               {later("$4")}
WHERE seq = $1
"""
_RELEASE = f"UPDATE job SET {FREE}, {later('$2')} WHERE seq = $1"
_HAS_SUSPECTS = f"""
SELECT EXISTS (SELECT FROM job
               WHERE state = 'ready' AND NOT delayed AND crashes >= {SUSPECT_AT} AND waits_for = ANY($1::text[]))
"""
_RETRY = f"""
UPDATE job SET state = 'ready', attempts = 0, crashes = 0, {NOT_PARKED}, ended_at = NULL, reviewed_at = NULL,
               available_at = convo_now()
FROM conversation c
WHERE c.conversation_id = $1 AND job.seq = c.seq AND job.state = 'dead'
RETURNING job.seq
"""
_ACKNOWLEDGE = """
UPDATE job SET reviewed_at = coalesce(reviewed_at, convo_now())
FROM conversation c
WHERE c.conversation_id = $1 AND job.seq = c.seq AND job.state = 'dead'
RETURNING job.attempts
"""
_STATE = "SELECT state FROM job JOIN conversation USING (seq) WHERE conversation_id = $1"
# Done ones are the whole history: they are told by the counter of settled jobs, not counted here.
_COUNT = """
SELECT 'ready' AS state, count(*) AS n FROM job WHERE state = 'ready'
UNION ALL SELECT 'parked', count(*) FROM job WHERE state = 'ready' AND waits_for <> ''
UNION ALL SELECT 'leased', count(*) FROM job WHERE state = 'leased'
UNION ALL SELECT 'dead', count(*) FROM job WHERE state = 'dead'
"""
_OLDEST = """
SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8
FROM job WHERE state = 'ready' AND NOT delayed AND crashes < 2 AND waits_for = ''
"""
