-- kind: expand
-- A job that was accepted just now has no entry in most indexes of job, and each accept, lease and ending paid for finding
-- that out for each. Here one takes the place of two, twice: both kinds of rows stand in it, in ranges of their own.

-- run: concurrently
-- lock: none
-- Whoever is leased; lists of jobs by state and of parked ones, newest first. What is ready and not parked has no entry.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_apart ON job (state, seq) WHERE state <> 'ready' OR waits_for <> '';
-- lease: those whose time has come; lease: one suspect; rescue: those that are poison.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_not_due ON job (delayed, available_at, seq)
    WHERE state = 'ready' AND (delayed OR crashes >= 2);

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
DROP INDEX IF EXISTS job_not_ready, job_parked_by_seq, job_delayed, job_suspect;
