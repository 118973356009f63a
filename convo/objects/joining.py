"""What an object of logs holds: packed logs, one behind the other, each a whole zstd frame.

Open it to change the form of an object. All of it can run in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from convo.store.log_objects import MovingLog
from convo.store.log_refs import LogRef
from convo.store.logs import hash_of, unpacked_bytes


class JoinedLogs(Struct, frozen=True, kw_only=True):
    """The content of an object, and where in it each log is, by ``seq``; ``wrong`` are those that were left out."""

    body: bytes
    refs: Sequence[tuple[int, LogRef]]
    wrong: Sequence[MovingLog] = ()


def join_logs(name: str, logs: Sequence[MovingLog]) -> JoinedLogs:
    """Put logs into an object of this name, but for those that are not what was acknowledged."""
    pieces, refs, wrong, offset = list[bytes](), list[tuple[int, LogRef]](), list[MovingLog](), 0
    for log in logs:
        log_hash = hash_of(log.body)
        if log.acknowledged_hash not in (None, log_hash):
            wrong.append(log)
            continue
        ref = LogRef(
            name=name,
            offset=offset,
            length=len(log.body),
            unpacked_bytes=unpacked_bytes(log.body),
            log_hash=log_hash,
        )
        refs.append((log.seq, ref))
        pieces.append(log.body)
        offset += ref.length
    return JoinedLogs(body=b"".join(pieces), refs=refs, wrong=wrong)


def join_anew(name: str, body: bytes, refs: Sequence[tuple[int, LogRef]]) -> JoinedLogs:
    """Put those logs of an object that ``refs`` names into another one; a damaged one stays as it is."""
    pieces, found, offset = list[bytes](), list[tuple[int, LogRef]](), 0
    for seq, ref in refs:
        piece = body[ref.offset : ref.offset + ref.length]
        found.append(
            (
                seq,
                LogRef(
                    name=name,
                    offset=offset,
                    length=ref.length,
                    unpacked_bytes=ref.unpacked_bytes,
                    log_hash=ref.log_hash,
                ),
            )
        )
        # One that was cut short must not be filled up with the next one.
        pieces.append(piece.ljust(ref.length, b"\0"))
        offset += ref.length
    return JoinedLogs(body=b"".join(pieces), refs=found)


def damaged_in(body: bytes, refs: Sequence[tuple[int, LogRef]]) -> list[int]:
    """Return the ``seq`` of those logs that an object does not hold as they were put there."""
    return [seq for seq, ref in refs if hash_of(body[ref.offset : ref.offset + ref.length]) != ref.log_hash]
