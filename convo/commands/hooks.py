"""``convo webhook``: endpoints, pings, attempts and events that are sent again, by the server's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import RenderableType
from rich.text import Text

from convo.commands.output import add_row, make_table, plain, utc_text
from convo.commands.terminal import REFUSED, ApiClient, ServerCall, request_view, run_command, segment, send_view
from convo.web.description import webhook_views

_PATH = "/v1/webhooks"


class AskedChange(Struct, frozen=True, kw_only=True):
    """What is to be changed of an endpoint; None stays as it is."""

    address: str | None
    types: tuple[str, ...] | None
    bots: tuple[str, ...] | None
    active: bool | None


class ReplayFilters(Struct, frozen=True, kw_only=True):
    """Which events are sent again; None is no filter."""

    event: str | None
    type: str | None
    since: str | None
    until: str | None


class _Sent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A body as it was typed: the server says what is wrong with it."""

    url: str | None = None
    types: tuple[str, ...] | None = None
    bots: tuple[str, ...] | None = None
    secret: str | None = None
    active: bool | None = None


def add_endpoint(
    call: ServerCall, address: str, *, types: tuple[str, ...] | None, bots: tuple[str, ...] | None, secret: str
) -> int:
    """Register an endpoint, and print it with its secret."""
    body = _Sent(url=address, types=types, bots=bots, secret=secret or None)
    return run_command(
        call, lambda client: send_view(client, "POST", _PATH, webhook_views.NewWebhookView, body), _draw_new
    )


def list_endpoints(call: ServerCall) -> int:
    """Print every endpoint."""
    return run_command(call, lambda client: request_view(client, "GET", _PATH, webhook_views.WebhooksView), _draw_list)


def change_endpoint(call: ServerCall, webhook_id: str, change: AskedChange) -> int:
    """Change an endpoint, and print it."""
    body = _Sent(url=change.address, types=change.types, bots=change.bots, active=change.active)
    return run_command(
        call,
        lambda client: send_view(client, "PATCH", _of(webhook_id), webhook_views.WebhookView, body),
        _draw_one,
    )


def remove_endpoint(call: ServerCall, webhook_id: str) -> int:
    """Remove an endpoint."""
    return run_command(
        call,
        lambda client: request_view(client, "DELETE", _of(webhook_id), webhook_views.WebhookDeletedView),
        lambda gone: Text(f"{plain(gone.id)} is removed"),
    )


def ping_endpoint(call: ServerCall, webhook_id: str) -> int:
    """Ping an endpoint, and print what came of it; return ``REFUSED`` where it does not answer as it should."""
    failed: list[str] = []

    def request(client: ApiClient) -> webhook_views.WebhookPingView:
        ping = request_view(client, "POST", _of(webhook_id, "ping"), webhook_views.WebhookPingView)
        failed.extend([] if ping.good else [ping.id])
        return ping

    return run_command(call, request, _draw_ping) or (REFUSED if failed else 0)


def rotate_endpoint(call: ServerCall, webhook_id: str, secret: str) -> int:
    """Give an endpoint another secret, and print it."""
    body = _Sent(secret=secret or None)
    return run_command(
        call,
        lambda client: send_view(client, "POST", _of(webhook_id, "secret"), webhook_views.NewWebhookView, body),
        _draw_new,
    )


def show_attempts(call: ServerCall, webhook_id: str, limit: int) -> int:
    """Print the newest attempts."""
    return run_command(
        call,
        lambda client: request_view(
            client, "GET", _of(webhook_id, "attempts"), webhook_views.AttemptsView, {"limit": str(limit)}
        ),
        _draw_attempts,
    )


def send_again(call: ServerCall, webhook_id: str, filters: ReplayFilters) -> int:
    """Have events sent again, page by page, and print how many."""
    given: Mapping[str, Any] = msgspec.structs.asdict(filters)
    parameters = {name: str(value) for name, value in given.items() if value is not None}

    def request(client: ApiClient) -> webhook_views.ReplayView:
        total, cursor = 0, dict[str, str]()
        while True:
            page = request_view(
                client, "POST", _of(webhook_id, "replay"), webhook_views.ReplayView, {**parameters, **cursor}
            )
            total += page.events
            if page.next_cursor is None:
                return webhook_views.ReplayView(events=total)
            cursor = {"cursor": page.next_cursor}

    return run_command(call, request, lambda found: Text(f"{found.events} are sent again"))


def _of(webhook_id: str, *rest: str) -> str:
    return "/".join((_PATH, segment(webhook_id), *rest))


# --- how it is drawn


def _draw_new(made: webhook_views.NewWebhookView) -> RenderableType:
    table = make_table("id", "address", "secret")
    add_row(table, made.id, made.url, made.secret)
    table.title = "The secret is not shown again."
    return table


def _draw_one(found: webhook_views.WebhookView) -> RenderableType:
    return _draw_list(webhook_views.WebhooksView(webhooks=(found,)))


def _draw_list(found: webhook_views.WebhooksView) -> RenderableType:
    if not found.webhooks:
        return Text("none")
    table = make_table("id", "state", "address", "types", "bots", "confirmed")
    for one in found.webhooks:
        state = one.state if one.reason is None or one.state != "off" else f"off: {one.reason}"
        if one.failing_since is not None and one.state != "off":
            state = f"{state}, failing since {utc_text(one.failing_since)}"
        add_row(
            table, one.id, state, one.url, ", ".join(one.types) or "all", ", ".join(one.bots) or "all", one.confirmed
        )
    return table


def _draw_ping(ping: webhook_views.WebhookPingView) -> RenderableType:
    verdict = "answered" if ping.good else f"failed: {ping.error}"
    return Text(f"{plain(ping.id)} {plain(verdict)}, after {ping.seconds:.2f} s")


def _draw_attempts(page: webhook_views.AttemptsView) -> RenderableType:
    if not page.attempts:
        return Text("none")
    table = make_table("at", "event", "status", "seconds", "error", "answer")
    for one in page.attempts:
        add_row(table, utc_text(one.at), one.event_id, one.status, f"{one.seconds:.3f}", one.error, one.answer)
    return table
