"""Brokers of the tests: the machine's RabbitMQ, and one that a test starts itself, to restart, freeze or fill it.

``CONVO_TEST_RABBITMQ_URL`` names the first one, and RabbitMQ's own programs make the second. Where either is missing,
its tests are skipped with the reason. What a test makes there has a name of its own, and is removed at its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from convo.rabbitmq.broker import Broker
from convo.runtime.bridge import open_bridge
from convo.settings import RabbitmqSettings, Secret
from tests.support.ports import free_port

URL = os.environ.get("CONVO_TEST_RABBITMQ_URL", "")
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONTROL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
_START_SECONDS = 90.0

needs_broker = pytest.mark.skipif(not URL, reason="CONVO_TEST_RABBITMQ_URL names no RabbitMQ")
needs_programs = pytest.mark.skipif(
    not (SERVER.exists() and shutil.which("erl")), reason="RabbitMQ's programs are not installed here"
)


def own_name(what: str) -> str:
    """Return a name that nothing else at the broker has."""
    return f"convo.test.{what}.{uuid.uuid4().hex[:12]}"


class Got:
    """A message that was taken from a queue."""

    def __init__(self, message: Any) -> None:
        self.body: bytes = message.body
        self.id: str = message.message_id
        self.type: str = message.type
        self.routing_key: str = message.routing_key
        self.headers: Mapping[str, Any] = message.headers
        self.content_type: str = message.content_type
        self.persistent: bool = message.delivery_mode == 2


class Client:
    """A connection of a test to a broker."""

    def __init__(self, bridge: Any, url: str) -> None:
        self._bridge = bridge
        self._broker = Broker(bridge, RabbitmqSettings(url=Secret(url)), "test", self._opened)
        self._channel: Any = None

    async def _opened(self, channel: Any) -> None:
        self._channel = channel

    async def do(self, function: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run a coroutine function with the channel, on the asyncio side."""
        with trio.fail_after(30):
            await self._broker.open()
            return await self._bridge.cross(function, self._channel)

    async def bound(
        self, queue: str, exchange: str, key: str = "#", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Make a durable queue that gets what is published to a topic exchange."""

        async def make(channel: Any) -> None:
            found = await channel.declare_exchange(exchange, "topic", durable=True)
            made = await channel.declare_queue(queue, durable=True, arguments=arguments)
            await made.bind(found, key)

        await self.do(make)

    async def taken(self, queue: str) -> list[Got]:
        """Take all that a queue holds now, a thousand at a time: on a busy machine each costs milliseconds."""

        async def take(channel: Any) -> list[Got]:
            found = await channel.get_queue(queue)
            some: list[Got] = []
            while len(some) < 1_000 and (message := await found.get(fail=False)) is not None:
                await message.ack()
                some.append(Got(message))
            return some

        got: list[Got] = []
        while some := await self.do(take):
            got += some
        return got

    async def sent(self, queue: str, *bodies: bytes, **properties: Any) -> None:
        """Put messages into a queue, each confirmed."""

        async def send(channel: Any) -> None:
            import aio_pika  # noqa: PLC0415

            for body in bodies:
                message = aio_pika.Message(body, delivery_mode=2, **properties)
                await channel.default_exchange.publish(message, queue)

        await self.do(send)

    async def held(self, queue: str) -> int:
        """Return how many messages of a queue wait to be taken."""

        async def count(channel: Any) -> int:
            found = await channel.declare_queue(queue, passive=True)
            return int(found.declaration_result.message_count)

        return int(await self.do(count))

    async def removed(self, *, queues: tuple[str, ...] = (), exchanges: tuple[str, ...] = ()) -> None:
        """Remove what a test has made."""

        async def remove(channel: Any) -> None:
            for name in queues:
                await channel.queue_delete(name)
            for name in exchanges:
                await channel.exchange_delete(name)

        await self.do(remove)

    async def close(self) -> None:
        """End the connection."""
        await self._broker.close()


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    """Yield a connection to a broker."""
    async with open_bridge() as bridge:
        client = Client(bridge, url)
        try:
            yield client
        finally:
            await client.close()  # noqa: ASYNC102  (each bounds itself)


@asynccontextmanager
async def queue_of_events(url: str = URL) -> AsyncIterator[tuple[Client, str, str]]:
    """Yield a client, a new topic exchange and a queue that gets all of it."""
    async with client_of(url) as client:
        exchange, queue = own_name("events"), own_name("queue")
        await client.bound(queue, exchange)
        try:
            yield client, exchange, queue
        finally:
            await client.removed(queues=(queue,), exchanges=(exchange,))  # noqa: ASYNC102  (each bounds itself)


class OwnBroker:
    """A RabbitMQ in a folder of its own, at ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._dist, self._epmd = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQSERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        (folder / "rabbitmq.conf").write_text(
            "vm_memory_high_watermark.absolute = 2GB\ndisk_free_limit.absolute = 1MB\n"
        )
        (folder / "plugins").write_text("[].\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [SERVER],
                env=self._environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        last = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert time.monotonic() < last, (self._folder / "out").read_text()[-2000:]
            assert self._process.poll() is None, (self._folder / "out").read_text()[-2000:]
            time.sleep(0.2)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\0\0\t\1")
            return bool(connection.recv(8))
        return False

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """End it in order."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def control(self, *words: str) -> str:
        """Run rabbitmqctl."""
        done = subprocess.run(
            [_CONTROL, *words],
            env=self._environment,
            capture_output=True,
            check=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.decode()

    def end(self) -> None:
        """Stop it, and the port mapper that it started."""
        self.kill()
        with suppress(subprocess.SubprocessError, OSError):
            subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True, timeout=10, check=False)


@asynccontextmanager
async def own_broker(folder: Path) -> AsyncIterator[OwnBroker]:
    """Yield a RabbitMQ that this test may kill."""
    folder.mkdir(parents=True, exist_ok=True)
    broker = OwnBroker(folder)
    try:
        await trio.to_thread.run_sync(broker.start)
        yield broker
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await trio.to_thread.run_sync(broker.end)
