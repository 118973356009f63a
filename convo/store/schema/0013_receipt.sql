-- kind: expand
-- What makes an id unique, and what a replay is answered from, outlives the conversation: a narrow row for ever. All else
-- hangs on its seq, which still comes from the one sequence of conversations.

-- run: transaction
-- lock: SHARE ROW EXCLUSIVE ON conversation
-- The same as convo/conversation/identity.py: the tenant behind its length, then the id.
CREATE FUNCTION convo_id_hash(tenant text, conversation_id text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT substring(sha256(convert_to(
        octet_length(convert_to(tenant, 'UTF8'))::text || ':' || tenant || conversation_id, 'UTF8')) FROM 1 FOR 16)
$$;
-- A digest as it is stored here, and as text: convo/conversation/digest.py. They go with the text, in 0014.
CREATE FUNCTION convo_digest_bytes(digest text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN digest ~ '^[1-9][0-9]?:[0-9a-f]{64}$'
                THEN set_byte('\x00'::bytea, 0, split_part(digest, ':', 1)::integer)
                     || decode(split_part(digest, ':', 2), 'hex')
                ELSE '\x00'::bytea || convert_to(digest, 'UTF8') END
$$;
CREATE FUNCTION convo_digest_text(digest bytea) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN get_byte(digest, 0) = 0 THEN convert_from(substring(digest FROM 2), 'UTF8')
                ELSE get_byte(digest, 0)::text || ':' || encode(substring(digest FROM 2), 'hex') END
$$;

-- Of a fixed length first, so that nothing is lost to alignment: 96 bytes a row. The tenant is in the hash: no statement
-- looks for the receipts of one, and a column of the same word in every row would be 8 bytes of it.
CREATE TABLE receipt (
    seq         bigint PRIMARY KEY, -- from a seq to its receipt: lease, audit, erasure
    received_at timestamptz NOT NULL,
    turns       integer NOT NULL,
    -- '' while its conversation is stored, x expired: the content was retired, e erased
    state       "char" NOT NULL DEFAULT '' CHECK (state IN ('', 'x', 'e')),
    id_hash     bytea NOT NULL,
    digest      bytea NOT NULL,
    -- what the receipt says besides, the same to every replay, so it stands here; null in most, and then it takes no room
    notes       bytea
);
-- accept's ON CONFLICT and its second statement; every read by id
CREATE UNIQUE INDEX receipt_by_id ON receipt (id_hash);

-- Programs of before know no receipts. Until the last one has gone (0014), their conversations get them here. Whoever
-- has inserted the receipt owns the id, whichever program it is: all others wait for the end of that transaction, and
-- then find the id taken. So no conversation may be inserted before its receipt.
CREATE FUNCTION convo_receive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.digest IS NULL THEN
        -- A program that made the receipt in the same statement. Older ones read these columns.
        SELECT convo_digest_text(receipt.digest), receipt.notes INTO NEW.digest, NEW.notes
        FROM receipt WHERE receipt.seq = NEW.seq;
        RETURN NEW;
    END IF;
    -- An older program sends again what has no receipt yet: the next step makes it.
    IF EXISTS (SELECT FROM conversation AS c WHERE c.conversation_id = NEW.conversation_id) THEN
        RETURN NULL;
    END IF;
    INSERT INTO receipt (seq, received_at, turns, id_hash, digest, notes)
    VALUES (NEW.seq, NEW.received_at, NEW.turns, convo_id_hash('default', NEW.conversation_id),
            convo_digest_bytes(NEW.digest), NEW.notes)
    ON CONFLICT (id_hash) DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER conversation_receive BEFORE INSERT ON conversation FOR EACH ROW EXECUTE FUNCTION convo_receive();
-- They erase their canaries, which must not leave receipts. Nothing else was ever deleted by them.
CREATE FUNCTION convo_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM receipt WHERE receipt.seq = OLD.seq;
    RETURN NULL;
END
$$;
CREATE TRIGGER conversation_forget AFTER DELETE ON conversation
    FOR EACH ROW WHEN (OLD.user_id = 'convo:canary') EXECUTE FUNCTION convo_forget();

-- run: batches
-- lock: ROW EXCLUSIVE ON receipt
-- What was stored before, the newest first. The trigger's own have higher numbers: the lock above waited for all that
-- had taken one without it. FOR KEY SHARE: a canary that is erased meanwhile is erased before this, or after it.
INSERT INTO receipt (seq, received_at, turns, id_hash, digest, notes)
SELECT seq, received_at, turns, convo_id_hash('default', conversation_id), convo_digest_bytes(digest), notes
FROM (
    SELECT seq, received_at, turns, conversation_id, digest, notes FROM conversation
    WHERE seq < coalesce((SELECT min(seq) FROM receipt), 9223372036854775807)
    ORDER BY seq DESC LIMIT 1000 FOR KEY SHARE
) AS page;
