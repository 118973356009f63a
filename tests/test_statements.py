"""Every statement of the product that changes rows says how many at most, or stands here with the reason why not.

A statement without a bound is quick in every test, and times out for ever on the day when there are 300,000 rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.support.found_statements import found_statements

CHANGES = re.compile(r"^\s*(?:WITH\b.*?\(\s*)?(UPDATE|DELETE FROM)\s+[a-z_]+", re.MULTILINE | re.DOTALL)
BOUNDS = (
    # So many rows.
    re.compile(r"\bLIMIT \$\d|\bLIMIT \d"),
    # The rows that the caller names.
    re.compile(r"= ANY\(\$\d"),
    re.compile(r"\bunnest\(\$\d"),
    # One row, by its key.
    re.compile(
        r"WHERE (?:\w+\.)?(?:seq|name|key_id|webhook_id) = (?:\$\d|\(SELECT seq FROM receipt WHERE id_hash = \$1\))"
    ),
)
UNBOUND: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("convo.store.erasures._COUNT", "convo.store.erasures._TOLD"),
            *("convo.store.untold._DELETE", "convo.store.untold._FAILED"),
        ),
        "one row, by its key",
    ),
    "convo.store.log_objects._GIVE_UP_ABANDONED": "at most twenty objects are planned and not referred to",
    "convo.store.history.BEAT": "one row is counted up, and one old mark goes",
    "convo.store.history.RESTORED": "the one row of the history",
    **dict.fromkeys(
        [f"convo.store.history.{name}" for name in ("SKIP_EVENT_NUMBERS", "_SKIP_WHERE_COUNTED", "PROMOTED")],
        "the one row of the counter",
    ),
    "convo.store.jobs.crashes._FORGET_EARLIER": "each start on a folder removes those before it, so there are few",
    "convo.store.jobs.crashes._GIVE_BACK": "the crashes of one start, which had at most jobs.workers leases",
    **dict.fromkeys(
        [
            f"convo.store.jobs.reruns.{name}"
            for name in ("_END", "_END_OTHERS", "_GO_ON", "_LOOKED_AT", "_PAUSE", "_SPEND")
        ],
        "one re-run of a part is open at a time",
    ),
    "convo.store.jobs.single_reruns._END_STALE": "one re-run of a part is open at a time",
    "convo.store.jobs.settle.ERASE_USER_RELATIONSHIPS": "the relationships of one user, with a bot each",
    "convo.store.jobs.rescue._RELEASE_OWNED": "one process has at most jobs.workers leases, and that is at most 1,000",
}
"""By name, the statements without a bound of their own, each with what bounds it."""


FOUND = dict(found_statements(CHANGES))


def bound(statement: str) -> bool:
    return any(pattern.search(statement) for pattern in BOUNDS)


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_statement_that_changes_rows_has_a_bound(name: str) -> None:
    assert bound(FOUND[name]) or name in UNBOUND, FOUND[name]


def test_the_statements_without_a_bound_are_found_and_have_none() -> None:
    assert {name for name in UNBOUND if name not in FOUND or bound(FOUND[name])} == set()
    assert len(FOUND) >= 25


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job SET state = 'dead' WHERE parked_since < now()",
        "DELETE FROM run",
        "WITH old AS (DELETE FROM ledger WHERE at < now() RETURNING n) SELECT sum(n) FROM old",
        "UPDATE job SET state = 'dead' WHERE seq = ANY(ARRAY(SELECT seq FROM job WHERE delayed))",
    ],
)
def test_a_statement_without_a_bound_is_seen(statement: str) -> None:
    assert CHANGES.search(statement)
    assert not bound(statement)
