from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convo.store.job_sql import SUSPECT_AT
from convo.store.jobs.cause import Standing, cause

NOW = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
FINAL = {"done", "dead"}


def row(**fields: Any) -> Standing:
    usual: dict[str, Any] = {
        "state": "ready",
        "now": NOW,
        "attempts": 0,
        "crashes": 0,
        "delayed": False,
        "available_at": NOW,
        "waits_for": "",
        "served": True,
        "parked_since": None,
        "leased_at": None,
        "leased_until": None,
        "leased_by": None,
        "last_error": None,
        "ended_at": None,
        "suspect_at": SUSPECT_AT,
    }
    return Standing(**{**usual, **fields})


LEASED = {"state": "leased", "leased_at": NOW, "leased_by": "host/1", "leased_until": NOW + timedelta(seconds=30)}
STANDINGS: dict[str, dict[str, Any]] = {
    "queued": {},
    "backoff": {"delayed": True, "attempts": 2, "available_at": NOW + timedelta(seconds=20), "last_error": "llm: 422"},
    "parked": {"waits_for": "llm", "parked_since": NOW, "last_error": "questions: llm: answered 503"},
    "suspect": {"crashes": SUSPECT_AT},
    "working": LEASED,
    "overdue": {**LEASED, "leased_until": NOW - timedelta(seconds=1)},
    "done": {"state": "done", "ended_at": NOW},
    "dead": {"state": "dead", "ended_at": NOW, "last_error": "poison: 5 times"},
}
SENTENCES = {
    "queued": "queued: it waits for a worker to become free",
    "backoff": "backoff: after 2 attempts it is due again at 2026-03-02 12:00:20 (llm: 422)",
    "parked": "parked: it waits for llm since 2026-03-02 12:00:00 (questions: llm: answered 503); no attempt is spent",
    "suspect": "suspect: its process died 2 times with it; it waits until one process has no other work",
    "working": "working: host/1 works on it since 2026-03-02 12:00:00; it is good until 2026-03-02 12:00:30 and renewed"
    " meanwhile",
    "overdue": "overdue: host/1 works on it since 2026-03-02 12:00:00, its lease ended at 2026-03-02 11:59:59; the next"
    " rescue takes it back",
    "done": "done: every part is found and its score counted",
    "dead": "dead letter since 2026-03-02 12:00:00: poison: 5 times",
}


@pytest.mark.parametrize("kind", STANDINGS)
def test_every_standing_has_its_cause_in_a_sentence(kind: str) -> None:
    found = cause(row(**STANDINGS[kind]))
    assert (found.kind, found.sentence) == (kind, SENTENCES[kind])


@pytest.mark.parametrize(("name", "unknown"), [("llm", ""), ("oracle", " (this version does not know it)")])
def test_a_parked_job_that_nobody_can_take_says_what_is_missing(name: str, unknown: str) -> None:
    found = cause(row(waits_for=name, served=False, parked_since=NOW, last_error="questions: answered 503"))
    assert found.kind == "parked"
    assert found.sentence == (
        f"parked: it waits for {name}{unknown} since 2026-03-02 12:00:00, and no process that takes jobs has it:"
        " start one that has (questions: answered 503)"
    )


def test_a_parked_job_that_waits_at_least_so_long_says_until_when() -> None:
    later = NOW + timedelta(seconds=5)
    found = cause(row(**STANDINGS["parked"], delayed=True, available_at=later))
    assert (found.kind, found.until) == ("parked", later)


TIMES = st.datetimes(timezones=st.just(UTC))
ROWS = st.builds(
    Standing,
    state=st.sampled_from(["ready", "leased", "done", "dead"]),
    now=TIMES,
    attempts=st.integers(0, 9),
    crashes=st.integers(0, 9),
    delayed=st.booleans(),
    available_at=TIMES,
    waits_for=st.sampled_from(["", "llm", "memory"]),
    served=st.booleans(),
    parked_since=TIMES | st.none(),
    leased_at=TIMES | st.none(),
    leased_until=TIMES | st.none(),
    leased_by=st.text(max_size=9) | st.none(),
    last_error=st.text(max_size=9) | st.none(),
    ended_at=TIMES | st.none(),
    suspect_at=st.just(SUSPECT_AT),
)


@given(standing=ROWS)
def test_every_state_has_exactly_one_cause_and_only_final_ones_are_final(standing: Standing) -> None:
    found = cause(standing)
    holds = {
        "done": standing.state == "done",
        "dead": standing.state == "dead",
        "overdue": standing.state == "leased"
        and standing.leased_until is not None
        and standing.leased_until < standing.now,
        "parked": standing.state == "ready" and standing.waits_for != "",
        "backoff": standing.state == "ready" and standing.waits_for == "" and standing.delayed,
        "suspect": standing.state == "ready"
        and standing.waits_for == ""
        and not standing.delayed
        and standing.crashes >= SUSPECT_AT,
    }
    true = [kind for kind, holds_now in holds.items() if holds_now]
    assert len(true) <= 1
    fallback = "working" if standing.state == "leased" else "queued"
    assert found.kind == (true[0] if true else fallback)
    assert (found.kind in FINAL) == (standing.state in FINAL)
    assert found.sentence
    assert "\n" not in found.sentence.replace(standing.last_error or "", "").replace(standing.leased_by or "", "")
