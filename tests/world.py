"""Several convo processes on one database behind a network that can fail, and all that they depend on.

Real processes on loopback, each touched by its own pid only. A process is started again by whoever ended it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import trio

from tests.faking import fake
from tests.proxy import Proxy, open_proxy
from tests.running import environment

ROOT = Path(__file__).parents[1]
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
    "observe.log_level": "warning",
    "observe.log_format": "json",
}
_REMOTE = {"attempt_seconds": "2.5", "attempts": "2", "backoff_seconds": "0.2", "backoff_max_seconds": "1"}
_BREAKER = {"breaker_open_seconds": "3"}
_FIRST_PORT = 38_000
_LAST_PORT = 38_999


class Convo:
    """One place for a convo process: its port, its folder, and the process that is there now, if one is."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.busy = trio.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.odd_ends: list[str] = []
        self._settings = settings
        # When it could not answer, by trio's clock; the last one may still be open.
        self._away: list[list[float]] = []

    async def start(self) -> None:
        """Start a process here and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "convo", "serve", "--port", str(self.port), "--data-dir", str(self.folder)]
        with (self.folder / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(  # noqa: ASYNC220  (a fork takes milliseconds)
                line,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment(settings=self._settings),
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
        """Note that from now on nobody can expect an answer."""
        self._away.append([trio.current_time(), float("inf")])

    def back(self) -> None:
        """Note that it answers again."""
        if self._away:
            self._away[-1][1] = min(self._away[-1][1], trio.current_time())

    def was_away(self, since: float) -> bool:
        """Tell whether it could not answer at some moment since then."""
        return any(end >= since for _, end in self._away)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def ended(self, expected: Sequence[int]) -> None:
        """Wait for the end that somebody brought about, within what an orchestrator gives it."""
        process = self.process
        if process is None:
            return
        with trio.move_on_after(30):
            while process.poll() is None:  # noqa: ASYNC110  (nothing rings when a process ends)
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

    def told(self) -> Iterator[dict[str, Any]]:
        """Read the events that all processes here told."""
        for line in (self.folder / "said.txt").read_text("utf-8", "replace").splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


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
        self.convos: list[Convo] = []

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

    async def tell(self, statements: str) -> None:
        """Run statements in the database itself, past the network that fails.

        Raises:
            OSError, asyncpg.PostgresError: it cannot be done now.
        """
        await trio.to_thread.run_sync(partial(ask, self.database, statements, only=True))

    def some_convo(self) -> Convo:
        """Choose a process that nobody does anything to now, or any where there is none."""
        idle = [convo for convo in self.convos if not convo.busy.locked()]
        return self.chance.choice(idle or self.convos)


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


def free_port() -> int:
    """Find a port of the range that is ours, which nobody listens on."""
    while True:
        port = random.randint(_FIRST_PORT, _LAST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@asynccontextmanager
async def open_world(folder: Path, processes: int, chance: random.Random) -> AsyncIterator[World]:
    """Start everything; at the end stop it, whatever state it is in."""
    world = World(folder, chance)
    async with AsyncExitStack() as stack:
        world.database = await stack.enter_async_context(_postgres(world.data_folder))
        socket_folder = Path(parse_qs(urlsplit(world.database).query)["host"][0])
        world.network = await stack.enter_async_context(open_proxy(socket_folder / ".s.PGSQL.5432", port=free_port()))
        world.model = stack.enter_context(fake("model", "scattered", "0.02"))
        world.memory = stack.enter_context(fake("memory", "scattered", "0.02"))
        memory_port = urlsplit(world.memory).port or 0
        world.to_memory = await stack.enter_async_context(open_proxy(("127.0.0.1", memory_port), port=free_port()))
        settings = _settings(world)
        world.convos = [Convo(folder / f"convo-{number}", settings) for number in range(processes)]
        for convo in world.convos:
            stack.push_async_callback(_end, convo)
        await _start_all(world.convos)
        yield world


def _settings(world: World) -> dict[str, str]:
    remote = {**_REMOTE, **_BREAKER}
    return {
        **SETTINGS,
        "analysis.job_seconds": "20",
        "database.url": f"postgresql://convo@127.0.0.1:{world.network.port}/convo",
        **{f"llm.{name}": value for name, value in remote.items()},
        **{f"memory.{name}": value for name, value in remote.items()},
        "llm.base_url": world.model,
        "llm.model": "torture",
        "memory.url": f"http://127.0.0.1:{world.to_memory.port}",
    }


async def _start_all(convos: Sequence[Convo]) -> None:
    for convo in convos:
        await convo.start()
        # Ready: the database has its schema, and the process has signed in.
        async with httpx.AsyncClient(base_url=convo.url, timeout=10) as client:
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  (it is asked, it rings nobody)
                await trio.sleep(0.05)


async def _end(convo: Convo) -> None:
    if convo.process is not None and convo.process.poll() is None:
        convo.signal(signal.SIGCONT)
        convo.process.kill()
        convo.process.wait()


@asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    """Run PostgreSQL under a process that starts it again whenever it dies; yield its URL."""
    folder.mkdir(parents=True)
    line = [sys.executable, "-m", "tests.embedded_server", str(folder), "keep"]
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(  # noqa: ASYNC220  (a fork takes milliseconds)
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT, process_group=0
        )
    try:
        assert process.stdout is not None
        yield (await trio.to_thread.run_sync(process.stdout.readline)).strip()
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with trio.move_on_after(30, shield=True):
            while process.poll() is None:  # noqa: ASYNC110  (nothing rings when a process ends)
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


async def audit(world: World) -> tuple[int, str]:
    """Run ``convo audit`` on the database; return its exit code and what it said."""
    line = [sys.executable, "-m", "convo", "audit", "--data-dir", str(world.folder / "audit")]
    run = partial(subprocess.run, line, env=environment(world.database), cwd=ROOT, capture_output=True, text=True)
    done = await trio.to_thread.run_sync(partial(run, check=False, timeout=120))
    return done.returncode, (done.stdout + done.stderr).strip()


def wall() -> float:
    """Tell the time by the clock that the fakes and the record use."""
    return time.time()
