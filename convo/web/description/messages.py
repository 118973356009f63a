"""What a server and a route exchange: a request's head, the answer, and the problem that reports an error.

Open this file to see what a route function receives and returns, whichever server called it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from convo.errors import ConvoError, Unavailable

JSON = "application/json"
PROBLEM = "application/problem+json"
_RETRY_AFTER_SECONDS = 1.0
# A client may send any word as its method. Only these become a label of a metric, so that labels stay few.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Read = Callable[[Callable[[int], None]], Awaitable[bytes]]
"""Reads the whole body, up to the limit, under its own deadline; calls back with the length of each piece."""

NextPiece = Callable[[], Awaitable[bytes]]
"""Reads the next piece of the body, under its own deadline; empty after the last."""

Bound = Callable[[float], AbstractContextManager[object]]
"""Limits a block to a number of seconds, counted from the first byte of the request's head."""


class Head(Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request before its body is read.

    ``started`` is when its first byte arrived, by ``trio.current_time()``; ``peer`` is the client's address, and
    ``served_at`` our own that it came to; ``query`` is what follows the path's ``?``, as it was sent. Only the headers
    that decide something are here. A header that was not sent is empty, and so are cookies beside an ``Authorization``.
    """

    method: str
    path: str
    peer: str
    started: float
    content_type: str = ""
    content_encoding: str = ""
    content_length: int | None = None
    request_timeout: str = ""
    authorization: str = ""
    accept: str = ""
    accept_language: str = ""
    host: str = ""
    origin: str = ""
    sec_fetch_site: str = ""
    served_at: str = ""
    query: str = ""
    last_event_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    cookie: str = ""
    csrf_token: str = ""


class AnswerStream(Struct, frozen=True, kw_only=True, gc=False):
    """An answer that comes in pieces, after the request's own time.

    ``next_piece`` returns one within ``piece_seconds``, empty after the last; ``end`` is called once it was the last,
    or when the client is gone.
    """

    next_piece: Callable[[], Awaitable[bytes]]
    end: Callable[[], None]
    piece_seconds: float


class Answer(Struct, frozen=True, kw_only=True, gc=False):
    """An answer; ``headers`` are those besides the content's type and length.

    ``code`` is the problem's code, empty where the answer is no problem. ``timed`` says that ``headers`` already hold
    ``Server-Timing``. With a ``stream`` the body is what comes of that.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()
    code: str = ""
    timed: bool = False
    stream: AnswerStream | None = None


class Problem(Struct, frozen=True, kw_only=True):
    """What went wrong, in the form of RFC 9457; `code` is stable, so programs decide by it."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    code: str
    detail: str
    path: (
        Annotated[str, Meta(description="The field that is wrong: `$.conversation_log[3].character`.")] | UnsetType
    ) = UNSET
    conversation_id: str | UnsetType = UNSET


def problem_view(error: ConvoError, conversation_id: str | None = None) -> Problem:
    """Return the body that reports an error; ``type`` links to the code's entry in ``/docs``."""
    return Problem(
        type=f"/docs#{error.code}",
        title=error.title,
        status=error.status,
        code=error.code,
        detail=error.detail,
        path=error.path or UNSET,
        conversation_id=conversation_id or UNSET,
    )


def problem(error: ConvoError, conversation_id: str | None = None) -> Answer:
    """Return the answer that reports an error; ``conversation_id`` is for an error that does not hold it itself."""
    headers = list(error.headers)
    if isinstance(error, Unavailable) or error.retry_after_seconds is not None:
        headers.append(("Retry-After", str(math.ceil(error.retry_after_seconds or _RETRY_AFTER_SECONDS))))
    body = encode(problem_view(error, conversation_id or error.conversation_id))
    return Answer(status=error.status, body=body, content_type=PROBLEM, headers=headers, code=error.code)


def with_headers(answer: Answer, *headers: tuple[str, str]) -> Answer:
    """Return the answer with more headers."""
    return structs.replace(answer, headers=[*answer.headers, *headers]) if headers else answer


def encode(value: Any) -> bytes:
    """Encode a value as JSON, for an answer's body."""
    return _ENCODER.encode(value)


_ENCODER = msgspec.json.Encoder()
