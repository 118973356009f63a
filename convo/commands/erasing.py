"""``convo erase``: asks, erases a conversation or a user by the server's API, and prints the receipt."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Group, RenderableType

from convo.commands.output import add_row, make_table, plain, utc_text
from convo.commands.terminal import REFUSED, ApiClient, Failed, ServerCall, request_view, run_command, segment
from convo.conversation.identity import IdKind
from convo.web.description.erasure_views import ErasureView

_PATHS: Mapping[IdKind, str] = {"conversation": "/v1/conversations", "user": "/v1/users"}


def erase(call: ServerCall, kind: IdKind, id_: str, *, dry_run: bool, ask: bool) -> int:
    """Erase it, and print what that removed; with ``dry_run`` print what it would remove."""
    path = f"{_PATHS[kind]}/{segment(id_)}"

    def request(client: ApiClient) -> ErasureView:
        if dry_run or ask:
            counted = request_view(client, "DELETE", path, ErasureView, {"dry_run": "true"})
            if dry_run or counted.repeated:
                return counted
            _ask(kind, id_, counted)
        # A user with very many conversations takes several requests.
        while True:
            erasure = request_view(client, "DELETE", path, ErasureView)
            if erasure.ended_at is not None:
                return erasure

    return run_command(call, request, draw_erasure)


def _ask(kind: IdKind, id_: str, counted: ErasureView) -> None:
    rows = ", ".join(f"{table} {rows:,}" for table, rows in counted.removed.items()) or "none"
    # On stderr, with the question: what is printed on stdout is the command's result.
    print(f"{kind} {plain(id_)}: rows that go: {rows}\nNothing brings them back.", file=sys.stderr)
    if not sys.stdin.isatty():
        raise Failed("nothing was erased: there is no terminal to ask on; give --yes to erase it", REFUSED)
    print("Erase it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failed("nothing was erased", REFUSED)


def draw_erasure(erasure: ErasureView) -> RenderableType:
    """Draw the receipt of an erasure."""
    table = make_table("table", "rows removed", "rows changed")
    table.title = _title(erasure)
    for name in dict.fromkeys((*erasure.removed, *erasure.changed)):
        add_row(table, name, erasure.removed.get(name, 0), erasure.changed.get(name, 0))
    if not erasure.remains:
        return table
    remains = make_table("where", "what may remain", "until")
    for one in erasure.remains:
        add_row(remains, one.where, one.what, one.until)
    return Group(table, remains)


def _title(erasure: ErasureView) -> str:
    if erasure.dry_run:
        return f"{erasure.kind}: nothing was erased, this would go"
    at = utc_text(erasure.ended_at) if erasure.ended_at else "not all yet"
    return f"{erasure.kind} {erasure.hmac}: erased {at}" + (", by an earlier request" if erasure.repeated else "")
