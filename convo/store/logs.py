"""The logs of conversations: how they are packed, where they are kept, and the ones that a worker need not read back.

Open it to keep logs in another place. PostgreSQL has each log at first. What has moved into object storage since is
read there by ``ReadObject``, for which ``convo/objects/reading.py`` stands.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

import trio
import zstandard
from msgspec import Struct

from convo.dependencies import OLD_LOGS
from convo.errors import LogsUnavailable, RemoteError, RemoteUnavailable, WrongLog
from convo.observe import log_records, metrics
from convo.store.log_refs import LogRef, parse_ref
from convo.store.months import DROPPED_LOG
from convo.store.postgres import SINGLE, Connection, Postgres

# Level 1 costs two thirds of level 3 on real conversations and packs nearly as well (stack notes, fact 8).
_LEVEL = 1
# Another process can take a job whose log is kept here, and nothing reports it. Such a log goes by its age, when room
# is needed.
_STALE_SECONDS = 60.0
# Nothing older is handed over. By then a job has waited for so long that one read more costs it nothing.
_AGE_SECONDS = 600.0
# When to ask again for a log that cannot be reached: about when the breaker lets the next read through.
_AWAY_SECONDS = 10.0
_TRIES = 2
_HASH_BYTES = 16
HEAD_BYTES = 18
"""The longest header of a zstd frame (RFC 8878), in which the size of its content stands."""
# A compressor's working memory is worth keeping, but cannot be shared between threads.
_own = threading.local()


ReadLog = Callable[[int], Awaitable[bytes | None]]
"""Returns the packed log of the job with this ``seq``, None when there is none."""
TakeLog = Callable[[int, str], Awaitable[bytes | None]]
"""Returns the packed log of a leased job by its ``seq`` and digest, None when there is none."""


ReadObject = Callable[[int, LogRef], Awaitable[bytes | None]]
"""Returns the packed log of this ``seq`` that lies there, None where it does not, as where it was written anew since.

Raises:
    RemoteError: the object storage cannot be reached now.
"""


class CommittedLog(Struct, frozen=True, kw_only=True, gc=False):
    """A packed log that was just committed, and whose it is."""

    seq: int
    digest: str
    body: bytes


def pack(log: bytes) -> bytes:
    """Compress the canonical JSON of a log."""
    compressor: zstandard.ZstdCompressor | None = getattr(_own, "compressor", None)
    if compressor is None:
        compressor = _own.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return compressor.compress(log)


def unpacked_bytes(head: bytes) -> int:
    """Return how long a log is once it is unpacked, by the first ``HEAD_BYTES`` of it, or by all; 0 where none says."""
    try:
        return max(0, zstandard.frame_content_size(head))
    except zstandard.ZstdError:
        return 0


def unpack(body: bytes) -> bytes:
    """Return the JSON of a log that ``pack`` compressed."""
    return zstandard.ZstdDecompressor().decompress(body)


def hash_of(body: bytes) -> bytes:
    """Return the hash of a packed log that is stored beside its digest: 16 bytes, in 2 to 4 microseconds.

    The digest itself cannot be made again from what is stored: the times as they were sent are not, nor whether a field
    was null or not there at all. And it would have to parse the log.
    """
    return hashlib.sha256(body).digest()[:_HASH_BYTES]


def check_log_hash(body: bytes, log_hash: bytes | None, conversation_id: str) -> None:
    """Pass if a packed log has the hash that was stored when its conversation was acknowledged.

    Conversations from before that hash was stored have None; theirs are trusted.

    Raises:
        WrongLog: it has not.
    """
    if log_hash is not None and hash_of(body) != log_hash:
        log_records.log_mismatch(conversation_id=conversation_id)
        raise WrongLog(
            "the stored log is not the one that was acknowledged: its hash is another; it was not analysed"
            " and is shown to nobody"
        )


def unpack_checked(body: bytes, log_hash: bytes | None, conversation_id: str) -> bytes:
    """Check a packed log against its hash, then unpack it; takes as long as the log is large.

    Raises:
        WrongLog: as ``check_log_hash``.
    """
    check_log_hash(body, log_hash, conversation_id)
    return unpack(body)


class LogStore:
    """Keeps packed logs, one for each conversation, in the table ``conversation_log``, which lies in months.

    A row has the log as its ``body``, or in ``storage_ref`` where it lies in object storage. ``PUT`` and ``ERASE`` are
    statements and not functions: they belong into the transactions of accept and of erasure, and accept stays one
    statement. Of a row that refers to an object, ``ERASE`` leaves a note by which the object is written anew
    (``log_objects``).
    """

    PUT: ClassVar[str] = """
        INSERT INTO conversation_log (seq, body)
        SELECT seq, sent.body FROM fresh JOIN sent USING (seq)
    """
    """For the statement of accept: ``sent`` are the rows that came, ``fresh`` those of them that are new."""

    SIZES: ClassVar[str] = f"""
        (SELECT octet_length(body) FROM conversation_log AS l WHERE l.seq = c.seq) AS packed_bytes,
        (SELECT coalesce(substring(body FROM 1 FOR {HEAD_BYTES}), convert_to(storage_ref, 'UTF8'))
         FROM conversation_log AS l WHERE l.seq = c.seq) AS log_head
    """
    """For a query of ``conversation AS c``: what ``sizes_of`` reads."""

    RETIRED: ClassVar[str] = f"""
        (c.log_retired IS TRUE OR ({DROPPED_LOG}
            AND NOT EXISTS (SELECT FROM conversation_log AS l WHERE l.seq = c.seq))) AS log_retired
    """
    """For a query of ``conversation AS c``: whether its log has expired, by itself or with the month of its receipt."""

    # By a join, for which each number opens its own partition; for a list of them the planner opens all.
    ERASE: ClassVar[str] = """
        DELETE FROM conversation_log AS l USING unnest($1::bigint[]) AS gone (seq) WHERE l.seq = gone.seq
    """

    def __init__(self, postgres: Postgres, read_object: ReadObject | None = None) -> None:
        self._postgres = postgres
        self._read_object = read_object

    async def read(self, seq: int) -> bytes | None:
        """Read the packed log of one conversation for a client; None when there is none.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it cannot be read now.
            LogsUnavailable: it lies in object storage, which cannot be reached now.
            WrongLog: what lies there is another log, or nothing.
        """
        try:
            return await self._read("db.log", seq)
        except RemoteError as error:
            raise LogsUnavailable(
                f"this log lies in object storage, which cannot be reached now ({error.detail})",
                retry_after_seconds=_AWAY_SECONDS,
            ) from error

    async def take(self, seq: int) -> bytes | None:
        """Read it for its job: as ``read``, but it does not wait for clients that read.

        Raises:
            DatabaseUnavailable, DeadlineExceeded, WrongLog: as ``read``.
            RemoteError: it lies in object storage, which cannot be reached now.
        """
        return await self._read("db.take", seq)

    async def _read(self, name: str, seq: int) -> bytes | None:
        # Again: between the row and the object, the log may have come into another object.
        refs: list[str] = []
        while len(refs) < _TRIES:
            row = await self._row(name, seq)
            if row is None:
                return None
            body: bytes | None = row["body"]
            if body is not None:
                return body
            refs.append(row["storage_ref"])
            found = await self._in_object(seq, parse_ref(refs[-1]))
            if found is not None:
                return found
        log_records.log_not_found(seq=seq, storage_ref=refs[-1])
        raise WrongLog("what lies in object storage is not the log that was put there; nobody is shown it")

    async def _row(self, name: str, seq: int) -> Mapping[str, Any] | None:

        async def body(connection: Connection) -> Mapping[str, Any] | None:
            return await connection.fetchrow(_READ, seq)

        return await self._postgres.run(name, body, begin=SINGLE)

    async def _in_object(self, seq: int, ref: LogRef) -> bytes | None:
        if self._read_object is None:
            raise RemoteUnavailable(OLD_LOGS, "logs.store is postgres here, and this log was moved: set it to s3")
        return await self._read_object(seq, ref)


def sizes_of(packed_bytes: int | None, head: bytes | None) -> tuple[int, int] | None:
    """Return how long a log is as it is stored and unpacked, by the columns of ``LogStore.SIZES``; None for no log."""
    if head is None:
        return None
    if packed_bytes is not None:
        return packed_bytes, unpacked_bytes(head)
    ref = parse_ref(head.decode())
    return ref.length, ref.unpacked_bytes


_READ = "SELECT body, storage_ref FROM conversation_log WHERE seq = $1"


class RecentLogs:
    """The packed logs of jobs that were just committed or leased, at most ``bytes_max``; others are read by ``read``.

    When it is full the newest are left out: jobs are leased oldest first, so those inside are asked for next.

    A log is handed over only to the job of the same ``seq`` and digest. A database that went back gives a ``seq`` to
    somebody else again; then ``contradicted`` is called.
    """

    def __init__(self, read: ReadLog, bytes_max: int, contradicted: Callable[[], None] = lambda: None) -> None:
        self._read = read
        self._bytes_max = bytes_max
        self._contradicted = contradicted
        self._size = 0
        self._entries: OrderedDict[int, tuple[CommittedLog, float]] = OrderedDict()

    def put(self, logs: Iterable[CommittedLog]) -> None:
        """Keep the packed logs of these jobs, as far as there is room."""
        now = trio.current_time()
        for log in logs:
            self._pop(log.seq)
            if self._size + len(log.body) > self._bytes_max:
                self._drop_stale(now)
            if self._size + len(log.body) <= self._bytes_max:
                self._entries[log.seq] = (log, now)
                self._size += len(log.body)

    def lacks(self, seq: int) -> bool:
        """Return whether no log of a job that is being leased is here, and there is room for one."""
        return seq not in self._entries and self._size < self._bytes_max

    async def take(self, seq: int, digest: str) -> bytes | None:
        """Return the packed log of a leased job and forget it, or read it from the store; None when it is nowhere.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it cannot be read now.
        """
        body = self._handed(seq, digest)
        metrics.handover_total.labels("miss" if body is None else "hit").inc()
        return await self._read(seq) if body is None else body

    def forget(self, seqs: Iterable[int]) -> None:
        """Forget the logs of these jobs, which were erased."""
        for seq in seqs:
            self._pop(seq)

    def clear(self) -> None:
        """Forget all: what was committed may not be so any more."""
        self._entries.clear()
        self._size = 0

    def _handed(self, seq: int, digest: str) -> bytes | None:
        log, since = self._pop(seq)
        if log is None or trio.current_time() - since > _AGE_SECONDS:
            return None
        if log.digest != digest:
            self._contradicted()
            return None
        return log.body

    def _pop(self, seq: int) -> tuple[CommittedLog | None, float]:
        log, since = self._entries.pop(seq, (None, 0.0))
        self._size -= len(log.body) if log else 0
        return log, since

    def _drop_stale(self, now: float) -> None:
        while self._entries:
            seq, (_, since) = next(iter(self._entries.items()))
            if now - since < _STALE_SECONDS:
                return
            self._pop(seq)
