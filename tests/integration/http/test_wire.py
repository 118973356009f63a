from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from convo.http.wire import PIECE_BYTES, ClientGone, Plain, Wire, addresses, wire_of
from tests.support.running import eventually


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[socket.socket, Wire, trio.SocketStream]]:
    """Connect a client's socket to a wire over TCP."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(listening.accept()[0]))
        wire, transport = wire_of(stream)
        try:
            with trio.fail_after(10):
                yield client, wire, transport
        finally:
            wire.close()


async def test_bytes_come_as_they_were_sent_and_none_at_the_end() -> None:
    async with connected() as (client, wire, _):
        client.sendall(b"abc")
        assert await wire.receive() == b"abc"
        assert not wire.pending()
        client.shutdown(socket.SHUT_WR)
        assert await wire.receive() == b""


async def test_a_wire_waits_for_bytes() -> None:
    async with connected() as (client, wire, _), trio.open_nursery() as nursery:
        nursery.start_soon(wire.receive)
        await trio.testing.wait_all_tasks_blocked()
        client.sendall(b"abc")


async def test_pending_bytes_are_seen_without_reading_them() -> None:
    async with connected() as (client, wire, _):
        client.sendall(b"abc")
        await eventually(wire.pending)
        assert await wire.receive() == b"abc"


async def test_what_does_not_fit_is_written_when_the_client_reads() -> None:
    async with connected() as (client, wire, _):
        await eventually(lambda: not wire.send_now(bytes(16 << 20)))
        sent: list[int] = []

        async def send() -> None:
            sent.append(await wire.send(memoryview(bytes(16 << 20))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert sent == []
            client.settimeout(0)
            with suppress(BlockingIOError):
                while not sent:
                    client.recv(1 << 20)
                    await trio.sleep(0.001)
        assert 0 < sent[0] <= PIECE_BYTES


async def test_a_broken_connection_is_reported_by_reading_and_by_writing() -> None:
    async with connected() as (client, wire, _):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ClientGone):
            await wire.receive()
        with pytest.raises(ClientGone):
            wire.send_now(b"x")


async def test_after_our_side_ended_the_client_can_still_send() -> None:
    async with connected() as (client, wire, _):
        wire.finish()
        assert client.recv(1) == b""
        client.sendall(b"abc")
        assert await wire.receive() == b"abc"


async def test_an_aborted_connection_is_reset_for_the_client() -> None:
    async with connected() as (client, wire, _):
        wire.abort()
        wire.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


async def test_the_addresses_are_the_clients_and_the_one_it_connected_to() -> None:
    async with connected() as (client, wire, transport):
        assert isinstance(wire, Plain)
        assert addresses(transport) == ("127.0.0.1", client.getpeername())
