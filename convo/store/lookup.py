"""Finds a conversation by its id: the receipt has the hash of the id, and the number (``seq``) that all else hangs on.

Open it to change how an id is looked for. Every statement that is given an id finds its rows by ``SEQ``.
"""

from __future__ import annotations

from convo.conversation.tenant import Reach
from convo.errors import Erased, Expired, NotFound
from convo.store.erasures import erased_among
from convo.store.installation_key import read_installation_key
from convo.store.postgres import Connection

SEQ = "(SELECT seq FROM receipt WHERE id_hash = $1)"
"""The ``seq`` of a conversation; ``$1`` is ``Tenant.id_hash`` of its id. One probe of receipt_by_id."""

STATES = {"": "", "x": "expired", "e": "erased"}
"""What a receipt's ``state`` says in one letter: nothing while the conversation is stored."""


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


_RECEIPT = "SELECT state::text AS state, received_at FROM receipt WHERE id_hash = $1"
