"""``Client``: what ``AsyncClient`` does, for a program without an event loop.

It runs an ``AsyncClient`` in a thread of its own, so that a deadline ends every wait, also one for an answer that comes
byte by byte. Threads may share it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple, Unpack, cast

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from convo.client import answers
from convo.client.async_client import CALL_SECONDS, AsyncClient, Attempt, Body
from convo.client.faults import ClientError, ProblemError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Client:
    """A client of one convo server, to be used in a ``with`` block; its methods are those of ``AsyncClient``."""

    def __init__(  # noqa: PLR0913  (as AsyncClient)
        self,
        url: str,
        *,
        key: str = "",
        call_seconds: float = CALL_SECONDS,
        connections: int = 16,
        attempted: Callable[[Attempt], None] = lambda _: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            url,
            key=key,
            call_seconds=call_seconds,
            connections=connections,
            attempted=attempted,
            transport=transport,
        )
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        """Start the thread and open the client. Raises: ClientError, as ``AsyncClient``."""
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            stack.enter_context(portal.wrap_async_context_manager(self._client))
            self._stack, self._portal = stack.pop_all(), portal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection, and end the thread."""
        self._portal = None
        self._stack.__exit__(kind, error, trace)

    # --- what is sent

    def post(self, body: Body) -> answers.Receipt:
        """Post a finished conversation, and return its receipt. Raises: as ``AsyncClient.post``."""
        return self._run(self._client.post, body)

    def batch(self, bodies: Iterable[Body]) -> Iterator[answers.Receipt | ProblemError]:
        """Post many conversations, and yield what became of each, in order. Raises: as ``AsyncClient.batch``."""
        return self._each(self._client.batch(bodies))

    def retry(self, conversation_id: str) -> None:
        """Make a dead letter ready again. Raises: as ``AsyncClient.retry``."""
        self._run(self._client.retry, conversation_id)

    # --- what was found

    def conversation(
        self, conversation_id: str, *, revision: int | None = None, cost: bool = False
    ) -> answers.Conversation:
        """Return a conversation and what was found so far. Raises: as ``AsyncClient.conversation``."""
        return self._run(partial(self._client.conversation, conversation_id, revision=revision, cost=cost))

    def wait(self, conversation_id: str, seconds: float = CALL_SECONDS) -> answers.Conversation:
        """Wait at most ``seconds`` until the analysis has ended. Raises: as ``AsyncClient.wait``."""
        return self._run(self._client.wait, conversation_id, seconds)

    def conversations(
        self,
        *,
        user_id: str | None = None,
        user_prefix: str | None = None,
        bot_id: str | None = None,
        state: str | None = None,
    ) -> Iterator[answers.ConversationSummary]:
        """Yield conversations, newest first. Raises: as ``AsyncClient.conversations``."""
        return self._each(
            self._client.conversations(user_id=user_id, user_prefix=user_prefix, bot_id=bot_id, state=state)
        )

    def turns(self, conversation_id: str) -> Iterator[answers.Turn]:
        """Yield the turns of a conversation in order. Raises: as ``AsyncClient.turns``."""
        return self._each(self._client.turns(conversation_id))

    def log_as_sent(self, conversation_id: str) -> bytes:
        """Return the log as it was sent. Raises: as ``AsyncClient.log_as_sent``."""
        return self._run(self._client.log_as_sent, conversation_id)

    def relationship(self, user_id: str) -> answers.Relationship:
        """Return a user's score and level. Raises: as ``AsyncClient.relationship``."""
        return self._run(self._client.relationship, user_id)

    def bots(self, user_id: str) -> Iterator[answers.BotRelationship]:
        """Yield a user's relationship with each bot. Raises: as ``AsyncClient.bots``."""
        return self._each(self._client.bots(user_id))

    def memories(self, user_id: str) -> Iterator[answers.Memory]:
        """Yield what is remembered about a user. Raises: as ``AsyncClient.memories``."""
        return self._each(self._client.memories(user_id))

    # --- the thread

    def _run(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *arguments: *Ts) -> T:
        if self._portal is None:
            raise ClientError("this client is closed: use it inside its `with` block")
        return self._portal.call(function, *arguments)

    def _each(self, rows: AsyncIterator[T]) -> Iterator[T]:
        while (row := self._run(_next, rows)) is not _END:
            yield cast("T", row)


_END = object()


async def _next(rows: AsyncIterator[T]) -> T | object:
    return await anext(rows, _END)
