"""The transport to one remote dependency, and what its failures are called here.

It knows nothing of what is asked or answered, and not when a call is made again (``resilience.dependency``). Foreign
errors end here. No text of a request, of an answer or of a key goes into an error: only the status, the dependency's
own error code and the kind of failure.
"""

from __future__ import annotations

import random as dice
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from convo.config import RemoteSettings, Secret
from convo.conversation.model import Conversation, PartName
from convo.deadline import deadline
from convo.errors import (
    ConfigError,
    DeadlineExceeded,
    RemoteBusy,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.resilience.dependency import Dependency
from convo.resilience.retry import retry_after_seconds

T = TypeVar("T")

ANSWER_BYTES_MAX = 1 << 20
"""No answer is read further than this."""

# The transport's own limits only back the deadline up: looser by this factor.
_BACKSTOP = 2.0
_PING_SECONDS = 2.0
# 409 and 425 are what a server says while it is still at work on the same idempotency key; 498 is Groq's "no capacity".
_PASSING = frozenset({408, 409, 425, 498})
# The key, the account, the address or the model's name is wrong: every call would be refused, whatever it asks.
_DENIED = frozenset({401, 402, 403, 404})
_CODE = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)


def open_client(settings: RemoteSettings) -> httpx.AsyncClient:
    """Make the client of one dependency, with exactly as many connections as calls are let through at a time."""
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    timeout = settings.attempt_seconds * _BACKSTOP
    return httpx.AsyncClient(limits=limits, timeout=timeout, verify=_trusted_authorities())


@cache
def _trusted_authorities() -> ssl.SSLContext:
    # Reading them takes tenths of a second, more than all else at a start.
    return httpx.create_ssl_context()


def idempotency_key(conversation: Conversation, part: PartName) -> str:
    """Name one part of one conversation's content in ASCII, the same at each attempt."""
    return f"{quote(conversation.conversation_id, safe='')}:{part}:{conversation.digest}"


def key_text(name: str, api_key: Secret) -> str:
    """Reveal a key that can stand in a header.

    Raises:
        ConfigError: it holds something else than visible ASCII characters; the text does not show it.
    """
    key = api_key.reveal()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ConfigError(f"{name}.api_key holds characters that cannot stand in a header (a line break, perhaps)")
    return key


class Answer(Struct, frozen=True, kw_only=True):
    """What came back: the status, the error code that stands in a refusal, the wait it asks for, the body."""

    status: int
    code: str
    retry_after_seconds: float | None
    body: bytes

    @property
    def good(self) -> bool:
        """Tell whether this is a 2xx."""
        return 200 <= self.status < 300


class Remote:
    """One dependency's HTTP client; ``dependency`` is how all its callers together see it."""

    def __init__(
        self,
        name: str,
        client: httpx.AsyncClient,
        settings: RemoteSettings,
        *,
        headers: Mapping[str, str],
        random: Callable[[], float] = dice.random,
    ) -> None:
        self.name = name
        self._client = client
        self._settings = settings
        self.dependency = Dependency(name, settings, random=random)
        # Compressed answers could inflate past any bound: they are not asked for, and not decompressed either.
        self._headers = {**headers, "content-type": "application/json", "accept-encoding": "identity"}

    async def ping(self, url: str) -> None:
        """See whether the dependency answers at all, whatever it says.

        Raises:
            RemoteUnavailable: it cannot be reached, or no call gets through in time.
        """

        async def ask() -> None:
            async with self.dependency.slot():
                await self._client.get(url, headers=self._headers)

        try:
            with deadline(f"{self.name}.ping", _PING_SECONDS):
                await ask()
        except (DeadlineExceeded, httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteUnavailable(self.name, f"it does not answer ({type(error).__name__})") from error

    async def post(self, url: str, body: object, *, key: str) -> Answer:
        """Post ``body`` as JSON once, whatever is answered.

        Raises:
            RemoteUnavailable: it cannot be reached, or the connection broke.
            RemoteRefused: what we would send is no valid request.
            RemoteGarbage: the answer is too large.
        """
        return await self._send("POST", url, msgspec.json.encode(body), {**self._headers, "idempotency-key": key})

    async def fetch(self, url: str) -> Answer:
        """Get ``url`` once, whatever is answered: what ``convo check`` asks.

        Raises:
            RemoteUnavailable: as ``post``, or it does not answer within one attempt's time.
            RemoteRefused, RemoteGarbage: as ``post``.
        """
        try:
            with deadline(f"{self.name}.check", self._settings.attempt_seconds):
                return await self._send("GET", url, None, self._headers)
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error

    async def _send(self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> Answer:
        backstop = self._settings.attempt_seconds * _BACKSTOP
        try:
            async with self._client.stream(method, url, content=content, headers=headers, timeout=backstop) as response:
                return await self._read(response)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            # Its text can quote a header, and one of the headers is the key.
            raise RemoteRefused(self.name, f"the request cannot be sent ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise RemoteUnavailable(self.name, f"the connection failed ({type(error).__name__})") from error

    async def _read(self, response: httpx.Response) -> Answer:
        body = bytearray()
        async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise RemoteGarbage(self.name, f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
        return Answer(
            status=response.status_code,
            code="" if response.is_success else _error_code(bytes(body)),
            retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)),
            body=bytes(body),
        )

    def body_of(self, answer: Answer) -> bytes:
        """Take the body of a good answer.

        Raises:
            RemoteError: the status says otherwise; of the kind that fits it.
        """
        if answer.good:
            return answer.body
        raise failure(self.name, answer)

    def decode(self, body: bytes | str, kind: type[T]) -> T:
        """Read JSON as ``kind``.

        Raises:
            RemoteGarbage: it is not JSON, or not of this kind.
        """
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteGarbage(self.name, f"the answer does not fit ({type(error).__name__})") from error


def failure(name: str, answer: Answer) -> RemoteError:
    """Name the failure that a status stands for."""
    detail = f"answered {answer.status}" + (f" ({answer.code})" if answer.code else "")
    if answer.status == 429:
        return RemoteBusy(name, detail, retry_after_seconds=answer.retry_after_seconds)
    if answer.status >= 500 or answer.status in _PASSING:
        return RemoteUnavailable(name, detail, retry_after_seconds=answer.retry_after_seconds)
    if answer.status in _DENIED:
        return RemoteDenied(name, detail)
    return RemoteRefused(name, detail)


def check_welcome(name: str, answer: Answer) -> None:
    """See whether calls would get through to a dependency that gave this answer to ``Remote.fetch``.

    Raises:
        RemoteDenied: it refuses the key.
        RemoteError: it is in trouble itself.
    """
    if answer.status in (401, 403):
        setting = f"CONVO_{name.upper()}__API_KEY"
        raise RemoteDenied(name, f"{failure(name, answer).detail.partition(': ')[2]}: it refuses the key of {setting}")
    if answer.status == 402 or answer.status >= 500:
        raise failure(name, answer)


class _Fault(Struct, frozen=True):
    code: Any = None
    type: Any = None


class _Refusal(Struct, frozen=True):
    error: _Fault


def _error_code(body: bytes) -> str:
    """Find the code in a refusal's ``{"error": {"code": …}}``; what does not look like a code is left unsaid."""
    try:
        fault = msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return next((text for text in (fault.code, fault.type) if isinstance(text, str) and _CODE.fullmatch(text)), "")
