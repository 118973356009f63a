"""A network that can fail: a TCP proxy on loopback that cuts, hangs and delays what goes through it, on demand."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

Target = tuple[str, int] | Path
"""Where the bytes go: an address, or a Unix socket."""

_PIECE_BYTES = 65536
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Proxy:
    """One listening port; ``cut``, ``hang``, ``delay`` and ``heal`` decide what becomes of its bytes."""

    def __init__(self, target: Target, port: int) -> None:
        self.port = port
        self.opened = 0
        self._target = target
        self._delay_seconds = 0.0
        self._flows = trio.Event()
        self._flows.set()
        self._reachable = trio.Event()
        self._reachable.set()
        self._listening = trio.CancelScope()
        self._pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = set()

    def cut(self) -> None:
        """Tear down every connection with RST, and refuse new ones."""
        self._reachable = trio.Event()
        self._listening.cancel()
        self.drop()

    def drop(self) -> None:
        """Tear down every connection with RST, and take new ones."""
        for pair in list(self._pairs):
            for stream in pair:
                with suppress(*_GONE):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()

    def hang(self) -> None:
        """Keep every connection, take new ones, and let no byte through."""
        if self._flows.is_set():
            self._flows = trio.Event()

    def delay(self, seconds: float) -> None:
        """Let every piece through so much later."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """Let everything through again."""
        self._delay_seconds = 0.0
        self._flows.set()
        self._reachable.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take connections until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                listener = await _listen(self.port)
                self.port = listener.socket.getsockname()[1]
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                with listener.socket, trio.CancelScope() as self._listening:
                    while True:
                        nursery.start_soon(self._pass_through, await listener.accept())
                await self._reachable.wait()

    async def _pass_through(self, near: trio.SocketStream) -> None:
        async with near:
            with suppress(*_GONE):
                await self._flows.wait()
                async with await self._reach() as far:
                    await self._both_ways(near, far)

    async def _reach(self) -> trio.SocketStream:
        if isinstance(self._target, Path):
            return await trio.open_unix_socket(str(self._target))
        return await trio.open_tcp_stream(*self._target)

    async def _both_ways(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        pair = (near, far)
        self._pairs.add(pair)
        self.opened += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
                nursery.start_soon(self._pump, far, near, nursery.cancel_scope)
        finally:
            self._pairs.discard(pair)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        with suppress(*_GONE):
            async for piece in source:
                await self._flows.wait()
                if self._delay_seconds:
                    await trio.sleep(self._delay_seconds)
                await sink.send_all(piece)
        both.cancel()


async def _listen(port: int) -> trio.SocketListener:
    """Listen on a port of loopback; repeat while one of our own connections still uses it."""
    while True:
        try:
            (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            await trio.sleep(0.05)
        else:
            return listener


@asynccontextmanager
async def open_proxy(target: Target, *, port: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy for as long as the block runs."""
    proxy = Proxy(target, port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
