-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON api_key
-- A key may expire, and one that replaces another names it (store/keys.py). No row is rewritten.
ALTER TABLE api_key
    -- null: never
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN replaces   text COLLATE "C";

-- Reading the good keys: revoked ones stay in the table for ever, and are not read.
CREATE INDEX api_key_not_revoked ON api_key (created_at DESC) WHERE revoked_at IS NULL;
