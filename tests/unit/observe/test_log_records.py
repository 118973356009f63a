from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from convo.alerts.causes import CAUSE_RECORDS
from convo.observe import log_records

NOT_RECORDS = {"bound_in", "log_to", "monotonic"}
RECORDS = {
    name: function
    for name, function in vars(log_records).items()
    if inspect.isfunction(function) and not name.startswith("_") and name not in NOT_RECORDS
}
SAMPLES = {"str": "x", "int": 1, "float": 1.5, "bool": True, "BaseException": ValueError("x"), "list[str]": ["x"]}


def sample(parameter: inspect.Parameter) -> Any:
    return SAMPLES[str(parameter.annotation).split(" | ", maxsplit=1)[0]]


def named(function: Callable[..., None]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.KEYWORD_ONLY,)
    return [parameter for parameter in inspect.signature(function).parameters.values() if parameter.kind in kinds]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_its_name_and_every_field_it_was_given(name: str) -> None:
    given = {parameter.name: sample(parameter) for parameter in named(RECORDS[name])}
    with capture_logs() as lines:
        RECORDS[name](**given)
    (line,) = lines
    assert line["event"] == name
    expected = {
        "exc_info" if isinstance(value, BaseException) else key.rstrip("_"): value for key, value in given.items()
    }
    assert {key: value for key, value in line.items() if key not in ("event", "log_level")} == expected


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_takes_its_fields_by_name_only(name: str) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(RECORDS[name]).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize(
    ("name", "level"),
    [("accepted", "debug"), ("replayed", "debug"), ("batch_committed", "debug"), ("part_done", "debug"),
     ("conflict", "info"), ("job_settled", "debug"), ("job_released", "info"),
     ("part_failed", "warning"), ("lease_rescued", "warning"), ("durability_warning", "warning"),
     ("job_buried", "error"), ("request_failed", "error"), ("asyncio_stray", "error"), ("disk_full", "error")],
)  # fmt: skip
def test_records_have_their_level(name: str, level: str) -> None:
    with capture_logs() as lines:
        RECORDS[name](**{parameter.name: sample(parameter) for parameter in named(RECORDS[name])})
    assert lines[0]["log_level"] == level


def test_a_state_is_logged_once_then_every_ten_seconds_with_a_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("convo.observe.log_records.monotonic", lambda: now)
    with capture_logs() as lines:
        for step in range(41):
            now = step * 0.5
            log_records.disk_full(error="SQLSTATE 53100")
            log_records.ending_failed(conversation_id=f"talk-{step}", reason="the disk is full")
            log_records.batch_failed(rows=step, error="the disk is full")
        log_records.batch_failed(rows=7, error="something else")
    logged = [(line["event"], line.get("suppressed")) for line in lines]
    assert logged[:3] == [("disk_full", None), ("ending_failed", None), ("batch_failed", None)]
    assert logged[3:] == 2 * [("disk_full", 19), ("ending_failed", 19), ("batch_failed", 19)] + [("batch_failed", None)]


def test_observers_get_every_record_with_its_fields_whatever_its_level() -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    names: list[str] = []
    with (
        capture_logs(),
        log_records.record_observers.adding(lambda name, fields: seen.append((name, dict(fields)))),
        log_records.record_observers.adding(lambda name, _: names.append(name)),
    ):
        log_records.slow_query(name="db.read", seconds=2.5)
        log_records.accepted(conversation_id="c-1", turns=1)
    with capture_logs():
        log_records.slow_query(name="db.read", seconds=2.5)
    assert seen == [
        ("slow_query", {"name": "db.read", "seconds": 2.5}),
        ("accepted", {"conversation_id": "c-1", "turns": 1}),
    ]
    assert names == ["slow_query", "accepted"]


def test_observers_get_what_the_log_suppresses() -> None:
    seen: list[str] = []
    with capture_logs() as lines, log_records.record_observers.adding(lambda name, _: seen.append(name)):
        for _ in range(3):
            log_records.disk_full(error="no room at all")
    assert seen == ["disk_full"] * 3
    assert len(lines) <= 1


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_reaches_the_observers(name: str) -> None:
    seen: list[str] = []
    with capture_logs(), log_records.record_observers.adding(lambda name, _: seen.append(name)):
        RECORDS[name](**{parameter.name: sample(parameter) for parameter in named(RECORDS[name])})
    assert seen == [name]


def test_every_cause_of_an_alert_is_a_record() -> None:
    assert set(RECORDS) >= CAUSE_RECORDS
