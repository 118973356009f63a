from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tests.support.proxy import Proxy, open_proxy


@asynccontextmanager
async def echo_behind_a_proxy() -> AsyncIterator[Proxy]:
    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for piece in stream:
                await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        async with open_proxy(("127.0.0.1", listeners[0].socket.getsockname()[1])) as proxy:
            yield proxy
        nursery.cancel_scope.cancel()


async def exchange(stream: trio.SocketStream, text: bytes) -> bytes:
    await stream.send_all(text)
    return bytes(await stream.receive_some())


async def test_what_goes_in_comes_out() -> None:
    async with echo_behind_a_proxy() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        assert await exchange(stream, b"hello") == b"hello"


async def test_a_cut_tears_down_what_is_open_and_refuses_what_is_new_until_it_is_healed() -> None:
    async with echo_behind_a_proxy() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        assert await exchange(stream, b"hello") == b"hello"
        proxy.cut()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", proxy.port)
        proxy.heal()
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as again:
            assert await exchange(again, b"again") == b"again"


async def test_while_it_hangs_nothing_comes_and_then_all_of_it() -> None:
    async with echo_behind_a_proxy() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        assert await exchange(stream, b"hello") == b"hello"
        proxy.hang()
        with trio.move_on_after(0.1) as waited:
            await exchange(stream, b"held")
        assert waited.cancelled_caught
        proxy.heal()
        with trio.fail_after(10):
            assert await stream.receive_some() == b"held"


async def test_a_delay_comes_before_every_piece() -> None:
    async with echo_behind_a_proxy() as proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        proxy.delay(0.1)
        began = trio.current_time()
        assert await exchange(stream, b"hello") == b"hello"
        assert trio.current_time() - began >= 0.2
