-- kind: expand
-- run: transaction
-- lock: none
-- Sessions of browsers (store/page_sessions.py): each stands for the key that was shown when it was made, and ends with it.
-- Older programs do not look here.
CREATE TABLE session (
    session_id text COLLATE "C" PRIMARY KEY,
    -- of its secret; the secret itself is in the browser alone
    digest     bytea NOT NULL,
    key_id     text COLLATE "C" NOT NULL,
    made_at    timestamptz NOT NULL DEFAULT convo_now(),
    expires_at timestamptz NOT NULL
);
-- those of a key, newest first: how many there are, and which go when it is revoked
CREATE INDEX session_of_key ON session (key_id, made_at DESC);
-- those that are over
CREATE INDEX session_by_end ON session (expires_at);

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON process
-- How many workers a process has; null where it is of an older program.
ALTER TABLE process ADD COLUMN workers integer;
