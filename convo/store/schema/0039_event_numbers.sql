-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON event_counter
-- The number behind which events are numbered, where it is above the last one that was given. When a database went back,
-- numbers that receivers have seen would be given again (store/history.py).
ALTER TABLE event_counter ADD COLUMN begins_behind bigint NOT NULL DEFAULT 0;
