"""The alerts that last, as all processes see them: when each was raised, and who has acknowledged it.

Open it to change how long an acknowledgement counts. A process stores an alert when it is first notified, marks it at
every look, and removes it when it is resolved. A row that nobody has marked for ``FRESH_SECONDS`` counts no more: its
process is gone. So a restart finds its alerts again, and who had acknowledged them, and an alert that is raised anew
later needs a new acknowledgement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.store import audit_log
from convo.store.audit_log import AuditEntry, Caller
from convo.store.postgres import LOCAL, Connection, Postgres

FRESH_SECONDS = 300.0
"""A row that was marked longer ago counts no more."""

OpenKey = tuple[str, str, str]
"""The type and component of an alert, and the data folder of its process; empty for what is raised for all."""


class Acknowledgement(Struct, frozen=True, kw_only=True):
    """Who has acknowledged an alert, and when."""

    by: str
    at: datetime


class OpenAlert(Struct, frozen=True, kw_only=True):
    """An alert that lasts, as it is stored: raised ``age_seconds`` ago, and escalated as far as ``step``."""

    type: str
    component: str
    folder: str
    age_seconds: float
    step: int
    acknowledged: Acknowledgement | None

    @property
    def key(self) -> OpenKey:
        """What it is known by."""
        return self.type, self.component, self.folder


async def open_alert(postgres: Postgres, key: OpenKey) -> OpenAlert:
    """Store an alert that was raised, or find it again where it was stored a moment ago, and return it.

    Another process's acknowledgement of the same type and component counts, while that process has the alert.
    """

    async def body(connection: Connection) -> OpenAlert:
        await connection.execute(_FORGET_OLD, FRESH_SECONDS)
        return _open_alert(await connection.fetchrow(_OPEN, *key, FRESH_SECONDS) or {})

    return await postgres.run("db.open_alerts", body, begin=LOCAL)


async def mark_open(postgres: Postgres, steps: Mapping[OpenKey, int]) -> list[OpenAlert]:
    """Note that this process has these alerts still, each escalated so far; return those that are stored."""
    keys = zip(*steps, strict=True)

    async def body(connection: Connection) -> list[OpenAlert]:
        rows = await connection.fetch(_MARK, *map(list, keys), list(steps.values()))
        return [_open_alert(row) for row in rows]

    return await postgres.run("db.open_alerts", body, begin=LOCAL)


async def close_alerts(postgres: Postgres, keys: Sequence[OpenKey]) -> None:
    """Remove alerts that are resolved."""

    async def body(connection: Connection) -> None:
        await connection.execute(_CLOSE, *map(list, zip(*keys, strict=True)))

    await postgres.run("db.open_alerts", body, begin=LOCAL)


async def acknowledge_alert(
    postgres: Postgres, kind: str, component: str | None, by: str, caller: Caller
) -> list[OpenAlert]:
    """Note who has acknowledged the alerts of a type, of one component or of all; return them, none where none lasts.

    ``by`` is a name; where it is empty, it is the name of the caller's key. The first acknowledgement stays.
    """

    async def body(connection: Connection) -> list[OpenAlert]:
        rows = await connection.fetch(_ACKNOWLEDGE, kind, component, FRESH_SECONDS, by, caller.key_id)
        if rows:
            detail = {"type": kind, "component": component, "by": rows[0]["acknowledged_by"]}
            await audit_log.append(connection, AuditEntry(action="alert_acknowledged", caller=caller, detail=detail))
        return [_open_alert(row) for row in await connection.fetch(_OF_TYPE, kind, component, FRESH_SECONDS)]

    # A standby that is away is itself an alert, which somebody must be able to acknowledge.
    return await postgres.run("db.acknowledge_alert", body, begin=LOCAL)


async def list_open(postgres: Postgres) -> list[OpenAlert]:
    """Return the alerts that last, of all processes."""

    async def body(connection: Connection) -> list[OpenAlert]:
        return [_open_alert(row) for row in await connection.fetch(_LIST, FRESH_SECONDS)]

    return await postgres.run("db.acknowledge_alert", body)


def _open_alert(row: Mapping[str, Any]) -> OpenAlert:
    at = row["acknowledged_at"]
    return OpenAlert(
        type=row["type"],
        component=row["component"],
        folder=row["folder"],
        age_seconds=row["age_seconds"],
        step=row["step"],
        acknowledged=None if at is None else Acknowledgement(by=row["acknowledged_by"], at=at),
    )


# Few rows: one for each alert that lasts, and each process. All are read by the beginning of the table's key.
_COLUMNS = """
one.type, one.component, one.folder, one.step, one.acknowledged_at, one.acknowledged_by,
extract(epoch FROM convo_now() - one.raised_at)::float8 AS age_seconds
"""
_FORGET_OLD = """
DELETE FROM open_alert WHERE (type, component, folder) IN (
    SELECT type, component, folder FROM open_alert WHERE seen_at < convo_now() - make_interval(secs => $1) LIMIT 1000)
"""
_OPEN = f"""
INSERT INTO open_alert AS one (type, component, folder, acknowledged_at, acknowledged_by)
SELECT $1, $2, $3, known.acknowledged_at, known.acknowledged_by
FROM (VALUES (true)) AS always
LEFT JOIN LATERAL (
    SELECT acknowledged_at, acknowledged_by FROM open_alert
    WHERE type = $1 AND component = $2 AND acknowledged_at IS NOT NULL
      AND seen_at > convo_now() - make_interval(secs => $4)
    ORDER BY acknowledged_at LIMIT 1) AS known ON true
ON CONFLICT (type, component, folder) DO UPDATE SET seen_at = convo_now(),
    acknowledged_at = excluded.acknowledged_at, acknowledged_by = excluded.acknowledged_by
RETURNING {_COLUMNS}
"""
_MARK = f"""
UPDATE open_alert AS one SET seen_at = convo_now(), step = greatest(one.step, mine.step)
FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[]) AS mine (type, component, folder, step)
WHERE one.type = mine.type AND one.component = mine.component AND one.folder = mine.folder
RETURNING {_COLUMNS}
"""
_CLOSE = """
DELETE FROM open_alert AS one USING unnest($1::text[], $2::text[], $3::text[]) AS mine (type, component, folder)
WHERE one.type = mine.type AND one.component = mine.component AND one.folder = mine.folder
"""
_ACKNOWLEDGE = """
UPDATE open_alert AS one SET acknowledged_at = convo_now(), acknowledged_by = coalesce(
    nullif($4::text, ''), (SELECT name FROM api_key WHERE key_id = $5), 'somebody without a key')
WHERE acknowledged_at IS NULL AND (type, component, folder) IN (
    SELECT type, component, folder FROM open_alert
    WHERE type = $1 AND ($2::text IS NULL OR component = $2) AND seen_at > convo_now() - make_interval(secs => $3)
    LIMIT 1000)
RETURNING acknowledged_by
"""
_OF_TYPE = f"""
SELECT {_COLUMNS} FROM open_alert AS one
WHERE type = $1 AND ($2::text IS NULL OR component = $2) AND seen_at > convo_now() - make_interval(secs => $3)
ORDER BY type, component, folder LIMIT 1000
"""
_LIST = f"""
SELECT {_COLUMNS} FROM open_alert AS one WHERE seen_at > convo_now() - make_interval(secs => $1)
ORDER BY type, component, folder LIMIT 1000
"""
