-- kind: expand
-- run: transaction
-- lock: none
-- Re-runs of one part on stored conversations (store/jobs/reruns.py), and what they found: candidates, which stand beside
-- the current results until one is promoted (store/jobs/promotion.py). Older programs do not look here.
CREATE TABLE rerun (
    number         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    part           text COLLATE "C" NOT NULL,
    version        text COLLATE "C" NOT NULL,
    -- the set of parts with the declaration that is asked
    owed           bigint NOT NULL,
    -- which conversations: received since then, of one bot, a share of them by a hash of their ids
    received_since timestamptz,
    bot_id         text COLLATE "C",
    sample         double precision NOT NULL,
    -- at most so many a second, by all processes together; 0 is no limit
    rate           double precision NOT NULL,
    state          text COLLATE "C" NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'ended')),
    -- conversations up to after_seq have been looked at, and none behind until_seq is
    after_seq      bigint NOT NULL,
    until_seq      bigint NOT NULL,
    total          bigint NOT NULL,
    looked_at      bigint NOT NULL DEFAULT 0,
    next_at        timestamptz NOT NULL DEFAULT convo_now(),
    made_at        timestamptz NOT NULL DEFAULT convo_now()
);
-- one at a time of a part
CREATE UNIQUE INDEX rerun_open ON rerun (part) WHERE state <> 'ended';

CREATE TABLE candidate (
    seq          bigint NOT NULL,
    part         text COLLATE "C" NOT NULL,
    rerun        bigint NOT NULL,
    state        text COLLATE "C" NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'done', 'failed', 'promoted')),
    attempts     integer NOT NULL DEFAULT 0,
    -- when it may be taken; of one that is taken, when its taker's time is over
    available_at timestamptz NOT NULL DEFAULT convo_now(),
    token        bigint NOT NULL DEFAULT 0,
    made_by      text,
    result       jsonb,
    -- how long its analyst took
    seconds      double precision,
    -- by how much the promotion moved the score
    points       integer,
    error        text,
    updated_at   timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, part)
);
ALTER TABLE candidate ALTER COLUMN result SET STATISTICS 0, ALTER COLUMN error SET STATISTICS 0;
-- the next that is taken; how many there are of each state, and pages of them
CREATE INDEX candidate_due ON candidate (rerun, available_at) WHERE state = 'waiting';
CREATE INDEX candidate_of ON candidate (rerun, state, seq);
