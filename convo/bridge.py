"""The crossing from trio into asyncio and back; it knows nothing of what is called there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio_asyncio

from convo.errors import DatabaseUnavailable
from convo.observe import events

T = TypeVar("T")


class Bridge:
    """An open asyncio loop; ``cross`` runs one coroutine function on it."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    async def cross(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run one asyncio coroutine function to its end, cancelling it when the trio caller is cancelled.

        A whole unit of work is one crossing: a body that went back and forth would lose pool slots when cancelled.

        Raises:
            DatabaseUnavailable: the asyncio library cancelled its own futures (our cancellation is ``trio.Cancelled``).
        """
        # A caller started in a nursery that opened before the loop did not inherit the current loop.
        token = trio_asyncio.current_loop.set(self._loop)
        try:
            return await trio_asyncio.aio_as_trio(function)(*args)  # type: ignore[no-any-return]
        except asyncio.CancelledError as error:
            raise DatabaseUnavailable("the asyncio side dropped the call") from error
        finally:
            trio_asyncio.current_loop.reset(token)


def _report(_loop: object, context: dict[str, Any]) -> None:
    # The loop's own handler would raise into its nursery and end the process (an exception nobody awaited).
    events.asyncio_stray(text=str(context.get("message", "")), error=repr(context.get("exception")))


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Open the asyncio loop, outermost of all resources, and close it last."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_report)
        yield Bridge(loop)


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Bound an await on the asyncio side; for the clean-up after a trio cancellation, which no scope bounds any more.

    Raises:
        TimeoutError: it took longer than ``seconds``.
    """
    return await asyncio.wait_for(awaitable, seconds)
