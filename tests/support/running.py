"""A running convo for tests: a real ``convo serve`` as a child process, or the whole service inside this trio run.

A process counts as started when it prints that it serves. It is stopped by SIGTERM, and signalled by its own pid only.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import structlog.testing
import trio

from convo import config, service
from convo.settings import Settings
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0
_ENDED = ("done", "dead")


class Running:
    """One ``convo serve``: its process, its URL, and its output so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.url = ""
        self._output = output

    @property
    def output(self) -> str:
        """Everything on its standard output and error."""
        return self._output.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"convo did not stop within {_STOP_SECONDS:g} s:\n{self.output}")

    def stop(self) -> int:
        """Ask it to stop as an orchestrator does, and return its exit code."""
        self.process.terminate()
        return self.ended()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()


def command(data_dir: Path, *arguments: str, program: Sequence[str] = ("convo",)) -> list[str]:
    """Return the command line of a server on a free port."""
    return [sys.executable, "-m", *program, "serve", "--port", "0", "--data-dir", str(data_dir), *arguments]


def environment(database_url: str = "", settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a server: this one's, but for all settings that are not given here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVO_")}
    url = {"CONVO_DATABASE__URL": database_url} if database_url else {}
    return kept | url | _variables(settings or {})


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"CONVO_{name.replace('.', '__').upper()}": value for name, value in settings.items()}


@contextmanager
def running(
    data_dir: Path,
    database_url: str = "",
    settings: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    *,
    program: Sequence[str] = ("convo",),
    tree: Path = ROOT,
) -> Iterator[Running]:
    """Run ``convo serve`` on a given database, or on its embedded one; ``settings`` are by name: "jobs.workers".

    ``program`` is the module that is run in convo's place, with arguments of its own. ``tree`` is the source that it is
    run from: another release's.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / f"output-{time.monotonic_ns()}.txt"
    with path.open("wb") as output:
        process = subprocess.Popen(
            command(data_dir, *arguments, program=program),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(database_url, settings),
            cwd=tree,
        )
    started = Running(process, path)
    try:
        _await_start(started)
        yield started
        if process.poll() is None:
            started.stop()
    finally:
        started.kill()


def _await_start(started: Running) -> None:
    until = time.monotonic() + _START_SECONDS
    while (serves := re.search(r"^convo serves on (\S+)$", started.output, re.MULTILINE)) is None:
        if started.process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"convo did not start:\n{started.output}")
        time.sleep(0.02)
    started.url = serves[1]


@asynccontextmanager
async def serving(
    data_dir: Path, database_url: str, settings: Mapping[str, str] | None = None, *, prepared: bool = True
) -> AsyncIterator[str]:
    """Run the whole service inside this trio run; yield its URL, ``prepared`` or as soon as anything answers."""
    ready = trio.Event()
    async with _quietly(), trio.open_nursery() as nursery:
        port = free_port()
        loaded = loaded_settings(data_dir, database_url, settings, port=port)
        nursery.start_soon(service.serve, loaded, lambda _: ready.set())
        url = f"http://127.0.0.1:{port}"
        await (ready.wait() if prepared else _answering(url))
        try:
            yield url
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _quietly() -> AsyncIterator[None]:
    """Keep the log records back, and print those from warning upwards: pytest shows them where a test fails."""
    with structlog.testing.capture_logs() as records:
        try:
            yield
        finally:
            print(*(record for record in records if record["log_level"] in ("warning", "error", "critical")), sep="\n")


async def _answering(url: str) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            try:
                await client.get(f"{url}/livez")
            except httpx.TransportError:
                await trio.sleep(0.02)
            else:
                return


def loaded_settings(
    data_dir: Path, database_url: str, settings: Mapping[str, str] | None = None, *, port: int = 0
) -> Settings:
    """Return the settings of a service inside this process."""
    arguments = {("server", "data_dir"): str(data_dir), ("server", "port"): str(port)}
    given = {"database.url": database_url, **(settings or {})}
    return config.load_settings(None, _variables(given), arguments)


# --- requests and answers


def ended(
    conversation_id: str,
    log: Sequence[object] | None = None,
    *,
    user_id: str = "user-1",
    bot_id: str = "pika",
    **fields: object,
) -> dict[str, Any]:
    """Make the body of a finished conversation."""
    turns = [("BOT", "Hello!"), ("USER", "I have a dog named Rex. Why do dogs bark?"), ("BOT", "To talk.")]
    items = [{"character": who, "content": what} for who, what in turns] if log is None else list(log)
    ids = {"conversation_id": conversation_id, "user_id": user_id, "bot_id": bot_id}
    return {**ids, "conversation_log": items, **fields}


def until_ended(client: httpx.Client, link: str, seconds: float = 60.0) -> dict[str, Any]:
    """Wait until a conversation is done or dead; return what a reader is answered."""
    until = time.monotonic() + seconds
    while True:
        answer = client.get(link, params={"wait": "5"})
        assert answer.status_code == 200, answer.text
        view: dict[str, Any] = answer.json()
        if view["state"] in _ENDED:
            return view
        if time.monotonic() > until:
            pytest.fail(f"{link} is {view['state']} after {seconds:g} s")


def read_answer(connection: socket.socket) -> bytes:
    """Read one whole answer off a connection, or what there is of it when the connection ends."""
    got = b""
    while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < announced(got):
        piece = connection.recv(65536)
        if not piece:
            break
        got += piece
    return got


def announced(got: bytes) -> int:
    """Return the length of the body that the head of an answer announces, in bytes; 0 where it does not."""
    found = re.search(rb"\r\ncontent-length: (\d+)", got, re.IGNORECASE)
    return int(found[1]) if found else 0


def query(database_url: str, statement: str, *values: object) -> list[Any]:
    """Ask the database itself; return all rows."""

    async def on_asyncio() -> list[Any]:
        async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
            rows: list[Any] = await pool.fetch(statement, *values)
            return rows

    return asyncio.run(on_asyncio())


async def eventually(true: Callable[[], Any]) -> None:
    """Wait inside this trio run until ``true`` returns something true; pytest's own alarm is the bound."""
    while not true():  # noqa: ASYNC110  (what becomes true may do so in another process)
        await trio.sleep(0.01)


# --- faults of its database


@asynccontextmanager
async def holding(database_url: str, statement: str) -> AsyncIterator[None]:
    """Run a statement in a transaction that stays open for as long as the block runs."""
    held, let_go, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()

    async def hold() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute(f"BEGIN; {statement}")
            token.run_sync_soon(held.set)
            while not let_go.is_set():  # noqa: ASYNC110  (set from another thread, which knows no loop)
                await asyncio.sleep(0.005)
        finally:
            await connection.close()  # noqa: ASYNC102  (asyncio, in a thread of its own)

    async with trio.open_nursery() as nursery:
        # From its beginning to its end in one thread: asyncio's loops here are bound to theirs.
        nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(hold()))
        try:
            await held.wait()
            yield
        finally:
            let_go.set()


@asynccontextmanager
async def away(postgres_url: str, database_url: str) -> AsyncIterator[None]:
    """End every connection to a database and refuse new ones for as long as the block runs."""
    name = urlsplit(database_url).path.removeprefix("/")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
    await trio.to_thread.run_sync(query, postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await trio.to_thread.run_sync(query, postgres_url, end, name)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(query, postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@contextmanager
def dead_socket(*, refuses: bool) -> Iterator[str]:
    """Yield the URL of a database that is not there, or that takes a connection and never speaks."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if not refuses:
            listening.listen(64)
        yield f"postgresql://postgres@127.0.0.1:{listening.getsockname()[1]}/none"
