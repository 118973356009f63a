-- kind: expand

-- run: concurrently
-- lock: none
-- A page of a user's relationship, the newest bot first, reads no other bots (store/conversations.py). With the sums'
-- columns in it, the sums of all bots read this index alone, and not one page of the table for each bot. An update of a
-- relationship changes last_seq every time, so it writes into each index with or without them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS relationship_newest
    ON relationship (user_id, last_seq DESC) INCLUDE (score, conversations);
