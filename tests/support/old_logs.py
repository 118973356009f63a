"""A process whose logs move into a bucket: its parts, and what a test asks of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import zstandard
from msgspec import Struct, structs

from convo.objects.keeper import LogsKeeper
from convo.objects.packing import Packer
from convo.objects.rewriting import Rewriter
from convo.objects.s3 import Bucket
from convo.objects.storage import ObjectStorage
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings, LogsSettings, Settings
from convo.store import process_programs
from convo.store.logs import LogStore
from convo.store.migrations import number_of
from convo.store.postgres import Connection, Postgres, open_postgres
from tests.support.buckets import logs_settings
from tests.support.making import Process, open_process, rows, settled

T = TypeVar("T")


class Crashed(Exception):
    """The process has died; whoever catches it has died as well."""


class Steps:
    """Counts what a process does outside itself, and lets it die before or after one of these steps."""

    def __init__(self, at: int = -1) -> None:
        self._at = at
        self.count = 0

    async def take(self, call: Callable[[], Awaitable[T]]) -> T:
        """Take one step: ``at`` is twice its number, and one more for a death behind it."""
        number, self.count = self.count, self.count + 1
        if number > self._at // 2 >= 0 or self._at == 2 * number:
            raise Crashed
        found = await call()
        if self._at == 2 * number + 1:
            raise Crashed
        return found


class Stepping:
    """A database or a bucket each of whose calls is a step."""

    def __init__(self, inner: Any, steps: Steps, *names: str) -> None:
        self._inner = inner
        self._steps = steps
        self._names = names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args, **named: self._steps.take(lambda: found(*args, **named))


class OldLogs(Struct, frozen=True):
    """A process, and what moves its logs."""

    process: Process
    storage: ObjectStorage
    packer: Packer
    rewriter: Rewriter
    keeper: LogsKeeper
    log_store: LogStore
    bucket: Bucket
    settings: LogsSettings

    @property
    def postgres(self) -> Postgres:
        """Its database."""
        return self.process.postgres

    async def settled(self, *names: str, **fields: Any) -> list[int]:
        """Accept conversations, and end each; return their ``seq``."""
        await self.process.accepted(*names, **fields)
        await settled(self.process, len(names))
        query = "SELECT seq FROM conversation WHERE conversation_id = ANY($1) ORDER BY seq"
        return [seq for (seq,) in await rows(self.postgres, query, list(names))]

    def dying(self, at: int) -> tuple[Steps, Packer, Rewriter]:
        """Return what packs and erases of a process that dies at a step."""
        steps = Steps(at)
        postgres: Any = Stepping(self.postgres, steps, "run")
        bucket: Any = Stepping(self.bucket, steps, "put", "read", "erase", "list_folder")
        storage = ObjectStorage(bucket, self.postgres, self.settings)
        return (
            steps,
            Packer(storage, postgres, self.settings, lambda: False),
            Rewriter(storage, postgres, self.settings),
        )

    async def here(self) -> list[int]:
        """List the logs that are in PostgreSQL."""
        found = await rows(self.postgres, "SELECT seq FROM conversation_log WHERE body IS NOT NULL ORDER BY seq")
        return [seq for (seq,) in found]

    async def objects(self) -> list[tuple[str, int]]:
        """List the objects that the database knows: the state, and how many logs."""
        return [
            (state, count)
            for state, count in await rows(
                self.postgres, "SELECT state, cardinality(seqs) FROM log_object ORDER BY state, at, name"
            )
        ]

    async def read(self, seq: int) -> list[dict[str, Any]]:
        """Read a log as its conversation sent it."""
        packed = await self.log_store.read(seq)
        assert packed is not None
        found: list[dict[str, Any]] = msgspec.json.decode(zstandard.ZstdDecompressor().decompress(packed))
        return found


@asynccontextmanager
async def open_old_logs(database: str, endpoint: str, bucket: str, **logs: Any) -> AsyncIterator[OldLogs]:
    """Open a process on a database and a bucket."""
    settings = LogsSettings(**logs_settings(endpoint, bucket, **logs))
    async with (
        open_process(database, structs.replace(Settings(), logs=settings)) as process,
        open_bridge() as bridge,
        open_postgres(bridge, database, DatabaseSettings()) as postgres,
        Bucket(bridge, settings) as opened,
    ):

        async def announced(connection: Connection) -> None:
            await process_programs.announce(connection, "one", "0.2", number_of("log_objects"))

        await postgres.run("test.announce", announced)
        storage = ObjectStorage(opened, postgres, settings)
        keeper = LogsKeeper(storage, postgres, settings, lambda: True)
        packer = Packer(storage, postgres, settings, lambda: False)
        yield OldLogs(
            process,
            storage,
            packer,
            Rewriter(storage, postgres, settings),
            keeper,
            LogStore(postgres, storage.read_log),
            opened,
            settings,
        )


def inflated(bodies: Sequence[bytes]) -> bytes:
    """Return all that stands in objects, unpacked."""
    reader = zstandard.ZstdDecompressor()
    found = b""
    for body in bodies:
        with reader.stream_reader(body, read_across_frames=True) as stream:
            found += stream.read()
    return found
