"""Where a log lies in object storage: what ``storage_ref`` of its row says, and the key of its object.

Open it to change what is kept of a log that has moved. A reference is ``name:offset:length:unpacked:hash``, about 70
bytes. It needs no other row to be followed: the key is made of the name and of the ``seq``, which says the month.
"""

from __future__ import annotations

import re

from msgspec import Struct

from convo.store.months import MONTH_SEQS

_ENDING = ".logs"


class LogRef(Struct, frozen=True, kw_only=True, gc=False):
    """A part of the object ``name``: one packed log, how long it is unpacked, and its hash (``logs.hash_of``)."""

    name: str
    offset: int
    length: int
    unpacked_bytes: int
    log_hash: bytes

    def __str__(self) -> str:
        return f"{self.name}:{self.offset}:{self.length}:{self.unpacked_bytes}:{self.log_hash.hex()}"


def parse_ref(text: str) -> LogRef:
    """Read a ``storage_ref``."""
    name, offset, length, unpacked_bytes, log_hash = text.split(":")
    return LogRef(
        name=name,
        offset=int(offset),
        length=int(length),
        unpacked_bytes=int(unpacked_bytes),
        log_hash=bytes.fromhex(log_hash),
    )


def month_of(seq: int) -> int:
    """Return the number of the partition that a log is in."""
    return seq // MONTH_SEQS


def object_key(folder: str, month: int, name: str) -> str:
    """Return the key of an object; ``folder`` is that of the installation (``folder_of``)."""
    return f"{folder}/{month:05}/{name}{_ENDING}"


def folder_of(prefix: str, fingerprint: str) -> str:
    """Return what the keys of one installation begin with: several can share a bucket."""
    return f"{prefix}/{fingerprint}" if prefix else fingerprint


def object_in(key: str) -> tuple[int, str] | None:
    """Return the month and the name of the object of this key; None where no object of logs has it."""
    found = re.search(rf"/(\d{{5,}})/([0-9a-f]{{16}}){re.escape(_ENDING)}\Z", key)
    return (int(found[1]), found[2]) if found else None
