"""The memory service as an analyst: what to remember of a conversation, in either of two known dialects.

It knows nothing of jobs, and not which of the facts are new to us.
"""

from __future__ import annotations

import hashlib
import random as dice
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import httpx
from msgspec import Struct, field

from convo.analysis.prompt import clean, excerpt, user_spoke
from convo.analysis.remote import Remote, check_welcome, idempotency_key, key_text
from convo.config import MemorySettings
from convo.conversation.model import Conversation, Memories, MemoryFact
from convo.errors import RemoteGarbage
from convo.resilience.dependency import Dependency

TEXT_CHARS_MAX = 200_000
FACTS_MAX = 500
FACT_CHARS_MAX = 2_000
KEY_CHARS_MAX = 200
"""Keys stand in an index, and a row of an index has a limit."""

Operation = Literal["ADD", "UPDATE", "DELETE", "NONE"]
_OPERATIONS: dict[str, Operation] = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE"}
_ROLES = {"user": "user", "bot": "assistant"}


class _Fact(Struct, frozen=True):
    text: str | None
    id: str | int | None = None
    operation: str | None = None


class _Extracted(Struct, frozen=True):
    id: str | int | None = None
    fact_value: str | None = None
    operation: str | None = None


class _Extraction(Struct, frozen=True):
    facts: list[_Extracted]

    def found(self) -> list[_Fact]:
        return [_Fact(text=fact.fact_value, id=fact.id, operation=fact.operation) for fact in self.facts]


class _Result(Struct, frozen=True):
    id: str | int | None = None
    memory: str | None = None
    event: str | None = None


class _Results(Struct, frozen=True):
    results: list[_Result]

    def found(self) -> list[_Fact]:
        return [_Fact(text=result.memory, id=result.id, operation=result.event) for result in self.results]


class _Dialect(Struct, frozen=True, kw_only=True):
    path: str
    turns_field: str
    names_conversation: bool
    answer: type[_Extraction | _Results]
    key_headers: dict[str, str] = field(default_factory=dict)


_DIALECTS = {
    "extract_facts": _Dialect(
        path="/extract_facts",
        turns_field="conversation",
        names_conversation=True,
        answer=_Extraction,
        key_headers={"authorization": "Bearer {}"},
    ),
    # The hosted service reads the one header, the self-hosted server the other; there a Bearer would be read as a JWT.
    "mem0": _Dialect(
        path="/memories",
        turns_field="messages",
        names_conversation=False,
        answer=_Results,
        key_headers={"authorization": "Token {}", "x-api-key": "{}"},
    ),
}


class MemoryService:
    """A memory service behind one shared client."""

    def __init__(
        self, client: httpx.AsyncClient, settings: MemorySettings, *, random: Callable[[], float] = dice.random
    ) -> None:
        self.by = f"{settings.dialect}/1"
        self._dialect = _DIALECTS[settings.dialect]
        self._url = settings.url.rstrip("/") + self._dialect.path
        key = key_text("memory", settings.api_key)
        headers = {name: form.format(key) for name, form in self._dialect.key_headers.items()} if key else {}
        self._remote = Remote("memory", client, settings, headers=headers, random=random)

    async def memories(self, conversation: Conversation) -> Memories:
        """Have the service remember a conversation; nothing, without a call, where the user said nothing.

        Raises:
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Memories(facts=())
        return await self._remote.dependency.call("memory.extract", partial(self._extract, conversation))

    @property
    def dependency(self) -> Dependency:
        """How all callers together see it."""
        return self._remote.dependency

    async def ping(self) -> None:
        """See whether the service answers.

        Raises:
            RemoteUnavailable: it does not.
        """
        await self._remote.ping(self._base_url)

    async def check(self) -> str:
        """Ask the service for nothing, once and with the key; return what is to be said of a service that answers.

        Raises:
            RemoteError: it cannot be reached, it refuses the key, or it is in trouble.
        """
        try:
            answer = await self._remote.fetch(self._base_url)
        except RemoteGarbage:
            return "reachable"
        check_welcome("memory", answer)
        return f"reachable (GET answered {answer.status})"

    @property
    def _base_url(self) -> str:
        return self._url.removesuffix(self._dialect.path) or self._url

    async def _extract(self, conversation: Conversation) -> Memories:
        body = self._request(conversation)
        answer = await self._remote.post(self._url, body, key=idempotency_key(conversation, "memories"))
        found = self._remote.decode(self._remote.body_of(answer), self._dialect.answer).found()
        return _memories(found[:FACTS_MAX])

    def _request(self, conversation: Conversation) -> dict[str, Any]:
        shown = excerpt(conversation.turns, TEXT_CHARS_MAX)
        turns = [{"role": _ROLES[turn.speaker], "content": turn.text} for turn in shown.head + shown.tail]
        request = {"user_id": conversation.user_id, self._dialect.turns_field: turns}
        if self._dialect.names_conversation:
            request["conversation_id"] = conversation.conversation_id
        return request


def _memories(found: list[_Fact]) -> Memories:
    """Keep what has a text or says what to delete, the first of each key."""
    facts: dict[str, MemoryFact] = {}
    for fact in found:
        text = clean(fact.text or "").strip()[:FACT_CHARS_MAX]
        operation = _OPERATIONS.get((fact.operation or "").strip().upper(), "NONE")
        key = _key(fact, text)
        if key and (text or operation == "DELETE"):
            facts.setdefault(key, MemoryFact(key=key, text=text, operation=operation))
    return Memories(facts=tuple(facts.values()))


def _key(fact: _Fact, text: str) -> str:
    named = "" if fact.id is None else clean(str(fact.id)).strip()
    key = named or " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return key if len(key) <= KEY_CHARS_MAX else "sha256:" + hashlib.sha256(key.encode()).hexdigest()
