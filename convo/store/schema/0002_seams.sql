-- kind: expand
-- 0001 is as it was released: where its comments name store/jobs.py and store/runs.py, see store/jobs/table.py and
-- store/jobs/runs.py.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON part
-- What a part is called is the program's own list (analysis/part.py): the database checks only the form of a name.
-- NOT VALID, here and below: the old rows satisfy the check that goes, and more, so that nothing has to be read.
ALTER TABLE part DROP CONSTRAINT part_name_check;
ALTER TABLE part ADD CONSTRAINT part_name_form CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$') NOT VALID;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation_log
-- A log can lie elsewhere: then storage_ref says where, and body is NULL. A NULL column takes no room in these rows, and
-- accept does not name it.
ALTER TABLE conversation_log ADD COLUMN storage_ref text COLLATE "C";
ALTER TABLE conversation_log ALTER COLUMN body DROP NOT NULL;
ALTER TABLE conversation_log ADD CONSTRAINT conversation_log_somewhere
    CHECK ((body IS NULL) <> (storage_ref IS NULL)) NOT VALID;

-- run: transaction
-- lock: ROW EXCLUSIVE ON run
-- Until now an erased canary left its runs.
DELETE FROM run WHERE NOT EXISTS (SELECT FROM conversation c WHERE c.seq = run.seq);
