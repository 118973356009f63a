"""Several convo processes on one database behind a network that can fail, and all that they depend on.

Real processes on loopback, each signalled by its own pid only. The fault that ends a process starts it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import trio

from convo.settings import DatabaseSettings
from convo.store.server_settings import connections_wanted
from tests.support.brokers import OwnBroker
from tests.support.buckets import S3Server
from tests.support.faking import fake
from tests.support.ports import free_port
from tests.support.proxy import Proxy, open_proxy
from tests.support.running import environment

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 6.0
GATEWAY_SECONDS = 10.0
SETTINGS = {
    "jobs.lease_seconds": f"{LEASE_SECONDS:g}",
    "jobs.heartbeat_seconds": "1.5",
    "jobs.poll_seconds": "0.3",
    "jobs.backoff_seconds": "1",
    "jobs.backoff_max_seconds": "4",
    "shutdown.intake_seconds": "3",
    "shutdown.workers_seconds": "2",
    "shutdown.settle_seconds": "3",
    # Only what a fault makes old is over.
    "retention.conversations_days": "30",
    "retention.look_seconds": "1",
    "observe.log_level": "warning",
    "observe.log_format": "json",
}
_REMOTE = {"attempt_seconds": "2.5", "attempts": "2", "backoff_seconds": "0.2", "backoff_max_seconds": "1"}
# Of commands and of the run itself.
_LOOKS = 12
_BREAKER = {"breaker_open_seconds": "3"}


class S3Behind(Protocol):
    """The object storage of a world (``objects``): its server, and the network before it."""

    server: S3Server
    network: Proxy


class Convo:
    """One place for a convo process: its port, its folder, and the process that is there now, if one is."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.busy = trio.Lock()
        # It takes part for a while only, and belongs to the fault that started it.
        self.visiting = False
        self.process: subprocess.Popen[bytes] | None = None
        self.odd_ends: list[str] = []
        self._settings = settings
        # When it could not answer, by trio's clock; the last one may still be open.
        self._away: list[list[float]] = []

    async def start(self, *, settings: Mapping[str, str] | None = None, program: Sequence[str] = ("convo",)) -> None:
        """Start a process here, with these ``settings`` in place of the usual ones, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", *program, "serve", "--port", str(self.port), "--data-dir", str(self.folder)]
        with (self.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220  (a fork takes milliseconds)
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(settings={**self._settings, **(settings or {})}),
                cwd=ROOT,
            )
        async with httpx.AsyncClient(base_url=self.url, timeout=2) as client:
            while self.process.poll() is None:
                with suppress(httpx.HTTPError):
                    await client.get("/livez")
                    break
                await trio.sleep(0.05)
        if self.process.poll() is not None:
            self.odd_ends.append(f"{self.folder.name} did not start")
        self.back()

    def away(self) -> None:
        """Note that from now on it cannot answer."""
        self._away.append([trio.current_time(), float("inf")])

    def back(self) -> None:
        """Note that it answers again."""
        if self._away:
            self._away[-1][1] = min(self._away[-1][1], trio.current_time())

    def was_away(self, since: float) -> bool:
        """Return whether it could not answer at some moment since then."""
        return any(end >= since for _, end in self._away)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def ended(self, expected: Sequence[int]) -> None:
        """Wait until it has ended, as long as an orchestrator would; note any other exit code than those expected."""
        process = self.process
        if process is None:
            return
        with trio.move_on_after(30):
            while process.poll() is None:  # noqa: ASYNC110  (there is no event for the end of a process)
                await trio.sleep(0.02)
        if process.poll() not in expected:
            self.odd_ends.append(f"{self.folder.name} ended with {process.poll()} instead of {list(expected)}")
            process.kill()
            process.wait()

    async def killed(self) -> None:
        """End the process as a power cut does."""
        self.away()
        self.signal(signal.SIGKILL)
        await self.ended([-signal.SIGKILL])

    async def stopped(self) -> None:
        """Stop the process as an orchestrator does."""
        self.away()
        self.signal(signal.SIGTERM)
        await self.ended([0])

    @property
    def folder_id(self) -> str:
        """The id by which the database knows this folder."""
        return (self.folder / "instance").read_text().split()[0]

    def log_records(self, event: str = "") -> Iterator[dict[str, Any]]:
        """Read what all processes here logged, or only one kind of record."""
        for line in (self.folder / "output.txt").read_text("utf-8", "replace").splitlines():
            with suppress(json.JSONDecodeError):
                record = json.loads(line)
                if not event or record.get("event") == event:
                    yield record


class World:
    """Everything that takes part, and where to reach it."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.database = ""
        self.data_folder = folder / "database"
        self.network: Proxy
        self.to_memory: Proxy
        self.model = ""
        self.memory = ""
        self.settings: dict[str, str] = {}
        # Where it takes part.
        self.broker: OwnBroker | None = None
        self.objects: S3Behind | None = None
        self.convos: list[Convo] = []
        # Those that took part for a while only.
        self.departed: list[Convo] = []
        # What the database lost when it was taken back.
        self.gone: set[str] = set()
        # The same of events, by id; and those that it still has, but not their numbers in the order.
        self.gone_events: set[str] = set()
        self.unnumbered_events: set[str] = set()
        # Conversations that a process said it has erased, and those that were made old, so that retention takes them.
        self.erased: set[str] = set()
        self.aged: set[str] = set()

    def log_records(self, event: str) -> Iterator[dict[str, Any]]:
        """Read what all processes logged of one kind, those that have departed too."""
        return (record for convo in (*self.convos, *self.departed) for record in convo.log_records(event))

    @property
    def postmaster(self) -> int:
        """The pid of PostgreSQL's first process, 0 while there is none."""
        try:
            return int((self.data_folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return 0

    async def ask(self, statement: str, *values: object, seconds: float = 60.0) -> list[Any]:
        """Ask the database itself, past the network that fails; return all rows.

        Raises:
            OSError, asyncpg.PostgresError: it cannot be asked now.
        """
        return await trio.to_thread.run_sync(partial(ask, self.database, statement, *values, seconds=seconds))

    async def execute(self, statements: str) -> None:
        """Run statements in the database itself, past the network that fails.

        Raises:
            OSError, asyncpg.PostgresError: it cannot be done now.
        """
        await trio.to_thread.run_sync(partial(ask, self.database, statements, only=True))

    def some_convo(self) -> Convo:
        """Choose a process that no fault holds now, or any where there is none."""
        staying = [convo for convo in self.convos if not convo.visiting]
        return self.chance.choice([convo for convo in staying if not convo.busy.locked()] or staying)


def ask(url: str, statement: str, *values: object, seconds: float = 60.0, only: bool = False) -> list[Any]:
    """Ask a database on a connection of its own; return all rows, or ``only`` run one or more statements."""

    async def on_asyncio() -> list[Any]:
        connection = await asyncpg.connect(url, timeout=min(seconds, 10.0), command_timeout=seconds)
        try:
            if only:
                await connection.execute(statement)
                return []
            rows: list[Any] = await connection.fetch(statement, *values)
            return rows
        finally:
            connection.terminate()

    return asyncio.run(on_asyncio())


@asynccontextmanager
async def open_world(
    folder: Path, processes: int, chance: random.Random, settings: Mapping[str, str] | None = None
) -> AsyncIterator[World]:
    """Start everything, the processes with these ``settings`` besides; at the end stop it, whatever state it is in."""
    world = World(folder, chance)
    async with AsyncExitStack() as stack:
        world.database = await stack.enter_async_context(_postgres(world.data_folder, connections_of(processes)))
        socket_folder = Path(parse_qs(urlsplit(world.database).query)["host"][0])
        world.network = await stack.enter_async_context(open_proxy(socket_folder / ".s.PGSQL.5432", port=free_port()))
        world.model = stack.enter_context(fake("model", "scattered", "0.02"))
        world.memory = stack.enter_context(fake("memory", "scattered", "0.02"))
        memory_port = urlsplit(world.memory).port or 0
        world.to_memory = await stack.enter_async_context(open_proxy(("127.0.0.1", memory_port), port=free_port()))
        world.settings = {**_settings(world), **(settings or {})}
        world.convos = [Convo(folder / f"convo-{number}", world.settings) for number in range(processes)]
        for convo in world.convos:
            stack.push_async_callback(_end, convo)
        await _start_all(world.convos)
        yield world


def connections_of(processes: int) -> int:
    """Return how many connections all of them may open, with one more that visits, and those who look at the database.

    With fewer the looks of the run itself are refused, at any time: every process then has all that it may open.
    """
    return (processes + 1) * connections_wanted(DatabaseSettings().pool_max) + _LOOKS


def _settings(world: World) -> dict[str, str]:
    remote = {**_REMOTE, **_BREAKER}
    login = urlsplit(world.database).netloc.rpartition("@")[0]
    return {
        **SETTINGS,
        "analysis.job_seconds": "20",
        "database.url": f"postgresql://{login}@127.0.0.1:{world.network.port}/convo",
        **{f"llm.{name}": value for name, value in remote.items()},
        **{f"memory.{name}": value for name, value in remote.items()},
        "llm.base_url": world.model,
        "llm.model": "torture",
        "memory.url": f"http://127.0.0.1:{world.to_memory.port}",
    }


async def _start_all(convos: Sequence[Convo]) -> None:
    for convo in convos:
        await convo.start()
        if convo.odd_ends:
            raise RuntimeError(f"{convo.odd_ends[0]}:\n{(convo.folder / 'output.txt').read_text()[-2000:]}")
        # Ready: the database has its schema, and the process has signed in.
        async with httpx.AsyncClient(base_url=convo.url, timeout=10) as client:
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  (there is no event to wait for)
                await trio.sleep(0.05)


async def _end(convo: Convo) -> None:
    if convo.process is not None and convo.process.poll() is None:
        convo.signal(signal.SIGCONT)
        convo.process.kill()
        convo.process.wait()


@asynccontextmanager
async def _postgres(folder: Path, connections: int) -> AsyncIterator[str]:
    """Run PostgreSQL under a process that starts it again whenever it dies; yield its URL."""
    folder.mkdir(parents=True)
    line = [sys.executable, "-m", "tests.support.embedded_server", str(folder), "keep"]
    line.append(f"connections={connections}")
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  (a fork takes milliseconds)
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, cwd=ROOT, process_group=0
        )
    try:
        assert process.stdout is not None
        yield (await trio.to_thread.run_sync(process.stdout.readline)).strip()
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with trio.move_on_after(30, shield=True):
            while process.poll() is None:  # noqa: ASYNC110  (there is no event for the end of a process)
                await trio.sleep(0.05)
        process.kill()
        process.wait()


def family(pid: int) -> list[int]:
    """List a process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def signal_all(pids: Sequence[int], number: int) -> None:
    """Send a signal to each of these that still runs."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def convo_command(world: World, *arguments: str, settings: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command of convo on the database itself; return its exit code and its output."""
    return await command_on(world.database, world.folder, *arguments, settings=settings)


async def command_on(
    database: str, folder: Path, *arguments: str, settings: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command of convo on a database; return its exit code and its output."""
    line = [sys.executable, "-m", "convo", *arguments, "--data-dir", str(folder / "commands")]
    run = partial(subprocess.run, line, env=environment(database, settings), cwd=ROOT, capture_output=True, text=True)
    done = await trio.to_thread.run_sync(partial(run, check=False, timeout=120))
    return done.returncode, (done.stdout + done.stderr).strip()


def wall() -> float:
    """Return the time by the clock that the fakes and the record use."""
    return time.time()
