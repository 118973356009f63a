-- kind: expand
-- What is finished leaves the table of jobs: of a done job one row stays, which is appended and never changed. While a
-- program of before is at work, which looks for done jobs in job, they stay there (0019).

-- run: transaction
-- lock: none
-- Of a fixed length first, so that nothing is lost to alignment. What is only shown stands in details, packed
-- (store/outcomes.py).
CREATE TABLE outcome (
    seq      bigint PRIMARY KEY,
    -- when the lease began under which it was done; null where that was retired before the row was made
    began_at timestamptz,
    ended_at timestamptz NOT NULL,
    score    integer NOT NULL,
    attempts integer NOT NULL,
    crashes  integer NOT NULL,
    -- for the relationship, when what came after it is erased; null where no part says one
    emotion  text COLLATE "C",
    details  bytea NOT NULL
);
-- As in 0016: no plan needs what ANALYZE would keep of these.
ALTER TABLE outcome ALTER COLUMN emotion SET STATISTICS 0, ALTER COLUMN details SET STATISTICS 0;

-- A done job that is still in job, as its outcome has it. These go with 0019.
CREATE FUNCTION convo_began_at(job_seq bigint) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT began_at FROM run WHERE seq = job_seq AND ending = 'settle' ORDER BY ended_at DESC LIMIT 1
$$;
CREATE FUNCTION convo_emotion(job_seq bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT result ->> 'emotion' FROM part
    WHERE seq = job_seq AND name = 'emotion' AND state = 'done' AND coalesce(result ->> 'refused', '') = ''
$$;
CREATE FUNCTION convo_details(job_seq bigint, breakdown jsonb, weights_version text) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT convert_to(json_build_object(
        'by', coalesce((SELECT made_by FROM run WHERE seq = job_seq AND ending = 'settle'
                        ORDER BY ended_at DESC LIMIT 1), ''),
        'waits', coalesce((SELECT waits FROM run WHERE seq = job_seq AND ending = 'settle'
                           ORDER BY ended_at DESC LIMIT 1), '{}'),
        'breakdown', breakdown,
        'weights_version', weights_version,
        'parts', coalesce((SELECT json_agg(json_build_object(
            'name', name, 'made_by', made_by, 'updated_at', updated_at, 'new_memories', new_memories, 'result', result)
            ORDER BY name) FROM part WHERE seq = job_seq AND state = 'done'), '[]')
    )::text, 'UTF8')
$$;

-- The job of each conversation, whether it is open or done: what readers of both look at. Each column has the same type
-- and collation in both halves, also of its constants: else the planner would read both tables whole to join them.
CREATE VIEW every_job AS
SELECT seq, state, attempts, crashes, delayed, available_at, waits_for, parked_since, leased_at, leased_until, leased_by,
       last_error, ended_at, score,
       CASE WHEN state = 'done' THEN convo_began_at(seq) END AS began_at,
       (CASE WHEN state = 'done' THEN convo_emotion(seq) END) COLLATE "C" AS emotion,
       CASE WHEN state = 'done' THEN convo_details(seq, breakdown, weights_version) END AS details
FROM job
UNION ALL
SELECT seq, 'done'::text COLLATE "C", attempts, crashes, false, NULL::timestamptz, ''::text COLLATE "C",
       NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, NULL::text COLLATE "C", NULL::text, ended_at, score,
       began_at, emotion, details
FROM outcome;

-- run: concurrently
-- lock: none
-- A list by state, newest first; whoever is leased; the newest dead letters. What is ready has no entry, so accept
-- writes none: those are found by the primary key, as they are most of what this table holds.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_not_ready ON job (state, seq) WHERE state <> 'ready';

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
DROP INDEX IF EXISTS job_by_state;
