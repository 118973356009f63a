"""Clients on wires in memory: which of their requests take turns, and that those are answered one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.http.connection import ClientConnection
from convo.http.connections import Connections
from convo.http.context import DirectTarget, ServerContext
from convo.http.forwarded import Proxies
from convo.http.turns import Turns
from convo.settings import Settings
from convo.web.description.messages import Answer, Bound, Head, NextPiece, Read
from tests.support.doors import END, Receive, Send, answer, get, statuses
from tests.support.memory_wire import Memory

SETTINGS = Settings()
GOOD = get(END, "Content-Length: 2", method="POST") + b"{}"
EMPTY = get(END, method="POST")
_LONGER_THAN_A_TURN_WAITS = 0.005
FLOODS: Mapping[str, bytes] = {"to the app": get("/nothing"), "direct": get("/readyz"), "refused": EMPTY}


async def end(_: Head, read: Read, _next_piece: NextPiece, bound: Bound) -> Answer:
    with bound(8.0):
        return Answer(status=202 if await read(lambda _: None) else 415, body=b"{}")


async def ready(_head: Head, _read: Read, _next_piece: NextPiece, _bound: Bound) -> Answer:
    return Answer(status=200, body=b"{}")


async def app(_scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    await answer(send, b"{}", status=404)


class Clients:
    """Serves clients of one process, each from what it has sent."""

    def __init__(self, end: Callable[[Head, Read, NextPiece, Bound], Awaitable[Answer]] = end) -> None:
        proxies = Proxies(SETTINGS.server)
        self.turns = Turns()
        self._context = ServerContext(
            settings=SETTINGS,
            direct={
                END.encode(): DirectTarget(method="POST", path=END, takes_turns=False, answer=end),
                b"/readyz": DirectTarget(method="GET", path="/readyz", takes_turns=True, answer=ready),
            },
            app=cast("Any", app),
            connections=Connections(SETTINGS.connection, proxies, 100),
            proxies=proxies,
            turns=self.turns,
        )

    async def serve(self, wire: Memory) -> None:
        connection = ClientConnection(
            self._context, cast("Any", wire), Mock(socket=Mock(getsockname=Mock(side_effect=OSError)))
        )
        await connection.run()
        await connection.linger()


@pytest.mark.parametrize(
    ("sent", "before", "after"),
    [
        (GOOD * 3, [202] * 3, []),
        (FLOODS["to the app"], [], [404]),
        (FLOODS["direct"], [], [200]),
        (GOOD + EMPTY + GOOD * 2, [202, 415], [202] * 2),
    ],
    ids=["accepts", *FLOODS],
)
async def test_only_accepts_do_not_wait_for_others_and_not_behind_what_was_refused(
    autojump_clock: MockClock, sent: bytes, before: list[int], after: list[int]
) -> None:
    clients, wire = Clients(), Memory(sent)
    async with trio.open_nursery() as nursery, clients.turns.turn("10.0.0.1"):
        nursery.start_soon(clients.serve, wire)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert statuses(wire.got) == before
    assert statuses(wire.got) == before + after


async def test_a_request_whose_turn_does_not_come_in_time_is_answered_503(autojump_clock: MockClock) -> None:
    clients, wire = Clients(), Memory(FLOODS["direct"])
    start = autojump_clock.current_time()
    async with clients.turns._first, trio.open_nursery() as nursery:
        nursery.start_soon(clients.serve, wire)
    assert statuses(wire.got) == [503]
    assert b"connection.handler" in wire.got
    assert 8.0 < autojump_clock.current_time() - start < 8.0 + SETTINGS.connection.linger_seconds + 0.5


@pytest.mark.parametrize("name", FLOODS)
async def test_of_many_clients_that_flood_one_request_is_answered_before_other_tasks_run(name: str) -> None:
    clients, most, before = Clients(), 0, 0
    wires = [Memory(FLOODS[name] * 5) for _ in range(10)]

    def answered() -> int:
        return sum(wire.got.count(b"HTTP/1.1 ") for wire in wires)

    async def watch() -> None:
        nonlocal most, before
        while answered() < 50:
            if answered() > 10 * (name == "refused"):  # the first refusal of a client is like any other post
                most = max(most, answered() - before)
            before = answered()
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for wire in wires:
            nursery.start_soon(clients.serve, wire)
    assert answered() == 50
    assert most == 1


class Patient(Memory):
    """A client that stays after it has sent what it has."""

    async def receive(self) -> bytes:
        return await super().receive() or await trio.sleep_forever()


@pytest.mark.parametrize(
    ("sent", "before"), [(GOOD, []), (GOOD[:-1], [200])], ids=["its body is here", "its body has not come"]
)
@pytest.mark.parametrize("error", [None, ValueError])
async def test_others_begin_after_an_accept_from_when_its_body_is_here(
    mock_clock: MockClock, sent: bytes, before: list[int], error: type[Exception] | None
) -> None:
    stored = trio.Event()

    async def end(_: Head, read: Read, _next_piece: NextPiece, bound: Bound) -> Answer:
        with bound(8.0):
            await read(lambda _: None)
            await stored.wait()
        if error is not None:
            raise error
        return Answer(status=202, body=b"{}")

    clients, accept, other = Clients(end), Patient(sent), Memory(FLOODS["direct"])

    async def serve() -> None:
        with suppress(ValueError):
            await clients.serve(accept)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked(_LONGER_THAN_A_TURN_WAITS)
        nursery.start_soon(clients.serve, other)
        await wait_all_tasks_blocked(_LONGER_THAN_A_TURN_WAITS)
        assert statuses(other.got) == before
        stored.set()
        await wait_all_tasks_blocked(_LONGER_THAN_A_TURN_WAITS)
        assert statuses(other.got) == [200]
        nursery.cancel_scope.cancel()
