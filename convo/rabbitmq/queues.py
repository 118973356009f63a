"""The queues that conversations come in by: declares them, or takes them as they are, and receives their messages.

All of it is run on the asyncio side, with aio-pika's own calls, when a connection is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from convo.rabbitmq.broker import Incoming

# Encodings that are no compression: some clients name the charset there.
_PLAIN = ("", "identity", "utf-8", "utf8", "binary")


def dead_name(queue: str) -> str:
    """Return what the exchange and the queue of refused messages are called."""
    return f"{queue}.dead"


async def take_from(channel: Any, queue: str, prefetch: int, arrived: Callable[[Incoming], None]) -> None:
    """Make what is missing at the broker, and have ``arrived`` called with each message of the queue.

    The broker sends at most ``prefetch`` messages beyond those that are acknowledged.
    """
    dead = dead_name(queue)
    exchange = await channel.declare_exchange(dead, "fanout", durable=True)
    await (await _declared(channel, dead, {"x-queue-type": "quorum"})).bind(exchange)
    # What the broker itself gives up, by a limit of deliveries, goes the same way.
    await _declared(channel, queue, {"x-queue-type": "quorum", "x-dead-letter-exchange": dead})
    await channel.set_qos(prefetch_count=prefetch)
    inner = await channel.get_underlay_channel()

    async def take(message: Any) -> None:
        properties = message.header.properties
        encoding = (properties.content_encoding or "").strip().lower()
        arrived(
            Incoming(
                tag=message.delivery.delivery_tag,
                body=bytes(message.body),
                content_encoding="" if encoding in _PLAIN else encoding,
                properties=properties,
            )
        )

    await inner.basic_consume(queue, take)


async def _declared(channel: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Return a durable queue: the one that is there, however it was declared, else a new one.

    The broker closes a channel on which a queue is declared otherwise, or is not found: each question has its own.
    """
    exceptions = import_module("aio_pika.exceptions")
    connection = channel._connection  # noqa: SLF001  (aio-pika has no other way back)
    probe = await connection.channel()
    try:
        await probe.declare_queue(name, durable=True, arguments=arguments)
    except exceptions.ChannelPreconditionFailed:
        # Its owner has made it otherwise, and knows why.
        return await channel.declare_queue(name, passive=True)
    await probe.close()
    return await channel.declare_queue(name, durable=True, arguments=arguments)
