-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job, part
-- What a conversation is owed: the parts that its analysis is to find, each with its version, fixed when it is accepted.
-- A set of parts is stored once (store/owed_sets.py), before the first job that names it, and never changed. Its number
-- is made of its content, so that all processes give the same set the same number. Text and no jsonb, which would put
-- the keys of a schema in another order, and so ask a model something else.
CREATE TABLE part_set (
    number   bigint PRIMARY KEY,
    parts    text NOT NULL,
    first_at timestamptz NOT NULL DEFAULT convo_now()
);
-- NULL: the three parts that are declared by default. A NULL column takes no room, and accept does not name it then.
ALTER TABLE job ADD COLUMN owed bigint;
-- NULL: the version of one of these three, which who made it tells (conversation/owed.py).
ALTER TABLE part ADD COLUMN version text COLLATE "C";

-- run: transaction
-- lock: none
-- Parts that no score waits for and that failed while their conversation was analysed: each is tried by itself
-- (store/jobs/part_jobs.py). A row stays with what was found, or why nothing was.
CREATE TABLE part_job (
    seq          bigint NOT NULL,
    name         text COLLATE "C" NOT NULL,
    owed         bigint NOT NULL,
    -- what a process must have to find it: the name of a dependency
    needs        text COLLATE "C" NOT NULL,
    state        text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'done', 'failed')),
    attempts     integer NOT NULL DEFAULT 0,
    -- when it may be taken; of one that is taken, when its taker's time is over
    available_at timestamptz NOT NULL DEFAULT convo_now(),
    token        bigint NOT NULL DEFAULT 0,
    made_by      text,
    result       jsonb,
    error        text,
    updated_at   timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, name)
);
CREATE INDEX part_job_due ON part_job (needs, available_at) WHERE state = 'waiting';
