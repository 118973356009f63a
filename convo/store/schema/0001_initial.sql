-- One conversation is three rows: what it is, its log, its job. seq ties them: a small key that only grows, so that the
-- indexes of the log and of the job are appended to at their right end. There are no foreign keys: the three rows are
-- made by one statement, and the check would cost each accept two look-ups.

-- The one clock of all rows. A function, so that a test can set it forward and back.
CREATE FUNCTION convo_now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()';

CREATE TABLE conversation (
    seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation_id text COLLATE "C" NOT NULL,
    user_id         text COLLATE "C" NOT NULL,
    bot_id          text COLLATE "C" NOT NULL,
    bot_name        text,
    bot_type        text,
    agent_tag       text,
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz NOT NULL,
    received_at     timestamptz NOT NULL,
    turns           integer NOT NULL,
    exchanges       integer NOT NULL,
    digest          text COLLATE "C" NOT NULL
);
-- accept's ON CONFLICT and its second statement; every read by id
CREATE UNIQUE INDEX conversation_by_id ON conversation (conversation_id);
-- lists of one user, newest first; all other lists walk the primary key backwards
CREATE INDEX conversation_by_user ON conversation (user_id, seq);
-- lists of one bot
CREATE INDEX conversation_by_bot ON conversation (bot_id, seq);

-- the books' count of one day: rows come in the order of their receipt, so a few bytes a block range say which to read
CREATE INDEX conversation_by_day ON conversation USING brin (received_at) WITH (pages_per_range = 16, autosummarize = on);

-- The books (store/ledger.py): appended to by every accept, settle and burial, folded once a minute.
CREATE TABLE ledger (
    day  date NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('accepted', 'done', 'dead')),
    n    bigint NOT NULL,
    at   timestamptz NOT NULL DEFAULT convo_now()
);
-- the comparison, and the fold: a few rows a day, and those of the last minute
CREATE INDEX ledger_by_day ON ledger (day);

-- The log is bytes that PostgreSQL neither parses nor compresses again: zstd has done that.
CREATE TABLE conversation_log (
    seq  bigint PRIMARY KEY,
    body bytea NOT NULL
);
ALTER TABLE conversation_log ALTER COLUMN body SET STORAGE EXTERNAL;

-- states: ready -> leased -> done | dead, and back to ready (failed, parked, released, rescued, retried)
--
-- A ready job stands in one of these lines, each an index of its own, so that a look at one never walks over another:
--   due       leased next, by turns: fair_key is whose turn it is (fairness.key), waits_for '' or the dependency that
--             was out when it was parked; a parked row is not touched again until it is leased
--   delayed   due at available_at; the lease that comes after that moves it to the due ones
--   suspects  its process died with it twice and more: leased only alone (store/jobs.py, Poison)
CREATE TABLE job (
    seq             bigint PRIMARY KEY,
    state           text COLLATE "C" NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'leased', 'done', 'dead')),
    fair_key        text COLLATE "C" NOT NULL,
    attempts        integer NOT NULL DEFAULT 0,
    crashes         integer NOT NULL DEFAULT 0,
    delayed         boolean NOT NULL DEFAULT false,
    available_at    timestamptz NOT NULL DEFAULT convo_now(),
    waits_for       text COLLATE "C" NOT NULL DEFAULT '',
    parked_since    timestamptz,
    lease_token     bigint,
    leased_at       timestamptz,
    leased_until    timestamptz,
    leased_by       text COLLATE "C",
    last_error      text,
    ended_at        timestamptz,
    reviewed_at     timestamptz,
    score           integer,
    breakdown       jsonb,
    weights_version text,
    CHECK ((state = 'leased') = (lease_token IS NOT NULL)),
    CHECK ((state IN ('done', 'dead')) = (ended_at IS NOT NULL)),
    CHECK ((state = 'done') = (score IS NOT NULL)),
    CHECK (reviewed_at IS NULL OR state = 'dead'),
    CHECK (waits_for = '' OR parked_since IS NOT NULL)
) WITH (fillfactor = 80); -- room for the renewals, which touch no indexed column
-- lease: a skip scan over the keys, then the oldest of each
CREATE INDEX job_due ON job (waits_for, fair_key, available_at, seq)
    WHERE state = 'ready' AND NOT delayed AND crashes < 2;
-- lease: those whose time has come; rescue: those whose time is further away than it could legally be
CREATE INDEX job_delayed ON job (available_at) WHERE state = 'ready' AND delayed;
-- lease: one suspect; rescue: those that are poison
CREATE INDEX job_suspect ON job (available_at, seq) WHERE state = 'ready' AND NOT delayed AND crashes >= 2;
-- rescue: those parked for too long; the gauge of parked ones
CREATE INDEX job_parked ON job (parked_since) WHERE state = 'ready' AND waits_for <> '';
-- heartbeat, rescue, release: only the few rows that are leased
CREATE INDEX job_leased ON job (seq) WHERE state = 'leased';
-- the list of dead letters
CREATE INDEX job_dead ON job (seq) WHERE state = 'dead';
-- the alert on those that nobody has reviewed: neither retried nor acknowledged (reviewed_at)
CREATE INDEX job_unreviewed ON job (seq) WHERE state = 'dead' AND reviewed_at IS NULL;

-- What became of each lease (store/runs.py); read for one job at a time.
CREATE TABLE run (
    seq      bigint NOT NULL,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT convo_now(),
    ending   text COLLATE "C" NOT NULL,
    made_by  text NOT NULL,
    reason   text,
    waits    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX run_by_job ON run (seq);

CREATE TABLE part (
    seq          bigint NOT NULL,
    name         text COLLATE "C" NOT NULL CHECK (name IN ('questions', 'emotion', 'memories')),
    state        text COLLATE "C" NOT NULL CHECK (state IN ('done', 'failed')),
    made_by      text NOT NULL,
    result       jsonb,
    new_memories integer NOT NULL DEFAULT 0,
    error        text,
    updated_at   timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, name),
    CHECK ((state = 'done') = (result IS NOT NULL))
);

CREATE TABLE memory (
    memory_seq    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id       text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    kind          text NOT NULL,
    text          text NOT NULL,
    seq           bigint NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT convo_now()
);
-- no memory twice
CREATE UNIQUE INDEX memory_by_key ON memory (user_id, key);
-- a user's memories, newest first
CREATE INDEX memory_by_user ON memory (user_id, memory_seq);

CREATE TABLE relationship (
    user_id       text COLLATE "C" NOT NULL,
    bot_id        text COLLATE "C" NOT NULL,
    score         bigint NOT NULL,
    conversations integer NOT NULL,
    last_emotion  text NOT NULL,
    last_seq      bigint NOT NULL,
    updated_at    timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (user_id, bot_id)
);

-- The keys of clients (store/keys.py): read whole, and small.
CREATE TABLE api_key (
    key_id              text COLLATE "C" PRIMARY KEY,
    digest              bytea NOT NULL,
    name                text NOT NULL,
    scopes              text[] NOT NULL,
    requests_per_second double precision NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT convo_now(),
    last_used_at        timestamptz,
    revoked_at          timestamptz
);

-- Who is at work on this database, and how many connections each may open.
CREATE TABLE process (
    name            text COLLATE "C" PRIMARY KEY,
    pid             integer NOT NULL,
    host            text NOT NULL,
    connections_max integer NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT convo_now(),
    seen_at         timestamptz NOT NULL DEFAULT convo_now()
);
