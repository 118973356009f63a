-- kind: expand
-- run: transaction
-- lock: none
-- What was erased (store/erasures.py): the ids as HMACs under the installation's key, so that none is accepted again. A
-- program that does not know this table stores such an id anew: nothing is erased while one is at work (convo/erasure.py).
CREATE TABLE erasure (
    -- accept probes it twice for each conversation, by its id and by its user's; every read of an id that is not found
    id_hmac  bytea PRIMARY KEY,
    kind     text COLLATE "C" NOT NULL CHECK (kind IN ('conversation', 'user')),
    -- from then on the id is refused; of a user, what ended until then
    begun_at timestamptz NOT NULL DEFAULT convo_now(),
    -- null: not all of it is known to be erased
    ended_at timestamptz,
    -- how many rows by table; null for a conversation that went with its user
    counts   jsonb
);

-- Keys of memories that went with a conversation, as HMACs: an analysis of one that was received until then, by its seq,
-- does not bring them back (store/jobs/memories.py).
CREATE TABLE erased_memory (
    user_hmac bytea NOT NULL,
    key_hmac  bytea NOT NULL,
    until_seq bigint NOT NULL,
    PRIMARY KEY (user_hmac, key_hmac)
);

-- run: transaction
-- lock: SHARE UPDATE EXCLUSIVE ON receipt, conversation, conversation_log, job, part, part_ticket, run, memory
-- ANALYZE keeps values of a sample of rows where no VACUUM removes them. No plan needs those of words and of ids that
-- are unique. Users and bots are left: the lists and the lease are planned by them.
ALTER TABLE receipt ALTER COLUMN id_hash SET STATISTICS 0, ALTER COLUMN digest SET STATISTICS 0,
    ALTER COLUMN notes SET STATISTICS 0;
ALTER TABLE conversation ALTER COLUMN conversation_id SET STATISTICS 0, ALTER COLUMN bot_name SET STATISTICS 0,
    ALTER COLUMN bot_type SET STATISTICS 0, ALTER COLUMN agent_tag SET STATISTICS 0,
    ALTER COLUMN language SET STATISTICS 0, ALTER COLUMN timezone SET STATISTICS 0,
    ALTER COLUMN metadata SET STATISTICS 0, ALTER COLUMN log_hash SET STATISTICS 0;
ALTER TABLE conversation_log ALTER COLUMN body SET STATISTICS 0, ALTER COLUMN storage_ref SET STATISTICS 0;
ALTER TABLE job ALTER COLUMN last_error SET STATISTICS 0, ALTER COLUMN breakdown SET STATISTICS 0;
ALTER TABLE part ALTER COLUMN result SET STATISTICS 0, ALTER COLUMN error SET STATISTICS 0;
ALTER TABLE part_ticket ALTER COLUMN ticket SET STATISTICS 0;
ALTER TABLE run ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE memory ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN kind SET STATISTICS 0,
    ALTER COLUMN text SET STATISTICS 0;
-- What was sampled before stays otherwise: ANALYZE passes over these columns from now on.
DO $$
BEGIN
    IF to_regprocedure('pg_clear_attribute_stats(text,text,text,boolean)') IS NOT NULL THEN
        PERFORM pg_clear_attribute_stats('public', c.relname::text, a.attname::text, false)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND a.attstattarget = 0 AND a.attnum > 0 AND NOT a.attisdropped
          AND c.relname IN ('receipt', 'conversation', 'conversation_log', 'job', 'part', 'part_ticket', 'run', 'memory');
    END IF;
END
$$;
