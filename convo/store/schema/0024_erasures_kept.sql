-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON erasure, erased_memory, receipt
-- Every process follows the list of erasures, and keeps it in a file of its own (store/erasure_list.py). It reads what
-- transactions wrote that its last look could not see: so none is passed over, whatever the clock does. Rows of before
-- have none, and are read at each start with all others.
ALTER TABLE erasure ADD COLUMN noted_by xid8, ALTER COLUMN noted_by SET DEFAULT pg_current_xact_id();
ALTER TABLE erased_memory ADD COLUMN noted_by xid8, ALTER COLUMN noted_by SET DEFAULT pg_current_xact_id();
-- Of a conversation, the HMAC of the hash of its id: of one that had expired in a backup, only the hash is known.
ALTER TABLE erasure ADD COLUMN hash_hmac bytea;
-- Whose an expired conversation was, as an HMAC: an erasure of the user finds its receipt. It is null in all others, and
-- the eighth column, so that it takes no room.
ALTER TABLE receipt ADD COLUMN user_hmac bytea, ALTER COLUMN user_hmac SET STATISTICS 0;

-- What is erased again before requests are served (erase_again.py): a restore leaves it, or a process whose file holds
-- what its database does not know. Rows go when it is done. The restore of an older backup makes this table itself.
CREATE TABLE IF NOT EXISTS erase_again (
    kind   text COLLATE "C" NOT NULL, -- conversation, user, memory
    hmac   bytea NOT NULL, -- of the id; of a memory, its user's
    number bigint NOT NULL, -- when the erasure began, in microseconds since 1970; of a memory, its until_seq
    other  bytea NOT NULL, -- the HMAC of the id's hash or nothing; of a memory, its key's
    PRIMARY KEY (kind, hmac, other)
);

-- What a memory service has to be told of an erasure (store/untold.py). A row goes when the service has answered.
CREATE TABLE untold (
    number     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    erasure    bytea NOT NULL, -- the HMAC of what was erased
    service    text COLLATE "C" NOT NULL,
    kind       text COLLATE "C" NOT NULL CHECK (kind IN ('memory', 'conversation', 'user')),
    whose      text COLLATE "C" NOT NULL, -- the user, as the service knows it
    what       text COLLATE "C" NOT NULL, -- the memory's or the conversation's id; '' of a user
    made_at    timestamptz NOT NULL DEFAULT convo_now(),
    due_at     timestamptz NOT NULL DEFAULT convo_now(),
    attempts   integer NOT NULL DEFAULT 0,
    last_error text
);
ALTER TABLE untold ALTER COLUMN whose SET STATISTICS 0, ALTER COLUMN what SET STATISTICS 0,
    ALTER COLUMN last_error SET STATISTICS 0;
-- the receipt of an erasure; the same is noted once
CREATE UNIQUE INDEX untold_of_erasure ON untold (erasure, kind, what);
-- the next that is due, and the oldest
CREATE INDEX untold_due ON untold (due_at);

-- run: concurrently
-- lock: none
CREATE INDEX CONCURRENTLY IF NOT EXISTS erasure_noted_by ON erasure (noted_by);
CREATE INDEX CONCURRENTLY IF NOT EXISTS erasure_not_ended ON erasure (begun_at) WHERE ended_at IS NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS erased_memory_noted_by ON erased_memory (noted_by);
-- an erasure of a user
CREATE INDEX CONCURRENTLY IF NOT EXISTS receipt_of_user ON receipt (user_hmac) WHERE user_hmac IS NOT NULL;
