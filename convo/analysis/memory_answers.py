"""Reads what a memory service answers: facts that it found, or that it is still at work on them. Pure, without calls.

mem0 answers in many forms, by its version and by how it is hosted: a list or an object around it, the text of a fact
beside its id or under ``data``, and ``PENDING`` with an ``event_id`` in place of the facts, for all or for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from convo.analysis.prompt import without_nul
from convo.conversation.composing import compose
from convo.conversation.model import Memories, MemoryFact, bounded_key

FACTS_MAX = 500
FACT_CHARS_MAX = 2_000
EVENTS_MAX = 50
"""So many events of one conversation are asked for."""

MemoryOperation = Literal["ADD", "UPDATE", "DELETE", "NONE"]
_OPERATIONS: dict[str, MemoryOperation] = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE"}
_PENDING = frozenset({"PENDING", "QUEUED", "RUNNING", "PROCESSING", "IN_PROGRESS", "STARTED", "ACCEPTED", "SUBMITTED"})
_FAILED = frozenset({"FAILED", "FAILURE", "ERROR", "CANCELLED", "CANCELED"})
_ENDED = frozenset({"SUCCEEDED", "SUCCESS", "COMPLETED", "COMPLETE", "DONE", "FINISHED", "OK"})
_ERRORS = ("error", "errors", "detail")
_ANSWERS = frozenset({"facts", "results", "memories", "status", "event_id"})
_BOM = b"\xef\xbb\xbf"


class NotAsExpected(ValueError):
    """An answer has none of the known forms."""


class ErrorInAnswer(NotAsExpected):
    """An answer is an error, whatever its status says."""


class ServiceFact(Struct, frozen=True, omit_defaults=True):
    """One fact as a service tells it, and of which conversation it is, where the service says so."""

    text: str | None = None
    id: str | int | None = None
    operation: str | None = None
    conversation_id: str | None = None


class ServiceAnswer(Struct, frozen=True, kw_only=True):
    """What a service found, and whether it is at work on more.

    ``events`` are what to ask for that. ``failed``: it took the conversation and failed at it. ``told`` is false where
    it has ended and tells no facts: they are to be looked for in its list.
    """

    facts: tuple[ServiceFact, ...] = ()
    pending: bool = False
    events: tuple[str, ...] = ()
    failed: bool = False
    told: bool = True


class _Extracted(Struct, frozen=True):
    id: str | int | None = None
    fact_value: str | None = None
    operation: str | None = None
    status: str | None = None


class _Extraction(Struct, frozen=True):
    facts: list[_Extracted]


class _Data(Struct, frozen=True):
    memory: str | None = None


class _Result(Struct, frozen=True):
    id: str | int | None = None
    memory: str | None = None
    data: _Data | None = None
    event: str | None = None
    status: str | None = None
    event_id: str | int | None = None
    metadata: Any = None

    @property
    def text(self) -> str | None:
        return self.memory if self.memory is not None or self.data is None else self.data.memory

    def has(self, words: frozenset[str]) -> bool:
        """Return whether its status is one of ``words`` and it holds no fact."""
        return not (self.text or "").strip() and bool({_word(self.status), _word(self.event)} & words)

    def fact(self) -> ServiceFact:
        named = self.metadata.get("conversation_id") if isinstance(self.metadata, dict) else None
        return ServiceFact(
            text=self.text,
            id=self.id,
            operation=self.event,
            conversation_id=named if isinstance(named, str) else None,
        )


def read_extraction(body: bytes) -> ServiceAnswer:
    """Read an answer of ``extract_facts``.

    Raises:
        NotAsExpected: it is none.
    """
    found = _converted(_decoded(body), _Extraction).facts
    pending = any(not (one.fact_value or "").strip() and _word(one.operation) in _PENDING for one in found)
    facts = tuple(ServiceFact(text=one.fact_value, id=one.id, operation=one.operation) for one in found)
    return ServiceAnswer(facts=facts, pending=pending or any(_word(one.status) in _PENDING for one in found))


def read_mem0(body: bytes) -> ServiceAnswer:
    """Read mem0's answer to an addition, or to the question what became of an event.

    Raises:
        NotAsExpected: it is neither.
    """
    value = _decoded(body)
    if isinstance(value, list):
        return _answer(_converted(value, list[_Result]), None)
    if not isinstance(value, dict):
        raise NotAsExpected
    around = _converted({name: value.get(name) for name in ("status", "event_id")}, _Result)
    listed = value.get("results")
    if isinstance(listed, list):
        return _answer(_converted(listed, list[_Result]), around)
    if listed is not None or not around.has(_PENDING | _FAILED | _ENDED):
        raise NotAsExpected
    return _answer(None, around)


def _answer(results: list[_Result] | None, around: _Result | None) -> ServiceAnswer:
    every = [*(results or ()), *([around] if around is not None else ())]
    waiting = [one for one in every if one.has(_PENDING)]
    named = dict.fromkeys(str(one.event_id) for one in waiting if one.event_id is not None)
    facts = tuple(one.fact() for one in results or () if not one.has(_PENDING | _FAILED))
    if around is not None and around.has(_PENDING | _FAILED):
        # What is there before it has ended is not all.
        facts = ()
    return ServiceAnswer(
        facts=facts[:FACTS_MAX],
        pending=bool(waiting),
        events=tuple(named)[:EVENTS_MAX],
        failed=not facts and any(one.has(_FAILED) for one in every),
        told=results is not None,
    )


def read_mem0_list(body: bytes) -> tuple[list[ServiceFact], bool]:
    """Read a page of mem0's list of a user's memories, bare or wrapped; return it, and whether another page follows.

    Raises:
        NotAsExpected: it is none.
    """
    value = _decoded(body)
    more = isinstance(value, dict) and bool(value.get("next"))
    listed = value.get("results", value.get("memories")) if isinstance(value, dict) else value
    return [one.fact() for one in _converted(listed, list[_Result])], more


def memories_of(found: Sequence[ServiceFact]) -> Memories:
    """Keep what has a text or says what to delete, the first of each key."""
    facts: dict[str, MemoryFact] = {}
    for fact in found[:FACTS_MAX]:
        text = without_nul(fact.text or "").strip()[:FACT_CHARS_MAX]
        operation = _OPERATIONS.get(_word(fact.operation), "NONE")
        key = key_of(fact, text)
        if key and (text or operation == "DELETE"):
            facts.setdefault(key, MemoryFact(key=key, text=text, operation=operation))
    return Memories(facts=tuple(facts.values()))


def key_of(fact: ServiceFact, text: str) -> str:
    """Return what a fact is recognised by: its id, or else its text."""
    named = "" if fact.id is None else without_nul(str(fact.id)).strip()
    return bounded_key(named or " ".join(compose(text).casefold().split()))


def _word(text: str | None) -> str:
    return (text or "").strip().upper().replace("-", "_").replace(" ", "_")


def _decoded(body: bytes) -> Any:
    try:
        value = msgspec.json.decode(body.removeprefix(_BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAsExpected from error
    if isinstance(value, dict) and any(value.get(name) for name in _ERRORS) and _ANSWERS.isdisjoint(value):
        raise ErrorInAnswer
    return value


def _converted(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NotAsExpected from error
