"""Whether the log of one body begins with that of another one, by the count and the digest of the other one's items.

What is compared is the form of ``sent``: a client may write its JSON anew. A stored digest is compared under its own
version, as that of a whole body (``digest``).
"""

from __future__ import annotations

import hashlib

from convo import errors
from convo.conversation.decode import SentLog
from convo.conversation.sent import items_of, read_log, write_json

_VERSION = b"\1"
"""The version of the digests that this program makes: their first byte."""


def items_digest(sent: SentLog) -> bytes:
    """Digest the items of a log."""
    # Most logs are lists, and were written in this form already.
    compared = sent.compared if sent.compared.startswith(b"[") else write_json(sent.items)
    return _digest(compared)


def begins_with(log: bytes, count: int, digest: bytes) -> bool:
    """Return whether the first ``count`` items of a log, as it was sent, are those of this digest.

    Raises:
        Unavailable: a newer program made the digest, so this one cannot compare.
    """
    if digest[:1] != _VERSION:
        raise errors.Unavailable(f"this conversation's log has a digest of version {digest[:1].hex()}, not known here")
    items = items_of(read_log(log))
    return len(items) >= count and _digest(write_json(items[:count])) == digest


def _digest(compared: bytes) -> bytes:
    return _VERSION + hashlib.sha256(compared).digest()
