-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON run
-- When the longer waits of a run were (store/jobs/runs.py): [[name, from, to], ...] in seconds since it began. Null in a
-- run of an older program, and in one without a wait that is long enough to be seen; then it takes no room.
ALTER TABLE run ADD COLUMN timeline jsonb;
