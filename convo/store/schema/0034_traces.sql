-- kind: expand
-- The trace that a conversation was sent in (observe/trace_context.py): what follows from it, in whichever process and
-- after whichever restart, is recorded in the same trace. It goes with its row, and says nothing of a user.

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON conversation
-- Null in a conversation whose request was not sampled, and then it takes no room.
ALTER TABLE conversation ADD COLUMN trace text COLLATE "C";

-- run: transaction
-- lock: ACCESS EXCLUSIVE ON event
-- The same, of the conversation that the event is of.
ALTER TABLE event ADD COLUMN trace text COLLATE "C";
