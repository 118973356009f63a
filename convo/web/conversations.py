"""``/v1/conversations…`` and ``/v1/users…``: what they take and what they answer; it knows no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import trio
from msgspec import Struct

from convo import threads
from convo.config import WebSettings
from convo.conversation import digest as digests
from convo.conversation import transcript
from convo.conversation.decode import decode
from convo.conversation.model import CANARY_USER, Receipt
from convo.deadline import deadline
from convo.errors import ConvoError, Invalid
from convo.observe import events, metrics
from convo.store import logs
from convo.store.intake import Accept, Committer, Stored
from convo.web import answers
from convo.web.admission import Admission
from convo.web.authority import Authority, Needs
from convo.web.clients import Clients, Headers
from convo.web.door import Answer, Head, budget_seconds, check_head, encode, problem, with_headers
from convo.web.inflate import inflate
from convo.web.readiness import Readiness

_ANSWER_SECONDS = 0.05
# Text packs to a tenth at best: what a compressed body may inflate to.
_PACKED = 10

Read = Callable[[Callable[[int], None]], Awaitable[bytes]]
"""Reads the body of a request, whole, to the limit, under a deadline of its own; says of each piece how long it is."""


class Intake(Struct, frozen=True, kw_only=True):
    """What the accept route works with."""

    settings: WebSettings
    committer: Committer
    readiness: Readiness
    authority: Authority
    clients: Clients
    admission: Admission

    async def receive(self, head: Head, read: Read) -> Answer:
        """Take one request to the accept route: what its head forbids is refused before ``read`` reads its body.

        Raises:
            ConvoError: what is wrong with the request, or with the time it comes at, before its conversation is known.
        """
        self.readiness.check()
        expected = self._expected_bytes(head)
        headers = self.let_in(head, "write", expected if head.content_length is None else head.content_length)
        check_head(head, self.settings)
        self.admission.check(expected)
        with self.admission.place() as place:
            body = await read(place.grow)
            if head.content_encoding:
                place.grow(min(self.settings.body_bytes_max, len(body) * _PACKED))
            place.enter()
            answer = await self.end(body, head.content_encoding, head.started, self._until(head))
        return with_headers(answer, *headers)

    def _until(self, head: Head) -> float:
        """Tell when a request's time is over: its budget's end, and that of the stop where one is under way."""
        until = head.started + budget_seconds(head, self.settings)
        return min(until, trio.current_effective_deadline()) if self.readiness.phase == "draining" else until

    def let_in(self, head: Head, needs: Needs, bytes_: int = 0) -> Headers:
        """Pass a request whose key may do this, and whose sender has not sent too much; return what it is told of that.

        Raises:
            Unauthorized, Forbidden: its key is not good for this.
            TooManyRequests: whoever sends it is over its share.
        """
        key = self.authority.check(head.authorization, needs)
        if key is None:
            return self.clients.spend(head.peer, bytes_)
        return self.clients.spend(key.key_id, bytes_, key.requests_per_second)

    def _expected_bytes(self, head: Head) -> int:
        """Tell how much memory a request may come to need: what it announces, or the most it may."""
        limit = self.settings.body_bytes_max
        if head.content_length is None:
            return limit
        return min(limit, head.content_length * (_PACKED if head.content_encoding else 1))

    async def end(self, body: bytes, encoding: str, started: float, until: float, *, canary: bool = False) -> Answer:
        """Take one finished conversation: answer with its receipt once it is durably stored.

        ``started`` is when the request began, by ``trio.current_time()``, and ``until`` when its time is over; a
        ``canary`` alone may be of their user.

        Raises:
            ConvoError: what is wrong with the request, before its conversation is known.
        """
        read = trio.current_time()
        accept = await self._prepare(body, encoding)
        if accept.ended.user_id == CANARY_USER and not canary:
            raise _reserved(accept)
        decoded = trio.current_time()
        # From here on whatever is told, by the loop watch too, knows whose work it is.
        with events.bound(conversation_id=accept.ended.conversation_id):
            return await self._commit(accept, started, read, decoded, until)

    async def _commit(self, accept: Accept, started: float, read: float, decoded: float, until: float) -> Answer:
        try:
            # A little before the request's own time is over, while the id is still at hand for the answer.
            remaining = until - decoded - _ANSWER_SECONDS
            if remaining > self.committer.wait_seconds:
                # The ladder: the committer's own deadlines come first, and a scope costs as much as reading the head.
                stored = await self.committer.accept(accept, until)
                done = trio.current_time()
                metrics.wait_seconds.labels("web.accept").observe(done - decoded)
            else:
                with deadline("web.accept", max(0.0, remaining)):
                    stored = await self.committer.accept(accept, decoded + remaining)
                done = trio.current_time()
        except ConvoError as error:
            _tell_refused(accept, error)
            return problem(error, accept.ended.conversation_id)
        metrics.accept_seconds.observe(done - started)
        timing = _timing(read=read - started, decode=decoded - read, commit=done - decoded, total=done - started)
        return _receipt(stored, timing)

    async def _prepare(self, body: bytes, encoding: str) -> Accept:
        if len(body) * (_PACKED if encoding else 1) < self.settings.offload_bytes:
            return _prepare(body, encoding, self.settings)
        with deadline("web.decode", self.settings.request_seconds):
            return await trio.to_thread.run_sync(
                _prepare, body, encoding, self.settings, abandon_on_cancel=True, limiter=threads.REQUESTS
            )


def _prepare(body: bytes, encoding: str, settings: WebSettings) -> Accept:
    inflated = inflate(body, encoding, settings)
    try:
        ended = decode(inflated)
        checked = transcript.check(ended)
    except Invalid as error:
        error.conversation_id = _claimed_id(inflated)
        raise
    log_bytes = transcript.encode_log(transcript.read_log(ended)[1])
    return Accept(
        ended=ended,
        digest=digests.digest(ended, log_bytes),
        turns=checked.turns,
        exchanges=checked.exchanges,
        started_at=checked.started_at,
        ended_at=checked.ended_at,
        log_bytes=log_bytes,
        body=logs.pack(log_bytes),
    )


# The longest id that there is: what is longer names no conversation, and is not sent back.
_CLAIMED_CHARACTERS_MAX = 255


class _Claimed(Struct):
    conversation_id: str | None = None


def _claimed_id(body: bytes) -> str | None:
    """Read which conversation a body that is not one claims to be."""
    try:
        claimed = msgspec.json.decode(body, type=_Claimed).conversation_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return claimed if claimed is None or len(claimed) <= _CLAIMED_CHARACTERS_MAX else None


def _reserved(accept: Accept) -> Invalid:
    error = Invalid(f"user_id {CANARY_USER!r} is convo's own: its conversations are erased", path="$.user_id")
    error.conversation_id = accept.ended.conversation_id
    return error


def _tell_refused(accept: Accept, error: ConvoError) -> None:
    if error.status == 409:
        events.conflict(conversation_id=accept.ended.conversation_id)


def _receipt(stored: Stored, timing: str) -> Answer:
    links = answers.links(stored.conversation_id)
    receipt = Receipt(
        conversation_id=stored.conversation_id,
        digest=stored.digest,
        turns=stored.turns,
        received_at=stored.received_at,
        links=links,
    )
    headers = [("Location", links.self), ("Server-Timing", timing)]
    if stored.replayed:
        headers.append(("Idempotent-Replayed", "true"))
        events.replayed(conversation_id=stored.conversation_id)
    else:
        events.accepted(conversation_id=stored.conversation_id, turns=stored.turns)
    return Answer(status=202, body=encode(receipt), headers=headers, timed=True)


def _timing(*, read: float, decode: float, commit: float, total: float) -> str:
    return (
        f"read;dur={read * 1000:.2f}, decode;dur={decode * 1000:.2f},"
        f" commit;dur={commit * 1000:.2f}, total;dur={total * 1000:.2f}"
    )
