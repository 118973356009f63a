-- kind: expand
-- Every statement finds its rows by an index, whatever the number of conversations and of ready jobs.

-- run: concurrently
-- lock: none
-- A list by state, newest first, also of done jobs; whoever is leased; the newest dead letters.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_by_state ON job (state, seq);
-- The job that is due longest and waits for nothing: the gauge and the alert. In job_due it stands behind its key.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_queued ON job (available_at, seq)
    WHERE state = 'ready' AND NOT delayed AND crashes < 2 AND waits_for = '';
-- A list of parked jobs, newest first. The index by the time of their parking has another condition than job_parked had,
-- for the same jobs: else the planner reads all of it for a list, and sorts.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_parked_since ON job (parked_since)
    WHERE state = 'ready' AND parked_since IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_parked_by_seq ON job (state, seq) WHERE waits_for <> '';
-- The conversations of one day. A block range index was as large as a page, but rows of today that fill the holes of
-- deleted ones made it read old pages: 462 instead of 132. Rows of one batch have one time, which is stored once here.
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversation_by_time ON conversation (received_at);

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job, conversation
DROP INDEX job_leased;
DROP INDEX job_dead;
DROP INDEX job_parked;
DROP INDEX IF EXISTS conversation_by_day;
-- A job's row is written anew at each lease and each ending. By the defaults a table of a million rows is vacuumed after
-- 200,000 of them, and until then each lease walks over the entries of those that were leased before.
ALTER TABLE job SET (
    autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_limit = 2000,
    autovacuum_analyze_threshold = 2000, autovacuum_analyze_scale_factor = 0.02
);
