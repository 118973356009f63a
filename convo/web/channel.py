"""The bytes of one connection, each wait for them under the deadline of its phase; it knows no request.

    handshake   TLS only
    idle        nothing has come of a next request; ends at once when the process stops
    head        from its first byte
    body        as a whole, and no slower than a rate
    handler     the request's budget, which has its own deadlines inside; here only the backstop
    write       64 KiB of the answer, until the kernel has them
    linger      what a client still sends after it was refused, or it would not see why; a scope of its own

There is one cancel scope, whose deadline is moved from phase to phase.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from convo.config import ConnectionSettings
from convo.observe import metrics
from convo.web.wire import PIECE_BYTES, Gone, Wire


class Channel:
    """Reads and writes one client's bytes.

    ``rest`` was read and belongs to nothing yet; ``eof``: the client has ended its side; ``gone``: it has broken off;
    ``said``: something of the answer under way is written.
    """

    __slots__ = (
        "_dismissed", "_idle_until", "_now", "_resumed", "_scope", "_settings", "_wire", "encrypted", "eof", "gone",
        "phase", "rest", "said",
    )  # fmt: skip

    def __init__(self, wire: Wire, settings: ConnectionSettings) -> None:
        self._wire = wire
        self._settings = settings
        self._now = trio.lowlevel.current_clock().current_time  # trio.current_time() by the short way
        self._scope = trio.CancelScope()
        self._idle_until = 0.0
        self._resumed = False
        self._dismissed = False
        self.encrypted = wire.encrypted
        self.phase = "idle"
        self.rest = b""
        self.eof = False
        self.gone = False
        self.said = False

    # --- phases

    async def carry(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work in the scope, anew where it was idle; false when a phase came to its deadline first."""
        while True:
            with self._scope:
                await work()
            if not self._scope.cancelled_caught:
                return True
            if not self._may_go_on():
                return False
            # Whoever has sent something waits no longer: what that is decides how long it may take.
            self._resumed = not self.rest
            self._scope = trio.CancelScope(deadline=self._idle_until if self._resumed else math.inf)

    def enter(self, phase: str, until: float, *, early: float = 0.0) -> None:
        """Begin a phase; a deadline up to ``early`` seconds before its own stays, for to move it is dear."""
        self.phase = phase
        if not until - early <= self._scope.deadline <= until:
            self._scope.deadline = until

    def idle(self) -> None:
        """Let the time begin to run in which the next request has to begin.

        The end of the last request's time may stay the scope's deadline until it has come: most clients are back
        before, and who is idle can be carried on.
        """
        if not self._resumed:
            self._idle_until = self._now() + self._settings.keep_alive_seconds
        self._resumed = False
        self.enter("idle", self._idle_until, early=0.0 if self.encrypted else math.inf)

    def _may_go_on(self) -> bool:
        """Tell whether it was only the last request's time that is over, which was answered, or a new one is here."""
        if self.phase != "idle" or self.encrypted or self._dismissed:
            return False
        return bool(self.rest) or self._now() < self._idle_until

    def pending(self) -> bool:
        """Tell whether something has come that was not read yet."""
        return self._wire.pending()

    def dismiss(self) -> None:
        """End, if nothing is under way and nothing is about to be."""
        if self.phase == "idle" and not self._wire.pending():
            self._dismissed = True
            self._scope.cancel()

    async def open(self) -> None:
        """Do what comes before the first byte. Raises: Gone."""
        if self.encrypted:
            self.enter("handshake", self._now() + self._settings.handshake_seconds)
            await self._wire.open()

    # --- reading

    async def more(self) -> bool:
        """Wait for bytes; false when none will come. Raises: Gone."""
        if self.eof:
            return False
        data = await self._wire.receive()
        self.rest = self.rest + data if self.rest else data
        self.eof = not data
        if self.phase == "idle" and self._now() >= self._scope.deadline:
            # It came in the very turn of the loop in which the deadline did: here it is carried on, later it is torn.
            await trio.lowlevel.checkpoint()
        return not self.eof

    async def until_gone(self) -> None:
        """Return when the client has broken off.

        That its side has ended says nothing: it may have sent all it wanted and still wait for the answer.
        """
        try:
            while len(self.rest) < PIECE_BYTES and await self.more():
                pass
        except Gone:
            self.gone = True
            return
        await trio.sleep_forever()

    # --- writing

    async def send(self, data: bytes) -> None:
        """Write a part of an answer; nothing happens when the client is gone."""
        self.said = True
        if self.gone:
            return
        try:
            await self._send_all(data)
        except Gone:
            self.gone = True

    async def _send_all(self, data: bytes) -> None:
        sent = self._wire.send_now(data)
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

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
        metrics.wait_seconds.labels("connection.write").observe(took)
        # The handler's time stood still meanwhile.
        self.enter(phase, until + took)

    async def see_off(self, farewell: bytes) -> None:
        """Say the last words, and read on for a while: what stays unread would take the answer with it."""
        self.phase = "linger"
        with trio.CancelScope(deadline=self._now() + self._settings.linger_seconds):
            try:
                if farewell:
                    await self._send_all(farewell)
                self._wire.finish()
                while await self._wire.receive_remains():
                    pass
            except Gone:
                pass

    def abort(self) -> None:
        """Have the kernel forget what the client has not taken."""
        self._wire.abort()
