"""Conversations of several tenants on one database, for tests of what keeps them apart."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from convo.conversation.tenant import Reach, Tenant
from convo.store.intake import Accept
from convo.store.postgres import Connection, Postgres
from tests.support.making import accept

ACME, BETA = Tenant(number=1, name="acme"), Tenant(number=2, name="beta")
OF_ACME, OF_BETA = Reach(tenant=ACME), Reach(tenant=BETA)


async def make_tenants(postgres: Postgres, *tenants: Tenant) -> None:
    """Make these tenants."""

    async def body(connection: Connection) -> None:
        for one in tenants or (ACME, BETA):
            await connection.execute("INSERT INTO tenant (number, name) VALUES ($1, $2)", one.number, one.name)

    await postgres.run("test.tenants", body)


def accept_of(tenant: Tenant, conversation_id: str = "talk-1", **fields: Any) -> Accept:
    """Make of one conversation of a tenant what the accept path hands to the committer."""
    return structs.replace(accept(conversation_id, **fields), tenant=tenant)
