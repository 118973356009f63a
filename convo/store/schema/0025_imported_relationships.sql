-- kind: expand
-- run: transaction
-- lock: none
-- Which totals of an earlier service were added to a relationship (store/imported.py), so that none is added twice. A row
-- is the HMAC of the import's id, the user and the bot, under the installation's key. Older programs do not look here.
CREATE TABLE imported_relationship (
    hmac        bytea PRIMARY KEY,
    imported_at timestamptz NOT NULL DEFAULT convo_now()
);
