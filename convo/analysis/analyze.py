"""One conversation, three parts side by side; it knows neither who finds a part nor where it is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio
from msgspec import Struct

from convo.conversation.model import Conversation, Finding, PartName
from convo.deadline import deadline
from convo.errors import ConvoError
from convo.observe import events, metrics


class Analyst(Struct, frozen=True, kw_only=True):
    """Who finds one part: its name and version (``local/1``), and how to ask it."""

    by: str
    find: Callable[[Conversation], Awaitable[Finding]]


class Failure(Struct, frozen=True, kw_only=True):
    """Why a part was not found, and who tried."""

    by: str
    error: ConvoError


# Rules are linear in the text: this bounds a bug, not the work.
_LOCAL_SECONDS = 30.0
# What a part holds the loop for, in ms (questions, emotion, memories; scripts/samples.jsonl repeated, two busy cores):
# 4,096 characters 1, 3, 1; 16,384 characters 9, 17, 10; 65,536 characters 36, 32, 31; 200,000 characters 69, 136, 108.
OFFLOAD_CHARACTERS = 16_384
"""From so much text on the embedded analyst works in a thread."""

Analysts = Mapping[PartName, Analyst]
Store = Callable[[PartName, str, Finding], Awaitable[None]]


async def analyze(
    conversation: Conversation, analysts: Analysts, have: Collection[PartName], store: Store
) -> dict[PartName, Failure]:
    """Find every part that is not in ``have``, each stored as soon as it is found; return the parts that failed.

    A part that fails leaves the others alone.

    Raises:
        ConvoError: what ``store`` raised; the parts it concerns are not stored.
    """
    failures: dict[PartName, Failure] = {}
    unstored: list[ConvoError] = []

    async def part(name: PartName, analyst: Analyst) -> None:
        started = trio.current_time()
        try:
            finding = await analyst.find(conversation)
        except ConvoError as error:
            failures[name] = Failure(by=analyst.by, error=error)
            metrics.part_seconds.labels(name, "failed").observe(trio.current_time() - started)
            return
        seconds = trio.current_time() - started
        metrics.part_seconds.labels(name, "done").observe(seconds)
        try:
            await store(name, analyst.by, finding)
        except ConvoError as error:
            unstored.append(error)
        else:
            events.part_done(conversation_id=conversation.conversation_id, part=name, by=analyst.by, seconds=seconds)

    async with trio.open_nursery() as nursery:
        for name, analyst in analysts.items():
            if name not in have:
                nursery.start_soon(part, name, analyst)
    if unstored:
        raise unstored[0]
    return failures


def in_process(
    by: str, find: Callable[[Conversation], Finding], turn: trio.Lock, offload_chars: int = OFFLOAD_CHARACTERS
) -> Analyst:
    """Make an analyst of a plain function; from ``offload_chars`` of text on it works in a thread.

    Those that share ``turn`` work one after another: there is one interpreter, and side by side they would hold the
    loop for as long as all of them take.
    """

    async def ask(conversation: Conversation) -> Finding:
        async with turn:
            if sum(len(one.text) for one in conversation.turns) < offload_chars:
                return find(conversation)
            with deadline("analysis.local", _LOCAL_SECONDS):
                # No limiter: one that never ends and is given up would keep its place for ever.
                return await trio.to_thread.run_sync(find, conversation, abandon_on_cancel=True)

    return Analyst(by=by, find=ask)
