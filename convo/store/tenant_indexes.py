"""The indexes that the tenant ``default`` has where there are several tenants, so that its lists walk over no other.

Open it to add one, for a list that leads by the tenant. Other tenants have theirs from the start (0020, 0037): where
there is one tenant, these hold nothing. The same of the default one would be written by every accept, and answer
nothing that the common indexes do not. So they are made when they are needed, beside all work.
"""

from __future__ import annotations

from convo.store.migrate import make_indexes
from convo.store.migrations import MigrationStep
from convo.store.postgres import Connection, DedicatedConnection

# Not by ``tenant = 0``: beside that the planner takes the order by tenant for none, and may walk a primary key instead.
_STEP = MigrationStep(
    run="concurrently",
    locks=(),
    sql="""
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_default ON conversation (tenant, seq) WHERE tenant < 1;
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_default_bot
    ON conversation (tenant, bot_id, seq) WHERE tenant < 1;
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_default_user
    ON conversation (tenant, user_id, seq) WHERE tenant < 1;
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_default ON job (tenant, state, seq) WHERE tenant < 1;
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_log_default ON audit_log (tenant, number) WHERE tenant < 1;
""",
)


async def are_needed(connection: Connection) -> bool:
    """Return whether there are several tenants."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM tenant WHERE number > 0)"))


async def are_made(connection: Connection) -> bool:
    """Return whether the indexes can be used, each of them."""
    return bool(await connection.fetchval(_ARE_MADE, list(_STEP.index_names)))


async def make(dedicated: DedicatedConnection) -> None:
    """Make those that are missing; accepts go on meanwhile. Where it is interrupted, the next one begins anew."""
    await make_indexes(dedicated, _STEP)


_ARE_MADE = """
SELECT count(*) = cardinality($1::text[]) FROM pg_index
WHERE indexrelid = ANY(ARRAY(SELECT to_regclass(name) FROM unnest($1) AS name)) AND indisvalid
"""
