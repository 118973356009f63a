"""Tells whether a database went back to an earlier state: its history as it says it, and as this instance has seen it.

Open it to change how that is noticed. The database counts: each heartbeat of the process that leads, each migration and
each restore adds one and leaves a random mark. An instance keeps the highest count that it saw, and its mark, in its
folder. ``sessions.py`` compares at each new session, ``going_back.py`` at each heartbeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from convo.errors import Refused
from convo.observe import log_records
from convo.store.timeline import write_durably

HISTORY_FILE = "history"
RESTORE_LOCK = 0x636F6E766F_04
"""The advisory lock of the database that each session has a share of, and that a restore takes for itself."""

_KEPT = 10_000
_MARK = "floor(random() * 9007199254740991)::bigint"
BEAT = f"""
WITH beat AS (
    UPDATE history SET counter = counter + 1 RETURNING counter
), marked AS (
    INSERT INTO history_beat (counter, mark) SELECT counter, {_MARK} FROM beat
), gone AS (
    DELETE FROM history_beat WHERE counter = (SELECT counter - {_KEPT} FROM beat)
)
SELECT counter FROM beat
"""
"""Add one to the count."""
SKIP_EVENT_NUMBERS = """
UPDATE public.event_counter
SET begins_behind = greatest(begins_behind, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint)
"""
"""Number events from the time in microseconds on: after a database went back, no number is given a second time.

Events would need to come faster than one a microsecond to have passed it. The number fits a double until the year 2255,
so that every JSON reader takes it whole.
"""
_SKIP_WHERE_COUNTED = f"""
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.event_counter')
                                          AND attname = 'begins_behind') THEN
        {SKIP_EVENT_NUMBERS.strip()};
    END IF;
"""
PROMOTED = f"""
BEGIN;
SET LOCAL synchronous_commit = local;
DO $convo$
BEGIN
{_SKIP_WHERE_COUNTED}
END
$convo$;
COMMIT
"""
"""For the first session on a server that was promoted, before it numbers anything: it may have lagged. It waits for no
standby, as whatever is numbered then does."""
RESTORED = f"""
DO $convo$
BEGIN
{_SKIP_WHERE_COUNTED}
    IF to_regclass('public.history') IS NOT NULL THEN
        UPDATE public.history SET generation = gen_random_uuid()::text, counter = counter + 1;
        INSERT INTO public.history_beat (counter, mark) SELECT counter, {_MARK} FROM public.history;
    END IF;
END
$convo$;
"""
"""The end of a restore: another generation. A backup from before there was a history gets one by its migration."""

_SHARE = f"SELECT pg_try_advisory_lock_shared({RESTORE_LOCK}) AS shared, to_regclass('history') IS NOT NULL AS kept"
_READ = """
SELECT generation, counter, (SELECT mark FROM history_beat b WHERE b.counter = h.counter) AS mark,
       (SELECT mark FROM history_beat WHERE counter = $1) AS seen_mark
FROM history h
"""


class Point(Struct, frozen=True, kw_only=True):
    """A point in the history of a database: ``system`` is its cluster, empty where the server may not be asked."""

    system: str = ""
    generation: str = ""
    counter: int = 0
    mark: int | None = None


class FoundPoint(Struct, frozen=True, kw_only=True):
    """Where a database stands, and which mark it has at the count that was seen before; ``asked`` is what was seen."""

    point: Point
    asked: Point | None
    seen_mark: int | None = None


class SeenHistory:
    """The newest point that this instance has seen, kept in ``folder/history``; without a folder nothing is compared.

    ``went_back`` says why the database is known to have gone back, and is empty while it is not. ``suspected`` is set
    by what may have another reason, until the receipts were compared.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / HISTORY_FILE if folder else None
        self.seen = _read_file(self._path)
        self._saved = self.seen
        # The cluster that the newest session is on.
        self.system = ""
        self.went_back = ""
        self.suspected = False

    def note(self, found: FoundPoint) -> bool:
        """Note where the database stands; return whether it is found here that it went back."""
        before = self.went_back
        if self._path is None or before:
            return False
        # Compared with what was seen before it was asked: another session may have seen a newer point meanwhile.
        if found.asked is None or self._settled_since(found.asked):
            return False
        self.went_back = _difference(found.asked, found)
        if not self.went_back and self.seen is not None and found.point.counter > self.seen.counter:
            self.seen = found.point
        return bool(self.went_back)

    def _settled_since(self, asked: Point) -> bool:
        """Return whether an answer comes so late that the going back which it shows is settled already."""
        seen = self.seen
        return seen is not None and (
            asked.generation != seen.generation
            or asked.counter > seen.counter
            or (asked.system != seen.system and bool(asked.system and seen.system))
        )

    def settle(self, found: FoundPoint) -> None:
        """Begin anew where the database stands now: this process has signed in, and trusts nothing from before."""
        self.seen, self.went_back, self.suspected = found.point, "", False

    def save(self) -> None:
        """Write what was seen, durably; it blocks."""
        seen = self.seen
        if self._path is None or seen is None or seen == self._saved:
            return
        try:
            write_durably(self._path, msgspec.json.encode(seen).decode() + "\n")
        except OSError as error:
            log_records.history_not_saved(path=str(self._path), error=str(error.strerror))
        else:
            self._saved = seen


async def share_restore_lock(connection: Any) -> bool | None:
    """Take this session's share of the lock of restores; return whether the database keeps a history.

    None where a restore has the lock.
    """
    row = await connection.fetchrow(_SHARE)
    return bool(row["kept"]) if row["shared"] else None


async def read_history(connection: Any, asked: Point | None, system: str) -> FoundPoint:
    """Read where a database with a history stands; ``asked`` is what was seen of it before."""
    row: Mapping[str, Any] = await connection.fetchrow(_READ, asked.counter if asked else 0) or {}
    point = Point(
        system=system, generation=row.get("generation", ""), counter=row.get("counter", 0), mark=row.get("mark")
    )
    return FoundPoint(point=point, asked=asked, seen_mark=row.get("seen_mark"))


def _difference(seen: Point, found: FoundPoint) -> str:
    """Return what shows that a database is not the one that was seen, or not any more; empty where nothing does."""
    now = found.point
    if seen.system and now.system and seen.system != now.system:
        return f"it is another cluster (system identifier {now.system}, was {seen.system})"
    if not now.generation:
        return "it keeps no history yet, and it did"
    if now.generation != seen.generation:
        return "a backup was restored, or it is another database"
    if now.counter < seen.counter:
        return f"its counter is {now.counter}, and {seen.counter} was seen"
    if found.seen_mark != seen.mark and now.counter - seen.counter < _KEPT:
        return f"it counted on from before {seen.counter} in another way than was seen"
    return ""


def _read_file(path: Path | None) -> Point | None:
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Point)
    except (OSError, msgspec.DecodeError) as error:
        raise Refused(
            f"{path} cannot be read: it holds the newest state of the database that was seen, by which it is known when"
            " the database went back; mend it, or remove it when you know that it did not"
        ) from error
