#!/usr/bin/env python3
"""What each layer of an accept costs, in microseconds of CPU: layers are put on one after the other, in one process.

One client and one server share a loop and one connection, there is no database: a commit is a turn of the loop.
``wire`` is what the client, the sockets and the loop take by themselves; each further row is a layer more. The
ceiling's own connection (ceiling.py) stands beside them. Rounds alternate; the smallest of each counts, for whatever
disturbs a round makes it longer.

    .venv/bin/python scripts/bench/layers.py [--size 4000] [--rounds 7] [--requests 1500]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import trio
from msgspec import structs
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.conversation.decode import decode
from convo.conversation.tenant import Reach
from convo.http.connection import serve_connection
from convo.http.connections import Connections
from convo.http.context import ServerContext
from convo.http.forwarded import Proxies
from convo.observe import log
from convo.settings import ObserveSettings, Settings
from convo.store.group import Group
from convo.store.intake import Accept, Stored
from convo.web.accept import AcceptRoute, make_accept
from convo.web.admission import Admission
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.clients import Clients
from convo.web.description.messages import Answer, Head, Read
from convo.web.dispatch import Api, direct_targets
from convo.web.door import Door
from convo.web.readiness import Readiness
from scripts.bench import ceiling, load, machine

Serve = Callable[[trio.SocketStream], Awaitable[None]]
_RECEIVED = "2026-01-01T00:00:00Z"
_ANSWER = Answer(
    status=202,
    body=b"x" * 400,
    headers=[("Location", "/v1/conversations/bench-1"), ("Server-Timing", "total;dur=1.00")],
    timed=True,
)
_ACCEPT = make_accept(decode(b'{"conversation_id": "bench-1", "user_id": "u", "bot_id": "b"}'))
_run = itertools.count()


# --- the layers


async def _wire(stream: trio.SocketStream) -> None:
    """Read whatever comes, and answer."""
    answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    while data := await stream.receive_some(1 << 16):
        if data.endswith(b"}"):
            await stream.send_all(answer)


class _Reads(AcceptRoute, frozen=True):
    """The connection alone: whoever reads the body has all he wanted."""

    async def receive(self, _head: Head, read: Read, _reach: Reach) -> Answer:
        await read(lambda _: None)
        return _ANSWER


class _LetsIn(AcceptRoute, frozen=True):
    """What every request passes, too."""

    async def prepare(self, _body: bytes) -> Accept:
        return _ACCEPT

    async def _store(self, *_: object, **__: object) -> Answer:
        return _ANSWER


class _Prepares(AcceptRoute, frozen=True):
    """Decoding, checks, digest and compression, too."""

    async def _commit(self, *_: object) -> Answer:
        return _ANSWER


class _Commits:
    """A committer whose commit is a turn of the loop."""

    wait_seconds = 6.5

    def __init__(self) -> None:
        self.group: Group[Accept, Stored] = Group(
            self._commit, rows_max=256, bytes_max=1 << 24, unit_seconds=3.0, item_bytes=lambda accept: len(accept.body)
        )

    async def accept(self, accept: Accept, until: float | None = None) -> Stored:
        return await self.group.submit(accept, until)

    async def _commit(self, batch: Sequence[Accept]) -> list[Stored]:
        await trio.lowlevel.checkpoint()
        return [_stored(accept) for accept in batch]


def _stored(accept: Accept) -> Stored:
    return Stored(
        seq=1,
        conversation_id=accept.ended.conversation_id,
        digest=accept.digest,
        turns=accept.turns,
        received_at=cast("Any", _RECEIVED),
        notes=accept.notes,
        state="",
        replayed=False,
    )


def _api(kind: type[AcceptRoute], committer: Any) -> Api:
    settings, nothing = Settings(), cast("Any", Mock())
    readiness = Readiness()
    readiness.open()
    return Api(
        settings=settings,
        door=Door(
            browsers=Browsers(settings),
            readiness=readiness,
            authority=Authority(settings.auth, nothing),
            clients=Clients(settings.clients),
            raw_bytes_max=settings.web.raw_bytes_max,
        ),
        intake=kind(
            settings=settings.web,
            items_max=settings.intake.items_max,
            committer=committer,
            readiness=readiness,
            admission=Admission(settings.intake, settings.web.request_seconds),
        ),
        reading=nothing,
        explaining=nothing,
        streams=nothing,
        live=nothing,
        figures=nothing,
        sessions=nothing,
        reanalysing=nothing,
        auditing=nothing,
        erasing=nothing,
        webhooks=nothing,
        operations=nothing,
        capacity=nothing,
    )


def _door(kind: type[AcceptRoute], committer: Any) -> Serve:
    api = _api(kind, committer)
    settings = api.settings
    proxies = Proxies(settings.server)
    context = ServerContext(
        settings=settings,
        direct=direct_targets(api),
        app=cast("Any", None),
        connections=Connections(settings.connection, proxies, settings.connection.connections_max),
        proxies=proxies,
    )
    return lambda stream: serve_connection(context, stream)


LAYERS = ("wire", "connection", "door", "preparing", "committing", "ceiling")


@contextlib.asynccontextmanager
async def _layer(name: str) -> AsyncIterator[Serve]:
    if name == "wire":
        yield _wire
        return
    commits = _Commits()
    rows: ceiling.Accepts = Group(
        _rows, rows_max=256, bytes_max=1 << 24, unit_seconds=3.0, item_bytes=lambda accept: len(accept.body)
    )
    kinds: dict[str, type[AcceptRoute]] = {
        "connection": _Reads,
        "door": _LetsIn,
        "preparing": _Prepares,
        "committing": AcceptRoute,
    }
    async with trio.open_nursery() as nursery:
        await nursery.start(commits.group.run)
        await nursery.start(rows.run)
        yield (lambda stream: ceiling.serve(stream, rows)) if name == "ceiling" else _door(kinds[name], commits)
        nursery.cancel_scope.cancel()


async def _rows(batch: Sequence[Accept]) -> list[ceiling.Row]:
    await trio.lowlevel.checkpoint()
    return [structs.asdict(_stored(accept)) for accept in batch]


# --- measuring


async def _measure(name: str, tails: list[str], requests: int, connections: int) -> float:
    """Return the microseconds of CPU a request takes with so many layers."""
    run = next(_run)
    posts = [_post(f"layer-{run}-{number}", tails[number % len(tails)]) for number in range(requests)]
    async with _layer(name) as serve, trio.open_nursery() as nursery:
        clients = [_pair() for _ in range(connections)]
        for _, theirs in clients:
            nursery.start_soon(serve, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        await trio.sleep(0.05)
        started = time.process_time()
        async with trio.open_nursery() as asking:
            for number, (ours, _) in enumerate(clients):
                asking.start_soon(_ask, ours, posts[number::connections])
        used = time.process_time() - started
        for ours, _ in clients:
            ours.close()
    return used / requests * 1e6


async def _ask(ours: socket.socket, posts: Sequence[bytes]) -> None:
    ours.settimeout(0)
    for post in posts:
        ours.send(post)
        await trio.lowlevel.wait_readable(ours)
        answer = ours.recv(1 << 16)
        if b" 202 " not in answer[:20]:
            raise SystemExit(f"{answer[:200]!r}")


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        return ours, listening.accept()[0]


def _post(conversation_id: str, tail: str) -> bytes:
    body = f'{{"conversation_id": "{conversation_id}", {tail}'.encode()
    head = "POST /v1/conversations/end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4_000, help="bytes of a body")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1_500, help="requests a round")
    asked = parser.parse_args()
    tails = load.real_tails(asked.size)
    found: dict[str, list[float]] = {name: [] for name in LAYERS}
    with log.open_log(ObserveSettings(log_level="warning")):
        for _, name in itertools.product(range(asked.rounds), LAYERS):
            found[name].append(trio.run(_measure, name, tails, asked.requests, asked.connections))
    console = Console()
    for name, text in machine.about("none").items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    table = Table("with", "µs of CPU a request", "this layer", title=f"bodies of {asked.size} bytes")
    before = 0.0
    for name in LAYERS:
        least = min(found[name])
        table.add_row(name, f"{least:.0f}", "" if name == "ceiling" else f"{least - before:.0f}")
        before = least
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
