-- kind: contract
-- needed: no
-- No program is left that stores a conversation without its receipt, or reads its digest and its notes elsewhere. It
-- changes the catalogue alone: no row is read or written, and the room of the columns goes with the rows.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
DROP TRIGGER conversation_receive ON conversation;
DROP TRIGGER conversation_forget ON conversation;
DROP FUNCTION convo_receive(), convo_forget(), convo_digest_bytes(text), convo_digest_text(bytea);
DROP INDEX conversation_by_id;
ALTER TABLE conversation DROP COLUMN digest, DROP COLUMN notes;
