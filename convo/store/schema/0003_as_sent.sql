-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
-- What a client says of a conversation besides its log: given back, and read by nothing here.
ALTER TABLE conversation
    ADD COLUMN language text COLLATE "C",
    ADD COLUMN timezone text COLLATE "C",
    -- the bytes of a JSON object as they were sent: jsonb would write its numbers anew and cannot hold \u0000
    ADD COLUMN metadata bytea,
    -- JSON: the fields that the receipt names as ignored and the items as unread, the same to every replay; or null
    ADD COLUMN notes bytea;
