from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from convo.conversation.tenant import Reach, Tenant
from convo.errors import DatabaseUnavailable
from convo.settings import EventsSettings, PageSettings, Settings
from convo.store import event_stream
from convo.store.event_stream import EventCount
from convo.web import live
from convo.web.description.messages import Head
from convo.web.door import RouteRequest
from convo.web.live import LiveStreams, changes_by_reach
from convo.web.open_streams import OpenStreams

ACME = Tenant(number=3, name="acme")
ALL, PIKA, OTHERS = Reach(), Reach(bots=("pika", "mia")), Reach(tenant=ACME)


def count(number: int, *, tenant: int = 0, bot: str | None = None, kind: Any = "conversation.accepted") -> EventCount:
    return EventCount(tenant=tenant, bot_id=bot, type=kind, count=number)


def test_each_reach_gets_the_counts_of_what_it_reaches_alone() -> None:
    counts = [
        count(1, bot="pika"),
        count(2, bot="mia", kind="part.done"),
        count(4),
        count(8, tenant=3, bot="pika"),
        count(16, tenant=3),
        count(32, kind="user.erased"),
    ]
    assert changes_by_reach([ALL, PIKA, OTHERS, Reach(bots=("tom",))], counts) == {
        ALL: {"conversation.accepted": 5, "part.done": 2, "user.erased": 32},
        PIKA: {"conversation.accepted": 1, "part.done": 2},
        OTHERS: {"conversation.accepted": 24},
    }


class Events:
    """Counts in the place of the database: one event for each number."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.last = 0
        self.asked: list[float] = []
        self.away = False
        patch.setattr(event_stream, "count_changes", self._count)

    async def _count(self, _postgres: Any, after: int, last: int, _reaches: Any) -> tuple[Sequence[EventCount], int]:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        if self.away:
            raise DatabaseUnavailable("away")
        return [count(last - after)], last


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    return Events(monkeypatch)


def made(events: Events) -> LiveStreams:
    authority = Mock()
    authority.shown_by.return_value = None
    settings = Settings(page=PageSettings(sample_seconds=0.0), events=EventsSettings(types=("conversation.accepted",)))
    streams = OpenStreams(100, lambda _: True)
    return LiveStreams(settings, Mock(), Mock(seq=0), authority, streams, numbered=lambda: events.last)


class Viewer:
    """One who looks: the changes that came, each with its time."""

    def __init__(self) -> None:
        self.got: list[tuple[float, int, int]] = []
        self.frames: list[bytes] = []

    async def look(
        self, streams: LiveStreams, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        head = Head(method="GET", path="/v1/live", peer="", started=0.0)
        request = RouteRequest(head=head, read=Mock(), next_piece=Mock())
        stream = (await streams.stream(request)).stream
        assert stream is not None
        try:
            assert (await stream.next_piece()).startswith(b"retry: 2000\nevent: live\n")
            task_status.started()
            while piece := await stream.next_piece():
                for frame in piece.split(b"\n\n"):
                    if frame.startswith(b"event: changes"):
                        shown = json.loads(frame.partition(b"\ndata: ")[2])
                        now = round(trio.current_time() - 0.001, 1)
                        self.got.append((now, shown["sequence"], shown["types"]["conversation.accepted"]))
                        self.frames.append(piece)
        finally:
            stream.end()


async def test_the_first_change_comes_at_once_and_the_next_in_its_period(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last = 1000
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    await nursery.start(viewer.look, streams)
    await trio.sleep(10)
    began = trio.current_time()
    for _ in range(40):
        events.last += 1
        streams.wake()
        await trio.sleep(0.1)
    await trio.sleep(10)
    assert [round(at - began, 1) for at, _, _ in viewer.got] == [0.1, 2.1, 4.1]
    assert sum(number for _, _, number in viewer.got) == 40
    assert viewer.got[-1][1] == 1040


async def test_the_first_event_of_an_installation_is_counted(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    await trio.sleep(3)
    await nursery.start(viewer.look, streams)
    events.last = 1
    await trio.sleep(3)
    assert [(sequence, number) for _, sequence, number in viewer.got] == [(1, 1)]


async def test_where_much_happens_changes_come_less_often(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last = 1000
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    await nursery.start(viewer.look, streams)
    await trio.sleep(10)
    for _ in range(200):
        events.last += 100
        streams.wake()
        await trio.sleep(0.1)
    times = [at for at, _, _ in viewer.got]
    # The first one, of few, is followed by another one soon.
    assert {round(after - before, 1) for before, after in pairwise(times[1:])} == {live.BUSY_PERIOD_SECONDS}


async def test_twenty_who_look_cost_one_count_a_period_and_get_the_same_bytes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last = 1000
    streams, viewers = made(events), [Viewer() for _ in range(20)]
    nursery.start_soon(streams.run)
    for viewer in viewers:
        await nursery.start(viewer.look, streams)
    for _ in range(10):
        events.last += 1
        await trio.sleep(2)
    assert len(events.asked) <= 10
    assert len({tuple(viewer.frames) for viewer in viewers}) == 1


async def test_nothing_is_counted_while_nobody_looks_and_who_comes_gets_what_happens_then(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last = 1000
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    for _ in range(10):
        events.last += 100
        await trio.sleep(1)
    assert events.asked == []
    await trio.sleep(1.5)
    await nursery.start(viewer.look, streams)
    events.last += 3
    await trio.sleep(3)
    assert [(sequence, number) for _, sequence, number in viewer.got] == [(2003, 3)]


async def test_what_could_not_be_counted_is_counted_later(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last, events.away = 1000, True
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    await nursery.start(viewer.look, streams)
    await trio.sleep(3)
    events.last += 5
    await trio.sleep(5)
    assert viewer.got == []
    events.away = False
    await trio.sleep(5)
    assert [(sequence, number) for _, sequence, number in viewer.got] == [(1005, 5)]


async def test_after_the_database_went_back_numbers_count_from_there(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, events: Events
) -> None:
    events.last = 1000
    streams, viewer = made(events), Viewer()
    nursery.start_soon(streams.run)
    await nursery.start(viewer.look, streams)
    await trio.sleep(3)
    events.last = 0
    streams.forget()
    await trio.sleep(3)
    later = Viewer()
    events.last = 500
    await trio.sleep(3)
    await nursery.start(later.look, streams)
    events.last += 2
    await trio.sleep(3)
    assert [(sequence, number) for _, sequence, number in later.got] == [(502, 2)]
