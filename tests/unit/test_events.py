from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from convo.observe import events
from convo.observe.seldom import Seldom

NOT_EVENTS = {
    "heard_by",
    "contextmanager",
    "bound",
    "bound_in",
    "tell_to",
    "bound_contextvars",
    "get_contextvars",
    "monotonic",
}
EVENTS = {
    name: function
    for name, function in vars(events).items()
    if inspect.isfunction(function) and not name.startswith("_") and name not in NOT_EVENTS
}
SAMPLES = {"str": "x", "int": 1, "float": 1.5, "bool": True, "BaseException": ValueError("x")}


def sample(parameter: inspect.Parameter) -> Any:
    return SAMPLES[str(parameter.annotation).split(" | ", maxsplit=1)[0]]


def named(function: Callable[..., None]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.KEYWORD_ONLY,)
    return [parameter for parameter in inspect.signature(function).parameters.values() if parameter.kind in kinds]


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_tells_its_name_and_every_field_it_was_given(name: str) -> None:
    given = {parameter.name: sample(parameter) for parameter in named(EVENTS[name])}
    with capture_logs() as lines:
        EVENTS[name](**given)
    (line,) = lines
    assert line["event"] == name
    expected = {
        "exc_info" if isinstance(value, BaseException) else key.rstrip("_"): value for key, value in given.items()
    }
    assert {key: value for key, value in line.items() if key not in ("event", "log_level")} == expected


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_takes_its_fields_by_name_only(name: str) -> None:
    kinds = {parameter.kind for parameter in inspect.signature(EVENTS[name]).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize(
    ("name", "level"),
    [("accepted", "debug"), ("replayed", "debug"), ("batch_committed", "debug"), ("part_done", "debug"),
     ("conflict", "info"), ("job_settled", "info"), ("job_released", "info"),
     ("part_failed", "warning"), ("lease_rescued", "warning"), ("durability_warning", "warning"),
     ("job_buried", "error"), ("request_failed", "error"), ("asyncio_stray", "error"), ("disk_full", "error")],
)  # fmt: skip
def test_events_have_their_level(name: str, level: str) -> None:
    with capture_logs() as lines:
        EVENTS[name](**{parameter.name: sample(parameter) for parameter in named(EVENTS[name])})
    assert lines[0]["log_level"] == level


def test_a_state_is_told_once_then_every_ten_seconds_with_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("convo.observe.events.monotonic", lambda: now)
    with capture_logs() as lines:
        for step in range(41):
            now = step * 0.5
            events.disk_full(error="SQLSTATE 53100")
            events.ending_failed(conversation_id=f"talk-{step}", reason="the disk is full")
            events.batch_failed(rows=step, error="the disk is full")
        events.batch_failed(rows=7, error="something else")
    told = [(line["event"], line.get("untold")) for line in lines]
    assert told[:3] == [("disk_full", None), ("ending_failed", None), ("batch_failed", None)]
    assert told[3:] == 2 * [("disk_full", 19), ("ending_failed", 19), ("batch_failed", 19)] + [("batch_failed", None)]


def test_what_is_told_seldom_is_kept_in_a_bounded_place() -> None:
    seldom = Seldom()
    for number in range(10_000):
        assert seldom.due(number, 0.0) == 0
    assert len(seldom._told) <= 100


def test_one_listener_hears_the_causes_of_alerts_with_their_fields_and_nothing_else() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    with capture_logs(), events.heard_by(lambda name, fields: heard.append((name, dict(fields)))):
        events.slow_query(name="db.read", seconds=2.5)
        events.accepted(conversation_id="c-1", turns=1)
    with capture_logs():
        events.slow_query(name="db.read", seconds=2.5)
    assert heard == [("slow_query", {"name": "db.read", "seconds": 2.5})]


def test_every_cause_is_an_event_that_the_listener_hears() -> None:
    causes = {
        "slow_request", "slow_query", "disk_full", "loop_blocked", "ledger_gap",
        "breaker_opened", "breaker_closed", "canary_missing", "canary_returned",
    }  # fmt: skip
    heard: list[str] = []
    with capture_logs(), events.heard_by(lambda name, _: heard.append(name)):
        for function in EVENTS.values():
            function(**{parameter.name: sample(parameter) for parameter in named(function)})
    assert set(heard) == causes
