"""The jobs and their leases: who works on which conversation, until when, and how that work can end.

Open it to change what an ending does to a job. A job is one row: one conversation to analyse.

**States.** ``ready`` (due now, or from ``available_at`` on while ``delayed``), ``leased`` (one process holds it until
``leased_until``), ``done``, ``dead``. A done job has left this table: its row is in ``outcome``, and ``every_job``
shows both (``store/outcomes.py``). Beside a program before migration 18, done jobs stay here.

    ready --lease--> leased --settle--> done
      ^                |------bury----> dead --retry--> ready
      |                |
      +---- fail (attempt spent, due later), park (a dependency is out), release (the process stops),
            rescue (its holder is silent)

A newer revision of a conversation makes the job of the one before it ``superseded``, unless that is done. Nothing comes
after that (``store/jobs/revisions.py``).

**Fencing.** Every lease has a token that no other lease ever had. Every write of a lease's holder names the token. When
the lease is no longer the holder's, the write finds no row and raises ``LeaseLost``: a late worker can store nothing.

**Attempts** count what was spent. An ending by the job itself (settle, fail, bury) adds one. Park, release and rescue
add none. So nothing has to be given back, and a crash cannot forget to give it back.

**Parking.** A parked job ``waits_for`` a dependency since ``parked_since``. Nothing writes to its row while it waits. A
lease leaves out the jobs that wait for a dependency that is out in the leasing process, except for one job that probes.
It also leaves out those that wait for a dependency which that process does not have, or does not know.
Jobs that have been parked for ``jobs.give_up_seconds`` are buried.

**Given back.** What fails many jobs alike shows as a fault of a dependency only after some of them have spent attempts
on it (``resilience.systemic``). Then these are taken off their counts, the jobs are parked, and one that was buried
meanwhile for want of attempts is ready again, unless somebody has reviewed it.

**Poison.** A job that kills its process must not kill every process, and the jobs beside it must not be blamed. A job
counts a crash when the process that had it is *known to be dead*. That is known when the next start claims its folder,
or when it was not seen for three of its leases while the database was up. A process that was only stopped or cut off is
seen again, and gives its crashes back. The end of a lease alone is a rescue. After two crashes a job is a suspect: it
is leased only when its process has nothing else leased, and one process at a time does so. A suspect whose process dies
three times more is buried as poison.

**Clocks.** ``available_at`` and ``leased_until`` are times of the database's clock, compared with no other clock. After
that clock was set back, a time can be further away than is legal. ``rescue`` treats such a time as past. What is legal
is judged by the row alone: a lease carries its length (``lease_seconds``), a delay its beginning (``delayed_at``).
Processes with other settings give longer leases and longer delays, and these are no fault of the clock.

Lease, renewal, park, release and rescue commit without waiting for the disk: if one is lost, its work is done again
under another token. Settle, fail and bury wait for the disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import trio

from convo.conversation import digest as digests
from convo.conversation.model import Finding, PartName
from convo.conversation.owed import Owed
from convo.conversation.tenant import Reach, tenant_of
from convo.dependencies import DEPENDENCIES
from convo.errors import LeaseLost
from convo.observe import log_records
from convo.settings import JobsSettings
from convo.store import ledger, processes
from convo.store.audit_log import NO_CALLER, Caller
from convo.store.job_sql import DEAD, FREE, NOT_PARKED, later
from convo.store.jobs import (
    brought,
    counts,
    crashes,
    dead_letters,
    fair_lease,
    giving_back,
    parts,
    rescue,
    runs,
    suspects,
    tickets,
)
from convo.store.jobs.brought import Brought
from convo.store.jobs.crashes import ComeBack
from convo.store.jobs.dead_letters import DeadFilter, DeadReasons, RetriedBatch
from convo.store.jobs.fair_lease import Rounds
from convo.store.jobs.known_queues import KnownQueues
from convo.store.jobs.lease import Lease, hold, hold_one, lost
from convo.store.jobs.parts import PartRow, part_row
from convo.store.jobs.rescue import Rescue
from convo.store.jobs.runs import NO_WAITS, Waits
from convo.store.logs import CommittedLog, RecentLogs
from convo.store.outbox import NO_EVENTS, NewPart, Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.processes import ProcessEntry

FoundPart = tuple[Lease, PartName, str, Finding]
"""Under which lease which part was found, by whom, and what it is."""


class Jobs:
    """The job table, as the process called ``owner`` works on it."""

    def __init__(  # noqa: PLR0913  (the table, who works on it, and what that brings along)
        self,
        postgres: Postgres,
        settings: JobsSettings,
        owner: str,
        dependencies: Collection[str] = tuple(DEPENDENCIES),
        *,
        recent_logs: RecentLogs | None = None,
        outbox: Outbox = NO_EVENTS,
        owed_sets: OwedSets | None = None,
    ) -> None:
        """Work on the table with these ``dependencies`` switched on: jobs that wait for another one are left alone.

        A lease puts the logs of its jobs into ``recent_logs``.
        """
        self._postgres = postgres
        self._recent_logs = recent_logs
        self._dependencies = dependencies
        self._settings = settings
        self._outbox = outbox
        self._owed_sets = owed_sets or OwedSets()
        self.owner = owner
        self._entry: ProcessEntry | None = None
        self._rounds = Rounds()
        # By dependency, the same for the jobs that find out whether it is back.
        self._probe_rounds: dict[str, Rounds] = {}
        self._known = KnownQueues()

    def signed_in(self, entry: ProcessEntry) -> None:
        """Note under which name this process is registered; from now on it works under that name."""
        self.owner = entry.name
        self._entry = entry

    def start_over(self) -> None:
        """Begin the rounds anew."""
        self._rounds = Rounds()
        self._probe_rounds.clear()
        self._known = KnownQueues()

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        """Lease up to ``count`` due jobs in rounds, but none that waits for a dependency that is ``out``."""
        allowed = self._allowed(out)
        # Of a lease that fails nothing is known: it may have taken nothing.
        known, self._known = self._known, KnownQueues()
        known.begin(allowed, trio.current_time())
        leases, self._rounds = await self._lease(count, allowed, self._rounds, known)
        self._known = known
        return leases

    async def lease_probe(self, dependency: str) -> list[Lease]:
        """Lease one job that waits for this dependency, to find out whether the dependency is back.

        Each time of another key: one that fails for a reason of its own must not be the only one that is tried.
        """
        rounds = self._probe_rounds.get(dependency, self._rounds)
        leases, self._probe_rounds[dependency] = await self._lease(1, [dependency], rounds)
        return leases

    async def lease_suspect(self, *, out: Collection[str] = ()) -> list[Lease]:
        """Lease the suspect that is due longest, if there is one and this process may; as ``suspects.take_suspect``."""

        async def body(connection: Connection) -> list[Lease]:
            seconds = self._settings.lease_seconds
            rows = await suspects.take_suspect(
                connection, owner=self.owner, lease_seconds=seconds, allowed=self._allowed(out)
            )
            return await self._leases(connection, rows)

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        """Find out whether a suspect is due, except for those that wait for a dependency that is ``out``."""

        async def body(connection: Connection) -> bool:
            return await suspects.has_suspects(connection, self._allowed(out))

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def claim_suspects(self, *, out: Collection[str] = ()) -> bool:
        """Be the one process that works on suspects for the length of a lease, if one is due; return whether so."""

        async def body(connection: Connection) -> bool:
            due = await suspects.has_suspects(connection, self._allowed(out))
            return due and await suspects.claim_suspects(connection, self.owner, self._settings.lease_seconds)

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def _lease(
        self, count: int, allowed: Sequence[str], rounds: Rounds, known: KnownQueues | None = None
    ) -> tuple[list[Lease], Rounds]:
        async def body(connection: Connection) -> tuple[list[Lease], Rounds]:
            taken = await fair_lease.take(
                connection,
                count,
                owner=self.owner,
                lease_seconds=self._settings.lease_seconds,
                rounds=rounds,
                allowed=allowed,
                known=known,
            )
            return await self._leases(connection, taken.rows), taken.rounds

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def _leases(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[Lease]:
        if not rows:
            return []
        digest_of = {row["seq"]: digests.expand(row["digest"]) for row in rows}
        recent = self._recent_logs
        lacking = [] if recent is None else [seq for seq in digest_of if recent.lacks(seq)]
        await self._owed_sets.load(connection, {row["owed"] for row in rows})
        found = await brought.bring(connection, list(digest_of), logs_of=lacking)
        if recent is not None:
            recent.put(
                CommittedLog(seq=seq, digest=digest_of[seq], body=log) for seq, one in found.items() for log in one.log
            )
        return [_lease(row, digest_of[row["seq"]], found[row["seq"]], self._owed_sets.get(row["owed"])) for row in rows]

    def _allowed(self, out: Collection[str]) -> list[str]:
        """List the values of ``waits_for`` that may be leased: what was parked comes first, it has waited longer.

        A job that waits for a dependency which this process does not have is left to those that have it. Here another
        analyst would answer in its place.
        """
        return [name for name in (*self._dependencies, "") if name not in out]

    async def renew(self, leases: Sequence[Lease]) -> set[int]:
        """Renew these leases in one statement, and note that this process lives; return the tokens still good."""
        found: ComeBack | None = None

        async def body(connection: Connection) -> set[int]:
            nonlocal found
            if not await processes.seen(connection, self.owner) and self._entry is not None:
                found = await crashes.come_back(connection, self._entry)
            rows = await connection.fetch(
                _RENEW, [lease.seq for lease in leases], [lease.token for lease in leases], self._settings.lease_seconds
            )
            return {row["lease_token"] for row in rows}

        kept = await self._postgres.run("db.renew", body, begin=RELAXED)
        if found is not None:
            log_records.process_came_back(process=self.owner, crashes=found.crashes)
            if found.claimed_by is not None:
                log_records.folder_copied(process=self.owner, other=found.claimed_by)
        return kept

    # --- what the holder of a lease writes

    async def store_parts(self, found: Sequence[FoundPart]) -> list[LeaseLost | None]:
        """Store parts of several jobs in one transaction; return, in their order, which leases were lost."""

        async def body(connection: Connection) -> Collection[int]:
            held = await hold(connection, [lease for lease, _, _, _ in found])
            mine = [part_row(lease, name, by, finding) for lease, name, by, finding in found if lease.token in held]
            if mine:
                await store_new_parts(connection, mine, self._outbox)
            used = [(lease.seq, name) for lease, name, _, _ in found if name in lease.tickets and lease.token in held]
            if used:
                await tickets.remove(connection, used)
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
        waits: Waits = NO_WAITS,
    ) -> bool:
        """Spend an attempt: try again in ``later`` seconds, or bury the job when that was the last attempt.

        ``failed`` holds the parts that failed, each with who tried and why. ``waits``, here and in the other endings,
        are the seconds that the work spent in each named wait. Return whether the job is dead.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        last = lease.attempts + 1 >= self._settings.attempts_max

        async def body(connection: Connection) -> None:
            await hold_one(connection, lease)
            await parts.store_failures(connection, lease.seq, failed)
            await runs.note(connection, "bury" if last else "fail", lease.seq, reason, waits)
            if last:
                await connection.execute(_BURY, lease.seq, reason)
                await ledger.book(connection, "dead", [lease.seq])
                await self._outbox.append_dead(connection, {lease.seq: reason})
            else:
                await connection.execute(_FAIL, lease.seq, reason, later)

        await self._postgres.run("db.fail", body)
        return last

    async def store_ticket(self, lease: Lease, name: PartName, ticket: str) -> None:
        """Store what to ask with for a part that its service is still at work on; an empty one removes it.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await hold_one(connection, lease)
            await tickets.write(connection, lease.seq, name, ticket)

        await self._postgres.run("db.ticket", body)

    async def release(
        self, lease: Lease, *, later: float = 0.0, reason: str | None = None, waits: Waits = NO_WAITS
    ) -> None:
        """Give a job back, to be leased again at once or in ``later`` seconds; no attempt is spent.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await hold_one(connection, lease)
            await runs.note(connection, "release", lease.seq, reason, waits)
            await connection.execute(_RELEASE, lease.seq, later)

        await self._postgres.run("db.release", body, begin=RELAXED)

    async def return_unbegun(self, leases: Sequence[Lease]) -> None:
        """Give back jobs on which nobody has begun to work; no run is noted. Leases that were lost are left out."""

        async def body(connection: Connection) -> None:
            held = await hold(connection, leases)
            await connection.execute(_RETURN, [lease.seq for lease in leases if lease.token in held])

        await self._postgres.run("db.release", body, begin=RELAXED)

    async def park(
        self, lease: Lease, dependency: str, reason: str, *, later: float = 0.0, waits: Waits = NO_WAITS
    ) -> None:
        """Let a job wait until ``dependency`` is back, at least ``later`` seconds; it keeps its attempts and its place.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await hold_one(connection, lease)
            await runs.note(connection, "park", lease.seq, reason, waits)
            await connection.execute(_PARK, lease.seq, dependency, reason, later)

        await self._postgres.run("db.park", body, begin=RELAXED)

    # --- what any process may do

    async def release_all(self) -> int:
        """Give back every job leased under this process's name; as ``rescue.release_owned``."""
        return await rescue.release_owned(self._postgres, self.owner)

    async def claim_folder(self, folder: str) -> int:
        """Take back what earlier starts on this folder left leased; as ``crashes.claim_folder``."""
        return await crashes.claim_folder(self._postgres, folder, self.owner)

    async def rescue(self, *, gives_up: bool = True) -> Rescue:
        """Take back and bury what nobody works on any more; as ``crashes.declare_dead`` and ``rescue.rescue``."""
        for name in await crashes.declare_dead(self._postgres, self.owner):
            log_records.process_declared_dead(process=name)
        return await rescue.rescue(self._postgres, self._settings, gives_up=gives_up, outbox=self._outbox)

    async def give_back(self, attempts: Mapping[int, int], dependency: str) -> int:
        """Give back attempts, by ``seq``, that a fault of ``dependency`` cost; as ``giving_back.give_back``."""
        return await giving_back.give_back(self._postgres, attempts, dependency, self._settings.attempts_max)

    async def retry(self, reach: Reach, conversation_id: str, caller: Caller = NO_CALLER) -> None:
        """Make a dead letter ready again; as ``retry_dead_letter``."""
        await dead_letters.retry_dead_letter(self._postgres, reach, conversation_id, caller)

    async def acknowledge(self, reach: Reach, conversation_id: str, caller: Caller = NO_CALLER) -> int:
        """Note that somebody has reviewed a dead letter; as ``acknowledge_dead_letter``."""
        return await dead_letters.acknowledge_dead_letter(self._postgres, reach, conversation_id, caller)

    async def dead_reasons(self, reach: Reach, wanted: DeadFilter) -> DeadReasons:
        """Count dead letters by their reason; as ``group_dead_letters``."""
        return await dead_letters.group_dead_letters(self._postgres, reach, wanted)

    async def retry_many(  # noqa: PLR0913  (as retry_dead_letters)
        self, reach: Reach, wanted: DeadFilter, *, after: int, limit: int, dry_run: bool, caller: Caller = NO_CALLER
    ) -> RetriedBatch:
        """Make a batch of dead letters ready again; as ``retry_dead_letters``."""
        return await dead_letters.retry_dead_letters(
            self._postgres, reach, wanted, after=after, limit=limit, dry_run=dry_run, caller=caller
        )

    async def count(self) -> tuple[dict[str, int], float]:
        """Count the jobs that are not done; as ``counts.count``."""
        return await counts.count(self._postgres)


async def store_new_parts(connection: Connection, mine: Sequence[PartRow], outbox: Outbox) -> None:
    """Store parts, and append the event of each that was not stored before."""
    if not outbox.wants("part.done"):
        await parts.store(connection, mine)
        return
    seqs = sorted({one.seq for one in mine})
    before = await parts.found(connection, seqs)
    await parts.store(connection, mine)
    now = await parts.found(connection, seqs)
    fresh = {(one.seq, one.name): one for one in reversed(mine) if one.name not in before.get(one.seq, {})}
    await outbox.append_parts(
        connection,
        [NewPart(seq=seq, name=name, by=one.by, stored=now[seq][name]) for (seq, name), one in reversed(fresh.items())],
    )


def _lease(row: Mapping[str, Any], digest: str, stored: Brought, owed: Owed) -> Lease:
    same = {name: row[name] for name in _SAME}
    tenant = tenant_of(row["tenant"], row["tenant_name"])
    return Lease(
        **same,
        tenant=tenant,
        digest=digest,
        token=row["lease_token"],
        parts=stored.parts,
        tickets=stored.tickets,
        owed=owed,
    )


_SAME = (
    *("seq", "attempts", "fair_key", "conversation_id", "user_id", "bot_id", "log_hash"),
    *("started_at", "ended_at", "exchanges", "asked_before", "remote_prefix", "replaces", "trace"),
)


_RENEW = """
UPDATE job SET leased_until = convo_now() + make_interval(secs => $3), lease_seconds = $3
FROM (
    SELECT job.seq FROM job
    JOIN unnest($1::bigint[], $2::bigint[]) AS held (seq, token) ON job.seq = held.seq AND job.lease_token = held.token
    ORDER BY job.seq FOR UPDATE OF job -- in the order in which settles lock them
) AS mine
WHERE job.seq = mine.seq
RETURNING job.lease_token
"""
_FAIL = f"""
UPDATE job SET {FREE}, {NOT_PARKED}, attempts = attempts + 1, last_error = $2, delayed = true, delayed_at = convo_now(),
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
_RETURN = f"UPDATE job SET {FREE} WHERE seq = ANY($1::bigint[])"
ERASE_JOBS = "DELETE FROM job WHERE seq = ANY($1::bigint[])"
