-- kind: expand
-- What is large and only appended lies in partitions by the month of its receipt, and a month goes by DROP. The number of
-- a conversation says in which: partition n has the seq from n * 2^36 on, and store/months.py begins the next one by
-- setting the sequence forward. What is stored today becomes partition 0: no row is rewritten, and it is read beside all.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation_log, run
ALTER TABLE conversation_log ADD CONSTRAINT conversation_log_first CHECK (seq < 68719476736) NOT VALID;
ALTER TABLE run ADD CONSTRAINT run_first CHECK (seq < 68719476736) NOT VALID;

-- run: transaction
-- lock: SHARE UPDATE EXCLUSIVE ON conversation_log
-- Both in one reading. The second one is the parent's, too, and a partition needs it as valid as the parent has it.
ALTER TABLE conversation_log VALIDATE CONSTRAINT conversation_log_first, VALIDATE CONSTRAINT conversation_log_somewhere;

-- run: transaction
-- lock: SHARE UPDATE EXCLUSIVE ON run
ALTER TABLE run VALIDATE CONSTRAINT run_first;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation_log, run
-- Which months are gone: what a conversation of theirs has no more has expired (store/months.py). A row for each.
CREATE TABLE dropped_month (
    table_name text COLLATE "C" NOT NULL,
    number     bigint NOT NULL,
    rows       bigint NOT NULL,
    kept       bigint NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (table_name, number)
);

-- Makes partition ``number`` of a table: it gets the parent's indexes and checks. ATTACH lets all others read and write,
-- and PARTITION OF would not. ANALYZE passes over the columns that it passes over in the parent (0016).
CREATE FUNCTION convo_make_month(parent text, number bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name   text := parent || '_' || number;
    column_name text;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', name, parent);
    FOR column_name IN
        SELECT attname FROM pg_attribute
        WHERE attrelid = parent::regclass AND attnum > 0 AND NOT attisdropped AND attstattarget = 0
    LOOP
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', name, column_name);
    END LOOP;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, name,
                   CASE number WHEN 0 THEN 'MINVALUE' ELSE (number * 68719476736)::text END,
                   (number + 1) * 68719476736);
END
$$;

ALTER TABLE conversation_log RENAME TO conversation_log_0;
ALTER INDEX conversation_log_pkey RENAME TO conversation_log_0_pkey;
CREATE TABLE conversation_log (
    seq         bigint,
    body        bytea,
    storage_ref text COLLATE "C",
    CONSTRAINT conversation_log_pkey PRIMARY KEY (seq),
    CONSTRAINT conversation_log_somewhere CHECK ((body IS NULL) <> (storage_ref IS NULL))
) PARTITION BY RANGE (seq);
ALTER TABLE conversation_log ALTER COLUMN body SET STORAGE EXTERNAL,
    ALTER COLUMN body SET STATISTICS 0, ALTER COLUMN storage_ref SET STATISTICS 0;
ALTER TABLE conversation_log ATTACH PARTITION conversation_log_0 FOR VALUES FROM (MINVALUE) TO (68719476736);
ALTER TABLE conversation_log_0 DROP CONSTRAINT conversation_log_first;

ALTER TABLE run RENAME TO run_0;
ALTER INDEX run_by_job RENAME TO run_0_by_job;
ALTER INDEX IF EXISTS run_taken_back RENAME TO run_0_taken_back;
CREATE TABLE run (
    seq      bigint NOT NULL,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT convo_now(),
    ending   text COLLATE "C" NOT NULL,
    made_by  text NOT NULL,
    reason   text,
    waits    jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (seq);
CREATE INDEX run_by_job ON run (seq);
CREATE INDEX run_taken_back ON run (made_by) WHERE ending IN ('rescue', 'crash');
ALTER TABLE run ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE run ATTACH PARTITION run_0 FOR VALUES FROM (MINVALUE) TO (68719476736);
ALTER TABLE run_0 DROP CONSTRAINT run_first;

-- Whoever was allowed to read or write them by name still is.
DO $$
DECLARE statement text;
BEGIN
    FOR statement IN
        SELECT format('GRANT %s ON %I TO %s', privilege_type, parent,
                      CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
        FROM (VALUES ('conversation_log'), ('run')) AS parents (parent)
        JOIN pg_class ON oid = (parent || '_0')::regclass, aclexplode(relacl) WHERE grantee <> relowner
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
