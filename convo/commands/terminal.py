"""The commands that call a running server's API and print the answer, as tables or as JSON: ``convo show`` and others.

Each command returns the program's exit code: 0 success, 1 refused, 3 no server answers, 4 not found.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console, RenderableType
from rich.progress import Progress

from convo.capacity.forecast import CapacityReport
from convo.commands.audit_drawing import AuditOverview, draw_audit_log
from convo.commands.capacity_drawing import draw_capacity
from convo.commands.drawing import (
    DeadOverview,
    Newest,
    RetriedMany,
    ShownConversation,
    UserOverview,
    draw_acknowledged,
    draw_acknowledged_alerts,
    draw_alerts,
    draw_alerts_test,
    draw_dead,
    draw_explained,
    draw_list,
    draw_retried,
    draw_retried_many,
    draw_shown_conversation,
    draw_user,
)
from convo.commands.output import plain, print_json, show_result
from convo.web.description import messages, service_views, views
from convo.web.queries import cursor_after

T = TypeVar("T")
ApiClient = httpx.Client
"""Sends a command's requests to its server."""
Page = TypeVar("Page", views.ListView, views.RelationshipView, views.MemoriesView, service_views.AuditLogView)

REFUSED, NO_SERVER, NOT_FOUND = 1, 3, 4
_PAGE_ROWS = 100
_SECONDS = 15.0
_DEAD = "/v1/dead-letters"
_JSON = {"Content-Type": "application/json"}


class Failed(Exception):
    """The command failed; the text says why in one line."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Filters(Struct, frozen=True, kw_only=True):
    """Which conversations a list shows; None is no filter."""

    user_id: str | None = None
    user_prefix: str | None = None
    bot_id: str | None = None
    state: str | None = None


class DeadLetters(Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; None is no filter. ``since`` is an RFC 3339 time."""

    reason: str | None = None
    since: str | None = None
    user_id: str | None = None
    bot_id: str | None = None


class AuditFilters(Struct, frozen=True, kw_only=True):
    """Which rows of the audit log are shown; None is no filter. ``since`` is an RFC 3339 time."""

    action: str | None = None
    key_id: str | None = None
    conversation_id: str | None = None
    user_id: str | None = None
    since: str | None = None


class ServerCall(Struct, frozen=True, kw_only=True):
    """Where a command's requests go, with which key, and whether the answer is printed as JSON."""

    url: str
    key: str = ""
    as_json: bool = False


# --- the commands


def show(call: ServerCall, conversation_id: str) -> int:
    """Print one conversation: what was sent, the state of its analysis, the results, the score."""
    path = _path(conversation_id)
    return run_command(
        call, lambda client: request_view(client, "GET", path, ShownConversation), draw_shown_conversation
    )


def show_explanation(call: ServerCall, conversation_id: str) -> int:
    """Print why one conversation has its state, how many jobs are before it, and every run so far."""
    path = _path(conversation_id) + "/explain"
    return run_command(call, lambda client: request_view(client, "GET", path, views.ExplainView), draw_explained)


def show_user(call: ServerCall, user_id: str, limit: int = 50) -> int:
    """Print a user's relationship with the latest bots, and the newest memories, at most ``limit`` of each."""
    path = f"/v1/users/{segment(user_id)}"

    def request(client: httpx.Client) -> UserOverview:
        relationship = _relationship(client, f"{path}/relationship", limit)
        memories, more = _newest_memories(client, f"{path}/memories", limit)
        more = more or relationship.next_cursor is not None
        return UserOverview(relationship=relationship, memories=memories, more=more)

    return run_command(call, request, draw_user)


def list_conversations(call: ServerCall, filters: Filters, limit: int = 50) -> int:
    """Print the newest conversations, at most ``limit``."""
    return run_command(call, lambda client: _newest(client, filters, limit), draw_list)


def dead(call: ServerCall, filters: Filters, limit: int = 50) -> int:
    """Print dead letters by their reason, and the newest, at most ``limit``, with their last error."""
    only = msgspec.structs.replace(filters, state="dead")

    def request(client: httpx.Client) -> DeadOverview:
        newest = _newest(client, only, limit)
        which = DeadLetters(user_id=filters.user_id, bot_id=filters.bot_id)
        reasons = request_view(client, "GET", _DEAD, views.DeadReasonsView, _parameters(which))
        return DeadOverview(reasons=reasons, rows=newest.rows, more=newest.more)

    return run_command(call, request, draw_dead)


def retry(call: ServerCall, conversation_id: str) -> int:
    """Make a dead letter ready again and print its new state."""
    path = _path(conversation_id) + "/retry"
    return run_command(call, lambda client: request_view(client, "POST", path, views.RetryView), draw_retried)


def retry_many(call: ServerCall, which: DeadLetters, *, per_second: float = 0.0, dry_run: bool = False) -> int:
    """Make dead letters ready again, at most ``per_second`` (0: no limit), and print how many they were."""

    def request(client: httpx.Client) -> RetriedMany:
        reasons = request_view(client, "GET", _DEAD, views.DeadReasonsView, _parameters(which))
        retried = _retry_batches(client, which, reasons, per_second=per_second, dry_run=dry_run)
        return RetriedMany(retried=retried, dry_run=dry_run, reasons=reasons)

    return run_command(call, request, draw_retried_many)


def acknowledge(call: ServerCall, conversation_id: str) -> int:
    """Mark a dead letter as reviewed, and print that it is."""
    path = _path(conversation_id) + "/acknowledge"
    return run_command(
        call, lambda client: request_view(client, "POST", path, views.AcknowledgedView), draw_acknowledged
    )


def audit_log(call: ServerCall, filters: AuditFilters, limit: int = 50, before: int | None = None) -> int:
    """Print the newest rows of the audit log, at most ``limit``, of those with a smaller number than ``before``."""
    parameters = _parameters(filters)
    if before is not None:
        parameters["cursor"] = cursor_after(before)

    def request(client: httpx.Client) -> AuditOverview:
        view = service_views.AuditLogView
        pages = _pages(client, "/v1/audit-log", view, lambda page: page.entries, limit, parameters)
        rows = tuple(row for page in pages for row in page.entries)
        return AuditOverview(rows=rows, more=pages[-1].next_cursor is not None)

    return run_command(call, request, draw_audit_log)


def alerts(call: ServerCall) -> int:
    """Print the active and the recent alerts."""
    return run_command(
        call, lambda client: request_view(client, "GET", "/v1/alerts", service_views.AlertsView), draw_alerts
    )


def post_acknowledgement(call: ServerCall, kind: str, component: str | None, by: str) -> int:
    """Note that somebody has taken up the alerts of a type, and print which these are."""
    sent = service_views.AlertToAcknowledge(type=kind, component=component, by=by)

    def request(client: httpx.Client) -> service_views.AcknowledgedAlertsView:
        view = service_views.AcknowledgedAlertsView
        return send_view(client, "POST", "/v1/alerts/acknowledge", view, sent)

    return run_command(call, request, draw_acknowledged_alerts)


def capacity(call: ServerCall, *, target: str | None, conversations: int | None) -> int:
    """Print what the installation can do, and what a target rate or a number of conversations needs."""
    asked = {} if target is None else {"target": target}
    asked |= {} if conversations is None else {"conversations": str(conversations)}
    return run_command(
        call, lambda client: request_view(client, "GET", "/v1/capacity", CapacityReport, asked), draw_capacity
    )


def test_alerts(call: ServerCall) -> int:
    """Send a test alert to every sink and print each result; return ``REFUSED`` where one failed."""
    failed: list[str] = []

    def request(client: httpx.Client) -> service_views.AlertsTestView:
        view = request_view(client, "POST", "/v1/alerts/test", service_views.AlertsTestView)
        failed.extend(one.sink for one in view.sinks if not one.ok)
        return view

    return run_command(call, request, draw_alerts_test) or (REFUSED if failed else 0)


def run_command(call: ServerCall, request: Callable[[httpx.Client], T], draw: Callable[[T], RenderableType]) -> int:
    """Print what a request to the server returned, drawn or as JSON; return the exit code."""
    try:
        with _client(call.url, call.key) as client:
            found = request(client)
    except Failed as failed:
        Console(stderr=True).print(plain(str(failed)), soft_wrap=True)
        return failed.exit_code
    if call.as_json:
        print_json(found)
    else:
        show_result(draw(found))
    return 0


# --- the API


def _client(url: str, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if not url.startswith(("http://", "https://")):
        raise Failed(f"the URL {url} is neither http:// nor https://; check --url and CONVO_URL", REFUSED)
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=_SECONDS, verify=_trusted(url))
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        raise Failed(f"the URL {url} or the key cannot be used: {error}; check --url and CONVO_KEY", REFUSED) from error


def _trusted(url: str) -> ssl.SSLContext:
    # Reading the public authorities takes as long as the request: where none is asked for, nobody is trusted instead.
    return httpx.create_ssl_context() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _path(conversation_id: str) -> str:
    return f"/v1/conversations/{segment(conversation_id)}"


def segment(value: str) -> str:
    """Return an id as a part of a path."""
    return quote(value, safe="", errors="surrogatepass")


def request_view(
    client: httpx.Client, method: str, path: str, kind: type[T], parameters: dict[str, str] | None = None
) -> T:
    """Send one request, and read its answer.

    Raises:
        Failed: no server answers, or the answer is a refusal or nothing that convo answers.
    """
    return _answer(client, client.build_request(method, path, params=parameters), kind)


def send_view(client: httpx.Client, method: str, path: str, kind: type[T], body: Struct) -> T:
    """Send one request with a body as JSON, and read its answer.

    Raises:
        Failed: as ``request_view``.
    """
    return _answer(client, client.build_request(method, path, content=msgspec.json.encode(body), headers=_JSON), kind)


def _answer(client: httpx.Client, request: httpx.Request, kind: type[T]) -> T:
    try:
        response = client.send(request)
    except httpx.TransportError as error:
        why = type(error).__name__
        raise Failed(
            f"no server answers at {client.base_url} ({why}); `convo serve` starts one, --url or CONVO_URL names one"
            " elsewhere",
            NO_SERVER,
        ) from error
    if not response.is_success:
        raise _refusal(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failed(f"the server at {client.base_url} is not convo, or another version: {error}", REFUSED) from error


def _refusal(response: httpx.Response) -> Failed:
    exit_code = NOT_FOUND if response.status_code == 404 else REFUSED
    try:
        problem = msgspec.json.decode(response.content, type=messages.Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failed(f"{response.status_code} {response.reason_phrase}, without a reason", exit_code)
    hint = "; set CONVO_KEY to a key" if response.status_code == 401 else ""
    return Failed(f"{problem.status} {problem.code}: {problem.detail}{hint}", exit_code)


def _parameters(filters: Filters | DeadLetters | AuditFilters) -> dict[str, str]:
    return {name: value for name, value in msgspec.structs.asdict(filters).items() if value is not None}


def _retry_batches(
    client: httpx.Client, which: DeadLetters, reasons: views.DeadReasonsView, *, per_second: float, dry_run: bool
) -> int:
    """Retry batch after batch, with a progress bar; return how many dead letters they were."""
    parameters = {**_parameters(which), "dry_run": "true" if dry_run else "false"}
    parameters["limit"] = str(max(1, min(_PAGE_ROWS, int(per_second))) if per_second else _PAGE_ROWS)
    retried = 0
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("dead letters", total=reasons.total if reasons.complete else None)
        while True:
            began = time.monotonic()
            try:
                batch = request_view(client, "POST", f"{_DEAD}/retry", views.RetriedView, parameters)
            except Failed as failed:
                if not retried or dry_run:
                    raise
                raise Failed(f"{retried:,} are ready again, then it failed: {failed}", failed.exit_code) from failed
            retried += batch.retried
            progress.update(task, advance=batch.retried)
            if batch.next_cursor is None:
                return retried
            parameters["cursor"] = batch.next_cursor
            if per_second and not dry_run:
                time.sleep(max(0.0, batch.retried / per_second - (time.monotonic() - began)))


def _newest(client: httpx.Client, filters: Filters, limit: int) -> Newest:
    parameters: dict[str, str] = {name: value for name, value in msgspec.structs.asdict(filters).items() if value}
    pages = _pages(client, "/v1/conversations", views.ListView, lambda page: page.conversations, limit, parameters)
    rows = tuple(row for page in pages for row in page.conversations)
    return Newest(rows=rows, more=pages[-1].next_cursor is not None)


def _relationship(client: httpx.Client, path: str, limit: int) -> views.RelationshipView:
    """Return a user's relationship with the latest bots, at most ``limit``; its cursor says whether there are more."""
    pages = _pages(client, path, views.RelationshipView, lambda page: page.bots, limit)
    return msgspec.structs.replace(pages[-1], bots=tuple(bot for page in pages for bot in page.bots))


def _newest_memories(client: httpx.Client, path: str, limit: int) -> tuple[tuple[views.MemoryView, ...], bool]:
    """Return a user's newest memories, at most ``limit``, and whether there are more."""
    pages = _pages(client, path, views.MemoriesView, lambda page: page.memories, limit)
    return tuple(memory for page in pages for memory in page.memories), pages[-1].next_cursor is not None


def _pages(  # noqa: PLR0913, PLR0917  (what is asked for, and how its pages are read)
    client: httpx.Client,
    path: str,
    kind: type[Page],
    rows_of: Callable[[Page], Sequence[object]],
    limit: int,
    parameters: Mapping[str, str] | None = None,
) -> list[Page]:
    """Read pages until they hold ``limit`` rows or end; at least one page, and none twice."""
    # A page can be empty and not be the last: the server looks at a bounded number of rows for each.
    asked, pages, count = dict(parameters or {}), list[Page](), 0
    while True:
        asked["limit"] = str(min(limit - count, _PAGE_ROWS))
        page = request_view(client, "GET", path, kind, asked)
        pages.append(page)
        count += len(rows_of(page))
        if page.next_cursor in (None, asked.get("cursor")) or count >= limit:
            return pages
        asked["cursor"] = page.next_cursor
