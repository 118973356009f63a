"""The route ``GET /v1/figures``: how the installation stands now, and how it stood in the last minutes.

Open it to change what the page for operators shows at a glance. A sample is taken every ``page.sample_seconds`` for as
long as somebody asks or has a live stream (``live``), and is encoded once. So a viewer more costs this process the
sending of bytes, and the database nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import trio
from msgspec import Struct, structs

from convo.alerts.causes import drained_seconds
from convo.alerts.keeper import Alerts
from convo.errors import ConvoError, NotFound
from convo.observe import log_records
from convo.resilience.dependency import Dependency
from convo.runtime.deadline import deadline
from convo.settings import PageSettings
from convo.store.postgres import Postgres
from convo.store.shared_figures import ProcessFigures, SharedFigures, read_shared_figures
from convo.web.description.figure_views import (
    DependencyFigures,
    FigureSample,
    FiguresView,
    ForecastView,
    ProcessView,
    QueueFigures,
)
from convo.web.description.messages import Answer, encode
from convo.web.process_counts import NO_RATES, ProcessCounts, rates_between, read_counts, waits_between

# So long after the last question samples are taken, and for as many periods at least: a page that is looked at asks
# once in each.
WANTED_SECONDS = 15.0
_WANTED_PERIODS = 3
KEPT_SECONDS = 600.0
# Over so much of the past waits are counted and rates for the forecast are computed.
_LATELY_SECONDS = 60.0
_FIRST_SECONDS = 5.0


class _Shared(Struct, frozen=True, kw_only=True):
    """What all processes share, and when it was read by ``trio.current_time()``."""

    figures: SharedFigures
    read_at: float


class _Kept(Struct, frozen=True, kw_only=True):
    """One sample, encoded; ``at`` is ``trio.current_time()``."""

    seq: int
    at: float
    text: bytes


class InstallationFigures:
    """The samples of one process; ``run`` takes them, and ``show`` answers with them.

    ``process`` returns the name of this process. ``sampled`` is called after each sample.
    """

    def __init__(  # noqa: PLR0913  (all that is shown)
        self,
        settings: PageSettings,
        postgres: Postgres,
        alerts: Alerts,
        dependencies: Sequence[Dependency],
        process: Callable[[], str],
        *,
        sampled: Callable[[], None] = lambda: None,
    ) -> None:
        self._sampled_one = sampled
        self._settings = settings
        self._postgres = postgres
        self._alerts = alerts
        self._dependencies = dependencies
        self._process = process
        self._asked = trio.Event()
        self._first = trio.Event()
        self._until = 0.0
        self._seq = 0
        self._kept: deque[_Kept] = deque()
        self._counts: deque[ProcessCounts] = deque()
        self._shared: deque[_Shared] = deque()
        self._head = b""
        self._newest = b""
        self._viewers = 0

    # --- the samples

    async def run(self) -> None:
        """Take samples while somebody asks for them, until cancelled."""
        while True:
            await self._asked.wait()
            next_at = trio.current_time()
            while self._viewers or trio.current_time() < self._until:
                await self._sample()
                self._first.set()
                self._sampled_one()
                next_at = max(next_at + self._settings.sample_seconds, trio.current_time())
                await trio.sleep_until(next_at)
            self._asked, self._first = trio.Event(), trio.Event()
            # Rates over a pause would be none of any moment.
            self._counts.clear()
            self._shared.clear()

    def forget(self) -> None:
        """Drop what the database said: it went back."""
        self._shared.clear()

    async def _sample(self) -> None:
        before = self._shared[-1] if self._shared else None
        await self._read_shared()
        now = trio.current_time()
        self._counts.append(read_counts(now))
        while len(self._counts) > 1 and self._counts[1].at <= now - _LATELY_SECONDS:
            self._counts.popleft()
        self._seq += 1
        self._kept.append(_Kept(seq=self._seq, at=now, text=encode(self._sampled(before))))
        while self._kept[0].at < now - KEPT_SECONDS:
            self._kept.popleft()
        self._head = encode(self._view(now))
        self._newest = b""

    async def _read_shared(self) -> None:
        asked_at = trio.current_time()
        try:
            found = await read_shared_figures(self._postgres)
        except ConvoError as error:
            log_records.figures_failed(reason=error.detail)
            return
        self._shared.append(_Shared(figures=found, read_at=asked_at))
        while len(self._shared) > 1 and self._shared[1].read_at <= asked_at - _LATELY_SECONDS:
            self._shared.popleft()

    def _sampled(self, before: _Shared | None) -> FigureSample:
        """Make the newest sample; ``before`` is what all processes shared at the one before it."""
        rates = rates_between(self._counts[-2], self._counts[-1]) if len(self._counts) > 1 else NO_RATES
        # Where the database does not answer, there is nothing newer than at the sample before.
        shared = self._shared[-1].figures if self._shared and self._shared[-1] is not before else None
        ended, came = _per_second(None if before is None else before.figures, shared)
        return FigureSample(
            seq=self._seq,
            at=round(time.time(), 3),
            accepted_per_s=came,
            done_per_s=ended,
            queue=None if shared is None else shared.ready + shared.delayed + shared.parked,
            oldest_s=None if shared is None else _age(shared),
            in_flight_calls=sum(one.in_flight for one in self._dependencies),
            **structs.asdict(rates),
        )

    # --- what is shown

    def _view(self, now: float) -> FiguresView:
        latest = self._shared[-1] if self._shared else None
        shared = None if latest is None else latest.figures
        queue = None
        if shared is not None:
            queue = QueueFigures(**{name: getattr(shared, name) for name in QueueFigures.__struct_fields__})
        return FiguresView(
            seconds=self._settings.sample_seconds,
            whole=True,
            process=self._process(),
            processes=() if shared is None else tuple(map(_process, shared.processes)),
            dependencies=tuple(map(_dependency, self._dependencies)),
            alerts=self._alerts.show().active,
            waits=waits_between(self._counts[0], self._counts[-1]),
            forecast=ForecastView(drained_in_seconds=self._drained_in()),
            queue=queue,
            oldest_seconds=None if shared is None else _age(shared),
            shared_age_seconds=None if latest is None else round(now - latest.read_at, 3),
            samples=(),
        )

    def _drained_in(self) -> float | None:
        if not self._shared:
            return None
        first, last = self._shared[0].figures, self._shared[-1].figures
        ended, came = _per_second(first, last)
        left = None if ended is None or came is None else drained_seconds(last.ready, ended, came)
        return None if left is None else round(left, 1)

    async def show(self, since: int, *, whole: bool) -> Answer:
        """Answer with the figures and the samples behind number ``since``; not ``whole``: with none of them.

        Raises:
            NotFound: no figures are taken here.
            DeadlineExceeded: the first figures could not be read in time.
        """
        if not self._settings.sample_seconds:
            raise NotFound("no figures are taken: page.sample_seconds is 0 (CONVO_PAGE__SAMPLE_SECONDS)")
        if not whole:
            return Answer(status=200, body=self.nothing())
        self._until = trio.current_time() + max(WANTED_SECONDS, _WANTED_PERIODS * self._settings.sample_seconds)
        self._asked.set()
        if not self._first.is_set():
            with deadline("web.figures", _FIRST_SECONDS):
                await self._first.wait()
        return Answer(status=200, body=self.behind(since))

    def behind(self, since: int) -> bytes:
        """Return the figures as they were sampled last, with the samples behind number ``since``, as JSON."""
        if since and since == self._seq - 1:
            # What all who have seen the one before get: made once.
            self._newest = self._newest or self._with_samples(since)
            return self._newest
        # A number that was not given here is another process's, or of before a start.
        return self._with_samples(since if since <= self._seq else 0)

    def _with_samples(self, since: int) -> bytes:
        samples = b",".join([kept.text for kept in self._kept if kept.seq > since])
        # The samples come last in the head, as an empty list.
        return b"".join((self._head[:-2], samples, b"]}"))

    # --- for live streams

    def join(self) -> None:
        """Take samples for one more viewer, until it leaves."""
        self._viewers += 1
        self._asked.set()

    def leave(self) -> None:
        """Count a viewer no more."""
        self._viewers -= 1

    @property
    def seq(self) -> int:
        """The number of the last sample; 0 while none is taken, or the first one has not been taken yet."""
        return self._seq if self._first.is_set() else 0

    def nothing(self) -> bytes:
        """Return, as JSON, what a key gets that does not reach the whole installation."""
        return encode(_nothing(self._settings.sample_seconds))


def _per_second(before: SharedFigures | None, now: SharedFigures | None) -> tuple[float | None, float | None]:
    """Return how many jobs ended a second, and how many came."""
    if before is None or now is None or now.at <= before.at:
        return None, None
    seconds = now.at - before.at
    # An erasure takes what it erases out of the books.
    rates = [max(0, count) / seconds for count in (now.ended - before.ended, now.accepted - before.accepted)]
    return round(rates[0], 2), round(rates[1], 2)


def _age(shared: SharedFigures) -> float:
    return round(max(0.0, shared.oldest_seconds), 3)


def _process(one: ProcessFigures) -> ProcessView:
    return ProcessView(**structs.asdict(one))


def _dependency(one: Dependency) -> DependencyFigures:
    return DependencyFigures(
        name=one.name,
        state=one.state(),
        reason="" if one.flows() and not one.misconfigured else one.described(),
        concurrency=one.concurrency,
        in_flight=one.in_flight,
        waiting=one.waiting,
    )


def _nothing(seconds: float) -> FiguresView:
    return FiguresView(
        seconds=seconds,
        whole=False,
        process="",
        processes=(),
        dependencies=(),
        alerts=(),
        waits=(),
        forecast=ForecastView(drained_in_seconds=None),
        queue=None,
        oldest_seconds=None,
        shared_age_seconds=None,
        samples=(),
    )
