"""What a person asks a running server from a terminal, as tables; it knows the API's answers, and nothing behind them.

Every text of a conversation is somebody else's: it is shown letter by letter, with no markup and no escape sequence
obeyed. Each command returns the program's exit code: 0 done, 1 refused, 3 no server answers, 4 there is no such thing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from convo.conversation.score import Score, Share
from convo.store.keys import Key
from convo.web import answers

T = TypeVar("T")

REFUSED, NO_SERVER, NOT_FOUND = 1, 3, 4
_PAGE_ROWS = 100
_SECONDS = 15.0
_PIPE_COLUMNS = 1000
_STYLES = {
    "done": "green",
    "dead": "red",
    "failed": "red",
    "leased": "yellow",
    "waiting": "yellow",
    "ready": "cyan",
    "CRITICAL": "bold red",
    "HIGH": "red",
}
_JOINER = "\N{ZERO WIDTH JOINER}"  # invisible, but what holds emoji of several people together


class Failed(Exception):
    """There is nothing to show; the text says why in one line."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Filters(Struct, frozen=True, kw_only=True):
    """Which conversations a list shows; None takes all."""

    user_id: str | None = None
    bot_id: str | None = None
    state: str | None = None


class Newest(Struct, frozen=True, kw_only=True):
    """The newest conversations of a list, and whether there are more."""

    rows: tuple[answers.ConversationSummary, ...]
    more: bool


# --- the commands


def show(url: str, key: str, conversation_id: str) -> int:
    """Print one conversation: what was sent, how far its analysis is, what was found, the score."""

    def ask(client: httpx.Client) -> RenderableType:
        return draw_conversation(_call(client, "GET", _path(conversation_id), answers.ConversationView))

    return _command(url, key, ask)


def explain(url: str, key: str, conversation_id: str) -> int:
    """Print why one conversation stands as it does, its place in the line, and every run so far."""

    def ask(client: httpx.Client) -> RenderableType:
        return draw_explained(_call(client, "GET", _path(conversation_id) + "/explain", answers.ExplainView))

    return _command(url, key, ask)


def list_conversations(url: str, key: str, filters: Filters, limit: int = 50) -> int:
    """Print the newest conversations, at most ``limit``."""
    return _command(url, key, lambda client: draw_list(_newest(client, filters, limit)))


def dead(url: str, key: str, filters: Filters, limit: int = 50) -> int:
    """Print the newest dead letters, at most ``limit``, with what they died of."""
    only = msgspec.structs.replace(filters, state="dead")
    return _command(url, key, lambda client: draw_dead(_newest(client, only, limit)))


def retry(url: str, key: str, conversation_id: str) -> int:
    """Make a dead letter ready again and print its new state."""

    def ask(client: httpx.Client) -> RenderableType:
        view = _call(client, "POST", _path(conversation_id) + "/retry", answers.RetryView)
        return Text.assemble(plain(view.conversation_id), " is ", _state(view.state), " again")

    return _command(url, key, ask)


def acknowledge(url: str, key: str, conversation_id: str) -> int:
    """Say that a dead letter is reviewed, and print that it is."""

    def ask(client: httpx.Client) -> RenderableType:
        view = _call(client, "POST", _path(conversation_id) + "/acknowledge", answers.AcknowledgedView)
        return Text.assemble(plain(view.conversation_id), " stays ", _state(view.state), "; it is reviewed")

    return _command(url, key, ask)


def alerts(url: str, key: str) -> int:
    """Print what is wrong now, and what was lately."""
    return _command(url, key, lambda client: draw_alerts(_call(client, "GET", "/v1/alerts", answers.AlertsView)))


def test_alerts(url: str, key: str) -> int:
    """Send a test alert through every sink and print how each took it; ``REFUSED`` where one did not."""
    failed: list[str] = []

    def ask(client: httpx.Client) -> RenderableType:
        view = _call(client, "POST", "/v1/alerts/test", answers.AlertsTestView)
        failed.extend(one.sink for one in view.sinks if not one.ok)
        return draw_alerts_test(view)

    return _command(url, key, ask) or (REFUSED if failed else 0)


def _command(url: str, key: str, ask: Callable[[httpx.Client], RenderableType]) -> int:
    try:
        with _client(url, key) as client:
            tell(ask(client))
    except Failed as failed:
        Console(stderr=True).print(plain(str(failed)), soft_wrap=True)
        return failed.exit_code
    return 0


def tell(shown: RenderableType) -> None:
    """Print what is to be shown; what goes into a pipe is not folded: a row stays one line there."""
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(shown)


# --- the API


def _client(url: str, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=_SECONDS)
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        raise Failed(f"{url} or the key cannot be used: {error}", REFUSED) from error


def _path(conversation_id: str) -> str:
    return f"/v1/conversations/{quote(conversation_id, safe='', errors='surrogatepass')}"


def _call(client: httpx.Client, method: str, path: str, kind: type[T], parameters: dict[str, str] | None = None) -> T:
    try:
        response = client.request(method, path, params=parameters)
    except httpx.TransportError as error:
        why = type(error).__name__
        raise Failed(f"no server answers at {client.base_url} ({why}); scripts/serve starts one", NO_SERVER) from error
    if not response.is_success:
        raise _refusal(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failed(
            f"what answers at {client.base_url} is not convo, or not this version: {error}", REFUSED
        ) from error


def _refusal(response: httpx.Response) -> Failed:
    exit_code = NOT_FOUND if response.status_code == 404 else REFUSED
    try:
        problem = msgspec.json.decode(response.content, type=answers.Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failed(f"{response.status_code} {response.reason_phrase}, and no word why", exit_code)
    return Failed(f"{problem.status} {problem.code}: {problem.detail}", exit_code)


def _newest(client: httpx.Client, filters: Filters, limit: int) -> Newest:
    asked: dict[str, str] = {name: value for name, value in msgspec.structs.asdict(filters).items() if value}
    rows: list[answers.ConversationSummary] = []
    while True:
        asked["limit"] = str(min(limit - len(rows), _PAGE_ROWS))
        page = _call(client, "GET", "/v1/conversations", answers.ListView, asked)
        rows += page.conversations
        if page.next_cursor is None or not page.conversations or len(rows) >= limit:
            return Newest(rows=tuple(rows), more=page.next_cursor is not None)
        asked["cursor"] = page.next_cursor


# --- the drawing


def draw_conversation(view: answers.ConversationView) -> RenderableType:
    """Draw one conversation as three tables: itself, its parts, its score."""
    return Group(_draw_facts(view), _draw_parts(view.parts), _draw_score(view.score))


def draw_explained(view: answers.ExplainView) -> RenderableType:
    """Draw why a conversation stands as it does: the cause, its place, its runs."""
    table = Table.grid(padding=(0, 2))
    _add(table, "conversation", view.conversation_id)
    _add(table, "cause", view.cause.sentence)
    if view.here:
        _add(table, "here", view.here)
    if view.ahead is not None:
        left = "unknown" if view.seconds_left is None else f"about {view.seconds_left:g} s"
        _add(table, "place", f"{view.ahead} before it, done in {left} ({view.done_per_second:g} a second are)")
    _add(table, "attempts", view.attempts)
    if view.crashes:
        _add(table, "crashes", view.crashes)
    runs = _table("from", "to", "ending", "by", "reason", "waits")
    for run in view.runs:
        waits = ", ".join(f"{name} {seconds:g} s" for name, seconds in run.waits.items())
        _add(runs, run.began_at, run.ended_at, run.ending, run.by, run.reason, waits)
    return Group(table, runs) if view.runs else table


def draw_list(newest: Newest) -> RenderableType:
    """Draw conversations, one a row."""
    table = _table("conversation", "user", "bot", "received", "turns", "state", "score")
    for row in newest.rows:
        named = (row.conversation_id, row.user_id, row.bot_id, row.received_at)
        _add(table, *named, row.turns, _state(row.state), row.score)
    return _listed(table, newest)


def draw_dead(newest: Newest) -> RenderableType:
    """Draw dead letters, one a row, with their last error."""
    table = _table("conversation", "user", "received", "attempts", "last error")
    for row in newest.rows:
        _add(table, row.conversation_id, row.user_id, row.received_at, row.attempts, row.last_error)
    return _listed(table, newest)


def show_keys(keys: Sequence[Key]) -> None:
    """Print the keys that are good, but for what makes them so."""
    table = _table("key", "name", "scopes", "a second", "made", "last used")
    for key in keys:
        limit = f"{key.requests_per_second:g}" if key.requests_per_second else None
        _add(table, key.key_id, key.name, ", ".join(key.scopes), limit, key.created_at, key.last_used_at)
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(table if keys else Text("none"))


def draw_alerts(view: answers.AlertsView) -> RenderableType:
    """Draw alerts, one a row: those that last, then those that ended."""
    table = _table("level", "alert", "of", "since", "until", "times", "what holds, and what to do")
    for one in (*view.active, *view.recent):
        figures = ", ".join(f"{name} {value}" for name, value in one.evidence.figures.items())
        lines = (one.trigger, figures, *one.evidence.ids, *(() if one.ended_at else (one.do,)))
        said = _lines(line for line in lines if line)
        level = plain(one.level, "" if one.ended_at else _STYLES.get(one.level, "yellow"))
        _add(table, level, one.type, one.component, one.raised_at, one.ended_at, one.count, said)
    shared = "" if view.leads else " Another process tells of what all share."
    told = plain(f"Told: {', '.join(view.sinks)}.{shared}", "dim")
    return Group(table if view.active or view.recent else Text("nothing is wrong"), told)


def draw_alerts_test(view: answers.AlertsTestView) -> RenderableType:
    """Draw how each sink took the test."""
    table = _table("sink", "took it", "why not")
    for one in view.sinks:
        _add(table, one.sink, _state("done") if one.ok else _state("failed"), one.detail)
    return table


def _listed(table: Table, newest: Newest) -> RenderableType:
    if not newest.rows:
        return Text("none")
    return Group(table, Text("There are more: raise --limit.", style="dim")) if newest.more else table


def _draw_facts(view: answers.ConversationView) -> Table:
    table = Table.grid(padding=(0, 2))
    bot = " · ".join(filter(None, (view.bot_id, view.bot_name, view.bot_type, view.agent_tag)))
    _add(table, "conversation", view.conversation_id)
    _add(table, "user", view.user_id)
    _add(table, "bot", bot)
    _add(table, "from, to", f"{_time(view.started_at)}, {_time(view.ended_at)}")
    _add(table, "received", view.received_at)
    _add(table, "turns", view.turns)
    _add(table, "digest", view.digest)
    _add(table, "state", _state(view.state))
    _add(table, "attempts", view.attempts)
    if view.waits_for and view.parked_since:
        _add(table, "waits for", f"{view.waits_for}, since {_time(view.parked_since)}")
    if view.last_error:
        _add(table, "last error", view.last_error)
    return table


def _draw_parts(parts: answers.PartsView) -> Table:
    table = _table("part", "state", "by", "result", "at")
    rows = (
        ("questions", parts.questions, _questions(parts.questions)),
        ("emotion", parts.emotion, parts.emotion.emotion),
        ("memories", parts.memories, _memories(parts.memories)),
    )
    for name, part, result in rows:
        shown = plain(part.error, "red") if part.error and result is None else result
        _add(table, name, _state(part.state), part.by, shown, part.updated_at)
    return table


def _questions(part: answers.QuestionsView) -> Text | None:
    return None if part.questions is None else _lines(part.questions)


def _memories(part: answers.FoundMemoriesView) -> Text | None:
    if part.memories is None:
        return None
    found = (f"{memory.operation} {memory.kind}: {memory.text}" for memory in part.memories)
    return Text.assemble(f"{part.new or 0} new\n", _lines(found))


def _lines(texts: Iterable[str]) -> Text:
    return Text("\n").join(map(plain, texts)) or Text("none")


def _draw_score(score: Score) -> Table:
    table = _table("score", "count", "weight", "points")
    for name, share in _shares(score):
        _add(table, name, share.count, f"× {share.weight}", share.points)
    _add(table, "emotion", score.breakdown.emotion.name, "", score.breakdown.emotion.points)
    table.add_section()
    _add(table, "final" if score.final else "provisional", "", score.weights_version, score.value)
    return table


def _shares(score: Score) -> Iterator[tuple[str, Share]]:
    yield "exchanges", score.breakdown.exchanges
    yield "questions", score.breakdown.questions
    yield "new memories", score.breakdown.memories


def _table(*names: str) -> Table:
    table = Table(title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: Any) -> None:
    table.add_row(*map(_cell, cells))


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, datetime):
        return Text(_time(value))
    return Text("–", style="dim") if value is None else plain(str(value))


def _state(state: str) -> Text:
    return plain(state, _STYLES.get(state, ""))


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") + "Z"


def plain(text: str, style: str = "") -> Text:
    """Make a text that a terminal shows and never obeys: what is not printable appears as Python would write it."""
    return Text(
        "".join(letter if letter.isprintable() or letter == _JOINER else _written(letter) for letter in text), style
    )


def _written(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
