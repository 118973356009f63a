"""How ``convo retention`` draws what goes by itself on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from convo.commands.output import RecordTable, make_cell, show_result
from convo.plural import plural
from convo.retention_report import DueKind


def show_retention(found: Sequence[DueKind]) -> None:
    """Print what retention removes."""
    show_result(draw_retention(found))


def draw_retention(found: Sequence[DueKind]) -> RenderableType:
    """Draw what retention removes, one kind a row; how many are over only where they were counted."""
    counted = any(one.over is not None for one in found)
    names = (
        "what",
        "goes after",
        "for some bots",
        "for some tenants",
        "the oldest",
        "goes",
        *(["over now"] if counted else []),
    )
    return RecordTable(names=names, leading=2, rows=tuple(_due_row(one, counted=counted) for one in found))


def _due_row(one: DueKind, *, counted: bool) -> tuple[Text, ...]:
    cells = (
        one.kind.replace("_", " "),
        _days(one.days),
        _own(one.days_of_bots),
        _own(one.days_of_tenants),
        one.oldest_at,
        one.goes_at,
    )
    return tuple(map(make_cell, (*cells, *([one.over] if counted else []))))


def _own(days_of: Mapping[str, int]) -> str | None:
    return ", ".join(f"{name}: {_days(days)}" for name, days in days_of.items()) or None


def _days(days: int) -> str:
    return f"{days} {plural(days, 'day')}" if days else "never"
