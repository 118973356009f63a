"""The object storage of this installation: reads old logs, and writes, lists and deletes objects of logs.

Open it to change how long a call may take, or what is kept in memory of what was read. Each call goes through one of
two dependencies: reads, and all that writes. So packing delays no read, and neither delays what does not come here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from convo.errors import DeadlineExceeded, RemoteError
from convo.objects.s3 import Bucket, ListedFolder, ObjectMissing, dependency_of_packing, dependency_of_reads
from convo.observe import log_records, metrics
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings
from convo.store import log_objects
from convo.store.log_objects import LogObject
from convo.store.log_refs import LogRef, folder_of, month_of, object_key
from convo.store.logs import hash_of
from convo.store.postgres import RELAXED, Postgres

# As the logs that are kept in memory for jobs (store/logs.py).
_KEPT_SECONDS = 600.0


class ObjectStorage:
    """Of one process; ``reads`` and ``packing`` are its breakers."""

    def __init__(self, bucket: Bucket, postgres: Postgres, settings: LogsSettings) -> None:
        self._bucket = bucket
        self._postgres = postgres
        self._settings = settings
        self._folder = ""
        self._kept = KeptLogs(settings.cache_bytes)
        self.reads = dependency_of_reads(settings)
        self.packing = dependency_of_packing(settings)

    def forget(self) -> None:
        """Forget which installation it is: the database went back, or is another one."""
        self._folder = ""
        self._kept.clear()

    async def read_log(self, seq: int, ref: LogRef) -> bytes | None:
        """Read a packed log, and compare it with its hash; as ``logs.ReadObject``."""
        kept = self._kept.get(ref)
        metrics.old_logs_read_total.labels("miss" if kept is None else "hit").inc()
        if kept is not None:
            return kept
        key = object_key(await self.folder(), month_of(seq), ref.name)
        read: Callable[[], Awaitable[bytes]] = partial(self._bucket.read, key, ref.offset, ref.length)
        try:
            body = await self.reads.call("s3.get", read)
        except ObjectMissing:
            return None
        if hash_of(body) != ref.log_hash:
            return None
        self._kept.put(ref, body)
        return body

    async def inspect_at_start(self) -> None:
        """Refuse a bucket in which nothing can be erased; one that does not answer is looked at before it is used.

        Raises:
            Refused: it locks objects.
        """
        try:
            with deadline("s3_pack.inspect", self._settings.attempt_seconds):
                await self._bucket.inspect()
        except (RemoteError, DeadlineExceeded) as error:
            log_records.logs_waiting(what="looking at the bucket", reason=error.detail)

    async def inspect(self) -> str:
        """Return what the bucket is like.

        Raises:
            Refused: it locks objects.
            RemoteError: it cannot be asked now.
        """
        return await self.packing.call("s3_pack.inspect", self._bucket.inspect)

    async def write(self, planned: LogObject, body: bytes) -> None:
        """Write an object that was planned.

        Raises:
            RemoteError: it may be there, or come there still, or not.
        """
        key = await self.key_of(planned)
        await self.packing.call("s3_pack.put", partial(self._bucket.put, key, body))
        metrics.log_object_bytes_total.inc(len(body))

    async def read_whole(self, stored: LogObject) -> bytes | None:
        """Read an object, as far as it should go; None where it is not there.

        Raises:
            RemoteError: it cannot be read now.
        """
        key = await self.key_of(stored)
        try:
            return await self.packing.call("s3_pack.read", partial(self._bucket.read, key, 0, stored.bytes))
        except ObjectMissing:
            return None

    async def erase(self, leaving: LogObject) -> None:
        """Delete an object with all its versions.

        Raises:
            RemoteError: some may be left.
        """
        key = await self.key_of(leaving)
        await self.packing.call("s3_pack.erase", partial(self._bucket.erase, key))

    async def list_folder(self, folder: str) -> ListedFolder:
        """List what is in a folder of the bucket.

        Raises:
            RemoteError: it cannot be listed now.
        """
        return await self.packing.call("s3_pack.list", partial(self._bucket.list_folder, folder))

    async def key_of(self, one: LogObject) -> str:
        """Return the key of an object."""
        return object_key(await self.folder(), one.month, one.name)

    async def folder(self) -> str:
        """Return what the keys of this installation begin with."""
        if not self._folder:
            fingerprint = await self._postgres.run("db.log", log_objects.fingerprint, begin=RELAXED)
            self._folder = folder_of(self._settings.prefix, fingerprint)
        return self._folder


class KeptLogs:
    """Logs that were read lately, at most ``bytes_max``, for ten minutes. They are found by where they lie.

    Whoever asks has read that from the database, where nothing says it of a log that was erased.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._size = 0
        self._entries: OrderedDict[LogRef, tuple[bytes, float]] = OrderedDict()

    def get(self, ref: LogRef) -> bytes | None:
        """Return the log that lies there, if it is kept."""
        self._drop(lambda since: since < trio.current_time() - _KEPT_SECONDS)
        found = self._entries.get(ref)
        return None if found is None else found[0]

    def put(self, ref: LogRef, body: bytes) -> None:
        """Keep a log; the oldest go, where there is no room."""
        if len(body) > self._bytes_max or ref in self._entries:
            return
        self._entries[ref] = (body, trio.current_time())
        self._size += len(body)
        self._drop(lambda _: self._size > self._bytes_max)

    def clear(self) -> None:
        """Keep none."""
        self._entries.clear()
        self._size = 0

    def _drop(self, goes: Callable[[float], bool]) -> None:
        while self._entries:
            ref, (body, since) = next(iter(self._entries.items()))
            if not goes(since):
                return
            del self._entries[ref]
            self._size -= len(body)
