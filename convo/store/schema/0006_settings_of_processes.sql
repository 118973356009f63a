-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
-- A lease carries its own length, and a delay its own beginning: whether a time is further away than is legal (the clock
-- was set back) is judged by the row, never by the settings of the process that looks.
ALTER TABLE job ADD COLUMN lease_seconds double precision, ADD COLUMN delayed_at timestamptz;
-- run: batches
-- lock: ROW EXCLUSIVE ON job
-- Only the delayed ones, found by job_delayed: their delays began at the latest now.
UPDATE job SET delayed_at = least(available_at, convo_now()) WHERE seq = ANY(ARRAY(
    SELECT seq FROM job WHERE state = 'ready' AND delayed AND delayed_at IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED));

-- run: concurrently
-- lock: SHARE UPDATE EXCLUSIVE ON job
-- rescue: those whose delay began later than now
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_delayed_at ON job (delayed_at) WHERE state = 'ready' AND delayed;

-- run: transaction
-- lock: none
-- What each process works with, compared with the others at every heartbeat (store/process_settings.py). A row counts
-- until ``seen_at`` is ``lease_seconds`` ago: from then on, that process has no lease that is good.
CREATE TABLE process_settings (
    name          text COLLATE "C" PRIMARY KEY,
    settings      jsonb NOT NULL,
    dependencies  text[] NOT NULL,
    takes_jobs    boolean NOT NULL,
    lease_seconds double precision NOT NULL,
    seen_at       timestamptz NOT NULL DEFAULT convo_now()
);
