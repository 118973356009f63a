-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON process
-- A process is one start of convo on one data folder: its name is FOLDER.INCARNATION (runtime/identity.py). Rows of
-- earlier programs are named HOST/FOLDER. They may have any lease: an hour of silence is enough for them.
ALTER TABLE process
    ADD COLUMN folder            text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN lease_seconds     double precision NOT NULL DEFAULT 1200,
    ADD COLUMN heartbeat_seconds double precision NOT NULL DEFAULT 5,
    ADD COLUMN steady_since      timestamptz NOT NULL DEFAULT convo_now(); -- seen since then without a gap of a lease
UPDATE process SET folder = split_part(name, '/', 2);

-- run: concurrently
-- lock: SHARE UPDATE EXCLUSIVE ON run
-- the crashes that are counted once a process is known to be dead, and given back when it lives (store/jobs/crashes.py)
CREATE INDEX CONCURRENTLY IF NOT EXISTS run_taken_back ON run (made_by) WHERE ending IN ('rescue', 'crash');
