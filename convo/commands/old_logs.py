"""What the commands do with logs in object storage: the objects of a backup, their audit, and a check of the bucket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from convo.commands.database import existing_database
from convo.errors import Refused
from convo.objects.audit import audit_objects
from convo.objects.copies import copies_beside, copy_out, named_gone, named_missing, put_back
from convo.objects.s3 import Bucket
from convo.runtime.bridge import Bridge, open_bridge
from convo.runtime.deadline import deadline
from convo.settings import Settings
from convo.store.backup_rows import read_needed
from convo.store.postgres import open_postgres


class BackedUpObjects(Struct, frozen=True, kw_only=True):
    """How many objects of logs a backup needs, how much they hold, and how many of them were copied or put back."""

    needed: int
    bytes: int
    moved: int = 0


async def objects_of_backup(settings: Settings, file: Path, *, copied: bool) -> BackedUpObjects:
    """Read which objects a backup needs, and copy them beside it where they are to be ``copied``.

    Raises:
        Refused: some are gone, or the folder cannot be written.
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    needed = await read_needed(file)
    moved = 0
    if copied and needed.objects:
        async with _opened(settings) as bucket:
            moved, gone = await copy_out(bucket, settings.logs, needed, copies_beside(file))
        if gone:
            raise Refused(named_gone(gone))
    return BackedUpObjects(needed=len(needed.objects), bytes=needed.bytes, moved=moved)


async def check_objects(settings: Settings, file: Path) -> BackedUpObjects:
    """Look whether each object that a backup needs is in the bucket, and put back those that are beside the backup.

    Raises:
        Refused: some are nowhere.
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    needed = await read_needed(file)
    moved = 0
    if needed.objects:
        async with _opened(settings) as bucket:
            moved, missing = await put_back(bucket, settings.logs, needed, copies_beside(file))
        if missing:
            raise Refused(named_missing(missing))
    return BackedUpObjects(needed=len(needed.objects), bytes=needed.bytes, moved=moved)


async def audit_bucket(settings: Settings) -> list[str]:
    """Compare the bucket with the database; return a sentence for each difference.

    Raises:
        Refused: logs are in PostgreSQL, or there is no such database.
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    if not settings.logs.in_objects:
        raise Refused("logs.store is postgres, so there are no objects to compare; see convo help logs")
    async with (
        existing_database(settings) as url,
        open_bridge() as bridge,
        open_postgres(bridge, url, settings.database) as postgres,
        Bucket(bridge, settings.logs) as bucket,
    ):
        return await audit_objects(postgres, bucket, settings.logs)


async def check_bucket(bridge: Bridge, settings: Settings) -> str:
    """Ask the bucket what it is like; as ``Bucket.inspect``."""
    async with Bucket(bridge, settings.logs) as bucket:
        with deadline("s3.check", settings.logs.write_seconds):
            return await bucket.inspect()


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Bucket]:
    if not settings.logs.in_objects:
        raise Refused("the backup needs objects of logs, and logs.store is postgres: set it to s3, with the bucket")
    async with open_bridge() as bridge, Bucket(bridge, settings.logs) as bucket:
        yield bucket
