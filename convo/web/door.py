"""What every request passes, as plain functions: its head, its budget, and errors as answers.

It knows no framework: both doors, the Quart app's and the connection's own, call the same functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import trio
from msgspec import Struct, structs

from convo.config import Settings, WebSettings, slow_seconds
from convo.deadline import deadline
from convo.errors import BadRequest, ConvoError, DeadlineExceeded, TooLarge, Unavailable, UnsupportedMedia
from convo.observe import events, metrics
from convo.web import answers

JSON = "application/json"
PROBLEM = "application/problem+json"
_RETRY_AFTER_SECONDS = 1.0
# Anything may stand as a method; a metric's label takes only the known ones.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Head(Struct, frozen=True, kw_only=True, gc=False):
    """What a door has read of a request before its body.

    ``started`` is when its first byte came, by ``trio.current_time()``; ``peer`` the address it came from. Of the
    headers only those that decide something stand here, empty where the client sent none.
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


class Answer(Struct, frozen=True, kw_only=True, gc=False):
    """An answer before it meets a framework; ``headers`` come besides the content type and length.

    ``code`` is the problem's, empty for an answer that is none; ``timed`` says that Server-Timing is among the headers.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()
    code: str = ""
    timed: bool = False


def problem(error: ConvoError, conversation_id: str | None = None) -> Answer:
    """Turn an error into its answer; ``conversation_id`` where the error itself does not know it."""
    headers = list(error.headers)
    if isinstance(error, Unavailable) or error.retry_after_seconds is not None:
        headers.append(("Retry-After", str(math.ceil(error.retry_after_seconds or _RETRY_AFTER_SECONDS))))
    body = encode(answers.problem(error, conversation_id or error.conversation_id))
    return Answer(status=error.status, body=body, content_type=PROBLEM, headers=headers, code=error.code)


def with_headers(answer: Answer, *headers: tuple[str, str]) -> Answer:
    """Return the answer with more headers."""
    return structs.replace(answer, headers=[*answer.headers, *headers]) if headers else answer


def encode(value: Any) -> bytes:
    """Encode an answer's body."""
    return _ENCODER.encode(value)


_ENCODER = msgspec.json.Encoder()


# --- the head


def check_head(head: Head, settings: WebSettings) -> None:
    """Refuse by the head alone what need not be read.

    Raises:
        UnsupportedMedia: the content type is not JSON.
        TooLarge: the announced body is over the limit.
    """
    kind = head.content_type
    if kind != JSON:
        kind = kind.partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMedia(f"content type {head.content_type!r} is not taken; send {JSON}")
    if head.content_length is not None and head.content_length > settings.body_bytes_max:
        raise too_large(settings, head.content_length)


def too_large(settings: WebSettings, size: int | None = None) -> TooLarge:
    """Return the error for a body over the limit."""
    sent = "" if size is None else f" of {size} bytes"
    return TooLarge(f"a body{sent} is over web.body_bytes_max = {settings.body_bytes_max} bytes")


def budget_seconds(head: Head, settings: WebSettings) -> float:
    """Return what the whole request may take: ``web.request_seconds``, or less where the client says so.

    Raises:
        BadRequest: ``Request-Timeout`` is not a number of seconds.
    """
    asked = head.request_timeout
    if not asked or not (asked := asked.strip()):
        return settings.request_seconds
    if not _SECONDS.fullmatch(asked):
        raise BadRequest(f"Request-Timeout {asked!r} is not a number of seconds", path="Request-Timeout")
    return min(settings.request_seconds, float(asked))


# --- the request as a whole


async def answered(
    route: str,
    head: Head,
    settings: Settings,
    serve: Callable[[], Awaitable[Answer]],
    bound: Callable[[float], AbstractContextManager[object]] | None = None,
) -> Answer:
    """Serve one request inside its budget, and make an answer of whatever happens; here one request ends.

    A door that has a cancel scope already gives ``bound``, which bounds a block to so many seconds from the head on.
    """
    try:
        budget = budget_seconds(head, settings.web)
        with deadline("web.request", budget, since=head.started) if bound is None else bound(budget):
            answer = await serve()
    except ConvoError as error:
        answer = problem(error)
    except Exception as error:  # noqa: BLE001  (one request's bug is that request's end, and nobody else's)
        events.request_failed(route=route, method=head.method, error=error)
        answer = problem(ConvoError("an unexpected error; it is in the log"))
    seconds = trio.current_time() - head.started
    method = head.method if head.method in METHODS else "other"
    metrics.requests_total.labels(route, method, str(answer.status)).inc()
    # A client that tightens its budget hears of it, and nobody else.
    if answer.code == DeadlineExceeded.code and not head.request_timeout:
        metrics.requests_on_deadline_total.inc()
    if seconds > slow_seconds(settings.alerts.slow_request_seconds, settings.web.request_seconds):
        events.slow_request(route=route, method=head.method, status=answer.status, seconds=seconds)
    if answer.timed:
        return answer
    return with_headers(answer, ("Server-Timing", f"total;dur={seconds * 1000:.2f}"))
