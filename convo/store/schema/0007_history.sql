-- kind: expand
-- run: transaction
-- lock: none
-- The history of this database (store/history.py): one row. A copy of the database that is put back has a lower counter,
-- or counts on with other marks; a restore by convo makes another generation.
CREATE TABLE history (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation text COLLATE "C" NOT NULL,
    counter    bigint NOT NULL
);
INSERT INTO history (generation, counter) VALUES (gen_random_uuid()::text, 0);
-- A random mark of each of the last counts: of two databases that counted on from one copy only one has the mark seen.
CREATE TABLE history_beat (
    counter bigint PRIMARY KEY,
    mark    bigint NOT NULL
);

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
-- The first half of the SHA-256 of the packed log. It stands with the digest and not with the log: whoever reads a log
-- sees by it that the log is this conversation's. NULL in rows from before; a NULL column takes no room there.
ALTER TABLE conversation ADD COLUMN log_hash bytea;
