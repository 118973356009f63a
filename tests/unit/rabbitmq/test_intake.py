from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from convo.errors import Conflict, ConvoError, DatabaseUnavailable, RemoteUnavailable
from convo.rabbitmq import intake
from convo.rabbitmq.broker import Incoming, Outgoing, dependency_of
from convo.rabbitmq.intake import QueueIntake
from convo.settings import RabbitmqSettings, Secret, Settings
from convo.store.group import Submitted
from convo.store.intake import Accept, Stored
from convo.web.clients import Clients
from tests.support.doors import accept_route
from tests.support.running import ended

SETTINGS = RabbitmqSettings(url=Secret("amqp://localhost/"), intake_queue="talks")


class RecordingBroker:
    """A broker that is always there, and notes what it is told."""

    def __init__(self, *_: object) -> None:
        self.is_open = False
        self.acknowledged: list[int] = []
        self.published: list[tuple[str, Outgoing]] = []
        self.refuses = False

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def publish(self, exchange: str, chains: Sequence[Sequence[Outgoing]], confirmed: set[int]) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise RemoteUnavailable("rabbitmq", "it went away")
        self.published += [(exchange, one) for chain in chains for one in chain]

    async def acknowledge(self, tags: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        self.acknowledged += tags


class HoldingCommitter:
    """A committer whose outcomes the test gives."""

    wait_seconds = 6.0

    def __init__(self) -> None:
        self.submitted: list[Submitted[Accept, Stored]] = []

    def enqueue(self, accept: Accept, until: float, then: Any) -> Submitted[Accept, Stored]:
        self.submitted.append(Submitted(accept, until, then))
        return self.submitted[-1]

    def answer(self, outcome: ConvoError | None = None) -> None:
        one = self.submitted.pop(0)
        ended = one.item.ended
        stored = Stored(
            seq=1,
            conversation_id=ended.conversation_id,
            digest="2:0",
            turns=1,
            received_at=datetime.now(UTC),
            notes=None,
            state="",
            replayed=False,
        )
        one.answer(outcome or stored)


@asynccontextmanager
async def taking(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[QueueIntake, RecordingBroker, HoldingCommitter]]:
    monkeypatch.setattr(intake, "Broker", RecordingBroker)
    committer = HoldingCommitter()
    route = accept_route(Settings(), committer)  # type: ignore[arg-type]
    dependency = dependency_of("rabbitmq_intake", SETTINGS)
    made = QueueIntake(Mock(), Mock(), dependency, SETTINGS, route, Clients(Settings().clients))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        await wait_all_tasks_blocked()
        yield made, made._broker, committer  # type: ignore[misc]
        nursery.cancel_scope.cancel()


def message(tag: int, body: bytes = b"") -> Incoming:
    properties = Mock(headers={"trace": "7"}, message_id="m-1", content_type="application/json", content_encoding=None)
    return Incoming(
        tag=tag,
        body=body or json.dumps(ended(f"talk-{tag}")).encode(),
        content_encoding="",
        properties=properties,
    )


async def test_a_message_is_acknowledged_after_its_commit_and_not_before(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with taking(monkeypatch) as (made, broker, committer):
        made._take(message(1))
        made._take(message(2))
        await trio.sleep(3)
        assert len(committer.submitted) == 2
        assert broker.acknowledged == []
        committer.answer()
        await trio.sleep(0.5)
        assert broker.acknowledged == [1]
        committer.answer()
        await trio.sleep(0.5)
        assert broker.acknowledged == [1, 2]
        assert broker.published == []


async def test_what_comes_at_a_bad_time_is_tried_again_and_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with taking(monkeypatch) as (made, broker, committer):
        made._take(message(1))
        made._take(message(2))
        await trio.sleep(0.5)
        committer.answer(DatabaseUnavailable("away"))
        committer.answer(DatabaseUnavailable("away"))
        await trio.sleep(0.5)
        assert committer.submitted == []
        await trio.sleep(1)
        assert [one.item.ended.conversation_id for one in committer.submitted] == ["talk-1", "talk-2"]
        assert (broker.acknowledged, broker.published) == ([], [])
        committer.answer()
        committer.answer()
        await trio.sleep(0.5)
        assert broker.acknowledged == [1, 2]


async def test_what_is_refused_is_put_aside_with_its_problem_and_then_acknowledged(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with taking(monkeypatch) as (made, broker, committer):
        made._take(message(1))
        made._take(message(2, b"{no json"))
        await trio.sleep(0.5)
        committer.answer(Conflict("another content"))
        await trio.sleep(0.5)
        assert sorted(broker.acknowledged) == [1, 2]
        assert {exchange for exchange, _ in broker.published} == {"talks.dead"}
        found = {one.number: one for _, one in broker.published}
        assert (found[2].body, found[2].id, found[2].content_type) == (b"{no json", "m-1", "application/json")
        assert (found[2].headers["convo-code"], found[2].headers["trace"]) == ("bad_request", "7")
        assert found[1].headers["convo-status"] == "409"
        assert found[1].headers["convo-conversation-id"] == "talk-1"


async def test_what_cannot_be_put_aside_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with taking(monkeypatch) as (made, broker, _):
        broker.refuses = True
        made._take(message(1, b"{no json"))
        await trio.sleep(3)
        assert broker.acknowledged == []
