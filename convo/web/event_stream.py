"""The stream route, ``GET /v1/events``: events as Server-Sent Events, as they happen.

Open it to change what a stream sends, or how streams share one look at the database.

One loop reads new events for all streams, of the types that any of them wants, and keeps the last few seconds of them.
Each stream has a position among the numbers of the events and takes what is behind it: there is no queue for a client,
so a slow one holds no memory. One that is further behind than what is kept reads pages of its own, as one that comes
back with ``Last-Event-ID`` does.

The alerts of this process are sent to streams that ask for them. They are stored nowhere and have no number.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

import trio
from msgspec import Struct

from convo.alerts.formats import Notification, webhook_body
from convo.cloud_events import encode_event
from convo.conversation.tenant import Reach
from convo.errors import ConvoError, Forbidden, Invalid, NotFound
from convo.event_types import EVENT_TYPES, EventType
from convo.http.turns import end_turn
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.settings import EventsSettings
from convo.store import event_stream
from convo.store.couriers import read_events
from convo.store.event_rows import EventPage, StoredEvent
from convo.store.event_stream import StreamFilter
from convo.store.postgres import Postgres
from convo.web.authority import Authority
from convo.web.description.messages import Answer, AnswerStream
from convo.web.door import RouteRequest
from convo.web.open_streams import OpenStream, OpenStreams

EVENT_STREAM = "text/event-stream"
# nginx would hold the events back until it has some kilobytes of them.
STREAM_HEADERS = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))

# New events are looked for at most so often, however many are appended.
_PERIOD_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_PAGE_ROWS = 500
# What has been erased since it was read must not be sent any more: nothing is kept for longer.
_KEPT_SECONDS = 5.0
_KEPT_BYTES = 8 << 20
_MISSED_ROWS = 200
_PIECE_BYTES = 32 << 10
_AGAIN_SECONDS = 1.0
_MOVE_SECONDS = 1.0
_OPENING = b"retry: 2000\n: open\n\n"
HEARTBEAT = b": heartbeat\n\n"
_NUMBER = re.compile(r"[0-9]{1,18}")
_ALERT = "alert"
# A client that takes none for so many alerts misses some: GET /v1/alerts has what lasts.
_ALERTS_KEPT = 100


class _Kept(Struct, frozen=True, gc=False):
    """An event that was read a moment ago, as it is sent."""

    event: StoredEvent
    text: bytes
    read_at: float


class EventStreams:
    """The streams of one process: ``run`` reads for all of them; ``numbered`` is the last number that was given."""

    def __init__(
        self,
        postgres: Postgres,
        settings: EventsSettings,
        numbered: Callable[[], int],
        authority: Authority,
        open_: OpenStreams,
    ) -> None:
        self._postgres = postgres
        self._authority = authority
        self._open = open_
        self._settings = settings
        self._numbered = numbered
        self._bell = Bell()
        self._changed = trio.Event()
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._from = 0  # all events behind this number, and up to the next, are kept
        self._to = 0
        self._alert_streams = 0
        self._reading = list[StreamFilter]()  # what streams of events want; those of alerts alone are not among them
        self._alerts: deque[tuple[int, bytes]] = deque(maxlen=_ALERTS_KEPT)
        self._alerts_put = 0
        self._woken_at = -math.inf

    # --- for the process

    def wake(self) -> None:
        """Look now: there are new events."""
        self._bell.ring()

    def forget(self) -> None:
        """Drop what is kept: something was erased, or the database went back. Streams read on from there."""
        self._drop(len(self._kept))
        self._from = self._to
        self._wake_all()

    async def run(self) -> None:
        """Read new events for all streams, until cancelled."""
        while True:
            try:
                await self._read()
            except ConvoError as error:
                log_records.events_waiting(what="streaming", reason=error.detail)
                await trio.sleep(_AGAIN_SECONDS)
            await trio.sleep(_PERIOD_SECONDS)
            with trio.move_on_after(_LOOK_SECONDS):
                await self._bell.rung()

    async def _read(self) -> None:
        self._drop_old()
        if not self._reading:
            self.forget()
            return
        while self._to < (last := self._numbered()):
            types = self._types()
            page = await self._page(last, types)
            if types != self._types():
                # A stream of other types has come meanwhile: what it wants may be missing in this page.
                continue
            if page.looked_to == self._to:
                return
            now = trio.current_time()
            for event in page.events:
                self._kept.append(_Kept(event, sent_event(event), now))
                self._kept_bytes += len(self._kept[-1].text)
            self._to = page.looked_to
            self._drop_old()
            # Where nothing is wanted, streams only move on: seldom, for each of them is a task that wakes.
            if page.events or now >= self._woken_at + _MOVE_SECONDS:
                self._wake_all()

    async def _page(self, last: int, types: frozenset[EventType]) -> EventPage:
        if not types:
            return await read_events(self._postgres, self._to, _PAGE_ROWS, ())
        return await event_stream.read_of_types(self._postgres, self._to, last, types, _PAGE_ROWS)

    def _join(self, wanted: StreamFilter, last: int) -> None:
        """Read for one more stream of events; ``last`` is the number of the newest one."""
        if not self._reading:
            # Nobody has read for a while: what happened meanwhile is of no interest to the first stream.
            self._drop(len(self._kept))
            self._from = self._to = last
        before = self._types()
        self._reading.append(wanted)
        if self._types() != before:
            # What is kept may lack events of its types: all read on from the end of it, or what they missed.
            self.forget()

    def _types(self) -> frozenset[EventType]:
        """Return the types that any stream wants; none where one wants all."""
        if any(not wanted.types for wanted in self._reading):
            return frozenset()
        return frozenset(name for wanted in self._reading for name in wanted.types)

    def _drop_old(self) -> None:
        over = trio.current_time() - _KEPT_SECONDS
        while self._kept and (self._kept[0].read_at < over or self._kept_bytes > _KEPT_BYTES):
            self._drop(1)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            gone = self._kept.popleft()
            self._kept_bytes -= len(gone.text)
            self._from = gone.event.sequence

    def put_alert(self, message: Notification) -> None:
        """Send a message of an alert to the streams that ask for alerts."""
        if self._alert_streams:
            self._alerts_put += 1
            text = b"event: %b\ndata: %b\n\n" % (_ALERT.encode(), webhook_body(message))
            self._alerts.append((self._alerts_put, text))
            self._wake_all()

    def _wake_all(self) -> None:
        self._woken_at = trio.current_time()
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # --- for the routes

    async def stream(self, request: RouteRequest) -> Answer:
        """Answer with a stream of what happens from now on, or behind ``Last-Event-ID``.

        Raises:
            NotFound: no events are appended here.
            Invalid: a filter or ``Last-Event-ID`` is none.
            Forbidden: alerts are asked for, and the key does not reach the whole installation.
            Overloaded: there are as many streams as there may be.
        """
        asked = asked_types(request.query)
        with_alerts, with_events = _ALERT in asked, asked != {_ALERT}
        if with_events and not self._settings.types:
            raise NotFound("there are no events here: events.types is empty; name the types that are to be appended")
        if with_alerts and not self._authority.reaches_all(log_records.request_key.get(), request.reach):
            raise Forbidden("alerts are of the whole installation, and this key does not reach so far")
        wanted = filter_of(request.query, request.reach)
        given = position_of(request.head.last_event_id)
        # Counted before the database is asked: many who come at once are not more than there may be.
        stream = self._open.begin(self._authority.shown_by(request.head))
        try:
            last = await event_stream.last_sequence(self._postgres) if with_events else 0
        except BaseException:
            stream.left()
            raise
        if with_events:
            self._join(wanted, last)
        self._alert_streams += with_alerts
        position = last if given is None else min(given, last)
        reader = _Reader(self, stream, wanted, position, with_events=with_events, with_alerts=with_alerts)
        end_turn()
        return Answer(
            status=200,
            body=b"",
            content_type=EVENT_STREAM,
            headers=STREAM_HEADERS,
            stream=AnswerStream(next_piece=reader.next_piece, end=reader.end, piece_seconds=reader.piece_seconds),
        )

    @property
    def heartbeat_seconds(self) -> float:
        """After how long a stream in which nothing happens sends a comment."""
        return self._settings.heartbeat_seconds

    @property
    def changed(self) -> trio.Event:
        """What is set when there is something new."""
        return self._changed

    @property
    def read_to(self) -> int:
        """Up to which number events have been read: what is behind it is not kept yet."""
        return self._to

    def left(self, wanted: StreamFilter, *, with_events: bool, with_alerts: bool) -> None:
        """Note that a stream has ended."""
        self._alert_streams -= with_alerts
        if with_events:
            self._reading.remove(wanted)

    @property
    def alerts_put(self) -> int:
        """How many messages of alerts were sent to streams."""
        return self._alerts_put

    def alerts_after(self, position: int) -> bytes:
        """Return the messages of alerts behind a number of them, as they are sent."""
        if position == self._alerts_put:
            return b""
        return b"".join(text for number, text in self._alerts if number > position)

    def kept_after(self, position: int) -> list[_Kept] | None:
        """Return what is kept behind a position; None where some of it is kept no more."""
        if position < self._from:
            return None
        if position >= self._to:
            return []
        # From the newest one: most streams have got all but the last few, of thousands.
        new: list[_Kept] = []
        for one in reversed(self._kept):
            if one.event.sequence <= position:
                break
            new.append(one)
        new.reverse()
        return new

    async def missed(self, wanted: StreamFilter, position: int) -> EventPage:
        """Read the next page behind a position of which not all is kept."""
        return await event_stream.read_missed(self._postgres, wanted, position, _MISSED_ROWS)


class _Reader:
    """One stream."""

    def __init__(  # noqa: PLR0913  (one stream, with all that it sends)
        self,
        streams: EventStreams,
        stream: OpenStream,
        wanted: StreamFilter,
        position: int,
        *,
        with_events: bool,
        with_alerts: bool,
    ) -> None:
        self._streams = streams
        self._stream = stream
        self._wanted = wanted
        self._position = position
        self._with_events = with_events
        self._with_alerts = with_alerts
        self._alerts_seen = streams.alerts_put
        self._opened = False
        # A page of what was missed takes a unit of database work, and may be empty.
        self.piece_seconds = 2 * streams.heartbeat_seconds + _AGAIN_SECONDS

    async def next_piece(self) -> bytes:
        """Return what is to be sent next, at the latest a heartbeat; nothing where the stream is over."""
        if not self._opened:
            self._opened = True
            return _OPENING
        until = trio.current_time() + self._streams.heartbeat_seconds
        while not self._stream.over:
            changed = self._streams.changed
            found, more = self._new_alerts(), False
            if not found and self._with_events:
                found, more = await self._found()
            if found:
                return found
            if more and trio.current_time() < until:
                continue
            await self._stream.wait(changed, until)  # no deadline: it has its end, which is the heartbeat
            if trio.current_time() >= until:
                return HEARTBEAT
        return b""

    def end(self) -> None:
        """End the stream: the client is gone, or it is over."""
        if self._stream.left():
            self._streams.left(self._wanted, with_events=self._with_events, with_alerts=self._with_alerts)

    def _new_alerts(self) -> bytes:
        seen, self._alerts_seen = self._alerts_seen, self._streams.alerts_put
        return self._streams.alerts_after(seen) if self._with_alerts else b""

    async def _found(self) -> tuple[bytes, bool]:
        """Return the next events as they are sent, and whether there may be more behind them."""
        kept = self._streams.kept_after(self._position)
        if kept is None:
            return await self._missed()
        # Up to here there is nothing but what is kept; of a piece that is full the last event says more.
        reached = self._streams.read_to
        pieces, bytes_ = [], 0
        for one in kept:
            self._position = one.event.sequence
            if wants(self._wanted, one.event):
                pieces.append(one.text)
                bytes_ += len(one.text)
                if bytes_ >= _PIECE_BYTES:
                    return b"".join(pieces), False
        self._position = max(self._position, reached)
        return b"".join(pieces), False

    async def _missed(self) -> tuple[bytes, bool]:
        try:
            page = await self._streams.missed(self._wanted, self._position)
        except ConvoError as error:
            log_records.events_waiting(what="streaming", reason=error.detail)
            await trio.sleep(_AGAIN_SECONDS)
            return b"", True
        more = page.looked_to > self._position
        pieces, bytes_ = [], 0
        for event in page.events:
            pieces.append(sent_event(event))
            bytes_ += len(pieces[-1])
            if bytes_ >= _PIECE_BYTES:
                self._position = event.sequence
                return b"".join(pieces), True
        self._position = page.looked_to
        return b"".join(pieces), more


def sent_event(event: StoredEvent) -> bytes:
    """Return an event as it stands in a stream."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.sequence, event.type.encode(), encode_event(event))


def wants(wanted: StreamFilter, event: StoredEvent) -> bool:
    """Return whether an event is within the reach of a client and passes its filters."""
    reach = wanted.reach
    return (
        event.tenant == reach.tenant.name
        and (reach.bots is None or event.bot_id in reach.bots)
        and (not wanted.types or event.type in wanted.types)
        and wanted.user_id in (None, event.user_id)
        and wanted.bot_id in (None, event.bot_id)
    )


def asked_types(query: Mapping[str, str]) -> set[str]:
    """Return the types that a client asks for; none for all events."""
    return set(query.get("types", "").replace(",", " ").split())


def filter_of(query: Mapping[str, str], reach: Reach) -> StreamFilter:
    """Return which events a client asks for.

    Raises:
        Invalid: ``types`` names one that does not exist.
    """
    types = sorted(asked_types(query) - {_ALERT})
    for name in types:
        if name not in EVENT_TYPES:
            raise Invalid(f"types={name[:64]!r} is not one of {', '.join((*EVENT_TYPES, _ALERT))}", path="types")
    return StreamFilter(
        reach=reach,
        types=cast("tuple[EventType, ...]", tuple(types)),
        user_id=query.get("user_id"),
        bot_id=query.get("bot_id"),
    )


def position_of(last_event_id: str) -> int | None:
    """Return behind which number a client wants to go on; None for none.

    Raises:
        Invalid: it is no number.
    """
    if not last_event_id.strip():
        return None
    if not _NUMBER.fullmatch(last_event_id.strip()):
        raise Invalid("it is not the id of an event that a stream has sent: a whole number", path="Last-Event-ID")
    return int(last_event_id)
