-- kind: expand
-- run: transaction
-- lock: none
-- The alerts that last and were notified, each with who has acknowledged it (store/open_alerts.py): a few rows, which go
-- with the alert. Older programs do not look here.
CREATE TABLE open_alert (
    type            text COLLATE "C" NOT NULL,
    component       text COLLATE "C" NOT NULL,
    -- the data folder of the process that raised it; empty for what one process raises for all
    folder          text COLLATE "C" NOT NULL,
    raised_at       timestamptz NOT NULL DEFAULT convo_now(),
    -- when its process last had it; after five minutes the row counts no more, and goes with the next one that is added
    seen_at         timestamptz NOT NULL DEFAULT convo_now(),
    -- how far it was escalated: -1 nobody was notified
    step            smallint NOT NULL DEFAULT -1,
    acknowledged_at timestamptz,
    acknowledged_by text,
    PRIMARY KEY (type, component, folder)
);
