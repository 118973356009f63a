"""The guarded connection to PostgreSQL: units of work under deadlines; it knows no table.

A unit of work is an ``async def body(connection)`` that awaits nothing but the connection. It crosses into asyncio
once, as a whole, with its acquire, its transaction and its release: bridged call by call, cancellations lose
connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol, TypeVar

import asyncpg
import trio

from convo.bridge import Bridge, within
from convo.config import DatabaseSettings, slow_seconds
from convo.deadline import deadline
from convo.errors import (
    BadRow,
    ConvoError,
    DatabaseDeadlineExceeded,
    DatabaseUnavailable,
    DeadlineExceeded,
    DiskFull,
    PoolExhausted,
    Refused,
    TransactionLost,
)
from convo.observe import events, metrics

T = TypeVar("T")

DURABLE = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on"
"""The commit returns after fsync, whatever the server's default: for accept and settle."""
RELAXED = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off"
"""A crash may lose the last moments of it: for work that is fenced and would only be done again."""

SINGLE = ""
"""No transaction around it: for a body whose one writing statement is a transaction by itself, on a line whose session
commits as it must. It saves two of three crossings to the server."""

_AS_IS = "BEGIN"
"""With the server's own defaults: to read what they are."""

# A rollback after a cancellation goes through a cancel request to the server. A frozen server never answers it.
_UNDO_SECONDS = 0.25
_CLOSE_SECONDS = 2.0
_OLDEST = 150_000
# The scopes' own deadlines come first; these end what a vanished process left behind in the server.
_BACKSTOP_FACTOR = 1.5
_LOST = ("08", "57P01", "57P02", "57P05", "40001", "40P01", "25P03")
_BAD_ROW = ("22", "23", "54")
# Nothing that waiting could mend: wrong password, no such role or database.
_NEVER = ("28", "3D")


class Connection(Protocol):
    """What a unit of work sees of a connection."""

    async def fetch(self, query: str, *args: object) -> list[Mapping[str, Any]]:
        """Run a query; return all rows."""

    async def fetchrow(self, query: str, *args: object) -> Mapping[str, Any] | None:
        """Run a query; return its first row."""

    async def fetchval(self, query: str, *args: object) -> Any:
        """Run a query; return the first column of its first row."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; return its tag."""


Body = Callable[[Any], Awaitable[T]]


class _Plain(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose session state is never touched, so that a release needs no reset query."""

    def get_reset_query(self) -> str:
        return ""


class Postgres:
    """A pool for readers and workers, and lines of their own for those who must never wait for it."""

    def __init__(
        self, bridge: Bridge, url: str, settings: DatabaseSettings, *, name: str = "", slow_query_seconds: float = 0.0
    ) -> None:
        self._bridge = bridge
        # By this the others see whether this process still has a session here (store/jobs.py, Poison).
        self._application = f"convo {name}".strip()
        self._url = url
        self._settings = settings
        self._slow_query_seconds = slow_query_seconds
        self._pool: Any = None
        self.unit_seconds = settings.unit_seconds

    async def run(self, name: str, body: Body[T], *, begin: str = DURABLE) -> T:
        """Run one unit of work in a READ COMMITTED transaction, under the deadline ``name``.

        Raises:
            DeadlineExceeded: no connection and no end within ``database.acquire_seconds + statement_seconds``.
            DatabaseUnavailable, TransactionLost, DiskFull, BadRow: as the database's own error says.
        """
        with _mapped(), self.watched(name, self.unit_seconds), deadline(name, self.unit_seconds):
            return await self._bridge.cross(self._unit, begin, body)

    @contextmanager
    def watched(self, name: str, budget_seconds: float) -> Iterator[None]:
        """Tell at the end of one unit of work, however it ended, when it was slow by the measure of its budget."""
        started = trio.current_time()
        try:
            yield
        finally:
            seconds = trio.current_time() - started
            if seconds > slow_seconds(self._slow_query_seconds, budget_seconds):
                events.slow_query(name=name, seconds=seconds)

    async def _unit(self, begin: str, body: Body[T]) -> T:
        # Seen before the wait: while it lasts connections come and go.
        full = not self._pool.get_idle_size() and self._pool.get_size() >= self._settings.pool_max
        try:
            connection = await self._pool.acquire(timeout=self._settings.acquire_seconds)
        except TimeoutError as error:
            within = f"within database.acquire_seconds = {self._settings.acquire_seconds:g} s"
            if not full:
                raise DatabaseUnavailable(f"no connection could be opened {within}") from error
            raise PoolExhausted(f"no connection became free {within}") from error
        try:
            return await _transact(connection, begin, body)
        finally:
            await self._pool.release(connection, timeout=_UNDO_SECONDS)  # noqa: ASYNC102  (asyncio's side of the bridge)

    async def connect(self, **settings: str) -> Any:
        """Open one connection, with server settings over the usual ones; call it on the asyncio side."""
        return await _connect(
            self._url,
            timeout=self._settings.connect_seconds,
            connection_class=_Plain,
            server_settings={**self._server_settings(), **settings},
        )

    def _server_settings(self) -> dict[str, str]:
        backstop = str(int(self.unit_seconds * 1000 * _BACKSTOP_FACTOR))
        return {
            "application_name": self._application,
            "statement_timeout": backstop,
            "idle_in_transaction_session_timeout": backstop,
            "jit": "off",
        }

    def in_use(self) -> tuple[int, int]:
        """Tell how many of the pool's connections are in use, and how many there may be."""
        return self._pool.get_size() - self._pool.get_idle_size(), self._settings.pool_max

    async def open(self) -> None:
        """Make the pool; no connection is opened before it is needed."""

        async def make() -> Any:
            return await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._settings.pool_max,
                timeout=self._settings.connect_seconds,
                # Each release would set a timer of this length, and trio-asyncio keeps those that are cancelled, with
                # the context of the request that they were made in, until their time has come.
                max_inactive_connection_lifetime=0,
                connection_class=_Plain,
                server_settings=self._server_settings(),
                connect=_connect,
            )

        with _mapped(), deadline("db.open", self._settings.connect_seconds):
            self._pool = await self._bridge.cross(make)

    async def close(self) -> None:
        """Close the pool, by force when the server does not answer."""

        async def shut() -> None:
            try:
                await within(_CLOSE_SECONDS, self._pool.close())
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._pool.terminate()

        with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("db.close", 2 * _CLOSE_SECONDS):
            await self._bridge.cross(shut)

    def line(self, **settings: str) -> Line:
        """Return a line: one connection outside the pool, with server settings of its own."""
        return Line(self._bridge, self, settings)


class Line:
    """One connection of its own, opened when needed and again after it was lost."""

    def __init__(self, bridge: Bridge, postgres: Postgres, settings: dict[str, str]) -> None:
        self._bridge = bridge
        self._postgres = postgres
        self._settings = settings
        self._connection: Any = None

    async def run(self, name: str, body: Body[T], *, begin: str = DURABLE, seconds: float | None = None) -> T:
        """Run one unit of work on this line; as ``Postgres.run``, one caller at a time.

        Raises:
            DeadlineExceeded, DatabaseUnavailable, TransactionLost, DiskFull, BadRow: as ``Postgres.run``.
        """
        budget = seconds or self._postgres.unit_seconds
        with _mapped(), self._postgres.watched(name, budget), deadline(name, budget):
            return await self._bridge.cross(self._unit, begin, body)

    async def _unit(self, begin: str, body: Body[T]) -> T:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._postgres.connect(**self._settings)
        return await _transact(self._connection, begin, body)

    async def close(self) -> None:
        """Close the connection, by force when the server does not answer."""

        async def shut() -> None:
            try:
                await within(_CLOSE_SECONDS, self._connection.close())
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()

        if self._connection is not None:
            with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("db.close", 2 * _CLOSE_SECONDS):
                await self._bridge.cross(shut)


async def _connect(url: str, **how: Any) -> Any:
    try:
        return await asyncpg.connect(url, **how)
    except ValueError as error:
        # Where a password holds "/" or ":" unquoted, Python's words for the port that is none hold a piece of it.
        said = str(error) if isinstance(error, asyncpg.ClientConfigurationError) else type(error).__name__
        raise Refused(f"database.url cannot be used: {said}") from None


async def _transact(connection: Any, begin: str, body: Body[T]) -> T:
    try:
        if begin:
            await connection.execute(begin)
        outcome = await body(connection)
        if begin:
            await connection.execute("COMMIT")
    except BaseException:
        await _undo(connection)  # noqa: ASYNC102  (asyncio's side of the bridge)
        raise
    return outcome


async def _undo(connection: Any) -> None:
    if connection.is_closed():
        return
    try:
        await within(_UNDO_SECONDS, connection.execute("ROLLBACK"))
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


class _mapped:  # noqa: N801  (reads as a statement)
    """Turn the library's errors into ours, by type and SQLSTATE."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        mapped = None if error is None else _map(error)
        failure = mapped or error
        if isinstance(failure, DatabaseUnavailable):
            metrics.database_failures_total.labels(failure.code).inc()
        if mapped is not None:
            raise mapped from error


def _map(error: BaseException) -> ConvoError | None:
    if type(error) is DeadlineExceeded:
        return DatabaseDeadlineExceeded(error.name, error.seconds, error.budget)
    if isinstance(error, asyncpg.PostgresError):
        return _map_sqlstate(error.sqlstate or "", error)
    # The client's own refusal to encode a value: it never reached the server.
    if isinstance(error, asyncpg.DataError):
        return BadRow("a value cannot be stored", sqlstate="22000")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | EOFError):
        return TransactionLost("the connection to the database was lost")
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"the database cannot be reached ({type(error).__name__})")
    return None


def _map_sqlstate(sqlstate: str, error: BaseException) -> ConvoError:
    if sqlstate.startswith(_BAD_ROW):
        return BadRow(f"the database refuses the content (SQLSTATE {sqlstate})", sqlstate=sqlstate)
    if sqlstate == "53100":
        events.disk_full(error=f"SQLSTATE {sqlstate}")
        return DiskFull("the database's disk is full (SQLSTATE 53100); nothing was stored")
    if sqlstate.startswith(_LOST):
        return TransactionLost(f"the transaction was lost (SQLSTATE {sqlstate})")
    return DatabaseUnavailable(f"the database cannot do this now (SQLSTATE {sqlstate}: {type(error).__name__})")


async def inspect(postgres: Postgres, line: Line) -> dict[str, str]:
    """Read what this server promises; return its settings by name.

    Raises:
        Refused: a server older than 15, a pooler that drops session settings, a login that can never work.
        DatabaseUnavailable: it cannot be reached now.
    """

    async def body(connection: Connection) -> list[Mapping[str, Any]]:
        return await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(_INSPECTED))

    try:
        found = {row["name"]: row["setting"] for row in await line.run("db.inspect", body, begin=_AS_IS, seconds=10.0)}
    except ConvoError as error:
        never = _never(error)
        if never is None:
            raise
        raise never from error.__cause__
    if int(found["server_version_num"]) < _OLDEST:
        raise Refused(f"the database is PostgreSQL {found['server_version']}; convo needs 15 or later")
    if found["statement_timeout"] != postgres._server_settings()["statement_timeout"]:  # noqa: SLF001
        raise Refused(_POOLER)
    return found


_INSPECTED: Iterable[str] = (
    "server_version",
    "server_version_num",
    "statement_timeout",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "max_connections",
    "superuser_reserved_connections",
)
_POOLER = (
    "database.url leads through a connection pooler (pgbouncer?) that drops session settings such as"
    " statement_timeout; give convo PostgreSQL's own port, or a pool in session mode without ignore_startup_parameters"
)


def _never(error: ConvoError) -> Refused | None:
    cause = error.__cause__
    sqlstate = getattr(cause, "sqlstate", None) or ""
    if sqlstate == "08P01" and "startup parameter" in str(cause):
        return Refused(_POOLER)
    if sqlstate.startswith(_NEVER):
        return Refused(f"database.url: the server refuses the login for good (SQLSTATE {sqlstate}: {cause})")
    return None


@asynccontextmanager
async def open_postgres(
    bridge: Bridge, url: str, settings: DatabaseSettings, *, name: str = "", slow_query_seconds: float = 0.0
) -> AsyncIterator[Postgres]:
    """Open the pool, and close it under a bounded shield whatever happens; the first unit of work connects.

    ``name`` is this process's own, without its host: its sessions bear it. A unit of work that takes longer than
    ``slow_query_seconds`` is told; 0 is a part of its budget.
    """
    postgres = Postgres(bridge, url, settings, name=name, slow_query_seconds=slow_query_seconds)
    await postgres.open()
    try:
        yield postgres
    finally:
        with suppress(DatabaseUnavailable):
            await postgres.close()  # noqa: ASYNC102  (shields itself, with a bound)
