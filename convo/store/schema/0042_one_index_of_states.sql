-- kind: expand
-- A job that was accepted just now has no entry in either of two indexes on (state, seq), and each accept paid for finding
-- that out twice. One has both kinds of rows, in ranges of their own: what is parked is ready, and all else is not.

-- run: concurrently
-- lock: none
-- Whoever is leased; lists of jobs by state and of parked ones, newest first. What is ready and not parked has no entry.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_apart ON job (state, seq) WHERE state <> 'ready' OR waits_for <> '';

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
DROP INDEX IF EXISTS job_not_ready, job_parked_by_seq;
