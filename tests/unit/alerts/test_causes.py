from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from convo.alerts.causes import Causes, forecast
from convo.alerts.look import Look, SeenRecord, Vitals
from convo.alerts.rules import Condition
from convo.settings import AlertsSettings
from convo.store.ledger import Gap

SETTINGS = AlertsSettings(
    quiet_seconds=60.0, pool_busy_seconds=30.0, burn_seconds=300.0, backlog_seconds=300.0, silence_seconds=600.0
)


def causes(**settings: Any) -> Causes:
    return Causes(SETTINGS if not settings else AlertsSettings(**settings), 0.0, Look())


def named(conditions: list[Condition]) -> list[tuple[str, str]]:
    return [(one.type, one.level) for one in conditions]


def seen(name: str, /, **fields: object) -> Look:
    return Look(records=(SeenRecord(name, fields),))


def blocked(conversation_id: str | None = None, *, cause: str = "code", over: bool = True) -> SeenRecord:
    where = {"stack": "a.py:7 read < b.py:1 main", "task": "worker", "conversation_id": conversation_id}
    return SeenRecord("loop_blocked", {"seconds": 0.2, "cause": cause, "over": over, **where})


# --- what happened


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("POSTGRES_POOL_EXHAUSTED", "CRITICAL"),
        ("POSTGRES_QUERY_TIMEOUT", "MEDIUM"),
        ("LLM_TIMEOUT", "HIGH"),
        ("LLM_RATE_LIMIT", "HIGH"),
        ("MEMORY_TIMEOUT", "MEDIUM"),
        ("MEMORY_RATE_LIMIT", "MEDIUM"),
    ],
)
def test_a_counter_that_grew_is_a_condition_until_it_has_not_grown_for_the_quiet_time(kind: str, level: str) -> None:
    found, key = causes(), (kind, "it")
    assert found.conditions(1.0, Look(counted={key: 0})) == []
    (raised,) = found.conditions(2.0, Look(counted={key: 3}))
    assert (raised.type, raised.component, raised.level, raised.count) == (kind, "it", level, 3)
    (lasting,) = found.conditions(61.9, Look(counted={key: 3}))
    assert lasting.count == 0
    assert found.conditions(62.0, Look(counted={key: 3})) == []


def test_accepts_that_fail_are_a_condition_until_one_is_stored_or_none_fails_any_more() -> None:
    failing, stored = seen("accepts_failing", seconds=3.04, error="gone"), seen("accepts_returned", seconds=4.0)
    found = causes()
    (raised,) = found.conditions(1.0, failing)
    assert (raised.key, raised.level) == (("POSTGRES_UNAVAILABLE", "accepts"), "CRITICAL")
    assert raised.evidence.figures == {"seconds": 3.0, "error": "gone"}
    assert found.conditions(2.0, stored) == []
    assert len(found.conditions(3.0, failing)) == 1
    assert found.conditions(63.0, Look()) == []


def test_an_old_primary_is_a_condition_until_it_was_not_seen_for_the_quiet_time() -> None:
    found, fields = causes(), {"address": "a:1", "timeline": 1, "newest": 2}
    (raised,) = found.conditions(1.0, seen("old_primary", **fields))
    assert (raised.key, raised.level) == (("POSTGRES_OLD_PRIMARY", "database"), "CRITICAL")
    assert raised.evidence.figures == fields
    assert found.conditions(61.0, Look()) == []


def test_what_was_counted_before_the_first_look_is_not_counted() -> None:
    key = ("LLM_TIMEOUT", "llm")
    found = Causes(SETTINGS, 0.0, Look(counted={key: 7}))
    assert found.conditions(1.0, Look(counted={key: 7})) == []
    assert [one.count for one in found.conditions(2.0, Look(counted={key: 8}))] == [1]


@pytest.mark.parametrize(
    ("look", "kind", "component", "level"),
    [
        (
            seen("slow_request", route="/v1/x", method="GET", status=200, seconds=7.0),
            "SLOW_REQUEST",
            "GET /v1/x",
            "HIGH",
        ),
        (seen("slow_query", name="db.read", seconds=2.5), "SLOW_DATABASE_QUERY", "db.read", "LOW"),
        (seen("disk_full", error="53100"), "DISK_LOW", "database", "HIGH"),
        (Look(records=(blocked("c-1"),)), "LOOP_BLOCKED", "loop", "HIGH"),
    ],
)
def test_a_record_is_a_condition_until_it_did_not_come_for_the_quiet_time(
    look: Look, kind: str, component: str, level: str
) -> None:
    found = causes()
    (raised,) = found.conditions(1.0, look)
    assert (raised.type, raised.component, raised.level, raised.count) == (kind, component, level, 1)
    assert len(found.conditions(60.9, Look())) == 1
    assert found.conditions(61.0, Look()) == []


def test_a_blocked_loop_names_the_place_and_the_newest_ten_conversations() -> None:
    (one,) = causes().conditions(1.0, Look(records=tuple(blocked(f"c-{number}") for number in range(12))))
    assert one.evidence.figures == {"seconds": 0.2, "stack": "a.py:7 read < b.py:1 main", "task": "worker"}
    assert one.evidence.ids == tuple(f"c-{number}" for number in range(11, 1, -1))
    assert one.count == 12


@pytest.mark.parametrize("record", [blocked(cause="collector"), blocked(cause="suspended"), blocked(over=False)])
def test_a_pass_that_no_call_held_is_no_alert(record: SeenRecord) -> None:
    assert causes().conditions(1.0, Look(records=(record,))) == []


# --- what is so in the process


@pytest.mark.parametrize(("dependency", "kind"), [("llm", "LLM_UNAVAILABLE"), ("memory", "MEMORY_UNAVAILABLE")])
def test_an_open_breaker_lasts_until_it_closes(dependency: str, kind: str) -> None:
    found = causes()
    assert named(
        found.conditions(1.0, seen("breaker_opened", dependency=dependency, reason=f"reason {len(found._broken)}"))
    ) == [(kind, "HIGH")]
    assert named(
        found.conditions(500.0, seen("breaker_opened", dependency=dependency, reason=f"reason {len(found._broken)}"))
    ) == [(kind, "HIGH")]
    (one,) = found.conditions(501.0, Look())
    assert one.evidence.figures == {"seconds": 500.0}
    assert one.trigger == f"the breaker of {dependency} is open: reason 0"
    assert found.conditions(502.0, seen("breaker_closed", dependency=dependency)) == []


def test_a_breaker_that_opens_and_closes_between_two_looks_is_closed() -> None:
    both = (
        SeenRecord("breaker_opened", {"dependency": "llm", "reason": "it"}),
        SeenRecord("breaker_closed", {"dependency": "llm"}),
    )
    assert causes().conditions(1.0, Look(records=both)) == []


@pytest.mark.parametrize(("dependency", "kind"), [("llm", "LLM_MISCONFIGURED"), ("memory", "MEMORY_MISCONFIGURED")])
def test_wrong_settings_of_a_dependency_last_until_it_takes_a_call(dependency: str, kind: str) -> None:
    found = causes()
    wrong = seen("misconfigured", dependency=dependency, reason=f"{dependency}: answered 401")
    assert named(found.conditions(1.0, wrong)) == [(kind, "HIGH")]
    (one,) = found.conditions(500.0, Look())
    assert one.trigger == f"{dependency}: answered 401"
    assert found.conditions(502.0, seen("configured", dependency=dependency)) == []


def test_a_spent_budget_lasts_until_calls_are_made_again() -> None:
    found = causes()
    spent = seen("budget_spent", dependency="llm", budget=1.0, spent=1.2, day="2026-11-30")
    assert named(found.conditions(1.0, spent)) == [("LLM_BUDGET_SPENT", "HIGH")]
    (one,) = found.conditions(500.0, Look())
    assert one.evidence.figures == {"budget": 1.0, "spent": 1.2, "day": "2026-11-30"}
    assert found.conditions(502.0, seen("budget_free", dependency="llm", budget=1.0)) == []


def test_a_fallback_has_alerts_of_the_models_types_under_its_own_name() -> None:
    found = causes()
    out = seen("breaker_opened", dependency="llm.backup", reason="llm.backup: answered 503")
    (one,) = found.conditions(1.0, out)
    assert one.key == ("LLM_UNAVAILABLE", "llm.backup")


def test_a_collector_that_is_out_or_refuses_spans_is_low() -> None:
    found = causes()
    out = seen("breaker_opened", dependency="otel", reason="otel: answered 503")
    assert named(found.conditions(1.0, out)) == [("OTEL_UNAVAILABLE", "LOW")]
    assert found.conditions(2.0, seen("breaker_closed", dependency="otel")) == []
    wrong = seen("misconfigured", dependency="otel", reason="otel: answered 404")
    assert named(found.conditions(3.0, wrong)) == [("OTEL_MISCONFIGURED", "LOW")]


def test_a_pool_over_80_percent_for_30_seconds_is_high() -> None:
    found, busy = causes(), Look(pool_used=9, pool_max=10)
    assert found.conditions(1.0, busy) == []
    assert found.conditions(30.9, busy) == []
    assert named(found.conditions(31.0, busy)) == [("POSTGRES_POOL_EXHAUSTED", "HIGH")]
    assert found.conditions(32.0, Look(pool_used=8, pool_max=10)) == []
    assert found.conditions(33.0, busy) == []
    assert found.conditions(62.9, busy) == []
    assert len(found.conditions(63.0, busy)) == 1


def test_two_questions_without_an_answer_are_a_database_that_is_away() -> None:
    found = causes()
    assert found.conditions(1.0, Look(failed_looks=1)) == []
    assert named(found.conditions(2.0, Look(failed_looks=2))) == [("POSTGRES_UNAVAILABLE", "CRITICAL")]
    assert found.conditions(3.0, Look()) == []


def test_settings_that_differ_are_a_condition_until_they_agree() -> None:
    found = causes()
    (one,) = found.conditions(1.0, seen("settings_disagree", reason="fairness.key is bot here"))
    assert (one.type, one.level, one.trigger) == ("SETTINGS_DISAGREE", "HIGH", "fairness.key is bot here")
    assert named(found.conditions(500.0, Look())) == [("SETTINGS_DISAGREE", "HIGH")]
    assert found.conditions(501.0, seen("settings_agree")) == []


def test_a_dependency_that_jobs_wait_for_and_nobody_has_is_a_condition_after_the_quiet_time() -> None:
    found = causes()
    waiting = Look(vitals=Vitals(at=0.0, unserved=("llm",), unserved_ids=("c-1",)))
    assert found.conditions(1.0, waiting) == []
    assert found.conditions(50.0, Look(vitals=Vitals(at=0.0))) == []
    assert found.conditions(51.0, waiting) == found.conditions(110.9, waiting) == []
    (one,) = found.conditions(111.0, waiting)
    assert (one.type, one.component, one.evidence.ids) == ("NOBODY_SERVES", "llm", ("c-1",))


def test_a_disk_with_less_than_its_least_is_low() -> None:
    found = causes(disk_free_bytes=1000)
    assert named(found.conditions(1.0, Look(disk_free_bytes=999))) == [("DISK_LOW", "HIGH")]
    assert found.conditions(2.0, Look(disk_free_bytes=1000)) == []
    assert found.conditions(3.0, Look(disk_free_bytes=None)) == []


def test_over_one_percent_of_the_requests_of_five_minutes_on_a_deadline_is_a_burn() -> None:
    found = causes()
    assert found.conditions(1.0, Look(requests=1000, on_deadline=10)) == []
    (one,) = found.conditions(2.0, Look(requests=1000, on_deadline=11))
    assert (one.type, one.evidence.figures) == ("DEADLINE_BURN", {"requests": 1000, "on_deadline": 11})
    assert len(found.conditions(301.0, Look(requests=1000, on_deadline=11))) == 1
    assert found.conditions(302.0, Look(requests=1000, on_deadline=11)) == []


def test_no_request_at_all_is_no_burn() -> None:
    assert causes().conditions(1.0, Look()) == []


def test_a_missing_canary_lasts_until_one_returns() -> None:
    found = causes()
    (one,) = found.conditions(1.0, seen("canary_missing", conversation_id="canary-1", seconds=30.0, reason="late"))
    assert (one.type, one.trigger, one.evidence.ids) == ("CANARY_MISSING", "late", ("canary-1",))
    assert len(found.conditions(500.0, Look())) == 1
    assert found.conditions(501.0, seen("canary_returned", conversation_id="canary-2", seconds=1.0)) == []


# --- what is so in the database


def test_nothing_of_the_database_is_notified_where_nothing_is_known() -> None:
    gap = Gap(day=date(2026, 11, 24), what="jobs", booked=2, found=1)
    assert causes().conditions(1.0, Look(gaps=(gap,))) == []


def test_an_old_backlog_is_notified_with_when_it_is_drained() -> None:
    found = causes()
    assert found.conditions(1.0, Look(vitals=Vitals(at=0.0, oldest_seconds=300.0))) == []
    late = Vitals(at=10.0, oldest_seconds=310.0, ready=80, oldest_ids=("c-1",), ended=50, accepted=10)
    (one,) = found.conditions(11.0, Look(vitals=late))
    assert (one.type, one.level, one.evidence.ids) == ("BACKLOG_OLD", "HIGH", ("c-1",))
    assert one.evidence.figures == {
        "oldest_seconds": 310.0,
        "ready": 80,
        "ended_per_second": 5.0,
        "accepted_per_second": 1.0,
        "drained": "drained in 20 s at the present rates",
    }


def test_the_drain_rate_is_that_of_the_last_minute() -> None:
    found, figures = causes(), []
    for at in range(0, 121, 5):
        # Ten a second for a minute, then one a second.
        ended = 10 * min(at, 60) + max(0, at - 60)
        vitals = Vitals(at=float(at), oldest_seconds=400.0, ready=60, ended=ended)
        figures += [one.evidence.figures for one in found.conditions(float(at), Look(vitals=vitals))]
    assert figures[-1]["ended_per_second"] == 1.0
    assert figures[-1]["drained"] == "drained in 60 s at the present rates"


def test_a_backlog_that_grows_has_no_end() -> None:
    assert forecast(Vitals(at=0.0), Vitals(at=10.0, ready=5, ended=10, accepted=10)) == {
        "ended_per_second": 1.0,
        "accepted_per_second": 1.0,
        "drained": "it grows; drained in 5 s once nothing more comes",
    }
    assert forecast(Vitals(at=0.0), Vitals(at=10.0, ready=5))["drained"] == "nothing is being drained"
    assert forecast(Vitals(at=0.0), Vitals(at=0.0)) == {"drained": "the drain rate is not known yet"}


def test_dead_letters_that_were_not_reviewed_are_critical() -> None:
    found = causes()
    (one,) = found.conditions(1.0, Look(vitals=Vitals(at=0.0, dead=2, dead_ids=("c-2", "c-1"))))
    assert (one.type, one.level, one.evidence.ids) == ("DEAD_LETTER", "CRITICAL", ("c-2", "c-1"))
    assert one.evidence.figures == {"unreviewed": 2}
    assert found.conditions(2.0, Look(vitals=Vitals(at=5.0))) == []


def test_a_gap_of_the_books_is_critical() -> None:
    gap = Gap(day=date(2026, 11, 24), what="jobs", booked=2, found=1)
    (one,) = causes().conditions(1.0, Look(vitals=Vitals(at=0.0), gaps=(gap,)))
    assert (one.type, one.level) == ("LEDGER_GAP", "CRITICAL")
    assert one.evidence.figures == {"2026-11-24 jobs": "2 booked, 1 found"}


def test_a_copied_folder_is_reported_with_both_processes() -> None:
    found = causes()
    (one,) = found.conditions(1.0, seen("folder_copied", process="b.2", other="here/a.1"))
    assert (one.type, one.component, one.level) == ("FOLDER_COPIED", "data_dir", "HIGH")
    assert one.evidence.figures == {"process": "b.2", "other": "here/a.1"}


@pytest.mark.parametrize(
    ("record", "kind", "level"),
    [
        ("webhook_off", "WEBHOOK_OFF", "HIGH"),
        ("event_set_aside", "EVENT_ASIDE", "MEDIUM"),
        ("event_given_up", "EVENT_UNDELIVERED", "HIGH"),
        ("events_expiring", "EVENTS_EXPIRING", "HIGH"),
    ],
)
def test_what_goes_wrong_with_an_endpoint_is_an_alert_of_that_endpoint(record: str, kind: str, level: str) -> None:
    (one,) = causes().conditions(1.0, seen(record, webhook_id="wh_1", reason="answered 500"))
    assert (one.type, one.component, one.level) == (kind, "wh_1", level)
    assert one.evidence.figures == {"reason": "answered 500"}


def test_keys_that_are_too_old_are_critical_and_name_the_reason() -> None:
    (one,) = causes().conditions(1.0, seen("keys_too_old", reason="no connection"))
    assert (one.type, one.component, one.level) == ("KEYS_NOT_READ", "keys", "CRITICAL")
    assert one.evidence.figures == {"reason": "no connection"}


def test_silence_is_notified_where_it_is_asked_for() -> None:
    silent = Look(vitals=Vitals(at=0.0, silent_seconds=600.5))
    assert named(causes().conditions(1.0, silent)) == [("SILENCE", "MEDIUM")]
    assert causes().conditions(1.0, Look(vitals=Vitals(at=0.0, silent_seconds=600.0))) == []
    assert causes(silence_seconds=0.0).conditions(1.0, silent) == []
