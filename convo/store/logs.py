"""The log store: compressed bytes in PostgreSQL, and a map that hands them to a worker without reading them back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

import trio
import zstandard

from convo.observe import metrics
from convo.store.postgres import Connection, Postgres

# Level 1 costs two thirds of level 3 on real conversations and packs nearly as well (stack notes, fact 8).
_LEVEL = 1
# An entry whose job another process took is of no more use; nothing tells us, so it goes by age, when room is needed.
_STALE_SECONDS = 60.0
# A compressor's working memory is worth keeping, but not shared between threads.
_own = threading.local()


def pack(log: bytes) -> bytes:
    """Compress the canonical JSON of a log."""
    compressor: zstandard.ZstdCompressor | None = getattr(_own, "compressor", None)
    if compressor is None:
        compressor = _own.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return compressor.compress(log)


def unpack(body: bytes) -> bytes:
    """Return the JSON of a log that ``pack`` compressed."""
    return zstandard.ZstdDecompressor().decompress(body)


class Handover:
    """Packed logs of jobs that were just committed, at most ``bytes_max`` of them.

    When it is full the newest are left out: jobs are taken oldest first, so those inside are the next to be asked for.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._size = 0
        self._entries: OrderedDict[int, tuple[bytes, float]] = OrderedDict()

    def put(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Keep the packed logs of these jobs, as far as there is room."""
        now = trio.current_time()
        for seq, body in entries:
            if self._size + len(body) > self._bytes_max:
                self._drop_stale(now)
            if self._size + len(body) <= self._bytes_max:
                self._entries[seq] = (body, now)
                self._size += len(body)

    def take(self, seq: int) -> bytes | None:
        """Return a job's packed log and forget it; None when it is not here."""
        body, _ = self._entries.pop(seq, (None, 0.0))
        metrics.handover_total.labels("miss" if body is None else "hit").inc()
        if body is not None:
            self._size -= len(body)
        return body

    def _drop_stale(self, now: float) -> None:
        while self._entries:
            seq, (body, since) = next(iter(self._entries.items()))
            if now - since < _STALE_SECONDS:
                return
            del self._entries[seq]
            self._size -= len(body)


async def read(postgres: Postgres, seq: int) -> bytes | None:
    """Read a job's packed log from the store; None when it is missing."""

    async def body(connection: Connection) -> bytes | None:
        stored: bytes | None = await connection.fetchval("SELECT body FROM conversation_log WHERE seq = $1", seq)
        return stored

    return await postgres.run("db.log", body)
