"""The audit of objects: whether the bucket holds what the database refers to, and nothing else.

Open it to look for something else that must not be. What the tables say by themselves is compared in ``store/audit``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from convo.objects.copies import sizes_in
from convo.objects.joining import damaged_in
from convo.objects.s3 import Bucket, ObjectMissing
from convo.plural import plural
from convo.runtime.deadline import deadline
from convo.settings import LogsSettings
from convo.store import log_erasing, log_objects
from convo.store.log_objects import LogObject
from convo.store.log_refs import folder_of, object_key
from convo.store.postgres import RELAXED, Postgres

_PAGE_ROWS = 200
_SAMPLE = 20
_NAMES_SHOWN = 10


async def audit_objects(postgres: Postgres, bucket: Bucket, settings: LogsSettings) -> list[str]:
    """Compare the objects with what refers to them; return a sentence for each kind of difference.

    What is erased or packed meanwhile can show: an object that was stored when it was listed, and is not any more.

    Raises:
        RemoteError, DeadlineExceeded, DatabaseUnavailable: one of the two does not answer.
    """
    fingerprint = await postgres.run("db.pack", log_objects.fingerprint, begin=RELAXED)
    there = await sizes_in(bucket, settings, fingerprint)
    missing, sizes, sample, after, seen = list[str](), list[str](), list[LogObject](), "", 0
    while page := await postgres.run(
        "db.pack", partial(log_objects.stored_behind, after=after, rows=_PAGE_ROWS), begin=RELAXED
    ):
        after = page[-1].name
        for one in page:
            seen += 1
            size = there.get(one.name)
            if size is None:
                missing.append(one.name)
            elif size != one.bytes:
                sizes.append(f"{one.name} ({size} instead of {one.bytes} bytes)")
            elif len(sample) < _SAMPLE:
                sample.append(one)
            elif random.random() < _SAMPLE / seen:
                sample[random.randrange(_SAMPLE)] = one
    known = await postgres.run("db.pack", partial(log_objects.known_among, names=sorted(there)), begin=RELAXED)
    folder = folder_of(settings.prefix, fingerprint)
    damaged = [named for one in sample for named in await _damaged(postgres, bucket, settings, folder, one)]
    return [
        f"{len(names)} {plural(len(names), noun)} {what}: {', '.join(names[:_NAMES_SHOWN])}"
        for noun, what, names in (
            ("object", "that logs refer to, missing in the bucket", missing),
            ("object", "with another size than was written", sizes),
            ("object", "in the bucket, unknown to the database", sorted(set(there) - known)),
            ("log", "that an object does not hold as it was put there", damaged),
        )
        if names
    ]


async def _damaged(
    postgres: Postgres, bucket: Bucket, settings: LogsSettings, folder: str, one: LogObject
) -> Sequence[str]:
    # First the references: what is written anew in between has left the object by then.
    refs = await postgres.run("db.pack", partial(log_erasing.read_refs, stored=one), begin=RELAXED)
    try:
        with deadline("s3_pack.read", settings.write_seconds):
            body = await bucket.read(object_key(folder, one.month, one.name), 0, one.bytes)
    except ObjectMissing:
        return ()
    return [f"{seq} in {one.name}" for seq in damaged_in(body, refs)]
