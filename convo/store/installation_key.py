"""The key of this installation: writes an id as its HMAC, where the id itself must not stand.

Open it to change where the key is kept. It is one row of the database, made by the migration. So every process on the
database has the same key, a backup holds it, and after a restore the HMACs that stand there can still be asked for. A
key beside the database would be lost with its machine, and then nothing that was erased could be recognised again.

Whoever has a table of HMACs alone learns nothing from it, even with a list of all ids that there may be. Whoever has
the whole database or a backup has the key, too, and can compare such a list: backups are to be kept as the
conversations are that they hold.
"""

from __future__ import annotations

import hashlib
import hmac

from convo.conversation.identity import IdKind
from convo.store.postgres import Connection

HMAC_BYTES = 16


class InstallationKey:
    """The key, which no text of it shows."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hmac_of(self, kind: IdKind, id_: str) -> bytes:
        """Return the HMAC of an id: the first ``HMAC_BYTES`` of HMAC-SHA-256."""
        # No id contains a NUL, so no two pairs are one text.
        return hmac.digest(self._key, f"{kind}\0{id_}".encode(), hashlib.sha256)[:HMAC_BYTES]

    def hmac_of_hash(self, hashed: bytes) -> bytes:
        """Return the HMAC of the hash of a conversation's id, which is all that is left of an expired one."""
        return hmac.digest(self._key, b"hash\0" + hashed, hashlib.sha256)[:HMAC_BYTES]

    def hmac_of_memory(self, user_id: str, key: str) -> bytes:
        """Return the HMAC of a memory's key, for this user alone."""
        # The key of a memory is stored as text, so it contains no NUL either.
        return hmac.digest(self._key, f"memory\0{user_id}\0{key}".encode(), hashlib.sha256)[:HMAC_BYTES]

    @property
    def fingerprint(self) -> str:
        """What this installation is recognised by: of it nobody finds the key."""
        return hashlib.sha256(_FINGERPRINT + self._key).hexdigest()[:16]

    def hmac_of_total(self, import_id: str, user_id: str, bot_id: str) -> bytes:
        """Return the HMAC of a total that an import has brought, for this user and bot."""
        named = f"total\0{user_id}\0{bot_id}\0{import_id}"
        return hmac.digest(self._key, named.encode(), hashlib.sha256)[:HMAC_BYTES]

    def __repr__(self) -> str:
        return "InstallationKey(***)"


async def read_installation_key(connection: Connection) -> InstallationKey:
    """Read the key in a unit of work.

    It is not kept in memory: a database that went back or was restored may have another one.
    """
    return InstallationKey(await connection.fetchval(_READ))


_FINGERPRINT = b"convo installation"
FINGERPRINT = f"""
SELECT left(encode(sha256(convert_to('{_FINGERPRINT.decode()}', 'UTF8') || key), 'hex'), 16)
FROM public.installation_key
"""
"""The same as ``InstallationKey.fingerprint``, in SQL."""
_READ = "SELECT key FROM installation_key"
