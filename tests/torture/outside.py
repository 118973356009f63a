"""Who gets the events of a world, and how conversations come by a queue: a receiver of webhooks, and RabbitMQ.

``audit_events`` compares what each of them got with the outbox at the end: nothing is lost, each user's events came in
their order, and what came twice has the same id. RabbitMQ takes part where its programs are there.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from msgspec import Struct

from convo.rabbitmq.queues import dead_name
from convo.store.event_rows import event_id
from tests.support.brokers import SERVER, OwnBroker, client_of, own_broker
from tests.support.receivers import GOOD, Got, Receiver, Reply, receiving
from tests.torture.auditor import Finding, finding
from tests.torture.load import body
from tests.torture.world import World

_EXCHANGE, _QUEUE, _INTAKE = "convo.events", "torture.events", "torture.intake"
_SETTINGS = {
    "events.types": json.dumps(
        [
            *("conversation.accepted", "conversation.analysed", "conversation.dead", "conversation.erased"),
            *("part.done", "relationship.level_changed", "user.erased"),
        ]
    ),
    # Nothing steps aside: the order is to be kept through all of it.
    "events.hold_seconds": "3000",
    "webhooks.allow_private": "true",
    "webhooks.attempt_seconds": "3",
    "rabbitmq.attempt_seconds": "2",
    "rabbitmq.backoff_seconds": "0.5",
    "rabbitmq.breaker_open_seconds": "1",
    "rabbitmq.heartbeat_seconds": "2",
}
_STANDS_SECONDS = 120.0
_PER_SECOND = 6.0
# A pause is for the whole endpoint. More of them would let fewer events through than the load makes (70 a second).
_FAULTS = ((0.085, Reply(status=500)), (0.005, Reply(status=429, headers={"Retry-After": "1"})))


class Delivered(Struct, frozen=True):
    """An event as a receiver got it and has confirmed it, in the order in which they came."""

    id: str
    sequence: int
    type: str
    user: str | None


class Outside:
    """What takes part in a run besides the world."""

    def __init__(self, receiver: Receiver, broker: OwnBroker | None, seed: int) -> None:
        self.broker = broker
        self.sent_by_queue: set[str] = set()
        self._receiver = receiver
        self._chance = random.Random(seed)
        self._confirmed: list[Delivered] = []
        self._healed = False
        receiver.answer = self._answer

    @property
    def settings(self) -> dict[str, str]:
        """What the processes of the world are started with besides."""
        if self.broker is None:
            return {name: value for name, value in _SETTINGS.items() if not name.startswith("rabbitmq.")}
        return {**_SETTINGS, "rabbitmq.url": self.broker.url, "rabbitmq.intake_queue": _INTAKE}

    def _answer(self, got: Got) -> Reply:
        if got.event["type"] == "webhook.ping":
            return GOOD
        drawn = 1.0 if self._healed else self._chance.random()
        for share, reply in _FAULTS:
            if drawn < share:
                return reply
            drawn -= share
        self._confirmed.append(delivered(got.event))
        return GOOD

    def heal(self) -> None:
        """Let the receiver take everything from now on: what waits for it has to be delivered before the audit."""
        self._healed = True

    async def registered(self, world: World) -> None:
        """Register the receiver of webhooks, and make the queues."""
        async with httpx.AsyncClient(base_url=world.convos[0].url, timeout=10) as client:
            answer = await client.post("/v1/webhooks", json={"url": self._receiver.url})
            answer.raise_for_status()

    async def declared(self) -> None:
        """Make the queues, before anything is published."""
        if self.broker is None:
            return

        async def make(channel: Any) -> None:
            # No quorum queues: RabbitMQ 3.10 finds no leader for one of a single node that was killed.
            await channel.declare_queue(_INTAKE, durable=True)
            dead = await channel.declare_exchange(dead_name(_INTAKE), "fanout", durable=True)
            await (await channel.declare_queue(dead_name(_INTAKE), durable=True)).bind(dead)

        async with client_of(self.broker.url) as client:
            await client.bound(_QUEUE, _EXCHANGE)
            await client.do(make)

    async def send_by_queue(self, seed: int, count: int) -> None:
        """Put conversations into the queue, each until the broker has confirmed it."""
        if self.broker is None:
            return
        async with client_of(self.broker.url) as client:
            for number in range(count):
                name = f"queue-{seed}-{number:05}"
                content = json.dumps(body(name, f"queue-user-{number % 20}")).encode()
                while name not in self.sent_by_queue:
                    try:
                        with trio.fail_after(3):
                            await client.sent(_INTAKE, content)
                    except Exception:  # noqa: BLE001  (whatever the library says of a broker that is away)
                        await client.close()
                        await trio.sleep(0.3)
                    else:
                        self.sent_by_queue.add(name)
                await trio.sleep(1 / _PER_SECOND)

    async def until_delivered(self, world: World) -> None:
        """Wait until every event is confirmed and every message taken, for as long as there are fewer and fewer."""
        fewest = math.inf
        with trio.move_on_after(_STANDS_SECONDS) as standing:
            while waiting := await self._waiting(world):
                if waiting < fewest:
                    fewest = waiting
                    standing.deadline = trio.current_time() + _STANDS_SECONDS
                await trio.sleep(0.5)

    async def _waiting(self, world: World) -> int:
        (row,) = await world.ask(_WAITING)
        return int(row["waiting"]) + (await self._held(_INTAKE) if self.broker is not None else 0)

    async def _held(self, queue: str) -> int:
        assert self.broker is not None
        async with client_of(self.broker.url) as client:
            return await client.held(queue)

    async def audit(self, world: World) -> list[Finding]:
        """Compare what was received with the outbox."""
        rows = await world.ask(_EVENTS)
        waiting = await self._waiting(world)
        found = [*audit_events("webhook", self._confirmed, rows, world.gone_events, world.unnumbered_events)]
        found.append(finding("events and messages that still wait: not lost, late", range(waiting)))
        found.append(
            finding("accepted without one event of it (SQL)", [tuple(row) for row in await world.ask(_ONE_EACH)])
        )
        if self.broker is None:
            return found
        async with client_of(self.broker.url) as client:
            got = [delivered(json.loads(one.body)) for one in await client.taken(_QUEUE)]
            dead = await client.taken(dead_name(_INTAKE))
            left = await client.held(_INTAKE)
        stored = {row["conversation_id"] for row in await world.ask("SELECT conversation_id FROM conversation")}
        # What the database itself lost is not lost if a process reported it.
        reported = {name for record in world.log_records("receipts_missing") for name in record["conversation_ids"]}
        stored |= world.gone & reported
        refused = {one.headers.get("convo-conversation-id"): one.headers["convo-code"] for one in dead}
        # Its user was erased before it came.
        erased = {name for name, code in refused.items() if code == "erased"} | world.erased
        return [
            *found,
            *audit_events("RabbitMQ", got, rows, world.gone_events, world.unnumbered_events),
            finding("confirmed to a sender of messages, and lost", sorted(self.sent_by_queue - stored - erased)),
            finding("messages put aside", [name for name, code in refused.items() if code != "erased"]),
            finding("messages left in the queue", range(left)),
        ]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What is worth telling of it."""
        again = len(self._confirmed) - len({one.id for one in self._confirmed})
        return [
            ("events by webhook, of which repeated", f"{len(self._confirmed):,}, {again:,}"),
            (
                "conversations by queue",
                f"{len(self.sent_by_queue):,}" if self.broker else "RabbitMQ is not installed here",
            ),
        ]


def delivered(event: Mapping[str, Any]) -> Delivered:
    """Return of an event what the audit looks at."""
    return Delivered(event["id"], event["sequence"], event["type"], (event.get("data") or {}).get("user_id"))


def audit_events(
    who: str,
    got: Sequence[Delivered],
    rows: Sequence[Mapping[str, Any]],
    gone: Collection[str] = (),
    unnumbered: Collection[str] = (),
) -> list[Finding]:
    """Compare what ``who`` got, in its order, with the rows of the outbox.

    A database that was taken back does not have those ``gone``, and has given the ``unnumbered`` a second number.
    """
    stored = {event_id(row["number"], row["salt"]): row["sequence"] for row in rows}
    numbers: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
    ids: defaultdict[int, set[str]] = defaultdict(set)
    for one in got:
        if one.id not in unnumbered:
            numbers[one.id].add((one.sequence, one.type))
        ids[one.sequence].add(one.id)
    return [
        finding(f"events lost ({who})", sorted(stored.keys() - {one.id for one in got})),
        finding(f"events that never were ({who})", sorted(numbers.keys() - stored.keys() - set(gone))),
        finding(f"one event under two ids, or two under one ({who})", _not_one(numbers, ids)),
        finding(f"out of a user's order ({who})", _out_of_order(got)),
    ]


def _not_one(numbers: Mapping[str, set[tuple[int, str]]], ids: Mapping[int, set[str]]) -> list[object]:
    several = [one for one, found in numbers.items() if len(found) > 1]
    return [*several, *(number for number, found in ids.items() if len(found) > 1)]


def _out_of_order(got: Sequence[Delivered]) -> list[str]:
    """Find events that came after a later one of the same user, repetitions aside; a stub has no user any more."""
    odd, seen, last = [], set[str](), Counter[str]()
    for one in got:
        if one.user is None or one.id in seen:
            continue
        seen.add(one.id)
        if one.sequence < last[one.user]:
            odd.append(f"{one.sequence} of {one.user} after {last[one.user]}")
        last[one.user] = max(last[one.user], one.sequence)
    return odd


@asynccontextmanager
async def open_outside(folder: Path, seed: int) -> AsyncIterator[Outside]:
    """Start a receiver of webhooks, and RabbitMQ where it is installed."""
    async with AsyncExitStack() as stack:
        receiver = stack.enter_context(receiving())
        broker = None
        if SERVER.exists() and shutil.which("erl"):
            broker = await stack.enter_async_context(own_broker(folder))
        outside = Outside(receiver, broker, seed)
        await outside.declared()
        yield outside


# --- what goes wrong with it


async def broker_killed(world: World, seconds: float) -> None:
    """Kill RabbitMQ, and start it again after a while."""
    broker = world.broker
    if broker is not None:
        await trio.to_thread.run_sync(broker.kill)
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(broker.start)


async def broker_stands_still(world: World, seconds: float) -> None:
    """Stop all of RabbitMQ's processes for a while (SIGSTOP)."""
    broker = world.broker
    if broker is not None:
        broker.signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            broker.signal(signal.SIGCONT)


_EVENTS = "SELECT number, salt, sequence FROM event"
_WAITING = """
SELECT (SELECT count(*) FROM event WHERE sequence IS NULL)
     + (SELECT count(*) FROM webhook JOIN event ON sequence > cursor)
     + (SELECT count(*) FROM courier JOIN event ON sequence > cursor)
     + (SELECT count(*) FROM webhook_aside) AS waiting
"""
# Those that have expired have a receipt.
_ONE_EACH = """
SELECT receipt.seq, count(event.seq) FROM receipt
LEFT JOIN event ON event.seq = receipt.seq AND event.type = 'conversation.accepted'
WHERE receipt.state <> 'e' GROUP BY receipt.seq HAVING count(event.seq) <> 1
"""
