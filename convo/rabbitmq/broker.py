"""One connection to RabbitMQ: opened when it is needed, given up when anything goes wrong with it, then opened anew.

Open it to change how convo speaks AMQP. What is published and when is decided in ``relay``, what becomes of a message
that came in ``intake``. aio-pika is imported where a connection is made, so a process without RabbitMQ needs none.

A call crosses into asyncio once, with all that belongs to it. The callers hold the deadlines.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Any, TypeVar

import trio
from msgspec import Struct

from convo.errors import DatabaseUnavailable, Refused, RemoteDenied, RemoteError, RemoteUnavailable
from convo.outbound import trusted_authorities
from convo.resilience.dependency import Dependency
from convo.runtime.bridge import Bridge, side_by_side, within
from convo.runtime.deadline import deadline
from convo.settings import RabbitmqSettings, RemoteSettings

T = TypeVar("T")

_NAME = "rabbitmq"
_CLOSE_SECONDS = 1.0
_WORDS_MAX = 200


class Outgoing(Struct, frozen=True, kw_only=True):
    """A message that is to be published; ``number`` is what it is known by here."""

    number: int
    id: str
    routing_key: str
    body: bytes
    content_type: str
    at: datetime | None = None
    content_encoding: str = ""
    headers: Mapping[str, Any] = {}


class Incoming(Struct, frozen=True, kw_only=True, gc=False):
    """A message that came; ``tag`` is what it is acknowledged by, on the connection that it came with."""

    tag: int
    body: bytes
    content_encoding: str
    properties: Any


class Broker:
    """A connection with one channel; ``opened`` is called on each new channel, with aio-pika's own calls.

    It is used by one task at a time, but for ``acknowledge`` and ``publish`` beside each other.
    """

    def __init__(
        self, bridge: Bridge, settings: RabbitmqSettings, purpose: str, opened: Callable[[Any], Awaitable[None]]
    ) -> None:
        self._bridge = bridge
        self._settings = settings
        self._purpose = purpose
        self._opened = opened
        self._library = _aio_pika()
        self._connection: Any = None
        self._channel: Any = None
        self._consumes = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known; one that the broker sends messages to no more is none."""
        channel = self._channel
        return channel is not None and not channel.is_closed and bool(channel.consumers) is self._consumes

    async def open(self) -> None:
        """Connect, unless there is a connection.

        Raises:
            RemoteUnavailable: the broker cannot be reached.
            RemoteDenied: it does not let convo do what it has to; a setting is wrong, here or there.
        """
        if not self.is_open:
            await self._call(self._open)

    async def publish(self, exchange: str, chains: Sequence[Sequence[Outgoing]], confirmed: set[int]) -> None:
        """Publish messages, and add to ``confirmed`` the numbers of those that the broker has confirmed.

        The messages of one chain go one after the other, each when the one before it is confirmed; chains go side by
        side. A chain ends with the first message that fails.

        Raises:
            RemoteUnavailable: some were not confirmed.
            RemoteDenied: no queue takes some of them.
        """
        await self._call(self._publish_all, exchange, chains, confirmed)

    async def acknowledge(self, tags: Sequence[int]) -> None:
        """Acknowledge messages of this connection.

        Raises:
            RemoteUnavailable: the connection broke: the broker will deliver them again.
        """
        await self._call(self._acknowledge, tags)

    async def close(self) -> None:
        """Give the connection up; nobody waits long for a broker that does not answer."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is None:
            return
        with trio.CancelScope(shield=True), suppress(RemoteError), deadline("rabbitmq.close", 2 * _CLOSE_SECONDS):
            await self._call(_close, connection)

    def server(self) -> str:
        """Return the name and version of the broker that it is connected to."""
        found = self._connection.transport.connection.server_properties
        return f"{_text(found.get('product'))} {_text(found.get('version'))}"

    async def _call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        try:
            return await self._bridge.cross(function, *args)  # no deadline: the callers have one
        except self._library.exceptions.CONNECTION_EXCEPTIONS as error:
            raise self._mapped(error) from error
        except DatabaseUnavailable as error:  # the crossing's word for a library that cancels its own futures
            raise RemoteUnavailable(_NAME, "the connection was closed") from error

    # --- the asyncio side

    async def _open(self) -> None:
        settings = self._settings
        url = self._library.connection.make_url(settings.url.reveal())
        connection = self._library.Connection(
            url.update_query(heartbeat=settings.heartbeat_seconds),
            client_properties={"connection_name": f"convo {self._purpose}"},
            ssl_context=_certificates(settings),
        )
        # Not `aio_pika.connect`: one that is cancelled there is left to the collector, open.
        try:
            await connection.connect()
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            await self._opened(channel)
            inner = await channel.get_underlay_channel()
        except BaseException:
            await _close(connection)  # noqa: ASYNC102  (asyncio's side; it has a bound)
            raise
        self._connection, self._channel = connection, inner
        self._consumes = bool(inner.consumers)

    async def _publish_all(self, exchange: str, chains: Sequence[Sequence[Outgoing]], confirmed: set[int]) -> None:
        # aio-pika's own `publish` waits until each message is written before it takes the next one.
        channel = self._channel

        async def follow(chain: Sequence[Outgoing]) -> None:
            for one in chain:
                await channel.basic_publish(
                    one.body,
                    exchange=exchange,
                    routing_key=one.routing_key,
                    properties=self._properties(one),
                    mandatory=True,
                    wait=False,
                )
                confirmed.add(one.number)

        ends = await side_by_side([lambda chain=chain: follow(chain) for chain in chains])  # type: ignore[misc]
        failed = next(filter(None, ends), None)
        if failed is not None:
            raise failed

    def _properties(self, one: Outgoing) -> Any:
        message = self._library.Message(
            b"",
            message_id=one.id or None,
            type=one.routing_key,
            content_type=one.content_type or None,
            content_encoding=one.content_encoding or None,
            timestamp=one.at,
            headers=dict(one.headers),
            delivery_mode=self._library.DeliveryMode.PERSISTENT,
        )
        return message.properties

    async def _acknowledge(self, tags: Sequence[int]) -> None:
        for tag in tags:
            await self._channel.basic_ack(tag, wait=False)

    def _mapped(self, error: BaseException) -> RemoteError:
        known = self._library.exceptions
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:_WORDS_MAX]}"
        if isinstance(error, known.PublishError):
            return RemoteDenied(_NAME, f"no queue takes what was published: bind one to the exchange ({words})")
        if isinstance(error, known.InvalidFrameError):
            # The library's words for a broker that closes the connection in the middle of its opening.
            return RemoteDenied(_NAME, f"the broker refused the virtual host, or its user may not use it ({words})")
        denied = (
            *(known.AuthenticationError, known.ProbableAuthenticationError),
            *(known.ChannelPreconditionFailed, known.ChannelNotFoundEntity),
            *(import_module("aiormq.exceptions").ChannelAccessRefused, known.IncompatibleProtocolError),
        )
        return RemoteDenied(_NAME, words) if isinstance(error, denied) else RemoteUnavailable(_NAME, words)


def dependency_of(name: str, settings: RabbitmqSettings) -> Dependency:
    """Return the breaker and deadline of one purpose that RabbitMQ is called for; the caller makes the next attempt."""
    return Dependency(
        name,
        RemoteSettings(
            attempt_seconds=settings.attempt_seconds,
            attempts=1,
            concurrency=1,
            breaker_failures=settings.attempts,
            breaker_open_seconds=settings.breaker_open_seconds,
        ),
    )


async def check(bridge: Bridge, settings: RabbitmqSettings) -> str:
    """Connect once; return the name and version of the broker.

    Raises:
        Refused: aio-pika is not installed.
        RemoteError: the broker cannot be reached, or refuses convo.
        DeadlineExceeded: it did not answer in time.
    """
    broker = Broker(bridge, settings, "check", _nothing)
    try:
        with deadline("rabbitmq.check", settings.attempt_seconds):
            await broker.open()
        return broker.server()
    finally:
        await broker.close()  # noqa: ASYNC102  (shields itself, with a bound)


async def _nothing(_channel: Any) -> None:
    """Declare nothing."""


async def _close(connection: Any) -> None:
    try:
        with suppress(Exception):
            await within(_CLOSE_SECONDS, connection.close())
    finally:
        # Where that was cut short, the library takes the connection for open, and the collector would close it, in
        # whichever task or thread it runs then. The second call has nothing left to wait for.
        if not connection.is_closed:
            await connection.close()  # noqa: ASYNC102  (asyncio's side; it returns at once)


def _certificates(settings: RabbitmqSettings) -> Any:
    if not settings.url.reveal().startswith("amqps:"):
        return None
    return trusted_authorities(_NAME, settings.ca_file, verify=settings.verify)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _aio_pika() -> Any:
    try:
        library = import_module("aio_pika")
    except ModuleNotFoundError:
        raise Refused(
            "rabbitmq.url is set, and aio-pika, which convo speaks to RabbitMQ with, is not installed: run"
            " `pip install 'convo[rabbitmq]'` (scripts/serve installs it by itself), or unset rabbitmq.url"
        ) from None
    # They log each failure in words of their own, with the address; it is reported here, once.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library
