"""The one condition that keeps each caller to what is its own: the tenant, and the bots where its key is bound to some.

Every statement that a request causes takes a ``Reach`` and has ``reached`` in it, or finds its rows by what such a
statement found. Open it to change what is reached; a test knows each statement of the product by it.
"""

from __future__ import annotations


def in_tenant(alias: str, at: int) -> str:
    """Return the condition on rows of one tenant, of all its bots; ``$at`` is ``Tenant.number``."""
    return f"{alias}.tenant = ${at}"


def reached(alias: str, at: int) -> str:
    """Return the condition on rows with ``tenant`` and ``bot_id``; ``$at`` and the next are ``Reach.values``."""
    return f"{in_tenant(alias, at)} AND (${at + 1}::text[] IS NULL OR {alias}.bot_id = ANY(${at + 1}))"


def memory_reached(at: int) -> str:
    """Return the condition on rows of ``memory AS m``, which have the bot of ``conversation AS c`` if they have one."""
    return f"m.tenant = ${at} AND (${at + 1}::text[] IS NULL OR c.bot_id = ANY(${at + 1}))"


TENANT_NAME = "(SELECT name FROM tenant WHERE number = {})"
"""The name of the tenant of a row, for ``str.format`` with the column that has its number."""

FAIR_PREFIX = "CASE WHEN tenant > 0 THEN chr(31) || lpad(tenant::text, 5, '0') || chr(31) ELSE '' END"
"""The same as ``conversation.tenant.turn_prefix``."""


def remote_prefix(tenant: str, user_id: str) -> str:
    """Return what stands before a user's ids where they are sent to a service that all tenants share, as SQL.

    ``tenant`` and ``user_id`` are SQL, too. A user of the default tenant whose id begins with the name of a tenant and
    a slash must not be taken for a user of that one, so then its own name stands before it, too. Only then: what a
    service knows users by should not change.
    """
    return f"""
    CASE WHEN {tenant} > 0 THEN (SELECT name || '/' FROM tenant WHERE number = {tenant})
         WHEN strpos({user_id}, '/') > 0 AND (SELECT true FROM tenant WHERE name = split_part({user_id}, '/', 1))
         THEN 'default/' ELSE '' END"""


REMOTE_PREFIX = remote_prefix("c.tenant", "c.user_id")
"""The same for the ids of ``conversation AS c``."""

OF_REMOTE = """
SELECT coalesce(t.number, 0) AS tenant, coalesce(t.name || '/', '') AS prefix,
       substr(sent.remote, length(coalesce(t.name || '/', '')) + 1) AS user_id
FROM (VALUES ($1::text)) AS sent (remote)
LEFT JOIN tenant AS t ON strpos(sent.remote, '/') > 0 AND t.name = split_part(sent.remote, '/', 1)
"""
"""The way back: of a user as a service knows it, the tenant, the prefix, and the user's own id."""
