-- kind: expand
-- A revision is a longer log of a conversation that is stored: a new seq of the same id, with a receipt, a log and a job of
-- its own (store/jobs/revisions.py). The receipt of the newest has the hash of the id, each older one a hash made of it, so
-- every read by id finds the newest. While an older program is at work none is stored: it would erase the newest alone.

-- run: transaction
-- lock: none
-- What the log of a longer body has to begin with. Rows are written while intake.revisions is on, one for the newest
-- revision of each id.
CREATE TABLE log_prefix (
    seq        bigint PRIMARY KEY,
    items      integer NOT NULL,
    log_digest bytea NOT NULL
);

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
-- All three are null in a conversation that was never revised, and then they take no room.
ALTER TABLE conversation
    -- of a revision: the seq whose score this one takes the place of when it is settled, 0 where none of them counts yet
    ADD COLUMN replaces bigint,
    -- the newest revision, where this one is an older one
    ADD COLUMN revised_by bigint,
    -- the score of a newer revision stands in its place in the relationship
    ADD COLUMN replaced boolean;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job, ledger
-- superseded: it had not been analysed when a newer revision came, and nobody works on it any more. Booked, so that what is
-- neither done nor dead nor superseded is what is to be done. NOT VALID: the old rows satisfy the checks that go.
ALTER TABLE job DROP CONSTRAINT job_state_check;
ALTER TABLE job ADD CONSTRAINT job_state
    CHECK (state IN ('ready', 'leased', 'done', 'dead', 'superseded')) NOT VALID;
ALTER TABLE ledger DROP CONSTRAINT ledger_kind;
ALTER TABLE ledger ADD CONSTRAINT ledger_kind
    CHECK (kind IN ('accepted', 'done', 'dead', 'retired', 'superseded')) NOT VALID;
