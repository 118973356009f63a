-- kind: contract
-- needed: no
-- Older programs change a run by its place (ctid), which is one row's only while all rows are in one partition. So the
-- next partitions are made when no such program is left, and from then on store/months.py makes those that follow.

-- run: transaction
-- lock: SHARE UPDATE EXCLUSIVE ON conversation_log, run
SELECT convo_make_month(parent, number)
FROM (VALUES ('conversation_log'), ('run')) AS parents (parent), generate_series(1, 2) AS number;
