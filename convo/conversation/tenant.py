"""Whose a conversation is: its tenant, and how far a caller reaches, which is one tenant and all or some of its bots.

Ids are unique within a tenant. So what stands for an id outside of its row (a hash, an HMAC, a place in memory) is made
of the tenant and the id together, and is made here.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from convo.conversation.identity import DEFAULT_TENANT, id_hash

NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"
"""What a tenant may be called. It holds no ``/``, by which its name is parted from an id."""

_KEY_MARK = "\x1f"
_AFTER_MARK = "\x20"
LAST_KEY = "\U0010ffff" * 256
"""Behind every key: longer than an id can be, of the last character that there is."""


class Tenant(Struct, frozen=True, kw_only=True, gc=False):
    """An owner of conversations: by its number in rows, by its name in hashes and for people. Neither ever changes."""

    number: int = 0
    name: str = DEFAULT_TENANT

    def own(self, id_: str) -> str:
        """Return an id as it stands in memory and in HMACs, so that the same id of two tenants is two texts.

        No id and no name contains a NUL. In the tenant ``default`` it is the id itself, as it was before there were
        tenants.
        """
        return id_ if not self.number else f"{self.name}\0{id_}"

    def id_hash(self, conversation_id: str) -> bytes:
        """Return the hash under which the receipt of a conversation is found."""
        return id_hash(conversation_id, self.name)


DEFAULT = Tenant()


def tenant_of(number: int, name: str | None) -> Tenant:
    """Return the tenant of a row that has its number, and its name where it is not the default one."""
    return Tenant(number=number, name=name) if number and name else DEFAULT


def hash_of_own(own: str) -> bytes:
    """Return the hash of a conversation by ``Tenant.own`` of its id."""
    name, mark, conversation_id = own.partition("\0")
    return id_hash(conversation_id, name) if mark else id_hash(own)


class Reach(Struct, frozen=True, kw_only=True, gc=False):
    """What a caller reaches: one tenant, and of it the ``bots``, or all where that is None.

    All else is answered as if it did not exist.
    """

    tenant: Tenant = DEFAULT
    bots: tuple[str, ...] | None = None

    @property
    def values(self) -> tuple[Any, Any]:
        """The two parameters of ``store.reaching.reached``."""
        return self.tenant.number, None if self.bots is None else list(self.bots)

    @property
    def is_default(self) -> bool:
        """Whether this is the tenant ``default`` with all its bots."""
        return not self.tenant.number and self.bots is None

    def has_bot(self, bot_id: str) -> bool:
        """Return whether a bot of the tenant is reached."""
        return self.bots is None or bot_id in self.bots


WHOLE_DEFAULT = Reach()
"""All of the tenant ``default``: of a caller where no keys are asked for, and of the canary."""


# --- turns of work


def turn_prefix(number: int) -> str:
    """Return what the keys of a tenant's jobs begin with (``job.fair_key``), in the order of the column's collation.

    The keys of ``default`` are ids, or empty where nothing shares the work out, as they were before there were tenants.
    No id holds a control character, so no key of one tenant is between two of another.
    """
    return f"{_KEY_MARK}{number:05}{_KEY_MARK}" if number else ""


def turn_bounds(fair_key: str) -> tuple[str, str]:
    """Return the bounds of the keys that take turns as one with this key: those of its tenant.

    The first key that there can be, and the first one behind all of them.
    """
    if fair_key.startswith(_KEY_MARK):
        prefix = fair_key[: len(turn_prefix(1))]
        return prefix, prefix[:-1] + _AFTER_MARK
    return (_AFTER_MARK, LAST_KEY) if fair_key else ("", _KEY_MARK)
