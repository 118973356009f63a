-- kind: expand
-- The list of one user's conversations, newest first, of other tenants than the default one: without it, it walks over
-- those of every other tenant's user of the same name. Empty, and of no cost to an accept, where there is no other tenant.
-- The default one gets its own where there are several (convo/store/tenant_indexes.py).

-- run: concurrently
-- lock: none
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_of_tenant_user
    ON conversation (tenant, user_id, seq) WHERE tenant > 0;
