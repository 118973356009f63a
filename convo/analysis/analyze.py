"""One analysis: every part of one conversation that is still missing, found side by side.

Open it to change how parts run. It knows neither who finds a part nor where it is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import trio
from msgspec import Struct

from convo.conversation.model import Conversation, Finding, PartName
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Span
from convo.runtime import threads
from convo.runtime.deadline import deadline

NoteFinding = Callable[[PartName, str, Finding], None]
"""Takes a part, who found it, and what was found."""


class Together(Struct, frozen=True, kw_only=True, eq=False):
    """One call that finds several parts: it notes each as soon as it is found, and raises what the rest failed of."""

    find: Callable[[Conversation, Sequence[PartName], NoteFinding], Awaitable[None]]


class Analyst(Struct, frozen=True, kw_only=True):
    """Who finds one part: its name and version (``local/2``), and the function that asks it.

    ``in_process``: it works in this process and is not waited for. Such analysts work one after another, for there is
    one interpreter. Parts whose analysts have the same ``together`` are asked for in one call, and not by ``find``.
    ``missing`` is what this process would need to find the part, empty where it has that.
    """

    by: str
    find: Callable[[Conversation], Awaitable[Finding]]
    in_process: bool = False
    together: Together | None = None
    missing: str = ""


class PartFailure(Struct, frozen=True, kw_only=True):
    """Why a part was not found, and who tried."""

    by: str
    error: ConvoError


# The rules are linear in the text, so this bounds a bug and not the work.
_LOCAL_SECONDS = 30.0
# What a part holds the loop for, in ms (questions, emotion, memories; scripts/samples.jsonl repeated, two busy cores):
# 4,096 characters 1, 3, 1; 16,384 characters 9, 17, 10; 65,536 characters 36, 32, 31; 200,000 characters 69, 136, 108.
OFFLOAD_CHARACTERS = 4_096
"""From this much text on the embedded analyst works in a thread, so that it never holds the loop for over 5 ms."""

Analysts = Mapping[PartName, Analyst]
Store = Callable[[PartName, str, Finding], Awaitable[None]]
KeepTicket = Callable[[PartName, str], Awaitable[None]]
"""Stores what to ask a service with later, which is still at work on a part; an empty text removes it."""


async def _keep_none(_name: PartName, _ticket: str) -> None:
    pass


def _note_none(_name: PartName, _by: str, _finding: Finding) -> None:
    pass


async def analyze(  # noqa: PLR0913, PLR0917  (what it works on, and what becomes of it)
    conversation: Conversation,
    analysts: Analysts,
    have: Collection[PartName],
    store: Store,
    keep_ticket: KeepTicket = _keep_none,
    note: NoteFinding = _note_none,
) -> dict[PartName, PartFailure]:
    """Find every part that is not in ``have``, and store each when it is found; return the parts that failed.

    A part that fails leaves the others alone. ``note`` takes those of a call that goes on, before they are stored. A
    ticket that comes with a failure is kept at once: were it lost, the service would be given the conversation a
    second time.

    Raises:
        ConvoError: what ``store`` or ``keep_ticket`` raised; the parts it concerns are not stored.
    """
    run = _Run(conversation, store, keep_ticket, note)
    await _side_by_side({name: analyst for name, analyst in analysts.items() if name not in have}, run)
    if run.unstored:
        raise run.unstored[0]
    return run.failures


class _Run:
    """One analysis as it goes on: what failed in it, and what could not be stored."""

    def __init__(self, conversation: Conversation, store: Store, keep_ticket: KeepTicket, note: NoteFinding) -> None:
        self._conversation = conversation
        self._store = store
        self._keep_ticket = keep_ticket
        self._note = note
        self.failures: dict[PartName, PartFailure] = {}
        self.unstored: list[ConvoError] = []

    async def part(self, name: PartName, analyst: Analyst) -> None:
        """Find one part by itself."""
        started = trio.current_time()
        try:
            with tracing.child_span(f"part {name}") as span:
                _describe(span, [name], analyst.by)
                finding = await analyst.find(self._conversation)
        except ConvoError as error:
            self._failed(name, analyst, error, started)
            self.unstored.extend(await _kept(self._keep_ticket, name, error))
            return
        await self._found(name, analyst.by, finding, trio.current_time() - started)

    async def together(self, together: Together, analysts: Analysts) -> None:
        """Find several parts in one call."""
        started = trio.current_time()
        found: dict[PartName, tuple[str, Finding]] = {}

        def noted(name: PartName, by: str, finding: Finding) -> None:
            found[name] = (by, finding)
            self._note(name, by, finding)

        try:
            with tracing.child_span(f"part {', '.join(analysts)}") as span:
                _describe(span, list(analysts), next(iter(analysts.values())).by)
                await together.find(self._conversation, list(analysts), noted)
        except ConvoError as error:
            for name in analysts:
                if name not in found:
                    self._failed(name, analysts[name], error, started)
        seconds = trio.current_time() - started
        for name, (by, finding) in found.items():
            await self._found(name, by, finding, seconds)

    def _failed(self, name: PartName, analyst: Analyst, error: ConvoError, started: float) -> None:
        self.failures[name] = PartFailure(by=analyst.by, error=error)
        _note_part_seconds(name, "failed", trio.current_time() - started)

    async def _found(self, name: PartName, by: str, finding: Finding, seconds: float) -> None:
        _note_part_seconds(name, "done", seconds)
        try:
            await self._store(name, by, finding)
        except ConvoError as error:
            self.unstored.append(error)
        else:
            log_records.part_done(conversation_id=self._conversation.conversation_id, part=name, by=by, seconds=seconds)


def _describe(span: Span | None, parts: list[PartName], by: str) -> None:
    if span is not None:
        span.attributes |= {"convo.parts": parts, "convo.by": by}


def _note_part_seconds(name: PartName, outcome: str, seconds: float) -> None:
    cell, span = metrics.part_seconds.labels(name, outcome), tracing.current_span()
    cell.observe(seconds)
    if span is not None:
        cell.note_exemplar(seconds, span.trace_id, span.span_id)


async def _side_by_side(analysts: Analysts, run: _Run) -> None:
    """Run all parts side by side, those of this process in one task: no nursery where there are no others."""

    async def here() -> None:
        for name, analyst in analysts.items():
            if analyst.in_process:
                await run.part(name, analyst)

    elsewhere = {name: analyst for name, analyst in analysts.items() if not analyst.in_process}
    if not elsewhere:
        await here()
        return
    async with trio.open_nursery() as nursery:
        calls: dict[Together, dict[PartName, Analyst]] = {}
        for name, analyst in elsewhere.items():
            if analyst.together is None:
                nursery.start_soon(run.part, name, analyst)
            else:
                calls.setdefault(analyst.together, {})[name] = analyst
        for together, group in calls.items():
            nursery.start_soon(run.together, together, group)
        # The others begin before the first part of this process: it waits for its turn.
        await here()


async def _kept(keep_ticket: KeepTicket, name: PartName, failure: ConvoError) -> list[ConvoError]:
    """Keep the ticket that comes with a failure, if one does; return the error where that failed."""
    if isinstance(failure, RemoteError) and failure.ticket is not None:
        try:
            await keep_ticket(name, failure.ticket)
        except ConvoError as error:
            return [error]
    return []


def in_process(
    by: str,
    find: Callable[[Conversation], Finding],
    lock: trio.Lock,
    offload_chars: int = OFFLOAD_CHARACTERS,
    *,
    prepare: Callable[[], object] = bool,
) -> Analyst:
    """Make an analyst of a plain function; from ``offload_chars`` of text on it works in a thread, after ``prepare``.

    Analysts that share ``lock`` work one after another. There is one interpreter: side by side they would hold the
    loop for as long as all of them take together.
    """

    async def ask(conversation: Conversation) -> Finding:
        async with lock:
            if sum(len(turn.text) for turn in conversation.turns) < offload_chars:
                finding, seconds = threads.timed(find, conversation)
            else:
                with deadline("analysis.local", _LOCAL_SECONDS):
                    # No limiter of ours: a thread that never ends and is abandoned would keep its place for ever.
                    finding, seconds = await trio.to_thread.run_sync(
                        _prepared, prepare, find, conversation, abandon_on_cancel=True
                    )
            metrics.local_analysis_seconds_total.inc(seconds)
            return finding

    return Analyst(by=by, find=ask, in_process=True)


def _prepared(
    prepare: Callable[[], object], find: Callable[[Conversation], Finding], conversation: Conversation
) -> tuple[Finding, float]:
    prepare()
    return threads.timed(find, conversation)
