"""Decides which of several servers is the primary, and keeps the newest timeline that this instance has seen.

PostgreSQL counts its timelines: a promotion begins the next one. A primary on an older timeline than the newest seen is
an old one that came back: what it takes is lost when it is made a standby again. ``sessions.py`` asks the servers.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from msgspec import Struct

from convo.errors import DatabaseUnavailable, Refused
from convo.observe import log_records

TIMELINE_FILE = "timeline"
# pg_control_checkpoint() still shows the old timeline 10 s after a promotion; the name of the WAL file does not.
ASK = """
SELECT current_setting('transaction_read_only') = 'off' AS writable,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END AS timeline,
       (SELECT system_identifier::text FROM pg_control_system()) AS system
"""
_numbers = itertools.count(1)


class DatabaseServer(Struct, frozen=True, kw_only=True):
    """What a server says of itself: ``system`` is its cluster, which its standbys share; ``timeline`` 0 is unknown."""

    address: str
    writable: bool = True
    timeline: int = 0
    system: str = ""


class NewestTimeline:
    """The newest timeline seen of one cluster, kept in ``folder/timeline``; without a folder it is in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / TIMELINE_FILE if folder else None
        self._system, self._timeline = _read(self._path)
        self._stored = self._timeline

    def admit(self, servers: Sequence[DatabaseServer]) -> int:
        """Return the index of the server to use: the first writable one on the newest timeline, or the first of all.

        Raises:
            DatabaseUnavailable: it is on an older timeline than one that was seen.
        """
        for server in servers:
            if self._is_old(server):
                log_records.old_primary(address=server.address, timeline=server.timeline, newest=self._timeline)
        best = max(range(len(servers)), key=lambda n: (servers[n].writable, servers[n].timeline, -n))
        if self._is_old(servers[best]):
            raise DatabaseUnavailable(
                f"the database server {servers[best].address} is an old primary: it is on timeline"
                f" {servers[best].timeline}, and this instance has seen {self._timeline}"
            )
        return best

    def _is_old(self, server: DatabaseServer) -> bool:
        return server.system == self._system and 0 < server.timeline < self._timeline

    def note(self, server: DatabaseServer) -> bool:
        """Note the server in use; return whether its timeline is newer than the one that sessions were on so far.

        A cluster of another identity (a new one, an upgraded one) counts its timelines anew.
        """
        if not server.timeline or (server.system, server.timeline) == (self._system, self._timeline):
            return False
        newer = bool(self._timeline)
        self._system, self._timeline, self._stored = server.system, server.timeline, 0
        return newer

    @property
    def unsaved(self) -> bool:
        """Tell whether ``save`` has something to do."""
        return self._stored != self._timeline

    def save(self) -> None:
        """Write what was noted, durably; it blocks. What cannot be written is logged, and known until the end."""
        timeline = self._timeline
        try:
            if self._path is not None:
                write_durably(self._path, f"{self._system} {timeline}\n")
        except OSError as error:
            log_records.timeline_not_saved(path=str(self._path), error=str(error.strerror))
        else:
            self._stored = timeline


def _read(path: Path | None) -> tuple[str, int]:
    if path is None or not path.exists():
        return "", 0
    try:
        system, timeline = path.read_text("ascii").split()
        return system, int(timeline)
    except (OSError, ValueError) as error:
        raise Refused(
            f"{path} cannot be read: it holds the newest timeline of the database, by which an old primary is known;"
            " mend it, or remove it when you know which server is the primary"
        ) from error


def write_durably(path: Path, text: str) -> None:
    """Replace a small file, so that a crash leaves the old text or the new one; it blocks."""
    # Two sessions may come to it at the same time, on two threads.
    unfinished = path.with_name(f"{path.name}.{next(_numbers)}.new")
    with unfinished.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def split_hosts(url: str) -> list[str]:
    """Return one URL for each host of a URL that names several, in their order; they may stand in its query, too."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # The attempt to connect reports what is wrong with it.
        return [url]
    user, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts:
        return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
    query = parse_qsl(parts.query)
    named = dict(query).get("host", "").split(",")
    if len(named) < 2:
        return [url]
    ports = dict(query).get("port", "").split(",")
    rest = [(name, value) for name, value in query if name not in ("host", "port")]
    urls = []
    for n, host in enumerate(named):
        port = ports[n] if n < len(ports) else ports[-1]
        own = [("host", host), *([("port", port)] if port else [])]
        urls.append(parts._replace(query=urlencode([*rest, *own])).geturl())
    return urls


def address_of(url: str) -> str:
    """Return the host and port of a URL, without what may be a secret."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "") or "a local socket"
