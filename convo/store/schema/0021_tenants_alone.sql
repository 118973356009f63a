-- kind: contract
-- needed: no
-- No program is left that knows no tenants. From now on a user, a relationship and a memory may be of the same name in
-- two of them, so other tenants can be made.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON memory, relationship
DROP INDEX memory_by_key;
DROP INDEX IF EXISTS relationship_newest;
-- relationship_of_bot takes its place
ALTER TABLE relationship DROP CONSTRAINT relationship_pkey;
