"""The batch route, ``POST /v1/conversations/batch``: conversations as JSON Lines, each stored as if it came alone.

A line is read, stored and forgotten while the next ones arrive: only a few of them are under way at a time, in the
order in which they came. Each counts as a request of its own, towards the load of the process and towards its
client's limit. What is wrong with a line is its answer, and no other's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import trio
from msgspec import Struct

from convo.errors import BadRequest, ConvoError, DeadlineExceeded, Overloaded, TooLarge, UnsupportedMedia
from convo.http.request_body import too_large
from convo.http.turns import end_turn
from convo.observe import log_records, metrics, tracing
from convo.store.group import Submitted
from convo.store.intake import Accept, Stored
from convo.web.accept import AcceptRoute, check_user, log_conflict, owned, receipt_of, traced
from convo.web.admission import Admitted
from convo.web.batch_lines import BatchLines
from convo.web.description.batch_views import MEDIA_OF_BATCHES, batch_problem, batch_receipt
from convo.web.description.messages import Answer, Head, NextPiece, encode
from convo.web.door import RouteRequest
from convo.web.inflate import inflated_pieces

LINES_MAX = 1_000

# As many as the connections that the committer's batches were measured with: more would only take places from others.
_LINES_UNDER_WAY = 32
_BYTES_UNDER_WAY = 2 << 20
# Lines are decoded one after the other; so often others run between two of them.
_STEP_SECONDS = 0.002
# What is kept of a request's time: for the answers of the lines that are too late, and for writing them all.
_LATE_SHARE, _LATE_SECONDS_MAX = 1 / 4, 0.25


class BatchRoute(Struct, frozen=True, kw_only=True):
    """The batch route, with the accept route that it stands for."""

    intake: AcceptRoute

    async def receive(self, request: RouteRequest) -> Answer:
        """Store a batch while it arrives; answer with a line for each of its lines.

        Raises:
            ConvoError: the request is wrong or comes at a bad time, and none of its lines was read.
        """
        head, intake = request.head, self.intake
        media = _media_of(head)
        raw_bytes_max = intake.settings.raw_bytes_max
        if head.content_length is not None and head.content_length > raw_bytes_max:
            raise too_large(intake.settings, head.content_length)
        until = intake.until(head)
        late = min(_LATE_SECONDS_MAX, _LATE_SHARE * (until - head.started))
        intake.admission.check(min(_BYTES_UNDER_WAY, raw_bytes_max, head.content_length or raw_bytes_max))
        # What it brings are conversations: it takes nothing of the share of the loop that readers have.
        end_turn()
        with intake.admission.place() as place:
            lines = BatchLines(*await _source(request, place), intake.settings)
            with ExitStack() as under_way:
                batch = _Batch(intake, request, lines, until - late, under_way)
                with trio.move_on_at(until - late) as time:
                    await batch.store()
                if time.cancelled_caught:
                    error = DeadlineExceeded("web.request", until - head.started)
                    error.detail += "; nothing says that this conversation is stored: send it again"
                    with trio.move_on_at(until - late / 4):
                        await batch.refuse_rest(error)
            return Answer(status=200, body=batch.answer(), content_type=media)


def _media_of(head: Head) -> str:
    media = head.content_type.partition(";")[0].strip().lower()
    if media not in MEDIA_OF_BATCHES:
        known = " or ".join(MEDIA_OF_BATCHES)
        raise UnsupportedMedia(f"content type {head.content_type!r} is not supported here; send {known}")
    return media


class _Line(NamedTuple):
    """A line of the answer."""

    status: int
    line: bytes


class _UnderWay(Struct, frozen=True, gc=False):
    """A line that is handed to the committer: which one, its id, its size, and what ends when it is answered."""

    number: int
    conversation_id: str
    bytes_: int
    submitted: Submitted[Accept, Stored]
    place: Admitted


class _Batch:
    """The lines of one request, in order: their answers, and those that are under way."""

    def __init__(
        self, intake: AcceptRoute, request: RouteRequest, lines: BatchLines, until: float, places: ExitStack
    ) -> None:
        self._intake = intake
        self._request = request
        self._lines = lines
        self._until = until
        self._answers: list[_Line | None] = []
        self._unanswered = _Line(500, b"")  # stands for each answer that is not there
        self._under_way: deque[_UnderWay] = deque()
        self._bytes = 0
        self._paused_at = trio.current_time()
        places.callback(self._leave)

    def answer(self) -> bytes:
        """Return the lines of the answer."""
        answers = [answer or self._unanswered for answer in self._answers]
        for answer in answers:
            metrics.batch_lines_total.labels(str(answer.status)).inc()
        return b"".join(answer.line for answer in answers)

    async def store(self) -> None:
        """Read and store line after line; what ends the reading is the last answer, or that of all that follow.

        Raises:
            BadRequest, TooLarge: the body is wrong, and none of its lines was read.
        """
        ended: ConvoError | None = None
        try:
            while (line := await self._lines.next()) is not None:
                self._check_count()
                await self._begin(line)
        except Overloaded as error:
            ended = error
        except (BadRequest, TooLarge) as error:
            if not self._answers:
                raise
            self._answers.append(_problem_line(error))
        while self._under_way:
            await self._end_first()
        if ended is not None:
            await self.refuse_rest(ended)

    async def refuse_rest(self, error: ConvoError) -> None:
        """Answer each line that has no answer yet with this error, and so those that still arrive."""
        self._unanswered = _problem_line(error)
        self._lines.count_only()
        while self._under_way:
            if self._under_way[0].submitted.known:
                await self._end_first()
            else:
                self._leave_first()
        try:
            while len(self._answers) < LINES_MAX and await self._lines.next() is not None:
                self._answers.append(None)
        except (BadRequest, TooLarge) as wrong:
            self._answers.append(_problem_line(wrong))

    def _check_count(self) -> None:
        if len(self._answers) == LINES_MAX:
            raise TooLarge(f"a batch has at most {LINES_MAX:,} lines; send what follows in another one")

    async def _begin(self, line: bytes) -> None:
        """Hand a line to the committer, as soon as there is room for it among those under way."""
        number = len(self._answers)
        self._answers.append(None)
        while self._under_way and not self._takes(len(line)):
            await self._end_first()
        await self._pause()
        # It ends with the outcome, though this batch may then still wait for its client.
        place = self._intake.admission.place()
        try:
            with ExitStack() as stack:
                stack.enter_context(place)
                if number:
                    self._request.spend()
                place.grow(len(line))
                place.enter()
                accept = await self._intake.prepare(line)
                accept = owned(accept, self._request.reach)
                check_user(accept)
                span = tracing.current_span()
                if span is not None:
                    accept = traced(accept, span)
                submitted = self._intake.committer.enqueue(accept, self._until, place.end)
                stack.pop_all()
        except ConvoError as error:
            self._answers[number] = _problem_line(error)
            return
        self._under_way.append(_UnderWay(number, accept.ended.conversation_id, len(line), submitted, place))
        self._bytes += len(line)

    def _takes(self, bytes_: int) -> bool:
        # Without room in the process the batch waits for its own lines; it is refused only where it has none.
        return (
            len(self._under_way) < _LINES_UNDER_WAY
            and self._bytes + bytes_ <= _BYTES_UNDER_WAY
            and self._intake.admission.takes(bytes_)
        )

    async def _end_first(self) -> None:
        """Wait for the outcome of the line that is under way the longest."""
        first = self._under_way[0]
        try:
            stored = await first.submitted.outcome()
        except ConvoError as error:
            log_conflict(first.conversation_id, error)
            answer = _problem_line(error, first.conversation_id)
        else:
            with log_records.bound(conversation_id=first.conversation_id):
                view = batch_receipt(receipt_of(stored), replayed=stored.replayed)
            answer = _Line(202, encode(view) + b"\n")
        self._answers[first.number] = answer
        self._release(self._under_way.popleft())

    def _leave(self) -> None:
        """Have nothing more stored; what is being committed already, stays so."""
        while self._under_way:
            self._leave_first()

    def _leave_first(self) -> None:
        self._under_way[0].submitted.gone = True
        self._release(self._under_way.popleft())

    def _release(self, ended: _UnderWay) -> None:
        self._bytes -= ended.bytes_
        ended.place.end()

    async def _pause(self) -> None:
        now = trio.current_time()
        if now >= self._paused_at + _STEP_SECONDS:
            await trio.lowlevel.checkpoint()
            self._paused_at = trio.current_time()


def _problem_line(error: ConvoError, conversation_id: str | None = None) -> _Line:
    return _Line(error.status, encode(batch_problem(error, conversation_id)) + b"\n")


async def _source(request: RouteRequest, place: Admitted) -> tuple[NextPiece, Callable[[int], None]]:
    """Return what reads the body piece by piece, decompressed, and what holds bytes of it.

    A compressed body is read as a whole, as small as it was sent, and becomes what it is piece by piece.
    """
    if not request.head.content_encoding:
        return request.next_piece, place.hold
    packed = await request.read(place.grow)
    pieces = inflated_pieces(packed, request.head.content_encoding)

    async def next_piece() -> bytes:
        for piece in pieces:
            await trio.lowlevel.checkpoint()
            if piece:
                return piece
        return b""

    return next_piece, lambda bytes_: place.hold(len(packed) + bytes_)
