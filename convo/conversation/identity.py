"""The hash by which a conversation is known for ever: of its tenant and its id, also when both are gone.

It stands in the table ``receipt``, so it never changes. The migration that made that table has the same in SQL
(``convo_id_hash``), and the audit compares both.
"""

from __future__ import annotations

import hashlib
from typing import Literal

IdKind = Literal["conversation", "user"]
"""What an id is of: a conversation and a user of the same id have different HMACs."""

DEFAULT_TENANT = "default"
"""The tenant of all that no key says otherwise of; ids are unique within one (``tenant``)."""

_HASH_BYTES = 16


def id_hash(conversation_id: str, tenant: str = DEFAULT_TENANT) -> bytes:
    """Hash an id within its tenant: the first 16 bytes of a SHA-256.

    The tenant stands behind its length in bytes, so no two pairs of a tenant and an id are hashed from the same bytes.
    """
    name = tenant.encode()
    return hashlib.sha256(b"%d:%b%b" % (len(name), name, conversation_id.encode())).digest()[:_HASH_BYTES]


def revision_hash(hashed: bytes, number: int) -> bytes:
    """Return the hash of revision ``number`` of an id once there is a newer one, which has ``hashed``, that of the id.

    No name of a tenant begins with what is hashed here.
    """
    return hashlib.sha256(b"revision %d:%b" % (number, hashed)).digest()[:_HASH_BYTES]
