"""A client's wire in memory, for tests of a connection without sockets."""

from __future__ import annotations

import trio

from convo.http.wire import PIECE_BYTES


class Memory:
    """A wire that holds what a client has sent, and keeps what it is answered."""

    encrypted = False

    def __init__(self, sent: bytes, piece: int = PIECE_BYTES) -> None:
        self._sent = memoryview(sent)
        self._piece = piece
        self.got = b""
        self.finished = False

    async def open(self) -> None:
        pass

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self._sent = self._sent[: self._piece], self._sent[self._piece :]
        return bytes(piece)

    receive_remains = receive

    def send_now(self, data: bytes) -> int:
        self.got += data
        return len(data)

    def pending(self) -> bool:
        return bool(self._sent)

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        pass
