"""Every statement of the product keeps to one tenant, finds its rows by what such a statement found, or is listed.

So does every hash of an id. A statement that is new and does neither is a hole between owners.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import pytest

from tests.support.found_statements import found_statements
from tests.support.source_tree import modules

OWNED = re.compile(
    r"\b(?:FROM|JOIN|UPDATE|INTO|USING)\s+(?:conversation|job|every_job|outcome|memory|relationship|audit_log|receipt"
    r"|ledger|event|webhook)\b(?! FROM)"
)
SCOPED = re.compile(r"\btenant (?:=|> 0|< 1)|\bUSING \([^)]*\btenant\b|\btenant IS|\btenant\)|\btenant, 0\)")
# By rows that the caller names: it found them in its own tenant, or works on what no request asked for.
NAMED = re.compile(
    r"\bid_hash = \$1|\bid_hash = ANY\(\$1|\buser_hmac = \$1|\bseq = \$1|\bseq = ANY\(\$\d|\bunnest\(\$1::bigint\[\]"
    r"|\bFROM (?:taken|silent)\b"
)

WHOLE: Mapping[str, str] = {
    "convo.alerts.shared": "alerts are the operator's: of_all",
    "convo.erase_again": "looks through all tenants, and takes each id for one of its row's tenant",
    "convo.retention": "the keeper looks through all tenants, and judges each by its own days",
    "convo.retention_months": "a month goes when it is over for every tenant",
    "convo.store.months": "the tables of a month hold all tenants",
    "convo.retention_report": "a command on the database",
    "convo.store.audit": "a command on the database",
    "convo.store.log_objects": "logs of all tenants move, those of one tenant into objects of their own",
    "convo.store.log_erasing": "the same, of what goes out of objects",
    "convo.store.event_expiry": "events go by their age, whosever they are; an alert on it is the operator's",
    "convo.store.event_numbers": "all events have one order",
    "convo.store.contents": "a command on the database",
    "convo.store.table_sizes": "a report on the whole installation: of_all",
    "convo.store.jobs.counts": "gauges are the operator's: of_all",
    "convo.store.jobs.crashes": "what a dead process left, whosever it was",
    "convo.store.jobs.fair_lease": "workers are shared: who has a turn is decided by keys, which have the tenant",
    "convo.store.jobs.known_queues": "workers are shared: as fair_lease",
    "convo.store.jobs.rescue": "what a silent process left, whosever it was",
    "convo.store.jobs.reruns": "a command on the database",
    "convo.store.jobs.suspects": "workers are shared",
    "convo.store.shared_figures": "figures are the operator's: who does not reach the whole installation gets none",
}
"""The modules whose work no tenant causes, each with the reason."""
SINGLE: Mapping[str, str] = {
    "convo.store.audit_pages._FIELDS": "a piece of others",
    "convo.store.intake._INSERT": "a pattern: its tenant is in the hash, and in the columns where it is another one",
    "convo.store.job_sql.THEIRS": "a piece of others",
    "convo.store.ledger.BOOKED": "a piece of others; the sums of all, for the gauges",
    **dict.fromkeys(
        [f"convo.store.ledger.{name}" for name in ("_COMPARE", "_COMPARED_NOW", "_DAYS", "body", "totals")],
        "the books are compared for all tenants together",
    ),
    **dict.fromkeys(
        [
            f"convo.store.deliveries.{name}"
            for name in ("_ANSWERED", "_GIVE_UP", "_HOLD", "_LEASE", "_NOTE", "_RELEASE")
        ],
        "what was delivered to an endpoint that the process has leased, or that was found in the caller's tenant",
    ),
    "convo.store.deliveries._ERASED": "of events that were read for an endpoint of their tenant",
    "convo.store.outbox.APPEND_ACCEPTED": "a piece of accept's, which has the column where it is another tenant",
    "convo.store.event_stream._UNTIL": "up to which number is looked, and nothing else",
    "convo.store.webhooks._IS_OLD": "when a number was given, and nothing else",
    "convo.store.listing._done": "a piece of others: each that is found is checked by its conversation",
    "convo.store.listing._search": "a piece of others",
    **dict.fromkeys(
        ("convo.store.listing.users_statement", "convo.store.listing.first"),
        "made of pieces: its range of the index is the tenant's, or each row is of the tenant",
    ),
}
"""By name, single statements of other modules, each with the reason."""


def _found() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, text in found_statements(OWNED):
        if not any(name.startswith(f"{module}.") for module in WHOLE):
            found.setdefault(name, []).append(text)
    return found


FOUND = _found()


def keeps(statement: str) -> bool:
    return bool(SCOPED.search(statement) or NAMED.search(statement))


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_statement_keeps_to_one_tenant_or_is_listed(name: str) -> None:
    crossing = [text for text in FOUND[name] if not keeps(text)]
    assert bool(crossing) == (name in SINGLE), crossing


def test_no_statement_is_listed_that_is_gone() -> None:
    assert set(SINGLE) - set(FOUND) == set()
    assert set(WHOLE) <= set(modules())
    assert len(FOUND) >= 50


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT text FROM memory WHERE user_id = $1",
        "SELECT count(*) FROM conversation c JOIN job USING (seq) WHERE c.user_id = $1",
        "DELETE FROM relationship r WHERE r.user_id = $1",
        "UPDATE job SET state = 'ready' WHERE state = 'dead'",
    ],
)
def test_a_statement_that_crosses_is_seen(statement: str) -> None:
    assert OWNED.search(statement)
    assert not keeps(statement)


def calls(name: str) -> list[tuple[str, list[str]]]:
    """Return the arguments of each call of this function or method, by the module where it stands."""
    found = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name and not (isinstance(node.func, ast.Attribute) and name == "id_hash"):
                    found.append((module, [ast.unparse(one) for one in node.args]))
    return found


def test_an_id_is_hashed_with_its_tenant() -> None:
    assert {module for module, _ in calls("id_hash")} == {"convo.conversation.tenant"}


def test_an_hmac_is_made_of_an_id_with_its_tenant() -> None:
    made = calls("hmac_of") + calls("hmac_of_memory")
    assert len(made) >= 10
    assert [one for one in made if not any(re.search(r"\bown\b|own_", argument) for argument in one[1])] == []
