"""How the commands draw an answer on a terminal: tables and texts of conversations, lists, users, alerts and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, UnsetType
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from convo.analysis.part import DeclaredPartView, EmotionView, FoundMemoriesView, PartsView, QuestionsView
from convo.analysis.scoring import Score
from convo.commands.output import RecordTable, add_row, make_cell, make_table, plain, show_result, utc_text
from convo.conversation.score import Share
from convo.plural import plural
from convo.runtime.identity import short_name
from convo.web.description import service_views, views

if TYPE_CHECKING:
    # With the module come the database's libraries, which the other commands need not load.
    from convo.store.keys import ApiKey

_NONE: Mapping[str, DeclaredPartView] = {}
_STYLES = {
    "done": "green",
    "dead": "red",
    "failed": "red",
    "refused": "yellow",
    "leased": "yellow",
    "waiting": "yellow",
    "ready": "cyan",
    "CRITICAL": "bold red",
    "HIGH": "red",
}
_THERE_ARE_MORE = Text("There are more: raise --limit.", style="dim")


class Newest(Struct, frozen=True, kw_only=True):
    """The newest conversations of a list, and whether there are more."""

    rows: tuple[views.ConversationSummary, ...]
    more: bool


class DeadOverview(Struct, frozen=True, kw_only=True):
    """Dead letters by their reason, and the newest of them."""

    reasons: views.DeadReasonsView
    rows: tuple[views.ConversationSummary, ...]
    more: bool


class RetriedMany(Struct, frozen=True, kw_only=True):
    """How many dead letters are ready again, or with ``dry_run`` would be, and which they were before."""

    retried: int
    dry_run: bool
    reasons: views.DeadReasonsView


class UserOverview(Struct, frozen=True, kw_only=True):
    """A user's relationship and newest memories, and whether there are more bots or memories."""

    relationship: views.RelationshipView
    memories: tuple[views.MemoryView, ...]
    more: bool


class ShownConversation(views.ConversationView, frozen=True, kw_only=True):
    """One conversation with all its parts, the declared ones too, as they were answered."""

    parts: dict[str, msgspec.Raw]


def draw_shown_conversation(view: ShownConversation) -> RenderableType:
    """Draw one conversation as ``draw_conversation`` does, with its declared parts."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(PartsView)}
    default = {name: msgspec.json.decode(view.parts[name], type=kind) for name, kind in kinds.items()}
    declared = {
        name: msgspec.json.decode(raw, type=DeclaredPartView) for name, raw in view.parts.items() if name not in kinds
    }
    return draw_conversation(view, PartsView(**default), declared)


def draw_conversation(
    view: views.ConversationView, parts: PartsView | None = None, declared: Mapping[str, DeclaredPartView] = _NONE
) -> RenderableType:
    """Draw one conversation as three tables: itself, its parts, its score."""
    return Group(_draw_facts(view), _draw_parts(parts or view.parts, declared), _draw_score(view.score))


def draw_explained(view: views.ExplainView) -> RenderableType:
    """Draw why a conversation has its state: the cause, the jobs before it, its runs."""
    table = Table.grid(padding=(0, 2))
    add_row(table, "conversation", view.conversation_id)
    add_row(table, "cause", view.cause.sentence)
    if view.here:
        add_row(table, "here", view.here)
    if view.ahead is not None:
        left = "unknown" if view.seconds_left is None else f"about {view.seconds_left:g} s"
        add_row(table, "place", f"{view.ahead} before it, done in {left} ({view.done_per_second:g} a second are)")
    add_row(table, "attempts", view.attempts)
    if view.crashes:
        add_row(table, "crashes", view.crashes)
    if not view.runs:
        return table
    rows = [
        (run.began_at, run.ended_at, run.ending, short_name(run.by), run.reason, ", ".join(_waits(run)))
        for run in view.runs
    ]
    return Group(table, _listed(("from", "to", "ending", "by", "reason", "waits"), 4, rows, more=False))


def _waits(run: views.RunView) -> Iterator[str]:
    """Yield what a run waited for: when that was, as far as it is known, and the sums of what is not among that."""
    placed = [] if isinstance(run.timeline, UnsetType) else run.timeline
    for one in placed:
        after, seconds = (one.began_at - run.began_at).total_seconds(), (one.ended_at - one.began_at).total_seconds()
        yield f"{one.name} {seconds:g} s after {after:g} s"
    names = {one.name for one in placed}
    yield from (f"{name} {seconds:g} s" for name, seconds in run.waits.items() if name not in names)


def draw_retried(view: views.RetryView) -> RenderableType:
    """Draw the new state of a dead letter that was retried."""
    return Text.assemble(plain(view.conversation_id), " is ", _state(view.state), " again")


def draw_acknowledged(view: views.AcknowledgedView) -> RenderableType:
    """Draw the state of a dead letter that was marked as reviewed."""
    return Text.assemble(plain(view.conversation_id), " stays ", _state(view.state), "; it is reviewed")


def draw_list(newest: Newest) -> RenderableType:
    """Draw conversations, newest first."""
    names = ("conversation", "state", "score", "received", "user", "bot", "turns")
    rows = [
        (row.conversation_id, _state(row.state), row.score, row.received_at, row.user_id, row.bot_id, row.turns)
        for row in newest.rows
    ]
    return _listed(names, 4, rows, more=newest.more)


def draw_dead(dead: DeadOverview) -> RenderableType:
    """Draw dead letters by their reason, and then the newest with their last error."""
    names = ("conversation", "received", "user", "attempts", "last error")
    rows = [(row.conversation_id, row.received_at, row.user_id, row.attempts, row.last_error) for row in dead.rows]
    listed = _listed(names, 2, rows, more=dead.more)
    return Group(_draw_reasons(dead.reasons), listed) if dead.reasons.total else listed


def draw_retried_many(many: RetriedMany) -> RenderableType:
    """Draw how many dead letters are ready again, or, by their reasons, would be."""
    noun = plural(many.retried, "dead letter")
    if many.dry_run:
        shown = Text(f"{many.retried:,} {noun} would be ready again; nothing was changed")
        return Group(_draw_reasons(many.reasons), shown) if many.reasons.total else shown
    return Text(f"{many.retried:,} {noun} {'is' if many.retried == 1 else 'are'} ready again")


def _draw_reasons(found: views.DeadReasonsView) -> RenderableType:
    table = make_table("dead letters", "reason", "oldest", "newest")
    for one in found.reasons:
        add_row(table, f"{one.count:,}", one.reason or "no reason was noted", one.oldest_at, one.newest_at)
    if found.complete:
        return table
    return Group(table, Text("only the newest 20,000 dead letters were counted", "dim"))


def draw_user(user: UserOverview) -> RenderableType:
    """Draw a user's relationship, in sum and for each bot, and the newest memories."""
    relationship = user.relationship
    facts = Table.grid(padding=(0, 2))
    add_row(facts, "user", relationship.user_id)
    add_row(facts, "level", relationship.level)
    add_row(facts, "score", relationship.score)
    add_row(facts, "conversations", relationship.conversations)
    add_row(facts, "last emotion", relationship.last_emotion)
    bots = make_table("bot", "level", "score", "conversations")
    for bot in relationship.bots:
        add_row(bots, bot.bot_id, bot.level, bot.score, bot.conversations)
    memories = make_table("memory", "kind", "first seen")
    for memory in user.memories:
        add_row(memories, memory.text, memory.kind, memory.first_seen_at)
    shown = [facts, *([bots] if relationship.bots else []), memories if user.memories else Text("no memories")]
    return Group(*shown, *([_THERE_ARE_MORE] if user.more else []))


def show_keys(keys: Sequence[ApiKey]) -> None:
    """Print keys, without their secrets."""
    show_result(draw_keys(keys) if keys else Text("none"))


def draw_keys(keys: Sequence[ApiKey]) -> RenderableType:
    """Draw keys, one a row; one that has expired says so."""
    names = ("key", "name", "tenant", "bots", "scopes", "a second", "made", "last used", "expires", "replaces")
    return RecordTable(names=names, leading=2, rows=tuple(map(_key_row, keys)))


def _key_row(key: ApiKey) -> tuple[Text, ...]:
    limit = f"{key.requests_per_second:g}" if key.requests_per_second else None
    expires: Any = key.expires_at or "never"
    if key.expires_at is not None and (key.expires_in or 0) <= 0:
        expires = plain(f"expired {utc_text(key.expires_at)}", _STYLES["dead"])
    bots = "all" if key.reach.bots is None else ", ".join(key.reach.bots)
    whose = (key.reach.tenant.name, bots)
    cells = (key.key_id, key.name, *whose, ", ".join(key.scopes), limit, key.created_at, key.last_used_at, expires)
    return tuple(map(make_cell, (*cells, key.replaces)))


def draw_alerts(view: service_views.AlertsView) -> RenderableType:
    """Draw alerts, one a row: first the active ones, then the ended ones."""
    table = make_table("level", "alert", "of", "since", "until", "times", "what is wrong, and what to do")
    for one in (*view.active, *view.recent):
        figures = ", ".join(f"{name} {value}" for name, value in one.evidence.figures.items())
        taken = f"acknowledged by {one.acknowledged_by}" if one.acknowledged_by else ""
        lines = (one.trigger, figures, *one.evidence.ids, taken, *(() if one.ended_at else (one.do, one.handbook)))
        text = _lines(line for line in lines if line)
        level = plain(one.level, "" if one.ended_at else _STYLES.get(one.level, "yellow"))
        add_row(table, level, one.type, one.component, one.raised_at, one.ended_at, one.count, text)
    shared = "" if view.leads else " Another process reports what concerns all processes."
    notified = plain(f"Notified: {', '.join(view.sinks)}.{shared}", "dim")
    return Group(table if view.active or view.recent else Text("nothing is wrong"), notified)


def draw_acknowledged_alerts(view: service_views.AcknowledgedAlertsView) -> RenderableType:
    """Draw who has acknowledged which alert."""
    table = make_table("alert", "of", "acknowledged by", "at")
    for one in view.alerts:
        add_row(table, one.type, one.component, one.acknowledged_by, one.acknowledged_at)
    return table


def draw_alerts_test(view: service_views.AlertsTestView) -> RenderableType:
    """Draw the result of the test for each sink."""
    table = make_table("sink", "result", "error")
    for one in view.sinks:
        add_row(table, one.sink, _state("done") if one.ok else _state("failed"), one.detail)
    return table


def _listed(names: tuple[str, ...], leading: int, rows: Sequence[Sequence[Any]], *, more: bool) -> RenderableType:
    if not rows:
        return Text("none")
    records = RecordTable(names=names, leading=leading, rows=tuple(tuple(map(make_cell, row)) for row in rows))
    return Group(records, _THERE_ARE_MORE) if more else records


def _draw_facts(view: views.ConversationView) -> Table:
    table = Table.grid(padding=(0, 2))
    bot = " · ".join(filter(None, (view.bot_id, view.bot_name, view.bot_type, view.agent_tag)))
    add_row(table, "conversation", view.conversation_id)
    add_row(table, "user", view.user_id)
    add_row(table, "bot", bot)
    add_row(table, "from, to", f"{utc_text(view.started_at)}, {utc_text(view.ended_at)}")
    add_row(table, "received", view.received_at)
    add_row(table, "turns", view.turns)
    add_row(table, "digest", view.digest)
    add_row(table, "state", _state(view.state))
    add_row(table, "attempts", view.attempts)
    if view.waits_for and view.parked_since:
        add_row(table, "waits for", f"{view.waits_for}, since {utc_text(view.parked_since)}")
    if view.log_state == "expired":
        add_row(table, "log", "expired: it is no longer stored")
    if view.last_error:
        add_row(table, "last error", view.last_error)
    return table


def _draw_parts(parts: PartsView, declared: Mapping[str, DeclaredPartView]) -> Table:
    table = make_table("part", "state", "by", "result", "at")
    rows = (
        ("questions", parts.questions, _questions(parts.questions)),
        ("emotion", parts.emotion, _emotion(parts.emotion)),
        ("memories", parts.memories, _memories(parts.memories)),
    )
    for name, part, result in rows:
        shown = plain(part.error, "red") if part.error and result is None else result
        add_row(table, name, _state(part.state), part.by, shown, part.updated_at)
    for name, one in declared.items():
        answer = None if one.answer is None else plain(msgspec.json.encode(one.answer).decode())
        shown = plain(one.error, "red") if one.error and answer is None else answer
        add_row(table, name, _state(one.state), one.by, shown, one.updated_at)
    return table


def _emotion(part: EmotionView) -> str | None:
    return part.emotion if part.judged or part.emotion is None else f"{part.emotion} (not judged: unknown language)"


def _questions(part: QuestionsView) -> Text | None:
    return None if part.questions is None else _lines(part.questions)


def _memories(part: FoundMemoriesView) -> Text | None:
    if part.memories is None:
        return None
    found = (f"{memory.operation} {memory.kind}: {memory.text}" for memory in part.memories)
    uncertain = ", uncertain: an earlier answer is lost" if part.uncertain else ""
    return Text.assemble(f"{part.new or 0} new{uncertain}\n", _lines(found))


def _lines(texts: Iterable[str]) -> Text:
    return Text("\n").join(map(plain, texts)) or Text("none")


def _draw_score(score: Score) -> Table:
    table = make_table("score", "count", "weight", "points")
    for name, share in _shares(score):
        add_row(table, name, share.count, f"× {share.weight}", share.points)
    add_row(table, "emotion", score.breakdown.emotion.name, "", score.breakdown.emotion.points)
    for name, share in score.breakdown.parts.items():
        add_row(table, name, share.counted, "", share.points)
    cap = score.breakdown.cap
    if cap is not None and cap.points:
        add_row(table, "cap", "", f"at most {cap.max}", cap.points)
    table.add_section()
    add_row(table, "final" if score.final else "provisional", "", score.weights_version, score.value)
    return table


def _shares(score: Score) -> Iterator[tuple[str, Share]]:
    yield "exchanges", score.breakdown.exchanges
    yield "questions", score.breakdown.questions
    yield "new memories", score.breakdown.memories


def _state(state: str) -> Text:
    return plain(state, _STYLES.get(state, ""))
