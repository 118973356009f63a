"""The versioned digest of what a client sent: it distinguishes a replay (the same content) from a conflict.

It is made of what was sent and not of turns: a later way to read a log must not make a replay a conflict. A stored
digest is compared under its own version, for ever. Version 2 covers the fields of ``_FIELDS_2``, ``metadata`` and all
that stands in the items; ``sent`` says which ways of writing the same JSON it takes for equal. Version 1 covers the
fields of ``_FIELDS_1`` and of ``_Item1``.
"""

from __future__ import annotations

import hashlib
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from convo import errors
from convo.conversation.decode import Received
from convo.conversation.model import ConversationEnded

# One more field, in any of these, is a new version: stored digests would stop matching what they were made of.
_FIELDS_1 = (
    "agent_tag",
    "bot_id",
    "bot_name",
    "bot_type",
    "conversation_id",
    "end_time",
    "start_time",
    "user_id",
)
_FIELDS_2 = (*_FIELDS_1, "language", "timezone")
_VALUES_2 = attrgetter(*_FIELDS_2)


class _Item1(Struct, frozen=True, kw_only=True, gc=False):
    character: str | None | UnsetType = UNSET
    speaker: str | None | UnsetType = UNSET
    role: str | None | UnsetType = UNSET
    from_: str | None | UnsetType = msgspec.field(name="from", default=UNSET)
    content: str | list[Any] | None | UnsetType = UNSET
    text: str | None | UnsetType = UNSET
    value: str | None | UnsetType = UNSET
    turn_id: str | int | None | UnsetType = UNSET
    timestamp: str | None | UnsetType = UNSET


DIGEST_VERSION = 2
"""The version of the digests that this program makes."""

_ENCODER = msgspec.json.Encoder(order="sorted")
_LOG_1_DECODER = msgspec.json.Decoder(list[_Item1] | None)


def digest(received: Received) -> str:
    """Digest a conversation as sent, under the present version: ``"2:"`` and 64 hexadecimal digits.

    Digested are three lines: the fields as a JSON array in the order of ``_FIELDS_2``, false where one was not sent;
    the metadata, after its length; the log. What was not sent is empty there, null is null.
    """
    head = _ENCODER.encode([False if value is UNSET else value for value in _VALUES_2(received.ended)])
    metadata = received.metadata_compared
    hashed = hashlib.sha256(b"%b\n%d %b\n" % (head, len(metadata), metadata))
    hashed.update(received.sent.compared)
    return f"{DIGEST_VERSION}:{hashed.hexdigest()}"


def same(stored: str, fresh: str, ended: ConversationEnded) -> bool:
    """Return whether a conversation is the one of a stored digest, compared under that digest's own version.

    ``fresh`` is its ``digest``.

    Raises:
        Unavailable: a newer program made the digest. This one can call it neither replay nor conflict, and
            the same request succeeds at a process that knows the version, or here after the upgrade.
    """
    version, _, _ = stored.partition(":")
    if version == "2":
        return stored == fresh
    if version == "1":
        return stored == _digest_1(ended)
    raise errors.Unavailable(f"this conversation is stored with a digest of version {version!r}, not known here")


_HASH_BYTES = 32
# What a compact digest begins with: its version, or that the text itself follows.
_COMPACT_VERSIONS = {str(version): bytes([version]) for version in range(1, 100)}
_AS_TEXT = b"\0"


def compact(text: str) -> bytes:
    """Return a digest as it is stored: a byte for its version, and its hash; one of another form as its text.

    Half as long as the text. Migration 0013 has the same in SQL.
    """
    version, _, digits = text.partition(":")
    try:
        hashed = bytes.fromhex(digits)
    except ValueError:
        hashed = b""
    # Without a regular expression: each accept comes here.
    if version in _COMPACT_VERSIONS and len(hashed) == _HASH_BYTES and hashed.hex() == digits:
        return _COMPACT_VERSIONS[version] + hashed
    return _AS_TEXT + text.encode()


def expand(stored: bytes) -> str:
    """Return the very text of a stored digest that ``compact`` made."""
    return stored[1:].decode() if stored[:1] == _AS_TEXT else f"{stored[0]}:{stored[1:].hex()}"


def _digest_1(ended: ConversationEnded) -> str | None:
    """Digest a conversation under version 1; ``None`` where that version could not have accepted it."""
    sent: dict[str, Any] = {name: value for name in _FIELDS_1 if (value := getattr(ended, name)) is not UNSET}
    raws = [raw for raw in (ended.conversation_log, ended.conversation_logs) if raw is not UNSET]
    try:
        logs = [_LOG_1_DECODER.decode(raw) for raw in raws]
    except msgspec.ValidationError:
        return None
    if logs:
        filled: list[_Item1] = next((log for log in logs if log), [])
        sent["conversation_log"] = None if all(log is None for log in logs) else Raw(_ENCODER.encode(filled))
    return "1:" + hashlib.sha256(_ENCODER.encode(sent)).hexdigest()
