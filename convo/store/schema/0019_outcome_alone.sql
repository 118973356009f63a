-- kind: contract
-- needed: no
-- No program is left that looks for done jobs in job.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
-- From here on settling moves its jobs to outcome (store/jobs/settle.py), and one that would leave its job here fails.
-- The done rows can only become fewer: so a position is enough to go through them, and none is looked at twice. Without
-- it each page would walk over the entries of those before it for as long as an old snapshot keeps them (a backup).
ALTER TABLE job ADD CONSTRAINT job_open CHECK (state <> 'done') NOT VALID;
CREATE TABLE job_move (after_seq bigint NOT NULL);
INSERT INTO job_move VALUES (-1);

-- run: outcomes
-- lock: ROW EXCLUSIVE ON job, part, part_ticket, run, outcome
-- job_not_ready, in the order in which all others lock. Whoever erases one of them at this moment is waited for.
WITH page AS MATERIALIZED (
    SELECT seq, ended_at, score, attempts, crashes, breakdown, weights_version FROM job
    WHERE state = 'done' AND (state, seq) > ('done', (SELECT after_seq FROM job_move)) ORDER BY state, seq LIMIT 200
    FOR UPDATE
), moved AS (
    UPDATE job_move SET after_seq = (SELECT max(seq) FROM page) WHERE EXISTS (SELECT FROM page)
), jobs AS (
    DELETE FROM job WHERE seq = ANY(ARRAY(SELECT seq FROM page))
), tickets AS (
    DELETE FROM part_ticket WHERE seq = ANY(ARRAY(SELECT seq FROM page))
), parts AS (
    DELETE FROM part WHERE seq = ANY(ARRAY(SELECT seq FROM page)) RETURNING *
), runs AS (
    DELETE FROM run WHERE seq = ANY(ARRAY(SELECT seq FROM page)) AND ending = 'settle' RETURNING *
), found AS MATERIALIZED (
    SELECT seq,
           max(result ->> 'emotion') FILTER (WHERE name = 'emotion' AND coalesce(result ->> 'refused', '') = '') AS emotion,
           json_agg(json_build_object('name', name, 'made_by', made_by, 'updated_at', updated_at,
                                      'new_memories', new_memories, 'result', result) ORDER BY name) AS parts
    FROM parts WHERE state = 'done' GROUP BY seq
), last_run AS MATERIALIZED (
    SELECT DISTINCT ON (seq) seq, began_at, made_by, waits FROM runs ORDER BY seq, ended_at DESC
)
-- As convo_began_at, convo_emotion and convo_details make them, but of all rows of a page at once.
SELECT seq, began_at, ended_at, score, attempts, crashes, emotion,
       convert_to(json_build_object('by', coalesce(made_by, ''), 'waits', coalesce(waits, '{}'), 'breakdown', breakdown,
                                    'weights_version', weights_version, 'parts', coalesce(parts, '[]'))::text, 'UTF8') AS details
FROM page LEFT JOIN found USING (seq) LEFT JOIN last_run USING (seq) ORDER BY seq;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
DROP TABLE job_move;
DROP VIEW every_job;
DROP FUNCTION convo_began_at(bigint), convo_emotion(bigint), convo_details(bigint, jsonb, text);
ALTER TABLE job DROP COLUMN score, DROP COLUMN breakdown, DROP COLUMN weights_version;
CREATE VIEW every_job AS
SELECT seq, state, attempts, crashes, delayed, available_at, waits_for, parked_since, leased_at, leased_until, leased_by,
       last_error, ended_at, NULL::integer AS score, NULL::timestamptz AS began_at, NULL::text COLLATE "C" AS emotion,
       NULL::bytea AS details
FROM job
UNION ALL
SELECT seq, 'done'::text COLLATE "C", attempts, crashes, false, NULL::timestamptz, ''::text COLLATE "C",
       NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, NULL::text COLLATE "C", NULL::text, ended_at, score,
       began_at, emotion, details
FROM outcome;
