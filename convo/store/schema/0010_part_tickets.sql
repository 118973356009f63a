-- kind: expand
-- run: transaction
-- lock: none
-- What to ask a remote service with later, for a part of which it said that it is at work on it (store/jobs/tickets.py).
-- A row goes with the part's result. There are as many as there are jobs that wait for such an answer.
CREATE TABLE part_ticket (
    seq     bigint NOT NULL,
    name    text COLLATE "C" NOT NULL,
    ticket  text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT convo_now(),
    PRIMARY KEY (seq, name)
);
