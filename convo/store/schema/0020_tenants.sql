-- kind: expand
-- Several owners on one installation, who do not learn of each other. Every conversation has its tenant, and so have
-- the rows that outlive it or are looked for without it; all else hangs on its seq. 0 is the tenant of all that was
-- there before, and of every key that names none. Columns with a constant default rewrite nothing.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON api_key
CREATE TABLE tenant (
    number smallint PRIMARY KEY CHECK (number >= 0),
    name   text COLLATE "C" NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$')
);
INSERT INTO tenant (number, name) VALUES (0, 'default');
-- bots: those that the key is bound to; null: all
ALTER TABLE api_key ADD COLUMN tenant smallint NOT NULL DEFAULT 0, ADD COLUMN bots text[];

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
ALTER TABLE conversation ADD COLUMN tenant smallint NOT NULL DEFAULT 0;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
-- For lists by state. Whose turn it is to be leased is said by fair_key alone (convo/conversation/tenant.py).
ALTER TABLE job ADD COLUMN tenant smallint NOT NULL DEFAULT 0;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON memory, relationship
ALTER TABLE memory ADD COLUMN tenant smallint NOT NULL DEFAULT 0;
ALTER TABLE relationship ADD COLUMN tenant smallint NOT NULL DEFAULT 0;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON audit_log
ALTER TABLE audit_log ADD COLUMN tenant smallint NOT NULL DEFAULT 0;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON ledger
ALTER TABLE ledger ADD COLUMN tenant smallint NOT NULL DEFAULT 0;

-- run: concurrently
-- lock: none
-- The tenant comes last where rows are found by their user, who has few in all tenants together. While the old unique
-- indexes are there as well (until 0021), no other tenant can be made.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS memory_of_key ON memory (user_id, key, tenant);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS relationship_of_bot ON relationship (user_id, bot_id, tenant);
-- As relationship_newest, which goes in 0021.
CREATE INDEX CONCURRENTLY IF NOT EXISTS relationship_newest_bots
    ON relationship (user_id, last_seq DESC) INCLUDE (score, conversations, tenant);
-- Lists of other tenants than the default one, newest first. They are empty, and cost an accept nothing, where there is
-- no other tenant. Its own lists walk the indexes that were there before.
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_of_tenant ON conversation (tenant, seq) WHERE tenant > 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_of_bot ON conversation (tenant, bot_id, seq) WHERE tenant > 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_of_tenant ON job (tenant, state, seq) WHERE tenant > 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_log_of_tenant ON audit_log (tenant, number) WHERE tenant > 0;
