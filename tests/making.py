"""Makes what tests of the store and the pipeline need: valid conversations, and the parts of a process beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio
from msgspec import Struct
from structlog.testing import capture_logs

from convo.analysis.analyze import Analyst, Analysts
from convo.bell import Bell
from convo.bridge import open_bridge
from convo.config import DatabaseSettings, Settings
from convo.conversation import digest as digests
from convo.conversation import transcript
from convo.conversation.model import (
    Conversation,
    ConversationEnded,
    EmotionName,
    Finding,
    LogItem,
    Memories,
    MemoryFact,
    Mood,
    PartName,
    Questions,
)
from convo.observe import events
from convo.pipeline.held import Held
from convo.pipeline.publisher import Handed, Publisher
from convo.pipeline.worker import Worker
from convo.resilience.dependency import Dependency
from convo.store import logs
from convo.store.intake import LINE_SETTINGS, Accept, Committer
from convo.store.jobs import Jobs, Lease
from convo.store.logs import Handover
from convo.store.postgres import Connection, Line, Postgres, open_postgres
from convo.store.settle import Settler
from convo.store.shelf import Shelf

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
) -> ConversationEnded:
    """Make the body of one conversation: ``said`` in turn, the user first."""
    items = [LogItem(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(said)]
    return ConversationEnded(
        conversation_id=conversation_id, user_id=user_id, bot_id=bot_id, conversation_log=items, **fields
    )


def accept(conversation_id: str = "talk-1", **fields: Any) -> Accept:
    """Make of one conversation what the accept path hands to the committer."""
    body = ended(conversation_id, **fields)
    checked = transcript.check(body)
    log_bytes = transcript.encode_log(transcript.read_log(body)[1])
    return Accept(
        ended=body,
        digest=digests.digest(body, log_bytes),
        turns=checked.turns,
        exchanges=checked.exchanges,
        started_at=checked.started_at,
        ended_at=checked.ended_at,
        log_bytes=log_bytes,
        body=logs.pack(log_bytes),
    )


def lease(seq: int = 1, *, token: int | None = None, **fields: Any) -> Lease:
    """Make a lease as ``Jobs.lease`` returns it."""
    usual: dict[str, Any] = {
        "attempts": 0,
        "fair_key": "user-1",
        "conversation_id": f"talk-{seq}",
        "user_id": "user-1",
        "bot_id": "bot-1",
        "digest": "1:abc",
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
async def open_line(postgres: Postgres, **settings: str) -> AsyncIterator[Line]:
    """Open one connection outside the pool."""
    line = postgres.line(**settings)
    try:
        yield line
    finally:
        with trio.move_on_after(5, shield=True):
            await line.close()


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


async def shift_clock(postgres: Postgres, by: str) -> None:
    """Set the clock of all rows forward, or back with a minus in front."""
    await ask(
        postgres,
        "CREATE OR REPLACE FUNCTION convo_now() RETURNS timestamptz LANGUAGE sql STABLE"
        f" AS 'SELECT now() + interval ''{by}'''",
    )


class Process:
    """What one convo process does behind its door, each part to be started by the test that needs it."""

    def __init__(self, postgres: Postgres, settings: Settings, owner: str) -> None:
        self.postgres = postgres
        self.settings = settings
        self.bell = Bell()
        self.taken: list[tuple[int, bytes]] = []
        self.ended: list[int] = []
        self.jobs = Jobs(postgres, settings.jobs, owner)
        self.shelf = Shelf(self.jobs, postgres.unit_seconds)
        self.settler = Settler(postgres, settings.score)
        self.handover = Handover(settings.jobs.handover_bytes)
        self.held = Held(self.jobs, settings.jobs)
        self.committer = Committer(
            postgres.line(**LINE_SETTINGS), settings.intake, settings.fairness.key, postgres.unit_seconds, self._take
        )
        self.dependencies: dict[str, Dependency] = {}

    def _take(self, committed: list[tuple[int, bytes]]) -> None:
        self.taken += committed
        self.handover.put(committed)
        self.bell.ring()

    @property
    def publisher(self) -> Publisher:
        """Make the publisher, with the dependencies as they are now."""
        return Publisher(self.jobs, self.settings.jobs, self.bell, [*self.dependencies.values()], self.ended.append)

    def worker(self, analysts: Analysts) -> Worker:
        """Make a worker with these analysts."""
        return Worker(
            settings=self.settings,
            postgres=self.postgres,
            jobs=self.jobs,
            shelf=self.shelf,
            settler=self.settler,
            handover=self.handover,
            held=self.held,
            analysts=analysts,
            dependencies=self.dependencies,
            bell=self.bell,
            ended=self.ended.append,
        )

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
            await self.jobs.store_part(lease, name, "test/1", finding)
        return lease

    async def state(self, conversation_id: str = "talk-1") -> tuple[str, int]:
        """Read a job's state and the attempts spent on it."""
        query = "SELECT state, attempts FROM job JOIN conversation USING (seq) WHERE conversation_id = $1"
        ((state, attempts),) = await rows(self.postgres, query, conversation_id)
        return state, attempts


@asynccontextmanager
async def open_process(url: str, settings: Settings | None = None, owner: str = "here/one") -> AsyncIterator[Process]:
    """Open one process's store, with its committer and settler at work."""
    told = settings or Settings()
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, url, told.database, name=owner.rpartition("/")[2]) as postgres,
        trio.open_nursery() as nursery,
    ):
        process = Process(postgres, told, owner)
        await nursery.start(process.committer.run)
        await nursery.start(process.shelf.run)
        await nursery.start(process.settler.run)
        yield process
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def at_work(process: Process, analysts: Analysts, *, workers: int = 1) -> AsyncIterator[trio.CancelScope]:
    """Run a publisher and workers; leaving stops the feed and lets the workers run dry.

    Yields the scope of the workers: cancelled, they stop at once.
    """
    async with trio.open_nursery() as working:
        send, receive = trio.open_memory_channel[Handed](0)
        async with receive:
            for _ in range(workers):
                working.start_soon(process.worker(analysts).run, receive.clone())
        async with trio.open_nursery() as feed:
            await feed.start(process.publisher.run, send)
            yield working.cancel_scope
            feed.cancel_scope.cancel()


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


# --- what is told


@contextmanager
def told() -> Iterator[list[str]]:
    """Collect the names of the events that are told inside, filled in at the end of the block."""
    names: list[str] = []
    # What is told seldom is told here, however lately another test was told of it.
    events._seldom.forget()
    with capture_logs() as lines:
        try:
            yield names
        finally:
            names += [line["event"] for line in lines]
