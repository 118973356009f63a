-- kind: expand
-- run: transaction
-- lock: none
-- Logs behind the receipts (store/log_objects.py): a row for each object of logs in object storage, written before the
-- object. Both tables are empty while logs.store keeps logs in PostgreSQL.
CREATE TABLE log_object (
    name   text COLLATE "C" PRIMARY KEY,
    -- planned: the object may be there, and nothing refers to it. stored: logs refer to it. leaving: it is to be deleted
    state  text COLLATE "C" NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'stored', 'leaving')),
    -- of which partition and tenant its logs are
    month  bigint NOT NULL,
    tenant smallint NOT NULL,
    -- the logs that were written into it
    seqs   bigint[] NOT NULL,
    bytes  bigint NOT NULL DEFAULT 0,
    -- since when it is in this state; one that is leaving is deleted from then on
    at     timestamptz NOT NULL DEFAULT convo_now()
);
-- What is under way or to be deleted: a few rows.
CREATE INDEX log_object_open ON log_object (state, at) WHERE state <> 'stored';
-- The objects of a month that is dropped.
CREATE INDEX log_object_by_month ON log_object (month);
ALTER TABLE log_object ALTER COLUMN seqs SET STATISTICS 0;

-- Logs that are gone from conversation_log and still stand in an object, until that is written anew or deleted.
CREATE TABLE erased_log (
    name    text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    -- the erasure on request that it went with, by the HMAC of its id
    erasure bytea,
    urgent  boolean NOT NULL DEFAULT false,
    at      timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, name)
);
CREATE INDEX erased_log_by_name ON erased_log (name, at);
CREATE INDEX erased_log_urgent ON erased_log (name) WHERE urgent;
CREATE INDEX erased_log_by_erasure ON erased_log (erasure) WHERE erasure IS NOT NULL;

CREATE FUNCTION convo_note_erased_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO erased_log (name, seq) VALUES (split_part(OLD.storage_ref, ':', 1), OLD.seq) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- run: transaction
-- lock: SHARE ROW EXCLUSIVE ON conversation_log
-- Whoever deletes a row, by whichever statement and program: its object is written anew. Partitions that are made later
-- get the trigger when they are attached.
CREATE TRIGGER conversation_log_erased AFTER DELETE ON conversation_log FOR EACH ROW
    WHEN (OLD.storage_ref IS NOT NULL) EXECUTE FUNCTION convo_note_erased_log();
