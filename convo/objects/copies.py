"""Objects of logs beside a backup: copies them out of the bucket, and puts back what is missing there.

Open it to change how a backup and its objects belong together. They are in a folder beside the file, one file each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import trio
from msgspec import Struct

from convo.errors import Refused
from convo.objects.s3 import Bucket, ListedFolder, ObjectMissing
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings
from convo.store.backup_rows import NeededObjects
from convo.store.log_objects import LogObject
from convo.store.log_refs import folder_of, object_in, object_key

_NAMES_SHOWN = 5


class ObjectCopies(Struct, frozen=True, kw_only=True):
    """The folder with the objects of one backup."""

    folder: Path

    def path_of(self, one: LogObject) -> Path:
        """Return where an object is in it."""
        return self.folder / f"{one.month:05}-{one.name}.logs"

    def has(self, one: LogObject) -> bool:
        """Return whether an object is in it, as large as it should be."""
        path = self.path_of(one)
        return path.is_file() and path.stat().st_size == one.bytes


def copies_beside(file: Path) -> ObjectCopies:
    """Return where the objects of a backup are."""
    return ObjectCopies(folder=file.with_name(f"{file.name}.objects"))


async def copy_out(
    bucket: Bucket, settings: LogsSettings, needed: NeededObjects, copies: ObjectCopies
) -> tuple[int, Sequence[str]]:
    """Copy each object that a backup needs into its folder, but for those that are there.

    Return how many were copied, and the names of those that are not in the bucket any more.

    Raises:
        Refused: the folder cannot be written.
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    missing, count = list[str](), 0
    try:
        copies.folder.mkdir(mode=0o700, exist_ok=True)
        for one in needed.objects:
            if copies.has(one):
                continue
            try:
                with deadline("logs.copy", settings.write_seconds):
                    body = await bucket.read(_key(settings, needed, one), 0, one.bytes)
                    await trio.to_thread.run_sync(_write, copies.path_of(one), body)
                count += 1
            except ObjectMissing:
                missing.append(one.name)
    except OSError as error:
        raise Refused(f"the objects cannot be copied to {copies.folder}: {error.strerror}") from error
    return count, missing


async def put_back(
    bucket: Bucket, settings: LogsSettings, needed: NeededObjects, copies: ObjectCopies
) -> tuple[int, Sequence[str]]:
    """Put objects that a backup needs and that are not in the bucket back from its folder.

    Return how many those were, and the names of those that are in neither.

    Raises:
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    there = await sizes_in(bucket, settings, needed.fingerprint)
    missing, count = list[str](), 0
    for one in needed.objects:
        if there.get(one.name) == one.bytes:
            continue
        if not copies.has(one):
            missing.append(one.name)
            continue
        with deadline("logs.copy", settings.write_seconds):
            body = await trio.to_thread.run_sync(copies.path_of(one).read_bytes)
            await bucket.put(_key(settings, needed, one), body)
        count += 1
    return count, missing


async def sizes_in(bucket: Bucket, settings: LogsSettings, fingerprint: str) -> dict[str, int]:
    """List the objects of an installation: how large each is, by its name.

    Raises:
        RemoteError, DeadlineExceeded: the bucket does not answer.
    """
    found: dict[str, int] = {}
    for month in (await _listed(bucket, settings, f"{folder_of(settings.prefix, fingerprint)}/")).folders:
        listed = await _listed(bucket, settings, month)
        found |= {one[1]: row.bytes for row in listed.objects if (one := object_in(row.key)) is not None}
    return found


async def _listed(bucket: Bucket, settings: LogsSettings, folder: str) -> ListedFolder:
    with deadline("s3_pack.list", settings.write_seconds):
        return await bucket.list_folder(folder)


def named_gone(missing: Sequence[str]) -> str:
    """Say which objects could not be copied, in the words of a refusal."""
    return (
        f"{_named(missing)} not in the bucket any more: something was erased while the backup was made; make it again,"
        " with --force"
    )


def named_missing(missing: Sequence[str]) -> str:
    """Say which objects are missing, in the words of a refusal."""
    return (
        f"{_named(missing)} neither in the bucket nor beside the backup, so the logs in it cannot be restored: put the"
        " folder of the backup's objects beside it, or restore without them (--without-objects)"
    )


def _named(missing: Sequence[str]) -> str:
    shown = ", ".join(missing[:_NAMES_SHOWN])
    more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
    return f"objects of logs ({shown}{more}) are"


def _key(settings: LogsSettings, needed: NeededObjects, one: LogObject) -> str:
    return object_key(folder_of(settings.prefix, needed.fingerprint), one.month, one.name)


def _write(path: Path, body: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    # Made so that no other user can read the conversations in it.
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
