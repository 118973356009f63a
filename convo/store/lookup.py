"""Finds a conversation by its id: the receipt has the hash of the id, and the number (``seq``) that all else hangs on.

Open it to change how an id is looked for. Every statement that is given an id finds its rows by ``SEQ``. Where an id
has several revisions (``store/jobs/revisions.py``), that is the newest; each older one has a hash of its own.
"""

from __future__ import annotations

import msgspec

from convo.conversation.identity import revision_hash
from convo.conversation.model import ReceiptNotes
from convo.conversation.tenant import Reach
from convo.errors import Erased, Expired, NotFound
from convo.store.erasures import erased_among
from convo.store.installation_key import read_installation_key
from convo.store.postgres import Connection

SEQ = "(SELECT seq FROM receipt WHERE id_hash = $1)"
"""The ``seq`` of a conversation; ``$1`` is ``Tenant.id_hash`` of its id. One probe of receipt_by_id."""

STATES = {"": "", "x": "expired", "e": "erased"}
"""What a receipt's ``state`` says in one letter: nothing while the conversation is stored."""


_NOTES = msgspec.json.Decoder(ReceiptNotes)


def notes_of(stored: bytes | None) -> ReceiptNotes:
    """Read the notes of a receipt, as they are stored."""
    return ReceiptNotes() if stored is None else _NOTES.decode(stored)


def revision_of(notes: bytes | None) -> int:
    """Return the number of the revision whose receipt has these notes, as they are stored."""
    return notes_of(notes).revision


def older_hashes(hashed: bytes, newest: int) -> list[bytes]:
    """Return the hashes of the receipts of all revisions before the ``newest`` one, the first one's first."""
    return [revision_hash(hashed, number) for number in range(1, newest)]


async def receipt_hashes(connection: Connection, hashed: bytes) -> dict[int, bytes]:
    """Read the hash of the receipt of every revision of an id, by its ``seq``, the newest one's first."""
    row = await connection.fetchrow("SELECT seq, notes FROM receipt WHERE id_hash = $1", hashed)
    if row is None:
        return {}
    older = await connection.fetch(OF_HASHES, older_hashes(hashed, revision_of(row["notes"])))
    return {row["seq"]: hashed} | {one["seq"]: one["id_hash"] for one in older}


async def absent_revision(
    connection: Connection, reach: Reach, conversation_id: str, number: int
) -> NotFound | Expired:
    """Return the error for a conversation that is reached, and a revision of it that is not stored."""
    older = await connection.fetch(OF_HASHES, [revision_hash(reach.tenant.id_hash(conversation_id), number)])
    if older:
        return Expired(f"revision {number} of conversation {conversation_id!r} has expired: it is no longer stored")
    return NotFound(f"conversation {conversation_id!r} has no revision {number}")


async def absent(connection: Connection, reach: Reach, conversation_id: str) -> NotFound | Expired | Erased:
    """Return the error for an id of which no conversation is reached: it never was, was erased, or has been retired.

    Of what has gone nothing says which bot's it was: whoever reaches some bots only learns that there is none.
    """
    if reach.bots is not None:
        return NotFound(f"there is no conversation {conversation_id!r}")
    hashed = reach.tenant.id_hash(conversation_id)
    row = await connection.fetchrow(_RECEIPT, hashed)
    if row is None:
        key = await read_installation_key(connection)
        hmacs = key.hmac_of("conversation", reach.tenant.own(conversation_id)), key.hmac_of_hash(hashed)
        if await erased_among(connection, hmacs):
            return Erased(f"conversation {conversation_id!r} was erased; it is not accepted again")
    if row is None or row["state"] != "x":
        return NotFound(f"there is no conversation {conversation_id!r}")
    return Expired(
        f"conversation {conversation_id!r}, received at {row['received_at']:%Y-%m-%dT%H:%M:%SZ}, has expired: its"
        " content is no longer stored, its receipt is"
    )


OF_HASHES = """
SELECT seq, id_hash, digest, turns, received_at, notes, state::text AS state FROM receipt
WHERE id_hash = ANY($1::bytea[]) ORDER BY seq DESC
"""
"""The receipts with these hashes, the newest first."""
_RECEIPT = "SELECT state::text AS state, received_at FROM receipt WHERE id_hash = $1"
