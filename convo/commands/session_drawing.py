"""How ``convo session list`` draws the sessions of browsers on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from convo.commands.output import RecordTable, make_cell, show_result
from convo.store.page_sessions import PageSession


def show_sessions(sessions: Sequence[PageSession]) -> None:
    """Print sessions, without their secrets."""
    show_result(draw_sessions(sessions) if sessions else Text("none"))


def draw_sessions(sessions: Sequence[PageSession]) -> RenderableType:
    """Draw sessions, one a row, with the key that each stands for."""
    names = ("session", "key", "name", "tenant", "bots", "made", "expires")
    return RecordTable(names=names, leading=3, rows=tuple(map(_session_row, sessions)))


def _session_row(session: PageSession) -> tuple[Text, ...]:
    key = session.key
    bots = "all" if key.reach.bots is None else ", ".join(key.reach.bots)
    cells = (session.session_id, key.key_id, key.name, key.reach.tenant.name, bots)
    return tuple(map(make_cell, (*cells, session.made_at, session.expires_at)))
