"""The accept route, ``POST /v1/conversations/end``: decodes a conversation, stores it, answers with its receipt."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio
from msgspec import Struct, structs

from convo.conversation import digest as digests
from convo.conversation import transcript
from convo.conversation.decode import Received, decode
from convo.conversation.log_prefix import items_digest
from convo.conversation.model import CANARY_USER, Receipt, ReceiptNotes, UnreadItem
from convo.conversation.tenant import Reach
from convo.errors import ConvoError, Forbidden, Invalid, Overloaded
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Span
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import WebSettings
from convo.store import logs
from convo.store.intake import Accept, Committer, Stored
from convo.web.admission import Admission, Admitted
from convo.web.description import views
from convo.web.description.messages import Answer, Head, Read, encode, problem
from convo.web.door import budget_seconds, check_head
from convo.web.inflate import inflate, inflate_up_to
from convo.web.readiness import Readiness

# What is kept of a request's time for writing its answer.
_ANSWER_SECONDS = 0.05


class AcceptRoute(Struct, frozen=True, kw_only=True):
    """The accept route, with what it needs."""

    settings: WebSettings
    items_max: int
    committer: Committer
    readiness: Readiness
    admission: Admission
    revisions: bool = False

    async def receive(self, head: Head, read: Read, reach: Reach) -> Answer:
        """Answer one request; ``read`` reads its body, after the head and the load of the process were checked.

        The conversation becomes one of the caller's tenant.

        Raises:
            ConvoError: the request is wrong or comes at a bad time, and its conversation is not known yet.
        """
        check_head(head, self.settings)
        self.admission.check(self._expected_bytes(head))
        with self.admission.place() as place:
            body = await read(place.grow)
            place.enter()
            read_at = trio.current_time()
            if head.content_encoding:
                accept = await self.prepare_packed(body, head.content_encoding, place)
            else:
                accept = await self.prepare(body)
            return await self._store(owned(accept, reach), head.started, read_at, self.until(head))

    def until(self, head: Head) -> float:
        """Return when the request's time ends: with its budget, or earlier with the stop if one is under way."""
        until = head.started + budget_seconds(head, self.settings)
        return min(until, trio.current_effective_deadline()) if self.readiness.phase == "draining" else until

    def _expected_bytes(self, head: Head) -> int:
        """Return how much memory the body needs as it is sent; what a packed one becomes is granted step by step."""
        return self.settings.raw_bytes_max if head.content_length is None else head.content_length

    async def end(self, body: bytes, started: float, until: float) -> Answer:
        """Store the conversation of a canary; answer with its receipt after the commit.

        ``started`` is when the request began, by ``trio.current_time()``, and ``until`` when its time ends. Only this
        way in takes a conversation of the canaries' user.

        Raises:
            ConvoError: the conversation is wrong, and is not known yet.
        """
        read_at = trio.current_time()
        accept = await self.prepare(body)
        return await self._store(accept, started, read_at, until, canary=True)

    async def _store(
        self, accept: Accept, started: float, read: float, until: float, *, canary: bool = False
    ) -> Answer:
        if not canary:
            check_user(accept)
        decoded = trio.current_time()
        # From here on every log line has the id, also those that the loop watch writes.
        with log_records.bound(conversation_id=accept.ended.conversation_id):
            return await self._commit(accept, started, read, decoded, until)

    async def _commit(self, accept: Accept, started: float, read: float, decoded: float, until: float) -> Answer:
        span = tracing.current_span()
        if span is not None:
            accept = traced(accept, span)
            span.attributes["convo.conversation_id"] = accept.ended.conversation_id
        try:
            # It ends a little before the request's own time, so that the answer can still name the id.
            remaining = until - decoded - _ANSWER_SECONDS
            if remaining > self.committer.wait_seconds:
                # The ladder of settings makes the committer's own deadlines end first, so no scope is opened here:
                # one costs as much as reading the head.
                stored = await self.committer.accept(accept, until)  # no deadline: db.accept ends first
                done = trio.current_time()
                metrics.wait_seconds.labels("web.accept").observe(done - decoded)
            else:
                with deadline("web.accept", max(0.0, remaining)):
                    stored = await self.committer.accept(accept, decoded + remaining)
                done = trio.current_time()
        except ConvoError as error:
            if span is not None:
                _record_steps(span, read - started, decoded - read, trio.current_time() - decoded, error.code)
            log_conflict(accept.ended.conversation_id, error)
            return problem(error, accept.ended.conversation_id)
        metrics.accept_seconds.observe(done - started)
        if span is not None:
            _record_steps(span, read - started, decoded - read, done - decoded)
            span.attributes |= {"convo.turns": stored.turns, "convo.replayed": stored.replayed}
            metrics.accept_seconds.note_exemplar(done - started, span.trace_id, span.span_id)
        timing = _timing(read=read - started, decode=decoded - read, commit=done - decoded, total=done - started)
        return _receipt(stored, timing)

    async def prepare(self, body: bytes) -> Accept:
        """Decode a body that is not compressed, in a thread if it is large.

        Raises:
            BadRequest, Invalid, TooLarge: it is no conversation that can be stored.
            DeadlineExceeded: no thread was free in time.
        """
        if len(body) < self.settings.offload_bytes:
            return self._read(body)[0]
        limiter = threads.LARGE if len(body) > threads.LARGE_BYTES else threads.REQUESTS
        with deadline("web.decode", self.settings.request_seconds):
            accept, _ = await threads.run_in_thread(self._read, body, limiter=limiter)
            return accept

    async def prepare_packed(self, body: bytes, encoding: str, place: Admitted) -> Accept:
        """Decompress and read a body; ``place`` holds what it becomes before it becomes it.

        Raises:
            UnsupportedMedia: it has an encoding that is not known.
            BadRequest, Invalid, TooLarge: as ``prepare``.
            Overloaded: there is no room for what it becomes.
            DeadlineExceeded: no thread was free in time.
        """
        place.grow(self.settings.offload_bytes)
        short = inflate_up_to(body, encoding, self.settings.offload_bytes)
        place.keep(len(body) + len(short or b""))
        if short is not None:
            return self._read(short)[0]

        # A body that waits for a thread is as small as it was sent: it is decompressed anew when it is its turn. All
        # of these take turns, for nobody knows how large they become.
        def grow(bytes_: int) -> None:
            trio.from_thread.run_sync(_grow, place, bytes_)

        with deadline("web.decode", self.settings.request_seconds):
            accept, kept_bytes = await threads.run_in_thread(
                self._inflate_and_read, body, encoding, grow, limiter=threads.LARGE
            )
        place.keep(len(body) + kept_bytes)
        return accept

    def _inflate_and_read(self, body: bytes, encoding: str, grow: Callable[[int], None]) -> tuple[Accept, int]:
        return self._read(inflate(body, encoding, self.settings, grow))

    def _read(self, inflated: bytes) -> tuple[Accept, int]:
        """Read a decompressed body; return besides how many bytes of it are held until the commit."""
        kept_bytes_max = self.settings.body_bytes_max
        try:
            received = decode(inflated, kept_bytes_max=kept_bytes_max, items_max=self.items_max)
            kept_bytes = received.kept_bytes if len(inflated) > kept_bytes_max else len(inflated)
            return make_accept(received, revisions=self.revisions), kept_bytes
        except Invalid as error:
            error.conversation_id = _claimed_id(inflated)
            raise


def _grow(place: Admitted, bytes_: int) -> None:
    if not place.under_way:
        # The request has ended, and its thread has not noticed: nobody would give back what it is granted.
        raise Overloaded("the request has ended")
    place.grow(bytes_)


def make_accept(received: Received, *, revisions: bool = False) -> Accept:
    """Make of a decoded body what the committer stores, with ``revisions`` also what a later one is known by.

    Raises:
        Invalid: its log is not valid.
    """
    checked = transcript.check_log(received)
    body = logs.pack(received.sent.log)
    return Accept(
        ended=received.ended,
        digest=digests.digest(received),
        turns=checked.turns,
        user_turns=checked.user_turns,
        exchanges=checked.exchanges,
        started_at=checked.started_at,
        ended_at=checked.ended_at,
        body=body,
        log_hash=logs.hash_of(body),
        notes=_notes(received.ignored, checked.unread),
        items=len(received.sent.items) if revisions else 0,
        log_digest=items_digest(received.sent) if revisions else b"",
    )


def _notes(ignored: tuple[str, ...], unread: tuple[UnreadItem, ...]) -> bytes | None:
    return encode(ReceiptNotes(ignored=ignored, unread=unread)) if ignored or unread else None


# No id is longer. A longer text names no conversation and is not sent back.
_CLAIMED_CHARACTERS_MAX = 255
_NOTES_DECODER = msgspec.json.Decoder(ReceiptNotes)


class _Claimed(Struct):
    conversation_id: str | None = None


def _claimed_id(body: bytes) -> str | None:
    """Read the id out of a body that is no valid conversation, so that the problem can name it."""
    try:
        claimed = msgspec.json.decode(body, type=_Claimed).conversation_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return claimed if claimed is None or len(claimed) <= _CLAIMED_CHARACTERS_MAX else None


def owned(accept: Accept, reach: Reach) -> Accept:
    """Return the conversation as one of the caller's tenant.

    Raises:
        Forbidden: the caller's key is bound to other bots.
    """
    if not reach.has_bot(accept.ended.bot_id):
        error = Forbidden(
            f"this key is bound to the bots {', '.join(reach.bots or ())}, and the conversation is of the bot"
            f" {accept.ended.bot_id!r}: send it with a key for that bot"
        )
        error.conversation_id = accept.ended.conversation_id
        raise error
    return structs.replace(accept, tenant=reach.tenant) if reach.tenant.number else accept


def check_user(accept: Accept) -> None:
    """Pass unless the conversation is said to be a canary's.

    Raises:
        Invalid: it is.
    """
    if accept.ended.user_id == CANARY_USER:
        error = Invalid(f"user_id {CANARY_USER!r} is reserved for convo's own test conversations", path="$.user_id")
        error.conversation_id = accept.ended.conversation_id
        raise error


def traced(accept: Accept, span: Span) -> Accept:
    """Return the conversation as one whose analysis is part of the trace of ``span``."""
    return structs.replace(accept, trace=span.context.stored)


def _record_steps(span: Span, read: float, decode: float, commit: float, error: str = "") -> None:
    """Record the steps of an accept whose commit has just ended, each of so many seconds."""
    span.add("read body", read, ended_seconds_ago=decode + commit)
    span.add("decode", decode, ended_seconds_ago=commit)
    span.add("commit", commit, error=error)


def log_conflict(conversation_id: str, error: ConvoError) -> None:
    """Log that an id is taken by other content, if that is the error."""
    if error.status == 409:
        log_records.conflict(conversation_id=conversation_id)


def receipt_of(stored: Stored) -> Receipt:
    """Return the receipt of what is stored, and log that it was acknowledged."""
    notes = ReceiptNotes() if stored.notes is None else _NOTES_DECODER.decode(stored.notes)
    if stored.replayed:
        log_records.replayed(conversation_id=stored.conversation_id)
    else:
        log_records.accepted(conversation_id=stored.conversation_id, turns=stored.turns)
    return Receipt(
        conversation_id=stored.conversation_id,
        digest=stored.digest,
        turns=stored.turns,
        received_at=stored.received_at,
        links=views.links(stored.conversation_id, notes.revision if notes.revision > 1 else None),
        ignored=notes.ignored,
        unread=notes.unread,
        state="expired" if stored.state == "expired" else msgspec.UNSET,
        revision=notes.revision if notes.revision > 1 else msgspec.UNSET,
    )


def _receipt(stored: Stored, timing: str) -> Answer:
    receipt = receipt_of(stored)
    headers = [("Location", receipt.links.self), ("Server-Timing", timing)]
    if stored.replayed:
        headers.append(("Idempotent-Replayed", "true"))
    return Answer(status=202, body=encode(receipt), headers=headers, timed=True)


def _timing(*, read: float, decode: float, commit: float, total: float) -> str:
    return (
        f"read;dur={read * 1000:.2f}, decode;dur={decode * 1000:.2f},"
        f" commit;dur={commit * 1000:.2f}, total;dur={total * 1000:.2f}"
    )
