from __future__ import annotations

import pytest

from convo.store.migrations import TableLock, migrations, parse_migration

WHOLE = """-- kind: contract
-- needed: no
-- run: transaction
-- lock: ACCESS EXCLUSIVE ON job, run
-- lock: SHARE ON part
DROP TABLE old;
-- run: batches
-- lock: none
UPDATE job SET n = 1 WHERE n = 0 LIMIT 10;
-- run: concurrently
-- lock: SHARE UPDATE EXCLUSIVE ON job
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_by_n ON job (n);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS job_by_m
    ON job (m);
"""


def test_a_head_states_the_kind_and_each_step_its_way_and_its_locks() -> None:
    found = parse_migration(12, WHOLE)
    assert (found.number, found.kind, found.needed) == (12, "contract", False)
    assert [step.run for step in found.steps] == ["transaction", "batches", "concurrently"]
    assert found.steps[0].locks == (
        TableLock(mode="ACCESS EXCLUSIVE", tables=("job", "run")),
        TableLock(mode="SHARE", tables=("part",)),
    )
    assert found.steps[1].locks == ()
    assert found.steps[2].index_names == ("job_by_n", "job_by_m")
    assert "DROP TABLE" in found.steps[0].sql
    assert "UPDATE" not in found.steps[0].sql


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("-- kind: contract\n", "needs one line `-- kind: expand | contract`"),
        ("-- needed: no\n", "needs one line `-- needed: yes | no`"),
        ("-- lock: none\n", "a step without `-- lock:"),
        ("IF NOT EXISTS job_by_m", "another statement than CREATE"),
    ],
)
def test_a_head_that_is_not_whole_is_refused(left_out: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_migration(12, WHOLE.replace(left_out, ""))


def test_a_file_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="has no line `-- run:"):
        parse_migration(12, "-- kind: expand\nSELECT 1;")


def test_a_lock_that_postgresql_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no lock that PostgreSQL has: 'SOFT ON job'"):
        parse_migration(12, WHOLE.replace("SHARE ON part", "SOFT ON job"))


def test_only_the_first_which_was_released_before_there_were_heads_may_have_none() -> None:
    assert parse_migration(1, "CREATE TABLE job (seq bigint)").kind == "expand"
    with pytest.raises(ValueError, match="migration 0002 needs one line"):
        parse_migration(2, "CREATE TABLE job (seq bigint)")


def test_every_file_of_this_program_can_be_read() -> None:
    assert all(one.steps for one in migrations())
