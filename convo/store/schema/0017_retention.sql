-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON ledger, conversation, relationship
-- What retention removes stays accounted for (retention.py). No row is read or rewritten, and a NULL column takes
-- no room. Older programs compare without these columns: so nothing is retired while one of them is at work.

-- retired: it was accepted and has ended, and its rows are gone. It is taken off done or dead at the same time.
ALTER TABLE ledger DROP CONSTRAINT ledger_kind_check;
ALTER TABLE ledger ADD CONSTRAINT ledger_kind CHECK (kind IN ('accepted', 'done', 'dead', 'retired')) NOT VALID;
-- The log is over and was removed, and the conversation is still stored.
ALTER TABLE conversation ADD COLUMN log_retired boolean;
-- How much of the score, and how many of the conversations, come from rows that are gone: the rest is in the tables.
ALTER TABLE relationship ADD COLUMN retired_score bigint, ADD COLUMN retired_conversations integer;
