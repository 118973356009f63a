"""The route ``GET /v1/live``: what a page that somebody looks at needs, pushed, and made once for all who look.

Open it to change what a viewer gets, or how often. Two kinds of frames come: the sampled figures, and how many events
happened since the frame before. ``GET /v1/events`` sends each event to each stream. At a thousand events a second, a
page that only has to know that its list is old would cost more than the accepts that it shows.

The events of a period are one count by the database, whoever looks. Each caller gets the counts of what it reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import trio
from msgspec import Struct

from convo.conversation.tenant import Reach
from convo.errors import ConvoError, NotFound
from convo.http.turns import end_turn
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.settings import Settings
from convo.store import event_stream
from convo.store.event_stream import EventCount
from convo.store.postgres import Postgres
from convo.web.authority import Authority
from convo.web.description.live_views import ChangesView, LiveOpeningView
from convo.web.description.messages import Answer, AnswerStream, encode
from convo.web.door import RouteRequest
from convo.web.event_stream import EVENT_STREAM, HEARTBEAT, STREAM_HEADERS
from convo.web.figures import InstallationFigures
from convo.web.open_streams import OpenStream, OpenStreams

PERIOD_SECONDS = 2.0
"""Changes come at most so often; the first one after a quiet period comes at once."""
BUSY_PERIOD_SECONDS = 5.0
"""The same after a period of more than ``BUSY_EVENTS``: nobody reads a list of which every row is new each time."""
BUSY_EVENTS = 500
# What is numbered in the same moment is one frame.
_GATHER_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_OPENING = b"retry: 2000\nevent: live\ndata: %b\n\n"
_FRAME = b"event: %b\ndata: %b\n\n"


class _Changed(Struct, frozen=True, gc=False):
    """The newest changes of one reach, as they are sent, and the number of the last event among them."""

    sequence: int
    frame: bytes


class LiveStreams:
    """The live streams of one process; ``run`` counts for all of them. ``numbered`` is the last number given."""

    def __init__(  # noqa: PLR0913  (what it sends comes from all of them)
        self,
        settings: Settings,
        postgres: Postgres,
        figures: InstallationFigures,
        authority: Authority,
        open_: OpenStreams,
        *,
        numbered: Callable[[], int],
    ) -> None:
        self._heartbeat_seconds = settings.events.heartbeat_seconds
        self.has_figures = bool(settings.page.sample_seconds)
        """Whether figures are sampled here."""
        self.has_changes = bool(settings.events.types)
        """Whether events are appended here."""
        self.figures = figures
        self._postgres = postgres
        self._numbered = numbered
        self._authority = authority
        self._open = open_
        self._bell = Bell()
        self._reaches = Counter[Reach]()
        self._changed: dict[Reach, _Changed] = {}
        self._to: int | None = None  # up to this number events are counted
        self.news = trio.Event()
        """What is set when there is something new for any of them."""

    # --- for the process

    def wake(self) -> None:
        """Look now: there are new events."""
        self._bell.ring()

    def forget(self) -> None:
        """Begin anew: the database went back, so numbers may come again."""
        self._changed.clear()
        self._to = None

    def sampled(self) -> None:
        """Send the figures: there is a new sample."""
        self._wake_all()

    async def run(self) -> None:
        """Count events for all streams, until cancelled."""
        while True:
            with trio.move_on_after(_LOOK_SECONDS):
                await self._bell.rung()
            await trio.sleep(_GATHER_SECONDS)
            try:
                counted = await self._count()
            except ConvoError as error:
                log_records.events_waiting(what="counting", reason=error.detail)
                await trio.sleep(_AGAIN_SECONDS)
                continue
            if counted:
                busy = counted > BUSY_EVENTS
                await trio.sleep((BUSY_PERIOD_SECONDS if busy else PERIOD_SECONDS) - _GATHER_SECONDS)

    async def _count(self) -> int:
        last = self._numbered()
        # Less than what is counted: the database went back.
        if self._to is None or self._to > last or not self._reaches:
            self._to = last
        counts = list[EventCount]()
        while (after := self._to or 0) < last:
            found, self._to = await event_stream.count_changes(self._postgres, after, last, list(self._reaches))
            counts += found
        for reach, types in changes_by_reach(self._reaches, counts).items():
            frame = _FRAME % (b"changes", encode(ChangesView(sequence=last, types=types)))
            self._changed[reach] = _Changed(last, frame)
        if counts:
            self._wake_all()
        return sum(one.count for one in counts)

    def _wake_all(self) -> None:
        news, self.news = self.news, trio.Event()
        news.set()

    # --- for the route

    async def stream(self, request: RouteRequest) -> Answer:
        """Answer with a live stream.

        Raises:
            NotFound: there is nothing to send here.
            Overloaded: there are as many streams as there may be.
        """
        if not (self.has_figures or self.has_changes):
            raise NotFound("there is nothing to send here: page.sample_seconds is 0, and events.types is empty")
        whole = self._authority.reaches_all(log_records.request_key.get(), request.reach)
        stream = self._open.begin(self._authority.shown_by(request.head))
        if self.has_figures and whole:
            self.figures.join()
        if not self._reaches:
            # What happened while nobody looked is of no interest to the first one; what happens from now on is.
            self._to = self._numbered()
        self._reaches[request.reach] += 1
        viewer = _Viewer(self, stream, request.reach, whole=whole)
        end_turn()
        return Answer(
            status=200,
            body=b"",
            content_type=EVENT_STREAM,
            headers=STREAM_HEADERS,
            stream=AnswerStream(
                next_piece=viewer.next_piece, end=viewer.end, piece_seconds=2 * self._heartbeat_seconds
            ),
        )

    def left(self, reach: Reach, *, whole: bool) -> None:
        """Note that a stream has ended."""
        if self.has_figures and whole:
            self.figures.leave()
        self._reaches[reach] -= 1
        if not self._reaches[reach]:
            del self._reaches[reach]
            self._changed.pop(reach, None)

    def changes_behind(self, reach: Reach, sequence: int) -> _Changed | None:
        """Return the newest changes of a reach, if there are any behind this number."""
        changed = self._changed.get(reach)
        return changed if changed is not None and changed.sequence > sequence else None

    @property
    def counted_to(self) -> int:
        """Up to which number events are counted, or will not be counted any more."""
        return self._numbered() if self._to is None else self._to

    @property
    def heartbeat_seconds(self) -> float:
        """After how long a stream in which nothing happens sends a comment."""
        return self._heartbeat_seconds


class _Viewer:
    """One stream. Who takes its frames slowly misses some, and gets the newest ones."""

    def __init__(self, live: LiveStreams, stream: OpenStream, reach: Reach, *, whole: bool) -> None:
        self._live = live
        self._stream = stream
        self._reach = reach
        self._whole = whole
        self._opened = False
        self._sampled = 0
        self._counted = live.counted_to

    async def next_piece(self) -> bytes:
        """Return what is to be sent next, at the latest a heartbeat; nothing where the stream is over."""
        if not self._opened:
            self._opened = True
            return self._opening()
        until = trio.current_time() + self._live.heartbeat_seconds
        while not self._stream.over:
            news = self._live.news
            if found := b"".join(self._new()):
                return found
            await self._stream.wait(news, until)  # no deadline: it has its end, which is the heartbeat
            if trio.current_time() >= until:
                return HEARTBEAT
        return b""

    def end(self) -> None:
        """End the stream: the client is gone, or it is over."""
        if self._stream.left():
            self._live.left(self._reach, whole=self._whole)

    def _opening(self) -> bytes:
        live = self._live
        first = _OPENING % encode(LiveOpeningView(figures=live.has_figures, changes=live.has_changes))
        if live.has_figures and not self._whole:
            first += _FRAME % (b"figures", live.figures.nothing())
        return first

    def _new(self) -> Iterable[bytes]:
        figures = self._live.figures
        if self._whole and figures.seq > self._sampled:
            behind, self._sampled = self._sampled, figures.seq
            yield _FRAME % (b"figures", figures.behind(behind))
        changed = self._live.changes_behind(self._reach, self._counted)
        if changed is not None:
            self._counted = changed.sequence
            yield changed.frame


def changes_by_reach(reaches: Collection[Reach], counts: Collection[EventCount]) -> Mapping[Reach, Mapping[str, int]]:
    """Return what each of these reaches gets of the counts, by type; nothing for one of which nothing happened."""
    found: dict[Reach, Counter[str]] = {}
    for reach in reaches:
        for one in counts:
            if one.tenant == reach.tenant.number and (reach.bots is None or one.bot_id in reach.bots):
                found.setdefault(reach, Counter())[one.type] += one.count
    return found
