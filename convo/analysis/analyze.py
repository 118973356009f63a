"""One analysis: every part of one conversation that is still missing, found side by side.

Open it to change how parts run. It knows neither who finds a part nor where it is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio
from msgspec import Struct

from convo.conversation.model import Conversation, Finding, PartName
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records, metrics
from convo.runtime import threads
from convo.runtime.deadline import deadline


class AnsweredBy(Struct, frozen=True, kw_only=True):
    """A finding, and which of several that were asked for it made it."""

    by: str
    finding: Finding


class Analyst(Struct, frozen=True, kw_only=True):
    """Who finds one part: its name and version (``local/2``), and the function that asks it.

    ``in_process``: it works in this process and is not waited for. Such analysts work one after another, for there is
    one interpreter.
    """

    by: str
    find: Callable[[Conversation], Awaitable[Finding | AnsweredBy]]
    in_process: bool = False


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


async def analyze(
    conversation: Conversation,
    analysts: Analysts,
    have: Collection[PartName],
    store: Store,
    keep_ticket: KeepTicket = _keep_none,
) -> dict[PartName, PartFailure]:
    """Find every part that is not in ``have``, and store each when it is found; return the parts that failed.

    A part that fails leaves the others alone. A ticket that comes with a failure is kept at once: were it lost, the
    service would be given the conversation a second time.

    Raises:
        ConvoError: what ``store`` or ``keep_ticket`` raised; the parts it concerns are not stored.
    """
    failures: dict[PartName, PartFailure] = {}
    unstored: list[ConvoError] = []

    async def part(name: PartName, analyst: Analyst) -> None:
        started = trio.current_time()
        try:
            answer = await analyst.find(conversation)
        except ConvoError as error:
            failures[name] = PartFailure(by=analyst.by, error=error)
            metrics.part_seconds.labels(name, "failed").observe(trio.current_time() - started)
            unstored.extend(await _kept(keep_ticket, name, error))
            return
        seconds = trio.current_time() - started
        metrics.part_seconds.labels(name, "done").observe(seconds)
        found = answer if isinstance(answer, AnsweredBy) else AnsweredBy(by=analyst.by, finding=answer)
        try:
            await store(name, found.by, found.finding)
        except ConvoError as error:
            unstored.append(error)
        else:
            log_records.part_done(conversation_id=conversation.conversation_id, part=name, by=found.by, seconds=seconds)

    await _side_by_side({name: analyst for name, analyst in analysts.items() if name not in have}, part)
    if unstored:
        raise unstored[0]
    return failures


async def _side_by_side(analysts: Analysts, part: Callable[[PartName, Analyst], Awaitable[None]]) -> None:
    """Run all parts side by side, those of this process in one task: no nursery where there are no others."""

    async def here() -> None:
        for name, analyst in analysts.items():
            if analyst.in_process:
                await part(name, analyst)

    elsewhere = {name: analyst for name, analyst in analysts.items() if not analyst.in_process}
    if not elsewhere:
        await here()
        return
    async with trio.open_nursery() as nursery:
        for name, analyst in elsewhere.items():
            nursery.start_soon(part, name, analyst)
        nursery.start_soon(here)


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
