"""Reads the audit log, newest first: all of it, or by action, key, conversation, user and time.

Each tenant sees its own rows. Open it to change a filter. One filter finds rows by its index; the others are checked on
what it finds. So a page looks at a bounded number of rows, whatever is asked for. Where few of them match, the page is
short, and the next one goes on behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct

from convo.audit_actions import AUDIT_ACTIONS, AuditAction
from convo.conversation.tenant import Tenant
from convo.store.installation_key import read_installation_key
from convo.store.postgres import RELAXED, Connection, Postgres

AuditRow = Mapping[str, Any]

_LOOKED_AT_MAX = 500
_NEWEST = (1 << 63) - 1
# Rows are numbered in the order in which they are stored, which is their order in time but for a second, or for a clock
# that was set back. This much of that is allowed for.
_OUT_OF_ORDER = timedelta(hours=1)


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which rows are meant; None is no filter. ``before`` is the number that all of them are below."""

    action: AuditAction | None = None
    key_id: str | None = None
    conversation_id: str | None = None
    user_id: str | None = None
    since: datetime | None = None
    before: int | None = None


class AuditPage(Struct, frozen=True, kw_only=True):
    """Rows, newest first, and the number that those of the next page are below, if there may be more."""

    rows: Sequence[AuditRow]
    next_before: int | None


async def read_audit_log(
    postgres: Postgres, tenant: Tenant, wanted: AuditFilter, limit: int, *, default_has_indexes: bool = False
) -> AuditPage:
    """Read up to ``limit`` rows of a tenant, newest first; ``default_has_indexes``: those of ``tenant_indexes``."""

    async def body(connection: Connection) -> AuditPage:
        values = await _values(connection, tenant, wanted)
        looked_at = limit + 1 if not (values or wanted.since) else max(_LOOKED_AT_MAX, limit + 1)
        statement, value = _statement(tenant, wanted, values, default_has_indexes=default_has_indexes)
        last = _NEWEST if wanted.before is None else wanted.before - 1
        rows = await connection.fetch(statement, tenant.number, last, looked_at, *value)
        found = [row for row in rows if _is_meant(row, values, wanted.since)]
        if len(found) > limit:
            return AuditPage(rows=found[:limit], next_before=found[limit - 1]["number"])
        ends = len(rows) < looked_at or (wanted.since and rows[-1]["at"] < wanted.since - _OUT_OF_ORDER)
        return AuditPage(rows=found, next_before=None if ends else rows[-1]["number"])

    return await postgres.run("db.audit_log", body, begin=RELAXED)


async def _values(connection: Connection, tenant: Tenant, wanted: AuditFilter) -> dict[str, object]:
    """Return what the columns must hold, by their names."""
    values: dict[str, object] = {"action": wanted.action, "key_id": wanted.key_id}
    if wanted.conversation_id is not None or wanted.user_id is not None:
        key = await read_installation_key(connection)
        if wanted.conversation_id is not None:
            values["target"] = key.hmac_of("conversation", tenant.own(wanted.conversation_id))
        if wanted.user_id is not None:
            values["of_user"] = key.hmac_of("user", tenant.own(wanted.user_id))
    return {name: value for name, value in values.items() if value is not None}


def _is_meant(row: AuditRow, values: Mapping[str, object], since: datetime | None) -> bool:
    return all(row[name] == value for name, value in values.items()) and (since is None or row["at"] >= since)


def _statement(
    tenant: Tenant, wanted: AuditFilter, values: Mapping[str, object], *, default_has_indexes: bool
) -> tuple[str, tuple[object, ...]]:
    """Return the statement that reads the fewest rows for a page, and what it takes behind the limit."""
    for name, statement in _BY_VALUE.items():
        if name in values:
            return statement, (values[name],)
    if wanted.action is not None and wanted.action != "log_read":
        return _BY_ACTION[wanted.action], ()
    if tenant.number:
        return _ALL_OF_TENANT, ()
    return _ALL_OF_DEFAULT if default_has_indexes else _ALL, ()


_FIELDS = "SELECT number, at, action, key_id, address, target_kind, target, of_user, detail FROM audit_log"


def _range(column: str, value: str, condition: str) -> str:
    # By two ends and its own order, as in ``listing``: else the planner may walk the primary key over all other rows.
    return (
        f"WHERE {condition}"
        f" AND ({column}, number) >= ({value}, 0) AND ({column}, number) <= ({value}, $2)"
        f" ORDER BY {column} DESC, number DESC LIMIT $3"
    )


_ALL = f"{_FIELDS} WHERE tenant = $1 AND number <= $2 ORDER BY number DESC LIMIT $3"
# audit_log_of_tenant, audit_log_default: whose the rows are stands in the range, as in ``listing``.
_ALL_OF_TENANT = f"{_FIELDS} {_range('tenant', '$1', 'tenant > 0')}"
_ALL_OF_DEFAULT = f"{_FIELDS} {_range('tenant', '$1', 'tenant < 1')}"
# The one that is most probably seldom comes first.
_BY_VALUE = {
    name: f"{_FIELDS} {_range(name, '$4', f'tenant = $1 AND {name} IS NOT NULL')}"
    for name in ("target", "of_user", "key_id")
}
_NO_READ = "tenant = $1 AND action <> 'log_read'"
# The action is part of the text: only then does the planner use a partial index.
_BY_ACTION = {
    action: f"{_FIELDS} {_range('action', repr(action), _NO_READ)}" for action in AUDIT_ACTIONS if action != "log_read"
}
