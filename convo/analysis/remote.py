"""What the language model and the memory service have in common as remote analysts: start here to add a third.

A remote analyst owns its HTTP client and its ``Dependency`` (retries, breaker, bulkhead). It can be pinged and checked,
and finds one part or more. What is asked and how an answer is read is each analyst's own business.
"""

from __future__ import annotations

import random as dice
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from convo.conversation.model import Conversation, Finding, PartName
from convo.dependencies import FALLBACK_PREFIX, PART_PREFIX, address_setting, row_name
from convo.errors import (
    ConfigError,
    DeadlineExceeded,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.observe import tracing
from convo.observe.tracing import AttributeValue
from convo.outbound import OutboundClient, RemoteAnswer, failure
from convo.resilience.dependency import AnswerSeen, Dependency
from convo.runtime.deadline import deadline
from convo.setting_values import variable
from convo.settings import CallSettings, RemoteSettings, Secret

T = TypeVar("T")
PartFinder = Callable[[Conversation], Awaitable[Finding]]

_PING_SECONDS = 2.0
_WORDS_CHARS_MAX = 160


class RemoteAnalyst(ABC):
    """A remote service that finds parts; an async context manager, for it owns its HTTP client.

    ``by`` stands in every finding: who made it, and with which version of what we ask. ``base_url`` is what a ping and
    a check ask for. ``name`` is its dependency's, ``kind`` the row of that in ``convo.dependencies``, and ``section``
    where its settings are.
    """

    def __init__(  # noqa: PLR0913  (what the kinds of analysts differ in)
        self,
        name: str,
        settings: CallSettings,
        *,
        by: str,
        base_url: str,
        headers: Mapping[str, str],
        random: Callable[[], float] = dice.random,
    ) -> None:
        self.name = name
        self.by = by
        # A fallback (``llm.NAME``) is of the kind of what it stands in for; its settings are a table within that one's.
        # The service of a part (``part.NAME``) stands in for none.
        self.kind = row_name(name)
        tables: tuple[str, ...] = (name,)
        self.fallback = ""
        if self.kind != name:
            self.fallback = name.removeprefix(FALLBACK_PREFIX)
            tables = (self.kind, "fallbacks", self.fallback)
        elif name.startswith(PART_PREFIX):
            self.kind, tables = "part", ("parts", name.removeprefix(PART_PREFIX))
        self.section = ".".join(tables)
        self._key_variable = variable(*tables, "api_key")
        # What the running attempt was answered: each call is a task of its own.
        self._answer_seen: ContextVar[AnswerSeen | None] = ContextVar(f"{name}_answer_seen", default=None)
        self._key = settings.api_key.reveal() if isinstance(settings, RemoteSettings) else ""
        self.dependency = Dependency(name, settings, random=random, answer_seen=self._seen)
        self._base_url = base_url
        self._server = _server_attributes(base_url)
        self._address = address_setting(name) if not self.fallback else f"{self.section}.base_url"
        self._headers = headers
        self._check_seconds = settings.attempt_seconds
        self._client = OutboundClient(
            name, seconds=settings.attempt_seconds, ca_file=settings.ca_file, verify=settings.verify
        )
        # Outside the bulkhead: a ping takes no place from the calls, and does not fail because they take all.
        self._ping_client = OutboundClient(
            name, seconds=_PING_SECONDS, ca_file=settings.ca_file, verify=settings.verify
        )
        self._verifies = settings.verify

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        await self._ping_client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ping_client.__aexit__(kind, error, trace)  # noqa: ASYNC102  (shields itself, with a bound)
        await self._client.__aexit__(kind, error, trace)  # noqa: ASYNC102  (shields itself, with a bound)

    @property
    @abstractmethod
    def finders(self) -> Mapping[PartName, PartFinder]:
        """The parts that it finds, and how each is asked for."""

    @property
    def learnt(self) -> str:
        """What its server takes, as far as is known; empty where there is nothing to learn."""
        return ""

    async def ping(self) -> None:
        """See whether the service answers at all, whatever it answers; the answer's body is not read.

        One at a time: its client has one connection, and nobody may wait for it.

        Raises:
            RemoteUnavailable: it cannot be reached, or does not answer in time.
            RemoteDenied: its address is none.
        """
        try:
            with deadline(f"{self.kind}.ping", _PING_SECONDS):
                await self._ping_client.get(self._base_url, self._headers, answer_bytes_max=0)
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error

    def inspect(self) -> None:
        """Note what is wrong in the settings, as far as that shows without a call."""
        fault = self.settings_fault()
        if fault:
            self.dependency.note_misconfigured(f"{self.name}: {fault}")

    def settings_fault(self) -> str:
        """Return what is wrong in the settings, as far as that shows without a call; empty for nothing."""
        return "" if _is_address(self._base_url) else f"{self._address} must begin with http:// or https:// and a host"

    async def check_at_start(self) -> None:
        """Ask the service once, and note it when it refuses; in any other trouble the calls will show what it is."""
        try:
            await self.check()
        except (RemoteDenied, RemoteRefused) as error:
            # Nobody's conversation was in that call: what it refuses is how it is asked.
            self.dependency.note_misconfigured(error.detail)
        except RemoteError:
            pass

    async def check(self) -> str:
        """Ask the service once, with the key; return what is to be shown of one that answers.

        Raises:
            RemoteError: it cannot be reached, it refuses the key, or it is in trouble.
        """
        try:
            with deadline(f"{self.kind}.check", self._check_seconds):
                found = await self._checked()
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error
        if self._verifies:
            return found
        return f"{found}; warning: {self.section}.verify = false, its certificate is not checked"

    # no deadline: ``check`` sets one
    async def _checked(self) -> str:
        try:
            answer = await self._client.get(self._base_url, self._headers)
        except RemoteGarbage:
            return "reachable; its answer is too long to read"
        _check_access(self.name, self._key_variable, answer)
        return self._described(answer)

    def _described(self, answer: RemoteAnswer) -> str:
        return f"reachable (GET answered {answer.status})"

    async def post(self, url: str, body: object, *, key: str) -> RemoteAnswer:
        """Post ``body`` as JSON once, under an idempotency key; see ``OutboundClient.post``."""
        self._answer_seen.set(None)
        headers = {**self._headers, "idempotency-key": key}
        return self._noted(await self._client.post(url, msgspec.json.encode(body), headers))

    async def post_signed(self, url: str, body: bytes, headers: Mapping[str, str]) -> RemoteAnswer:
        """Post ``body`` once, with the headers that sign these very bytes; see ``OutboundClient.post``."""
        self._answer_seen.set(None)
        return self._noted(await self._client.post(url, body, {**self._headers, **headers}))

    async def get(self, url: str) -> RemoteAnswer:
        """Get ``url`` once; see ``OutboundClient.get``."""
        self._answer_seen.set(None)
        return self._noted(await self._client.get(url, self._headers))

    async def delete(self, url: str) -> RemoteAnswer:
        """Delete what ``url`` names; see ``OutboundClient.delete``."""
        self._answer_seen.set(None)
        return self._noted(await self._client.delete(url, self._headers))

    def _seen(self) -> AnswerSeen | None:
        return self._answer_seen.get()

    def _noted(self, answer: RemoteAnswer) -> RemoteAnswer:
        span = tracing.current_span()
        if span is not None:
            span.attributes["http.response.status_code"] = answer.status
            span.attributes |= self._server
        words = " ".join(answer.body[: 4 * _WORDS_CHARS_MAX].decode("utf-8", "replace").split())[:_WORDS_CHARS_MAX]
        self._answer_seen.set((answer.status, words.replace(self._key, "***") if self._key else words))
        return answer

    def _decode(self, body: bytes | str, kind: type[T]) -> T:
        """Read JSON as ``kind``.

        Raises:
            RemoteGarbage: it is not JSON, or not of this kind.
        """
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteGarbage(self.name, f"the answer does not fit ({type(error).__name__})") from error

    def _decode_answer(self, answer: RemoteAnswer, kind: type[T]) -> T:
        """Read the body of a good answer as ``kind``.

        Raises:
            RemoteError: the status says otherwise, or the body does not fit.
        """
        if not answer.good:
            raise failure(self.name, answer)
        return self._decode(answer.body, kind)


def idempotency_key(conversation: Conversation, part: PartName) -> str:
    """Name one part of one conversation's content in ASCII, the same at each attempt."""
    return f"{key_prefix(conversation)}:{part}:{conversation.digest}"


def key_prefix(conversation: Conversation) -> str:
    """Return what the keys of a conversation begin with: its id in ASCII, apart from the same id of another tenant."""
    return f"{conversation.remote_prefix}{quote(conversation.conversation_id, safe='')}"


def key_text(name: str, api_key: Secret) -> str:
    """Reveal a key that can stand in a header.

    Raises:
        ConfigError: it holds something else than visible ASCII characters; the text does not show it.
    """
    key = api_key.reveal()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ConfigError(f"{name}.api_key contains a character that no header can hold, such as a line break")
    return key


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return False


def _server_attributes(url: str) -> dict[str, AttributeValue]:
    """Return what a span says of who was called."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return {}
    return {"server.address": parts.hostname or "", "server.port": port}


def _check_access(name: str, key_variable: str, answer: RemoteAnswer) -> None:
    """See whether calls would get through to a service that gave this answer.

    Raises:
        RemoteDenied: it refuses the key.
        RemoteError: it is in trouble itself.
    """
    if answer.status in (401, 403):
        detail = failure(name, answer).detail.partition(": ")[2]
        raise RemoteDenied(name, f"{detail}: it refuses the key of {key_variable}")
    if answer.status == 402 or answer.status >= 500:
        raise failure(name, answer)
