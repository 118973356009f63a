"""How ``convo audit-log`` draws rows of the audit log on a terminal."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from convo.commands.output import RecordTable, make_cell
from convo.web.description import service_views


class AuditOverview(Struct, frozen=True, kw_only=True):
    """The newest rows of the audit log that are meant, and whether there are more."""

    rows: tuple[service_views.AuditEntryView, ...]
    more: bool


def draw_audit_log(found: AuditOverview) -> RenderableType:
    """Draw rows of the audit log, newest first, in two lines each where a line is too short."""
    if not found.rows:
        return Text("none")
    names = ("number", "at", "action", "key", "address", "target", "detail")
    records = RecordTable(names=names, leading=5, rows=tuple(map(_audit_row, found.rows)))
    if not found.more:
        return records
    return Group(records, Text(f"There are more: --before {found.rows[-1].number} shows the next.", style="dim"))


def _audit_row(row: service_views.AuditEntryView) -> tuple[Text, ...]:
    target = None if row.target is None else f"{row.target_kind} {row.target}"
    detail = ", ".join(f"{name} {_json(value)}" for name, value in row.detail.items()) or None
    return tuple(map(make_cell, (row.number, row.at, row.action, row.key_id, row.address, target, detail)))


def _json(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
