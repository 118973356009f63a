"""What tests share: one embedded PostgreSQL for the whole run, and a database of its own for each test that asks."""

from __future__ import annotations

import asyncio
import atexit
import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import sniffio
import trio
from httpx._transports import default

from convo.observe import log_records
from convo.runtime.bridge import open_bridge
from convo.runtime.loop_watch import LoopBlock, LoopWatch
from convo.runtime.precedence import ACCEPTS
from convo.settings import DatabaseSettings
from convo.store.migrate import migrate
from convo.store.postgres import open_postgres

pytest_plugins = ["pytester"]

# A client for plain HTTP reads all public certificates, too: 30 ms of CPU, thousands of times in a run.
_context = cache(httpx.create_ssl_context)


def _context_once(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:  # noqa: FBT001, FBT002
    return _context() if verify is True and cert is None else httpx.create_ssl_context(verify, cert, trust_env)


setattr(default, "create_ssl_context", _context_once)  # noqa: B010  (mypy refuses to assign an import)

GIVEN = os.environ.get("CONVO_TEST_DATABASE_URL", "")
_MEMORY_BYTES = 2 * 1024**3
_numbers = itertools.count(1)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SLOW = ("tests/system/test_torture.py", "tests/system/", "tests/test_linear.py", "tests/integration/commands/")
_CLOCKS = {"autojump_clock", "mock_clock"}
_BLOCK_SECONDS = 1.0
"""What the code of one pass of a test's loop may take, without waits for a processor and the garbage collector."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the collector of garbage away from what a run holds to its end: ten thousand tests and their modules."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first, and run every Trio test under the loop watch.

    The processes of a run take a file at a time: one that took minutes would leave the others idle at the end. The
    closest ``trio`` marker decides what runs a test.
    """
    items.sort(key=lambda item: next((place for place, name in enumerate(_SLOW) if item.nodeid.startswith(name)), 9))
    for item in items:
        if item.get_closest_marker("trio") and not item.get_closest_marker("blocks_loop"):
            item.add_marker(pytest.mark.trio(run=run_watched), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that asks for a virtual clock and would not have it: pytest-trio looks for it among the arguments."""
    if not isinstance(item, pytest.Function) or not item.get_closest_marker("trio"):
        return
    if unused := _CLOCKS.intersection(item.fixturenames).difference(item._fixtureinfo.argnames):
        pytest.fail(f"it asks for {unused}, but not as an argument: it would run on real time")


def run_watched(
    main: Callable[..., Awaitable[Any]], *args: Any, instruments: Sequence[trio.abc.Instrument] = (), **options: Any
) -> Any:
    """Run like ``trio.run``, and fail where code held the loop."""
    found: list[LoopBlock] = []
    with LoopWatch(_BLOCK_SECONDS, found.append) as watch:
        result = trio.run(main, *args, instruments=[*instruments, watch], **options)
    for held in found:
        if held.cause == "code":
            pytest.fail(
                f"the loop was held for {held.own_seconds:.2f} s (of {held.seconds:.2f} s, with"
                f" {held.cpu_seconds:.2f} s of processor time) by task {held.task}:\n  " + "\n  ".join(held.stack)
            )
    return result


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Put back how signals are met: a service that was stopped ignores them, and what is started later inherits that.

    A shell, a sleep or HAProxy that was started with SIGTERM ignored cannot be ended by it.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def accept_under_way() -> Iterator[None]:
    """Have an accept under way, until the test ends it or has ended."""
    ACCEPTS.begin()
    yield
    if ACCEPTS.under_way:
        ACCEPTS.end()


@pytest.fixture(autouse=True)
def _no_loop_left() -> Iterator[None]:
    """Fail where a test leaves its thread marked as one that runs a loop: the next asyncio run there would refuse."""
    yield
    left, sniffio.thread_local.name = sniffio.thread_local.name, None
    assert left is None


@pytest.fixture(autouse=True)
def _unlimited_log() -> None:
    """Forget which log records were written a moment ago: the limit of one test must not silence the next."""
    log_records._seldom.forget()


@pytest.fixture(scope="session", params=["embedded", "given"] if GIVEN else ["embedded"])
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL whose role may make databases: the embedded one, then a given one where there is one."""
    if request.param == "given":
        yield GIVEN
        return
    with roomy_folder() as folder, embedded_server(folder) as url:
        yield url


@contextmanager
def roomy_folder() -> Iterator[Path]:
    """Make a folder for a database: in memory where there is room, because a test mostly waits for the disk."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="convo-test-", dir=memory if roomy else None) as folder:
        yield Path(folder)


@contextmanager
def embedded_server(data_dir: Path) -> Iterator[str]:
    """Run the embedded PostgreSQL in a process of its own; yield its URL. It ends with us, its data too."""
    command = [sys.executable, "-m", "tests.support.embedded_server", str(data_dir), "remove"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        process_group=0,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("postgresql://"):
                break
        else:
            pytest.fail(f"the embedded PostgreSQL did not start: {''.join(lines)}")
        yield lines[-1].strip()
        # Leaving the block closes its standard input, which stops it, and waits for its end.


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """A database with convo's schema that the others are copied from."""
    with _database(postgres_url) as url:
        trio.run(_migrate, url)
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def database(postgres_url: str, template: str) -> Iterator[str]:
    """The URL of a database of this test's own, with convo's schema and no rows."""
    with _database(postgres_url, template) as url:
        yield url


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of this test's own, with nothing in it."""
    with _database(postgres_url) as url:
        yield url


async def _migrate(url: str) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings()) as postgres:
        line = postgres.dedicated()
        try:
            await migrate(line)
        finally:
            with trio.move_on_after(5, shield=True):
                await line.close()


@contextmanager
def _database(url: str, template: str = "template0") -> Iterator[str]:
    name = f"convo_test_{os.getpid()}_{next(_numbers)}"
    # To copy files is half of the work that writing every page to the WAL is.
    _execute(url, f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8' STRATEGY FILE_COPY")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, sql: str) -> None:
    runner, connection = _connected(url)
    runner.run(connection.execute(sql))


@cache
def _connected(url: str) -> tuple[asyncio.Runner, Any]:
    """Stay connected until this process ends: a test's two connections cost a third of what its database costs."""
    # Once trio-asyncio is imported, a loop of its policy is half a Trio run that goes on in this thread.
    runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
    connection = runner.run(asyncpg.connect(url))

    def close() -> None:
        connection.terminate()
        runner.close()

    atexit.register(close)
    return runner, connection
