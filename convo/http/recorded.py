"""A client connection of a process that records traces: the waits for the client are spans of the request.

It stands in the place of ``ClientConnection``, so that a process that records nothing asks for nothing. What belongs to
no request is not recorded: the handshake, the time between requests, and a head that never came whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from convo.http.connection import ClientConnection
from convo.http.context import ServerContext
from convo.http.phases import COUNTED, ClientWaits
from convo.http.wire import Wire
from convo.observe.kept_request import KeptRequest, keeping
from convo.observe.traced_waits import ran_out


class RecordedConnection(ClientConnection):
    """As ``ClientConnection``; the span of a request that is recorded ends when its answer is written."""

    __slots__ = ("_kept",)

    def __init__(self, context: ServerContext, wire: Wire, transport: trio.SocketStream) -> None:
        self._kept = KeptRequest()
        super().__init__(context, wire, transport)
        self._stream.waits = ClientWaits(
            head=self._note_head,
            body=partial(self._note, "connection.body", COUNTED.body),
            write=partial(self._note, "connection.write", COUNTED.write),
        )

    def _note_head(self, seconds: float) -> None:
        COUNTED.head(seconds)
        self._kept.note_before("connection.head", seconds)

    def _note(self, name: str, count: Callable[[float], None], seconds: float) -> None:
        count(seconds)
        # Most requests are not recorded.
        if self._kept.span is not None:
            self._kept.note(name, seconds)

    async def run(self) -> None:
        """Answer request after request."""
        with keeping(self._kept):
            await super().run()

    def end(self) -> None:
        """As in every connection; a request that is under way still ends with it."""
        super().end()
        self._kept.end()

    def _forget_request(self) -> None:
        super()._forget_request()
        if self._kept.used:
            self._kept.end()

    def _out_of_time(self) -> None:
        super()._out_of_time()
        phase, kept = self.phase, self._kept
        if kept.span is None:
            return
        error = ran_out(f"connection.{phase}")
        if phase == "body":
            kept.note("connection.body", self._body.waited_seconds, error)
        elif phase == "write":
            kept.note("connection.write", kept.answered_seconds, error)
        kept.end(error)
