-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON memory
-- What is known of a memory is what the newest conversation said of it, whichever arrived first (store/jobs/parts.py).
-- No row is rewritten or read here: a row without last_seq was stored by an earlier program, and its seq stands for both.
ALTER TABLE memory
    -- the newest conversation that spoke of it: ADD, UPDATE or DELETE
    ADD COLUMN last_seq bigint,
    -- the conversation for which it counted as new; null while none said ADD
    ADD COLUMN new_seq  bigint,
    -- a tombstone: the newest conversation deleted it, so that an older one cannot bring it back
    ADD COLUMN deleted  boolean NOT NULL DEFAULT false,
    -- the first conversation that told it: null while all that is known is that it was deleted
    ALTER COLUMN seq DROP NOT NULL,
    ADD CONSTRAINT memory_told CHECK (deleted OR seq IS NOT NULL) NOT VALID;
