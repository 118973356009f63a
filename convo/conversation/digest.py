"""The versioned digest of what a client sent, by which replays are told from conflicts.

It knows nothing of turns: a later way to normalise must not make a replay a conflict.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from convo import errors
from convo.conversation.model import ConversationEnded

# Version 1 is these fields, the log under one name, and the fields of ``LogItem`` as ``encode_log`` writes them.
# One more field, here or there, is a new version, or stored digests stop matching what they were made of.
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

_ENCODER = msgspec.json.Encoder(order="sorted")


def digest(ended: ConversationEnded, log_bytes: bytes) -> str:
    """Digest a conversation as sent, under the present version: ``"1:"`` and 64 hexadecimal digits.

    ``log_bytes`` is ``transcript.encode_log`` of its log. What was not sent is left out, null stays null.
    """
    return _digest_1(ended, log_bytes)


def same(stored: str, ended: ConversationEnded, log_bytes: bytes) -> bool:
    """Tell whether a conversation is the one of a stored digest, compared under that digest's own version.

    Raises:
        Unavailable: a newer program made the digest. This one can call it neither replay nor conflict, and
            the same request succeeds at a process that knows the version, or here after the upgrade.
    """
    version, _, _ = stored.partition(":")
    if version != "1":
        raise errors.Unavailable(f"this conversation is stored with a digest of version {version!r}, not known here")
    return stored == _digest_1(ended, log_bytes)


def _digest_1(ended: ConversationEnded, log_bytes: bytes) -> str:
    sent: dict[str, Any] = {name: value for name in _FIELDS_1 if (value := getattr(ended, name)) is not UNSET}
    logs = [log for log in (ended.conversation_log, ended.conversation_logs) if log is not UNSET]
    if logs:
        sent["conversation_log"] = None if all(log is None for log in logs) else Raw(log_bytes)
    return "1:" + hashlib.sha256(_ENCODER.encode(sent)).hexdigest()
