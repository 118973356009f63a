from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import trio

from convo.errors import RemoteUnavailable
from convo.rabbitmq import relay
from convo.rabbitmq.broker import Outgoing, dependency_of
from convo.rabbitmq.relay import Relay
from convo.settings import RabbitmqSettings, Secret
from convo.store.couriers import LeasedCourier
from convo.store.event_rows import EventPage, StoredEvent

SETTINGS = RabbitmqSettings(url=Secret("amqp://localhost/"))


class PickyBroker:
    """A broker that confirms all but what is in ``refuses``; a chain ends there."""

    refuses: set[int]
    chains: list[list[list[int]]]
    at: list[float]

    def __init__(self, *_: object) -> None:
        self.refuses, self.chains, self.at = set(), [], []

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    async def publish(self, exchange: str, chains: Sequence[Sequence[Outgoing]], confirmed: set[int]) -> None:
        await trio.lowlevel.checkpoint()
        assert exchange == "convo.events"
        self.at.append(trio.current_time())
        self.chains.append([[one.number for one in chain] for chain in chains])
        for chain in chains:
            for one in chain:
                if one.number in self.refuses:
                    break
                confirmed.add(one.number)
        if self.refuses & {one.number for chain in chains for one in chain}:
            raise RemoteUnavailable("rabbitmq", "not confirmed")


class Table:
    """The table of couriers, and the events; ``token`` is that of the lease, None where another process has it."""

    def __init__(self, events: Sequence[StoredEvent]) -> None:
        self.events = events
        self.token: int | None = 1
        self.cursor = 0
        self.renewals = 0

    async def lease_courier(self, _: Any, name: str, owner: str) -> LeasedCourier | None:
        await trio.lowlevel.checkpoint()
        self.renewals += 1
        return None if self.token is None else LeasedCourier(name=name, token=self.token, cursor=self.cursor)

    async def read_events(self, _: Any, after: int, rows: int, types: Sequence[str]) -> EventPage:
        await trio.lowlevel.checkpoint()
        found = [one for one in self.events if one.sequence > after][:rows]
        return EventPage(events=found, looked_to=found[-1].sequence if found else after)

    async def move_cursor(self, _: Any, courier: LeasedCourier, cursor: int) -> bool:
        await trio.lowlevel.checkpoint()
        if courier.token != self.token:
            return False
        self.cursor = max(self.cursor, cursor)
        return True

    async def release_courier(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()
        self.token = None


def event(sequence: int, user: str) -> StoredEvent:
    return StoredEvent(
        number=sequence,
        salt=7,
        sequence=sequence,
        type="part.done",
        at=datetime.now(UTC),
        conversation_id=f"talk-{sequence}",
        user_id=user,
        bot_id="pika",
        data="{}",
    )


EVENTS = [event(number, user) for number, user in enumerate(("mia", "tom", "mia", "tom", "mia"), 1)]


@asynccontextmanager
async def relaying(
    monkeypatch: pytest.MonkeyPatch,
    refuses: set[int] = frozenset(),  # type: ignore[assignment]
) -> AsyncIterator[tuple[Relay, PickyBroker, Table]]:
    table = Table(EVENTS)
    monkeypatch.setattr(relay, "Broker", PickyBroker)
    monkeypatch.setattr(relay, "couriers", table)
    numberer: Any = SimpleNamespace(last=5)
    made = Relay(Mock(), Mock(), numberer, dependency_of("rabbitmq", SETTINGS), SETTINGS, lambda: "folder.1")
    broker: Any = made._broker
    broker.refuses = set(refuses)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made, broker, table
        nursery.cancel_scope.cancel()


async def test_events_of_one_user_are_one_chain_and_users_go_side_by_side(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with relaying(monkeypatch) as (_, broker, table):
        await trio.sleep(1)
    assert broker.chains == [[[1, 3, 5], [2, 4]]]
    assert table.cursor == 5


async def test_the_cursor_moves_behind_what_is_confirmed_without_a_gap_and_nothing_is_published_twice(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with relaying(monkeypatch, {3}) as (_, broker, table):
        await trio.sleep(1)
        assert table.cursor == 2
        broker.refuses = set()
        await trio.sleep(3)
        assert table.cursor == 5
    assert broker.chains == [[[1, 3, 5], [2, 4]], [[3, 5]]]


async def test_a_broker_that_confirms_nothing_is_tried_three_times_two_seconds_apart_then_the_breaker_opens(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with relaying(monkeypatch, {1, 2}) as (made, broker, table):
        began = trio.current_time()
        for _ in range(30):
            # New events ring all the time, and make no try come sooner.
            made.wake()
            await trio.sleep(0.5)
        assert [at - began for at in broker.at] == [0, 2, 4, 14]
        assert table.cursor == 0
        assert table.renewals >= 7, "the lease is renewed meanwhile"


async def test_a_process_without_the_lease_publishes_nothing_and_one_that_lost_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with relaying(monkeypatch) as (made, broker, table):
        table.token = None
        await trio.sleep(5)
        assert broker.chains == []
        table.token, table.cursor = 2, 3
        await trio.sleep(5)
        assert broker.chains == [[[4], [5]]]
        assert made._cursor == 5


async def test_an_attempt_that_could_outlast_the_lease_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with relaying(monkeypatch, {1, 2}) as (made, broker, _):
        await trio.sleep(1)
        before = len(broker.at)
        # As after a sleep of the machine: the lease was renewed long ago.
        made._leased_at = trio.current_time() - 16
        made._renew_at = trio.current_time() + 100
        assert await made._publish(EVENTS) is False
        assert len(broker.at) == before
        assert made._renew_at < trio.current_time()


async def test_a_stop_gives_the_lease_back(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock) -> None:
    async with relaying(monkeypatch) as (made, _, table):
        await trio.sleep(1)
        await made.leave()
        assert table.token is None
