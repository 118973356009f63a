"""Makes what tests of the store and the pipeline need: valid conversations, and the parts of a process beside them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio
from msgspec import Struct
from structlog.testing import capture_logs

from convo.analysis.analyze import Analyst, Analysts
from convo.conversation.decode import decode
from convo.conversation.model import (
    Conversation,
    EmotionName,
    Finding,
    Memories,
    MemoryFact,
    Mood,
    PartName,
    Questions,
)
from convo.conversation.owed import Owed
from convo.observe import log_records
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.endings import Endings
from convo.pipeline.held import HeldLeases
from convo.pipeline.publisher import LEASED_AHEAD_MAX, Handed, Publisher
from convo.pipeline.settling import SETTLING_MAX, Settling
from convo.pipeline.spending import Spending
from convo.pipeline.worker import Worker
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings, JobsSettings, Settings
from convo.store.intake import SESSION_SETTINGS, Accept, Committer, make_inserts
from convo.store.jobs import crashes
from convo.store.jobs.lease import Lease
from convo.store.jobs.part_writer import PartWriter
from convo.store.jobs.revisions import Revisions
from convo.store.jobs.settle import Settler
from convo.store.jobs.table import Jobs
from convo.store.logs import CommittedLog, LogStore, RecentLogs
from convo.store.outbox import Outbox
from convo.store.outcomes import OutcomeDetails, unpack_details
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Connection, DedicatedConnection, Postgres, open_postgres
from convo.store.processes import ProcessEntry
from convo.store.receipts import GivenReceipts
from convo.web.accept import make_accept

AT = datetime(2026, 11, 22, 7, 0, 0, tzinfo=UTC)
SAID = ("What is the capital of France?", "Paris.", "Thank you, I like Paris!")
THREE: dict[PartName, Finding] = {
    "questions": Questions(questions=("What is the capital of France?",)),
    "emotion": Mood(emotion="happy"),
    "memories": Memories(facts=(MemoryFact(key="likes paris", text="Likes Paris", kind="like"),)),
}
"""One finding for each part: with ``SAID`` (1 exchange) worth 1 + 3 + 5 points, by the default weights."""


# --- what a client sends


def ended(
    conversation_id: str = "talk-1",
    *,
    user_id: str = "user-1",
    bot_id: str = "bot-1",
    said: Sequence[str] = SAID,
    **fields: Any,
) -> dict[str, Any]:
    """Make the body of one conversation: ``said`` in turn, the user first."""
    items = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(said)]
    return {
        "conversation_id": conversation_id,
        "user_id": user_id,
        "bot_id": bot_id,
        "conversation_log": items,
        **fields,
    }


def accept(conversation_id: str = "talk-1", *, revisions: bool = False, **fields: Any) -> Accept:
    """Make of one conversation what the accept path hands to the committer."""
    return make_accept(decode(msgspec.json.encode(ended(conversation_id, **fields))), revisions=revisions)


def lease(seq: int = 1, *, token: int | None = None, **fields: Any) -> Lease:
    """Make a lease as ``Jobs.lease`` returns it."""
    usual: dict[str, Any] = {
        "attempts": 0,
        "fair_key": "user-1",
        "conversation_id": f"talk-{seq}",
        "user_id": "user-1",
        "bot_id": "bot-1",
        "digest": "1:abc",
        "log_hash": None,
        "started_at": AT,
        "ended_at": AT,
        "exchanges": 1,
        "parts": {},
    }
    return Lease(seq=seq, token=seq if token is None else token, **{**usual, **fields})


def remembering(*keys: str, operation: str = "ADD") -> Memories:
    """Make the finding of these facts."""
    facts = [{"key": key, "text": f"Knows {key}", "operation": operation} for key in keys]
    return msgspec.convert({"facts": facts}, Memories)


# --- a process beside a database


@asynccontextmanager
async def open_store(url: str, **database: Any) -> AsyncIterator[Postgres]:
    """Open a bridge and a pool on it."""
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings(**database)) as postgres:
        yield postgres


@asynccontextmanager
async def open_dedicated(postgres: Postgres, **settings: str) -> AsyncIterator[DedicatedConnection]:
    """Open one connection outside the pool."""
    dedicated = postgres.dedicated(**settings)
    try:
        yield dedicated
    finally:
        with trio.move_on_after(5, shield=True):
            await dedicated.close()


async def ask(postgres: Postgres, query: str, *values: object) -> Any:
    """Run one query in a transaction; return its first value."""

    async def body(connection: Connection) -> Any:
        return await connection.fetchval(query, *values)

    return await postgres.run("test.ask", body)


async def rows(postgres: Postgres, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one query in a transaction; return its rows."""

    async def body(connection: Connection) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in await connection.fetch(query, *values)]

    return await postgres.run("test.rows", body)


async def seen_processes(postgres: Postgres) -> list[str]:
    """Read which processes were at work within the last minute."""
    found = await rows(postgres, "SELECT name FROM process WHERE seen_at > convo_now() - interval '1 minute'")
    return sorted(name for (name,) in found)


async def tables_of(postgres: Postgres) -> set[str]:
    """Read which tables there are; of one in partitions the table itself alone."""
    query = """
    SELECT relname::text FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    """
    return {name for (name,) in await rows(postgres, query)}


async def shift_clock(postgres: Postgres, by: str) -> None:
    """Set the clock of all rows forward, or back with a minus in front."""
    await ask(
        postgres,
        "CREATE OR REPLACE FUNCTION convo_now() RETURNS timestamptz LANGUAGE sql STABLE"
        f" AS 'SELECT now() + interval ''{by}'''",
    )


class Unpaced:
    """Lets every job start at once."""

    def allowed(self) -> float:
        return math.inf

    def started(self, jobs: int) -> None:
        pass

    def wait_seconds(self) -> float:
        return 0.0


class Process:
    """What one convo process does behind its door, each part to be started by the test that needs it."""

    def __init__(self, postgres: Postgres, settings: Settings, owner: str) -> None:
        self.postgres = postgres
        self.settings = settings
        self.bell = Bell()
        self.taken: list[CommittedLog] = []
        self.ended: list[int] = []
        self.superseded: list[int] = []
        self.outbox = Outbox(settings.events.types, settings.score)
        self.log_store = LogStore(postgres)
        self.recent_logs = RecentLogs(self.log_store.take, settings.jobs.handover_bytes)
        self.jobs = Jobs(postgres, settings.jobs, owner, recent_logs=self.recent_logs, outbox=self.outbox)
        self.part_writer = PartWriter(self.jobs, postgres.unit_seconds)
        self.settler = Settler(postgres, settings.score, self.outbox)
        self.receipts = GivenReceipts()
        self.held = HeldLeases(self.jobs, settings.jobs)
        self.committer = Committer(
            postgres.dedicated(**SESSION_SETTINGS),
            settings.intake,
            settings.fairness.key,
            postgres.unit_seconds,
            self._take,
            self.receipts,
            self.outbox,
            revisions=Revisions(
                settings.intake,
                settings.fairness.key,
                postgres.unit_seconds,
                self._take,
                self.superseded.extend,
                self.outbox,
            ),
        )
        self.dependencies: dict[str, Dependency] = {}
        self.spending: Spending | None = None
        self.settling = Settling(self._settle, self.bell)

    async def _settle(self, job: JobAtWork) -> None:
        await self.endings.settle(job)

    def _take(self, committed: list[CommittedLog]) -> None:
        self.taken += committed
        self.recent_logs.put(committed)
        self.bell.ring()

    @property
    def publisher(self) -> Publisher:
        """Make the publisher, with the dependencies as they are now."""
        return Publisher(
            self.jobs,
            self.settings.jobs,
            self.bell,
            [*self.dependencies.values()],
            self.ended.append,
            self.held,
            Unpaced(),
            settling=lambda: self.settling.busy,
        )

    @property
    def endings(self) -> Endings:
        """Make the endings, with the settings and dependencies as they are now."""
        return Endings(
            settings=self.settings,
            jobs=self.jobs,
            part_writer=self.part_writer,
            settler=self.settler,
            held=self.held,
            dependencies=self.dependencies,
            ended=self.ended.append,
            spending=self.spending,
        )

    def worker(self, analysts: Analysts) -> Worker:
        """Make a worker with these analysts."""
        return Worker(
            settings=self.settings,
            endings=self.endings,
            settle=self.settling.hand_over,
            take_log=self.recent_logs.take,
            analysts=analysts if callable(analysts) else lambda _: analysts,
            bell=self.bell,
        )

    def owe(self, owed: Callable[[Accept], Owed]) -> None:
        """Let conversations be owed other parts than the default ones from now on, as with declared parts."""
        self.committer._inserts = make_inserts(self.settings.fairness.key, owed, OwedSets())

    async def outcomes(self) -> list[OutcomeDetails]:
        """Read the details of every outcome."""
        found = await rows(self.postgres, "SELECT details FROM outcome ORDER BY seq")
        return [unpack_details(details) for (details,) in found]

    async def accepted(self, *conversation_ids: str, **fields: Any) -> None:
        """Accept these conversations, one after the other."""
        for conversation_id in conversation_ids:
            await self.committer.accept(accept(conversation_id, **fields))

    async def leased(self) -> Lease:
        """Lease the one job that is due."""
        (one,) = await self.jobs.lease(1)
        return one

    async def analysed(self, lease: Lease, parts: dict[PartName, Finding] | None = None) -> Lease:
        """Store these parts, or the usual three."""
        for name, finding in (parts or THREE).items():
            await store_part(self.jobs, lease, name, "test/1", finding)
        return lease

    async def state(self, conversation_id: str = "talk-1") -> tuple[str, int]:
        """Read a job's state and the attempts spent on it."""
        query = "SELECT state, attempts FROM every_job JOIN conversation USING (seq) WHERE conversation_id = $1"
        ((state, attempts),) = await rows(self.postgres, query, conversation_id)
        return state, attempts


async def store_part(jobs: Jobs, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
    """Store one part; raise LeaseLost when the job is no longer ours."""
    (lost,) = await jobs.store_parts([(lease, name, by, finding)])
    if lost is not None:
        raise lost


def owned(process: Process, owner: str, **settings: object) -> Jobs:
    """Return the job table as another process sees it."""
    return Jobs(process.postgres, msgspec.structs.replace(JobsSettings(), **settings), owner)


def entry_of(name: str, *, pid: int = 1, host: str = "here", **values: Any) -> ProcessEntry:
    """Make the row of a process; its name may be of this program's form or of an earlier one's (HOST/FOLDER)."""
    folder = name.rpartition("/")[2].partition(".")[0]
    usual: dict[str, Any] = {"connections_max": 9, "lease_seconds": 30.0, "heartbeat_seconds": 5.0}
    return ProcessEntry(name=name, folder=folder, host=host, pid=pid, **(usual | values))


async def dies(postgres: Postgres, owner: str) -> int:
    """Let the next start on a process's folder claim it: so the process is dead. Return how many leases that freed."""
    folder = owner.rpartition("/")[2].partition(".")[0]
    return await crashes.claim_folder(postgres, folder, f"{folder}.next")


async def expire_leases(process: Process) -> None:
    """Let every lease be past its end."""
    await ask(
        process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second' WHERE state = 'leased'"
    )


@asynccontextmanager
async def open_process(url: str, settings: Settings | None = None, owner: str = "here/one") -> AsyncIterator[Process]:
    """Open one process's store, with its committer and settler at work."""
    told = settings or Settings()
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, url, told.database, name=owner.rpartition("/")[2].rpartition(".")[2]) as postgres,
        trio.open_nursery() as nursery,
    ):
        process = Process(postgres, told, owner)
        await nursery.start(process.committer.run)
        await nursery.start(process.part_writer.run)
        await nursery.start(process.settler.run)
        yield process
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def at_work(process: Process, analysts: Analysts, *, workers: int = 1) -> AsyncIterator[trio.CancelScope]:
    """Run a publisher and workers; leaving stops the feed and lets the workers run dry.

    Yields the scope of the workers: cancelled, they stop at once.
    """
    async with trio.open_nursery() as settling:
        for _ in range(SETTLING_MAX):
            settling.start_soon(process.settling.run)
        async with trio.open_nursery() as working:
            send, receive = trio.open_memory_channel[Handed](LEASED_AHEAD_MAX)
            for _ in range(workers):
                working.start_soon(process.worker(analysts).run, receive.clone())
            async with trio.open_nursery() as feed:
                await feed.start(process.publisher.run, send, receive)
                yield working.cancel_scope
                feed.cancel_scope.cancel()
        settling.cancel_scope.cancel()


# --- analysts


class Asked(Struct):
    """How often each part was asked for."""

    questions: int = 0
    emotion: int = 0
    memories: int = 0


def instant(asked: Asked | None = None, parts: dict[PartName, Finding] | None = None) -> dict[PartName, Analyst]:
    """Make analysts that find the usual three parts at once."""

    def analyst(name: PartName, finding: Finding) -> Analyst:
        async def find(_: Conversation) -> Finding:
            await trio.lowlevel.checkpoint()
            if asked is not None:
                setattr(asked, name, getattr(asked, name) + 1)
            return finding

        return Analyst(by=f"instant-{name}/1", find=find)

    return {name: analyst(name, finding) for name, finding in (parts or THREE).items()}


def failing(error: BaseException) -> Analyst:
    """Make an analyst that always fails like this."""

    async def find(_: Conversation) -> Finding:
        await trio.lowlevel.checkpoint()
        raise error

    return Analyst(by="failing/1", find=find)


class Stuck:
    """An analyst that says when it was asked and waits until it is let go."""

    def __init__(self, finding: Finding) -> None:
        self.asked = trio.Event()
        self.let_go = trio.Event()
        self.cancelled = False
        self._finding = finding

    @property
    def analyst(self) -> Analyst:
        return Analyst(by="stuck/1", find=self.find)

    async def find(self, _: Conversation) -> Finding:
        self.asked.set()
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        return self._finding


def mood(emotion: EmotionName) -> dict[PartName, Finding]:
    """Return the usual three parts with another emotion."""
    return {**THREE, "emotion": Mood(emotion=emotion)}


async def vacuum(url: str, words: str = "VACUUM") -> None:
    """Run a statement outside a transaction."""

    async def body(connection: Any) -> None:
        await connection.execute(words)

    async with open_store(url) as postgres, open_dedicated(postgres) as dedicated:
        await dedicated.run("test.vacuum", body, begin="")


# --- what is told


@contextmanager
def told() -> Iterator[list[str]]:
    """Collect the names of the events that are told inside, filled in at the end of the block."""
    names: list[str] = []
    # What is told seldom is told here, however lately another test was told of it.
    log_records._seldom.forget()
    with capture_logs() as lines:
        try:
            yield names
        finally:
            names += [line["event"] for line in lines]


async def settled(process: Process, count: int) -> None:
    """Lease so many jobs, and settle each with what was found."""
    leases = await process.jobs.lease(count)
    assert len(leases) == count
    for lease in leases:
        await process.settler.settle(await process.analysed(lease))


async def settled_later(process: Process, count: int) -> None:
    """As ``settled``, after one lease of each that was given back: so each job has a run."""
    for lease in await process.jobs.lease(count):
        await process.jobs.release(lease)
    await settled(process, count)


async def deleted(process: Process, table: str, *conversation_ids: str) -> None:
    """Delete the rows of these conversations from one table, as only a person by hand does."""
    query = f"DELETE FROM {table} WHERE seq IN (SELECT seq FROM conversation WHERE conversation_id = ANY($1))"
    await ask(process.postgres, query, list(conversation_ids))
