-- kind: expand
-- run: transaction
-- lock: none
-- Which process makes itself quiet for a suspect, and since when: one at a time on a database (store/jobs/suspects.py).
-- At most one row. seconds is the holder's own lease: after so long without a renewal another process may take it.
CREATE TABLE suspect_claim (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    owner      text COLLATE "C" NOT NULL,
    claimed_at timestamptz NOT NULL,
    seconds    double precision NOT NULL
);
