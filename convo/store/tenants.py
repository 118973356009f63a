"""The tenants of an installation: how one is found by its name, and made.

A tenant is made with its first key (``store/keys.py``) and never removed or named anew: its name is in hashes.
"""

from __future__ import annotations

import re

from convo.conversation.tenant import DEFAULT, NAME_PATTERN, Tenant
from convo.errors import Refused
from convo.store.postgres import RELAXED, Connection, Postgres

_NUMBER_MAX = 32_767


async def find_tenant(postgres: Postgres, name: str) -> Tenant | None:
    """Return the tenant of this name; None where there is none."""
    if name == DEFAULT.name:
        return DEFAULT

    async def body(connection: Connection) -> Tenant | None:
        number = await connection.fetchval(_FIND, name)
        return None if number is None else Tenant(number=number, name=name)

    return await postgres.run("db.keys", body, begin=RELAXED)


async def find_or_make(connection: Connection, name: str) -> Tenant:
    """Return the tenant of this name, in the caller's transaction; make it where there is none.

    Raises:
        Refused: the name is none, an older program is at work that knows no tenants, or there are too many.
    """
    if name == DEFAULT.name:
        return DEFAULT
    if not re.fullmatch(NAME_PATTERN, name):
        raise Refused(
            f"tenant {name!r}: a name has 1 to 63 small letters of English, digits, - and _, and begins with a letter"
            " or a digit"
        )
    await check_alone(connection, f"the tenant {name!r} cannot have a key")
    # A statement of its own: the next one then sees what was committed before it had the lock.
    await connection.execute(_LOCK)
    number = await connection.fetchval(_NUMBER, name)
    if number > _NUMBER_MAX:
        raise Refused(f"there are {_NUMBER_MAX:,} tenants besides the default one, and no more can be made")
    return Tenant(number=await connection.fetchval(_ADD, number, name), name=name)


async def check_alone(connection: Connection, what: str) -> None:
    """Check that no program is at work that takes all rows for those of one tenant, and all keys for those of all bots.

    Raises:
        Refused: there is one, or there may be; the text begins with ``what``.
    """
    if await connection.fetchval(_OLDER_AT_WORK):
        raise Refused(
            f"{what}: an older version of convo is at work on this database, or was until a moment ago, and knows no"
            " tenants and no bots of keys; stop it, wait some seconds, then try again. The warnings of /readyz"
            " (MIGRATION_WAITS) name it"
        )


# 0021 waits until no older program is left, and then this index goes.
_OLDER_AT_WORK = "SELECT to_regclass('memory_by_key') IS NOT NULL"
_FIND = "SELECT number FROM tenant WHERE name = $1"
# One tenant is made at a time.
_LOCK = "SELECT pg_advisory_xact_lock(7266386221)"
_NUMBER = """
SELECT coalesce((SELECT number FROM tenant WHERE name = $1), (SELECT max(number) + 1 FROM tenant))::integer
"""
_ADD = """
INSERT INTO tenant (number, name) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING number
"""
