-- kind: expand
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON event_counter
-- The number behind which events are numbered, where it is above the last one that was given. When a database went back,
-- numbers that receivers have seen would be given again (store/history.py).
ALTER TABLE event_counter ADD COLUMN begins_behind bigint NOT NULL DEFAULT 0;
-- A backup from before may be restored, of which no later number is known.
UPDATE event_counter SET begins_behind = (extract(epoch FROM clock_timestamp()) * 1e6)::bigint WHERE last_sequence > 0;
