"""The connections to PostgreSQL: every query runs here, in a unit of work with a deadline and a transaction.

Open it to change how a transaction begins and ends. It knows no table. A unit of work is an
``async def body(connection)`` that awaits nothing but the connection. It crosses into asyncio once, as a whole, with
its acquire, its transaction and its release: when each call crossed alone, cancellations lost connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import asyncpg
import trio

from convo.errors import ConvoError, DatabaseUnavailable, DeadlineExceeded
from convo.ladder import slow_seconds
from convo.observe import log_records
from convo.runtime.bridge import Bridge, within
from convo.runtime.deadline import deadline
from convo.settings import DatabaseSettings
from convo.store.postgres_errors import mapped_errors
from convo.store.purposes import ConnectionShare, Shares
from convo.store.sessions import PlainConnection, Sessions, confirm, note_warnings

T = TypeVar("T")

DURABLE = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on"
"""The commit returns after fsync, whatever the server's default: for accept and settle."""
RELAXED = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off"
"""A crash may lose the last moments of it: for work that is fenced and would only be done again."""

LOCAL = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = local"
"""Durable on this server, without a wait for its standbys: for what a start writes, since no receipt depends on it."""

SINGLE = ""
"""No transaction around it: for a body that only reads, since in READ COMMITTED each statement sees its own moment
anyway; and for one whose only writing statement is a transaction by itself, on a connection whose session commits as it
must. It saves two round trips to the server, of three for a single statement."""

_APPLICATION = "convo"
# A rollback after a cancellation sends a cancel request to the server. A frozen server never answers it.
_UNDO_SECONDS = 0.25
_CLOSE_SECONDS = 2.0
_LOOK_SECONDS = 10.0
# The scopes' own deadlines come first; these end what a vanished process left behind in the server.
_BACKSTOP_FACTOR = 1.5


def application_name(name: str) -> str:
    """Return what the sessions of the process with this incarnation are called on the server."""
    return f"{_APPLICATION} {name}".strip()


class Connection(Protocol):
    """The part of a connection that a unit of work may use."""

    async def fetch(self, query: str, *args: object) -> list[Mapping[str, Any]]:
        """Run a query; return all rows."""

    async def fetchrow(self, query: str, *args: object) -> Mapping[str, Any] | None:
        """Run a query; return its first row."""

    async def fetchval(self, query: str, *args: object) -> Any:
        """Run a query; return the first column of its first row."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement; return its tag."""


Unit = Callable[[Any], Awaitable[T]]


class Postgres:
    """Connections that are kept open by purpose, and dedicated ones for those who must never wait for another user.

    This is no pool of asyncpg's: that one resets a connection at each return and makes tasks for each acquire, 1,055 µs
    together. A session of ours has no state to reset, and the shares say how many there may be.
    """

    def __init__(  # noqa: PLR0913
        self,
        bridge: Bridge,
        url: str,
        settings: DatabaseSettings,
        *,
        name: str = "",
        slow_query_seconds: float = 0.0,
        folder: Path | None = None,
    ) -> None:
        self._bridge = bridge
        self.sessions = Sessions(url, folder)
        self._generation = 0
        # By this name other processes see whether this one has a session (store/processes.py, Namesake).
        self._application = application_name(name)
        self._url = url
        self._settings = settings
        self._slow_query_seconds = slow_query_seconds
        # In use or idle.
        self._opened: set[Any] = set()
        self._shares = Shares(settings.pool_max, settings.acquire_seconds)
        self.unit_seconds = settings.unit_seconds

    async def run(self, name: str, body: Unit[T], *, begin: str = DURABLE) -> T:
        """Run one unit of work in a READ COMMITTED transaction, under the deadline ``name``.

        ``name`` also decides which connections it may use (``store/purposes.py``).

        Raises:
            PoolExhausted: no connection of its purpose became free within ``database.acquire_seconds``.
            DeadlineExceeded: it did not end within ``database.acquire_seconds + statement_seconds``.
            DatabaseUnavailable, TransactionLost, DiskFull, BadRow: as the database's own error says.
        """
        with mapped_errors(), self.watched(name, self.unit_seconds), deadline(name, self.unit_seconds):
            share = await self._shares.take(name)
            try:
                return await self._bridge.cross(self._unit, share, begin, body)
            finally:
                share.release()

    @contextmanager
    def watched(self, name: str, budget_seconds: float) -> Iterator[None]:
        """Log one unit of work, however it ends, when it took too large a part of its budget."""
        started = trio.current_time()
        try:
            yield
        finally:
            seconds = trio.current_time() - started
            if seconds > slow_seconds(self._slow_query_seconds, budget_seconds):
                log_records.slow_query(name=name, seconds=seconds)

    async def _unit(self, share: ConnectionShare, begin: str, body: Unit[T]) -> T:
        if self._generation != self.sessions.generation:
            self._generation = self.sessions.generation
            for session in self._shares.take_idle():
                session.terminate()
        connection = await self._session(share)
        try:
            return await self.transact(connection, begin, body)
        finally:
            # A session of another generation may be on a server that was left meanwhile.
            if connection.is_closed() or connection.generation != self.sessions.generation:
                connection.terminate()
                self._opened.discard(connection)
            else:
                share.idle.append(connection)

    async def _session(self, share: ConnectionShare) -> Any:
        """Return the session that was used last, which has the most statements prepared, or open one."""
        while share.idle:
            connection = share.idle.pop()
            if not connection.is_closed():
                return connection
            self._opened.discard(connection)
        try:
            connection = await within(self._settings.acquire_seconds, self.connect())
        except TimeoutError as error:
            within_ = f"within database.acquire_seconds = {self._settings.acquire_seconds:g} s"
            raise DatabaseUnavailable(f"no connection could be opened {within_}") from error
        self._opened.add(connection)
        return connection

    async def connect(self, **settings: str) -> Any:
        """Open one connection, with server settings over the usual ones; call it on the asyncio side."""
        return await self.sessions.open(
            timeout=self._settings.connect_seconds,
            connection_class=PlainConnection,
            server_settings={**self.session_settings(), **settings},
        )

    async def transact(self, connection: Any, begin: str, body: Unit[T]) -> T:
        """Run one unit of work on a session, on the asyncio side; leave a server that takes no writes any more."""
        try:
            return await _transact(connection, begin, body)
        except asyncpg.PostgresError as error:
            if self.sessions.note_failure(error):
                connection.terminate()
            raise

    async def watch_hosts(self) -> None:
        """Look again and again for a newer primary among several hosts: the sessions on an older one may live on."""

        async def look() -> None:
            await within(_CLOSE_SECONDS, (await self.connect()).close())

        while self.sessions.several_hosts:
            await trio.sleep(_LOOK_SECONDS)
            with suppress(DatabaseUnavailable), mapped_errors(), deadline("db.hosts", self.unit_seconds):
                await self._bridge.cross(look)

    def session_settings(self) -> dict[str, str]:
        """Return the server settings that every session of this process has."""
        backstop = str(int(self.unit_seconds * 1000 * _BACKSTOP_FACTOR))
        return {
            "application_name": self._application,
            "statement_timeout": backstop,
            "idle_in_transaction_session_timeout": backstop,
            "jit": "off",
            # For units without a transaction of their own; the server's default may be another.
            "default_transaction_isolation": "read committed",
        }

    def in_use(self) -> tuple[int, int]:
        """Return how many connections are in use, of how many, where most is waited for (``Shares.in_use``)."""
        return self._shares.in_use()

    async def close(self) -> None:
        """Close the connections, by force when the server does not answer."""

        async def shut() -> None:
            for connection in self._opened:
                await close_session(connection)

        with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("db.close", 2 * _CLOSE_SECONDS):
            await self._bridge.cross(shut)

    def dedicated(self, **settings: str) -> DedicatedConnection:
        """Return one connection outside the shares, with server settings of its own."""
        return DedicatedConnection(self._bridge, self, settings)


class DedicatedConnection:
    """One connection outside the shares, opened when it is needed and again after it was lost."""

    def __init__(self, bridge: Bridge, postgres: Postgres, settings: dict[str, str]) -> None:
        self._bridge = bridge
        self._postgres = postgres
        self._settings = settings
        self._connection: Any = None
        self._generation = 0

    async def run(self, name: str, body: Unit[T], *, begin: str = DURABLE, seconds: float | None = None) -> T:
        """Run one unit of work on this connection; as ``Postgres.run``, one caller at a time.

        Raises:
            DeadlineExceeded, DatabaseUnavailable, TransactionLost, DiskFull, BadRow: as ``Postgres.run``.
        """
        budget = seconds or self._postgres.unit_seconds
        with mapped_errors(), self._postgres.watched(name, budget), deadline(name, budget):
            return await self._bridge.cross(self._unit, begin, body)

    async def _unit(self, begin: str, body: Unit[T]) -> T:
        connection = await self._session()
        connection.warned = False
        try:
            outcome = await self._postgres.transact(connection, begin, body)
            if connection.warned and begin == SINGLE:
                await confirm(connection)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ConvoError):
            raise
        except BaseException:
            # Cancelled at its deadline. A primary whose standby was promoted waits for that standby for ever: the next
            # session compares the hosts again.
            if self._postgres.sessions.several_hosts:
                connection.terminate()
            raise
        return outcome

    async def _session(self) -> Any:
        connection, sessions = self._connection, self._postgres.sessions
        if connection is not None and not connection.is_closed() and self._generation == sessions.generation:
            return connection
        if connection is not None:
            connection.terminate()
        self._connection = await self._postgres.connect(**self._settings)
        note_warnings(self._connection)
        self._generation = sessions.generation
        return self._connection

    async def close(self) -> None:
        """Close the connection, by force when the server does not answer."""
        if self._connection is not None:
            with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("db.close", 2 * _CLOSE_SECONDS):
                await self._bridge.cross(close_session, self._connection)


async def close_session(connection: Any) -> None:
    """Close one connection, by force when the server does not answer; call it on the asyncio side."""
    try:
        await within(_CLOSE_SECONDS, connection.close())
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def _transact(connection: Any, begin: str, body: Unit[T]) -> T:
    try:
        if begin:
            await connection.execute(begin)
        outcome = await body(connection)
        if begin:
            await connection.execute("COMMIT")
    except BaseException as error:
        # A refusal of the body's own leaves nothing to undo without a transaction: the server would warn in its log.
        if begin or not isinstance(error, ConvoError):
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


@asynccontextmanager
async def open_postgres(  # noqa: PLR0913
    bridge: Bridge,
    url: str,
    settings: DatabaseSettings,
    *,
    name: str = "",
    slow_query_seconds: float = 0.0,
    folder: Path | None = None,
) -> AsyncIterator[Postgres]:
    """Yield the connections, and close them under a bounded shield whatever happens; the first unit of work connects.

    ``name`` is the incarnation of this process (``runtime.identity``); its sessions carry it. A unit of work that takes
    longer than ``slow_query_seconds`` is logged; 0 stands for a part of its budget. The newest timeline seen is kept in
    ``folder``.
    """
    postgres = Postgres(bridge, url, settings, name=name, slow_query_seconds=slow_query_seconds, folder=folder)
    try:
        yield postgres
    finally:
        with suppress(DatabaseUnavailable):
            await postgres.close()  # noqa: ASYNC102  (shields itself, with a bound)
