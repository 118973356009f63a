-- kind: contract
-- needed: no
-- PostgreSQL reads each check anew from its stored tree for every statement. Into these columns of job and receipt an accept
-- inserts constants, and nobody else inserts. So the rules are kept where they can be broken, by updates; what a backup
-- brings is found by convo audit (store/audit.py). No program is left that looks for the constraint job_open, to know whether
-- done jobs may stay in job (store/jobs/settle.py).

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job
-- AFTER, with a condition: it locks no row, and is not queued where no rule is broken. A renewal sets none of these columns.
CREATE FUNCTION convo_refuse_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rule text := CASE
        WHEN NEW.state = 'done' THEN 'job_open: a done job stands in outcome'
        WHEN NEW.state NOT IN ('ready', 'leased', 'dead', 'superseded') THEN 'job_state: there is no such state'
        WHEN (NEW.state = 'leased') <> (NEW.lease_token IS NOT NULL) THEN 'job_lease: leased with a token, and else without'
        WHEN (NEW.state = 'dead') <> (NEW.ended_at IS NOT NULL) THEN 'job_end: ended_at if it is dead, and else not'
        WHEN NEW.reviewed_at IS NOT NULL AND NEW.state <> 'dead' THEN 'job_review: only dead letters are reviewed'
        ELSE 'job_wait: what waits for a dependency was parked'
    END;
BEGIN
    RAISE EXCEPTION 'job % in the state % breaks the rule %', NEW.seq, NEW.state, rule
        USING ERRCODE = 'check_violation', TABLE = 'job', CONSTRAINT = split_part(rule, ':', 1);
END
$$;
CREATE TRIGGER job_rules AFTER UPDATE OF state, lease_token, ended_at, reviewed_at, waits_for, parked_since ON job
    FOR EACH ROW WHEN (
        NEW.state NOT IN ('ready', 'leased', 'dead', 'superseded')
        OR (NEW.state = 'leased') <> (NEW.lease_token IS NOT NULL)
        OR (NEW.state = 'dead') <> (NEW.ended_at IS NOT NULL)
        OR (NEW.reviewed_at IS NOT NULL AND NEW.state <> 'dead')
        OR (NEW.waits_for <> '' AND NEW.parked_since IS NULL)
    ) EXECUTE FUNCTION convo_refuse_job();
-- job_open may not be there yet: 19 may be held back where this is not, by a process that ends in between. Then done jobs
-- move from here on, and 19 follows. job_check2 goes in 19 with its column.
ALTER TABLE job DROP CONSTRAINT job_state, DROP CONSTRAINT IF EXISTS job_open, DROP CONSTRAINT job_check,
    DROP CONSTRAINT job_check1, DROP CONSTRAINT job_check3, DROP CONSTRAINT job_check4;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON receipt
CREATE FUNCTION convo_refuse_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'receipt % has the state %, which there is not', NEW.seq, NEW.state
        USING ERRCODE = 'check_violation', TABLE = 'receipt', CONSTRAINT = 'receipt_state';
END
$$;
CREATE TRIGGER receipt_rules AFTER UPDATE OF state ON receipt
    FOR EACH ROW WHEN (NEW.state NOT IN ('', 'x', 'e')) EXECUTE FUNCTION convo_refuse_receipt();
ALTER TABLE receipt DROP CONSTRAINT receipt_state_check;

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON ledger
-- Rows come into the ledger with the kinds that states of jobs are, so this one stays a check, whose text is short.
CREATE FUNCTION convo_is_entry_kind(kind text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN kind IN ('accepted', 'done', 'dead', 'retired', 'superseded');
END
$$;
ALTER TABLE ledger DROP CONSTRAINT ledger_kind;
ALTER TABLE ledger ADD CONSTRAINT ledger_kind CHECK (convo_is_entry_kind(kind)) NOT VALID;
