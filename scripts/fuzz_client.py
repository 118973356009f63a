"""A keep-alive HTTP client for ``fuzz.py`` that reports a dropped connection as such; it tries nothing again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import trio
from msgspec import Struct

_ANSWER_SECONDS = 20.0


class Answer(Struct, frozen=True, kw_only=True):
    """What a server answered; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the object in it; empty where there is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def __str__(self) -> str:
        return f"{self.status} {self.json().get('code', '')}".strip()


class Dropped(Exception):
    """The server closed a connection instead of answering, or did not answer in time."""


class Connection:
    """One keep-alive connection, opened again where the server says that it closes it."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._stream: trio.SocketStream | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Send one request; return its answer.

        Raises:
            Dropped: there is none.
        """
        fields = [("host", self._parts.netloc), ("content-length", str(len(body))), *headers]
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)])
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                answer = await self._exchange(head.encode() + b"\r\n\r\n" + body)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            await self.close()
            raise Dropped(f"{type(error).__name__}: {error}") from error
        if answer.headers.get("connection", "").lower() == "close":
            await self.close()
        return answer

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
            self._stream = None

    async def _exchange(self, request: bytes) -> Answer:
        if self._stream is None:
            self._stream = await trio.open_tcp_stream(self._parts.hostname or "127.0.0.1", self._parts.port or 80)
        with contextlib.suppress(trio.BrokenResourceError):
            # A refusal may come before the whole body is sent.
            await self._stream.send_all(request)
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += await self._piece()
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        pieces = [rest]
        missing = int(headers.get("content-length", "0")) - len(rest)
        while missing > 0:
            pieces.append(await self._piece())
            missing -= len(pieces[-1])
        return Answer(status=int(first.split(" ")[1]), headers=headers, body=b"".join(pieces))

    async def _piece(self) -> bytes:
        assert self._stream is not None  # noqa: S101
        piece = bytes(await self._stream.receive_some())
        if not piece:
            raise ConnectionError("closed by the server")
        return piece
