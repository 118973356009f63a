"""Reads and writes the bytes of one connection, each wait under the deadline of the connection's present phase.

    handshake   TLS only
    idle        nothing of a next request has arrived; ends at once when the process stops
    head        from the first byte of a request
    body        has a limit as a whole and a minimum rate
    handler     the request's own deadlines hold inside; this is only the backstop
    write       64 KiB of the answer, until the kernel has accepted them
    stream      until the next piece of an answer that comes in pieces
    linger      reads what a refused client still sends, or it would not see the answer; a scope of its own

One cancel scope serves all phases: its deadline is moved. A scope for each phase would cost as much as reading the
request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio
from msgspec import Struct

from convo.http.wire import PIECE_BYTES, ClientGone, Wire
from convo.observe import metrics
from convo.settings import ConnectionSettings


class ClientWaits(Struct, frozen=True, kw_only=True):
    """What is called with the seconds of each wait for a client that has ended."""

    head: Callable[[float], None]
    body: Callable[[float], None]
    write: Callable[[float], None]


COUNTED = ClientWaits(
    head=metrics.wait_seconds.labels("connection.head").observe,
    body=metrics.wait_seconds.labels("connection.body").observe,
    write=metrics.wait_seconds.labels("connection.write").observe,
)
"""Counts them in the metrics, and does nothing else."""


# no deadline: PhasedStream.carry opens one scope around all that a connection does, and each phase moves its deadline
class PhasedStream:
    """One client's bytes.

    ``rest`` was read and not used yet. ``eof``: the client has ended its side. ``gone``: the connection is broken.
    ``answer_begun``: a part of the present answer is written. ``waits`` is called with each wait that ends.
    """

    __slots__ = (
        "_idle_until", "_now", "_resumed", "_scope", "_settings", "_stopped", "_wire", "answer_begun", "encrypted",
        "eof", "gone", "phase", "rest", "waits",
    )  # fmt: skip

    def __init__(self, wire: Wire, settings: ConnectionSettings) -> None:
        self._wire = wire
        self._settings = settings
        self._now = trio.lowlevel.current_clock().current_time  # trio.current_time() without its look-up
        self._scope = trio.CancelScope()
        self._idle_until = 0.0
        self._resumed = False
        self._stopped = False
        self.encrypted = wire.encrypted
        self.phase = "idle"
        self.rest = b""
        self.eof = False
        self.gone = False
        self.answer_begun = False
        self.waits = COUNTED

    # --- phases

    async def run(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work in the scope; false if a phase reached its deadline.

        The scope may end while the connection is idle and may stay idle (see ``idle``): the work is then begun again.
        """
        while True:
            with self._scope:
                await work()
            if not self._scope.cancelled_caught:
                return True
            if not self._may_resume():
                return False
            # If bytes have arrived, the connection is no longer idle: their phase sets the next deadline.
            self._resumed = not self.rest
            self._scope = trio.CancelScope(deadline=self._idle_until if self._resumed else math.inf)

    def enter(self, phase: str, until: float, *, early: float = 0.0) -> None:
        """Begin a phase; a deadline up to ``early`` seconds before ``until`` is left alone, because moving it costs."""
        self.phase = phase
        if not until - early <= self._scope.deadline <= until:
            self._scope.deadline = until

    def idle(self) -> None:
        """Begin the time within which the next request must begin.

        The scope keeps the earlier deadline of the last request, because most clients send their next request before
        it. If they do not, the scope ends and ``run`` begins again with the right deadline.
        """
        if not self._resumed:
            self._idle_until = self._now() + self._settings.keep_alive_seconds
        self._resumed = False
        self.enter("idle", self._idle_until, early=0.0 if self.encrypted else math.inf)

    def _may_resume(self) -> bool:
        """Tell whether only the time of the last request is over, which was answered, or a new request is here."""
        if self.phase != "idle" or self.encrypted or self._stopped:
            return False
        return bool(self.rest) or self._now() < self._idle_until

    def pending(self) -> bool:
        """Tell whether bytes have arrived that were not read yet."""
        return self._wire.pending()

    def end_if_idle(self) -> None:
        """End, if no request is under way and none has begun to arrive."""
        if self.phase == "idle" and not self._wire.pending():
            self._stopped = True
            self._scope.cancel()

    async def open(self) -> None:
        """Do the TLS handshake, if there is one. Raises: ClientGone."""
        if self.encrypted:
            self.enter("handshake", self._now() + self._settings.handshake_seconds)
            await self._wire.open()

    # --- reading

    async def more(self) -> bool:
        """Wait for bytes; false if the client has ended its side. Raises: ClientGone."""
        if self.eof:
            return False
        data = await self._wire.receive()
        self.rest = self.rest + data if self.rest else data
        self.eof = not data
        if self.phase == "idle" and self._now() >= self._scope.deadline:
            # The bytes and the deadline came in the same pass of the loop. Cancelled here, the work begins again with
            # the bytes in ``rest``; cancelled later, the request would be torn.
            await trio.lowlevel.checkpoint()
        return not self.eof

    async def silent(self) -> bool:
        """Read what has arrived; true if it was nothing, and the client has not ended its side. Raises: ClientGone."""
        return await self.more() and not self.rest

    async def until_gone(self) -> None:
        """Return when the client has broken the connection.

        The end of its side alone means nothing: it may have sent everything and still wait for the answer. One that has
        sent its next request already is not watched: what else it sends would be read, a step of the loop each time.
        """
        try:
            while not self.rest and await self.more():
                pass
        except ClientGone:
            self.gone = True
            return
        await trio.sleep_forever()

    # --- writing

    async def send(self, data: bytes) -> None:
        """Write a part of an answer; do nothing if the client is gone."""
        self.answer_begun = True
        if self.gone:
            return
        try:
            sent = self._wire.send_now(data)
            if sent < len(data):
                await self._send_rest(memoryview(data)[sent:])
        except ClientGone:
            self.gone = True

    async def _send_rest(self, rest: memoryview) -> None:
        phase, until, began = self.phase, self._scope.deadline, self._now()
        self.enter("write", began + self._settings.write_seconds)
        left = PIECE_BYTES
        while rest:
            sent = await self._wire.send(rest)
            rest = rest[sent:]
            left -= sent
            if left <= 0:
                left += PIECE_BYTES
                self.enter("write", self._now() + self._settings.write_seconds)
        took = self._now() - began
        self.waits.write(took)
        # A client that reads slowly must not use up the handler's time.
        self.enter(phase, until + took)

    async def linger(self, last: bytes) -> None:
        """Write ``last`` and read on for a while: closed with unread bytes, the socket would discard the answer."""
        self.phase = "linger"
        with trio.CancelScope(deadline=self._now() + self._settings.linger_seconds):
            try:
                sent = self._wire.send_now(last)
                if sent < len(last):
                    await self._send_rest(memoryview(last)[sent:])
                self._wire.finish()
                while await self._wire.receive_remains():
                    pass
            except ClientGone:
                pass

    def abort(self) -> None:
        """Make the kernel discard what the client has not read when the socket is closed."""
        self._wire.abort()
