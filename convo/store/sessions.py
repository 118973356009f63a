"""Opens sessions on the database's primary, also where ``database.url`` names several hosts and the primary changes.

Open it to change which server a new session is on, and when the sessions on a server are given up. Everything here runs
on the asyncio side, inside a unit of work or the keeper that compares the hosts: their deadlines hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from convo.errors import DatabaseUnavailable, Refused
from convo.runtime.bridge import in_thread, together
from convo.store.history import PROMOTED, FoundPoint, Point, SeenHistory, read_history, share_restore_lock
from convo.store.timeline import ASK, DatabaseServer, NewestTimeline, address_of, split_hosts

CONFIRM = "SELECT pg_logical_emit_message(true, 'convo', '')"
"""Commit something that comes after all that is visible: where commits wait for standbys, this waits for all of it."""

# SQLSTATEs of a server that became read-only or is going away: another one may take the writes.
_LEFT = ("25006", "57P01", "57P02", "57P03")
# How long the other hosts may still answer once one has: a newer primary may be among them. A host that is silent
# costs each new session this time, so it has to be well below database.acquire_seconds.
_COMPARE_SECONDS = 0.25
# SQLSTATEs of a server of another make, or of a role that may not ask.
_CANNOT_SAY = ("42", "0A", "55")


_signing_in: ContextVar[bool] = ContextVar("signing_in", default=False)


@contextmanager
def signing_in() -> Iterator[None]:
    """Let sessions be opened inside although the database went back: what is done here is to sign in to it anew."""
    token = _signing_in.set(True)
    try:
        yield
    finally:
        _signing_in.reset(token)


class PlainConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose session state is never touched, so that a release needs no reset query.

    ``warned`` is true once the server has sent a warning, where ``note_warnings`` was asked for it. ``generation`` is
    that of the ``Sessions`` when it was opened.
    """

    warned = False
    generation = 0

    def get_reset_query(self) -> str:
        """Return nothing to reset."""
        return ""


class Sessions:
    """Opens sessions on the newest primary; ``generation`` grows when all earlier sessions are to be given up.

    When the database went back (``history``), no session is opened until this process has signed in to it anew;
    ``moved`` is called then, and when another primary was taken.
    """

    def __init__(self, url: str, folder: Path | None) -> None:
        self._hosts = split_hosts(url)
        self._newest = NewestTimeline(folder)
        self.history = SeenHistory(folder)
        self.generation = 0
        self.moved: Callable[[], None] = lambda: None

    @property
    def several_hosts(self) -> bool:
        """Tell whether there is another host to go to."""
        return len(self._hosts) > 1

    async def open(self, _url: str = "", **how: Any) -> Any:
        """Connect to the newest primary among the hosts, or to the one host; ``how`` is for ``asyncpg.connect``.

        Raises:
            DatabaseUnavailable: only an old primary answers, a backup is being restored, or the database went back.
            Refused: ``database.url`` cannot be used.
        """
        try:
            found = await together(
                [partial(_ask, url, how) for url in self._hosts], _COMPARE_SECONDS, undo=lambda one: one[0].terminate()
            )
        except asyncpg.PostgresError as error:
            self.note_failure(error)
            raise
        connections = [connection for connection, _ in found]
        try:
            connection, server = found[self._newest.admit([server for _, server in found])]
            if self._newest.note(server):
                self.generation += 1
                # Its standby may have lagged.
                await connection.execute(PROMOTED)
                self.suspect()
            if self._newest.unsaved:
                # Before anything is acknowledged on this timeline.
                await in_thread(self._newest.save)
            self.compare(await self._join(connection, server))
            if self.history.went_back and not _signing_in.get():
                raise DatabaseUnavailable(
                    f"the database went back: {self.history.went_back}; this process signs in to it anew"
                )
            connections.remove(connection)
            connection.generation = self.generation
        finally:
            for other in connections:
                other.terminate()
        return connection

    async def _join(self, connection: Any, server: DatabaseServer) -> FoundPoint:
        """Take this session's share of the lock of restores, then read where the database stands."""
        # In this order: what a restore changed before is read, and none begins while this session lasts.
        self.history.system = server.system
        asked = self.history.seen
        kept = await share_restore_lock(connection)
        if kept is None:
            raise DatabaseUnavailable("a backup is being restored into the database")
        if not kept:
            return FoundPoint(point=Point(system=server.system), asked=asked)
        return await read_history(connection, asked, server.system)

    def compare(self, found: FoundPoint) -> None:
        """Compare where the database stands with what was seen; give up all sessions when it went back."""
        if self.history.note(found):
            self.generation += 1
            self.moved()

    def suspect(self) -> None:
        """Have the receipts compared: something was seen that a database which went back would show, too."""
        self.history.suspected = True
        self.moved()

    def note_failure(self, error: asyncpg.PostgresError) -> bool:
        """Give up all sessions when the server takes no writes any more; return whether it is so."""
        left = error.sqlstate in _LEFT
        self.generation += left
        return left


async def _ask(url: str, how: Mapping[str, Any]) -> tuple[Any, DatabaseServer]:
    """Open a connection to one host, and ask the server there what it is."""
    connection = await _connect(url, **how)
    try:
        row = await connection.fetchrow(ASK, timeout=how["timeout"])
    except asyncpg.PostgresError as error:
        if not (error.sqlstate or "").startswith(_CANNOT_SAY):
            connection.terminate()
            raise
        return connection, DatabaseServer(address=address_of(url))
    except BaseException:
        connection.terminate()
        raise
    return connection, DatabaseServer(address=address_of(url), **dict(row))


async def _connect(url: str, **how: Any) -> Any:
    try:
        return await asyncpg.connect(url, **how)
    except ValueError as error:
        # With an unquoted "/" or ":" in the password, a piece of it is read as the port and stands in Python's message.
        reason = str(error) if isinstance(error, asyncpg.ClientConfigurationError) else type(error).__name__
        raise Refused(f"database.url cannot be used: {reason}") from None


def note_warnings(connection: Any) -> None:
    """Let ``connection.warned`` say whether the server has sent a warning."""

    def note(connection: Any, message: Any) -> None:
        connection.warned = connection.warned or message.severity_en == "WARNING"

    connection.add_log_listener(note)


async def confirm(connection: Any) -> None:
    """Wait for the standbys again: when that wait is cancelled, the server reports success and sends a warning.

    Raises:
        DatabaseUnavailable: this wait was cancelled, too.
    """
    connection.warned = False
    await connection.fetchval(CONFIRM)
    if connection.warned:
        raise DatabaseUnavailable("the database was kept from waiting for its standbys; send it again")
