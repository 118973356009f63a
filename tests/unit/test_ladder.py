from __future__ import annotations

import re

import msgspec
import pytest

from convo.config import load_settings, read_settings
from convo.errors import ConfigError
from convo.ladder import check_ladder, ladder
from convo.settings import LlmFallback, Settings

SECTIONS = {field.name: field.type for field in msgspec.structs.fields(Settings) if isinstance(field.type, type)}


def changed(**sections: dict[str, object]) -> Settings:
    tables = {name: msgspec.structs.replace(getattr(Settings(), name), **keys) for name, keys in sections.items()}
    return msgspec.structs.replace(Settings(), **tables)


def test_the_ladder_stands_by_default() -> None:
    assert check_ladder(Settings()) == []


RUNGS: list[tuple[dict[str, dict[str, object]], tuple[str, ...], tuple[str, str]]] = [
    (
        {"database": {"acquire_seconds": 3.5, "statement_seconds": 2.75}},
        ("database.acquire_seconds", "database.statement_seconds", "web.request_seconds"),
        ("12.5 s", "8 s"),
    ),
    (
        {"connection": {"head_seconds": 9.5}},
        ("connection.head_seconds", "web.request_seconds"),
        ("9.5 s", "8 s"),
    ),
    (
        {"connection": {"body_seconds": 8.25}},
        ("connection.body_seconds", "web.request_seconds"),
        ("8.25 s", "8 s"),
    ),
    (
        {"connection": {"write_seconds": 3.0}},
        ("web.request_seconds", "connection.write_seconds", "ladder.gateway_seconds"),
        ("11 s", "10 s"),
    ),
    (
        {
            "llm": {
                "attempt_seconds": 15.0,
                "backoff_max_seconds": 10.0,
                "fallbacks": {"big": LlmFallback(model="m", attempt_seconds=40.0), "b": LlmFallback(model="n")},
            }
        },
        ("two attempts + backoff at llm.big, and then at llm", "analysis.job_seconds"),
        ("130 s", "120 s"),
    ),
    (
        {"llm": {"attempt_seconds": 60.0, "attempts": 2, "backoff_max_seconds": 4.0}},
        ("llm.attempt_seconds", "analysis.job_seconds"),
        ("124 s", "120 s"),
    ),
    (
        {"memory": {"attempt_seconds": 60.0, "attempts": 4, "backoff_max_seconds": 5.0}},
        ("memory.attempt_seconds", "analysis.job_seconds"),
        ("255 s", "120 s"),
    ),
    (
        {"webhooks": {"attempt_seconds": 20.0}, "events": {"hold_seconds": 15.0}},
        ("webhooks.attempt_seconds", "events.hold_seconds"),
        ("20 s", "15 s"),
    ),
    (
        {"events": {"heartbeat_seconds": 12.0}},
        ("events.heartbeat_seconds", "ladder.gateway_seconds"),
        ("12 s", "10 s"),
    ),
    (
        {"logs": {"store": "s3", "attempts": 5}},
        ("logs.attempt_seconds", "web.request_seconds"),
        ("10.8 s", "8 s"),
    ),
    (
        {"logs": {"store": "s3", "write_seconds": 1.0}},
        ("logs.attempt_seconds", "logs.write_seconds"),
        ("2 s", "1 s"),
    ),
    (
        {"jobs": {"heartbeat_seconds": 11.0}},
        ("jobs.heartbeat_seconds", "jobs.lease_seconds"),
        ("33 s", "30 s"),
    ),
    (
        {"shutdown": {"notice_seconds": 7.0}},
        ("shutdown.notice_seconds", "intake_seconds", "workers_seconds", "settle_seconds", "ladder.kill_seconds"),
        ("33 s", "30 s"),
    ),
    (
        {"ladder": {"gateway_keep_alive_seconds": 75.0}},
        ("ladder.gateway_keep_alive_seconds", "connection.keep_alive_seconds"),
        ("75 s", "55 s"),
    ),
    (
        {"alerts": {"slow_request_seconds": 8.5}},
        ("alerts.slow_request_seconds", "web.request_seconds"),
        ("8.5 s", "8 s"),
    ),
    (
        {"alerts": {"slow_query_seconds": 3.25}},
        ("alerts.slow_query_seconds", "database.acquire_seconds", "database.statement_seconds"),
        ("3.25 s", "3 s"),
    ),
]


@pytest.mark.parametrize(("sections", "keys", "numbers"), RUNGS)
def test_a_broken_rung_names_both_keys_both_numbers_and_what_would_happen(
    sections: dict[str, dict[str, object]], keys: tuple[str, ...], numbers: tuple[str, str]
) -> None:
    (sentence,) = check_ladder(changed(**sections))
    for word in (*keys, *numbers):
        assert word in sentence
    assert re.search(r"s: \w.* would ", sentence)


@pytest.mark.parametrize(
    ("sections", "stands"),
    [
        ({"database": {"acquire_seconds": 1.0, "statement_seconds": 3.0}}, False),
        ({"web": {"request_seconds": 8.5}}, False),
        ({"connection": {"head_seconds": 8.0, "body_seconds": 8.0}}, True),
        ({"llm": {"attempt_seconds": 60.0, "attempts": 2, "backoff_max_seconds": 1e-9}}, False),
        ({"llm": {"attempt_seconds": 55.0, "attempts": 2, "backoff_max_seconds": 10.0}}, True),
        ({"memory": {"attempt_seconds": 55.0, "attempts": 2, "backoff_max_seconds": 10.0}}, True),
        ({"jobs": {"heartbeat_seconds": 10.0}}, True),
        ({"shutdown": {"notice_seconds": 4.0}}, False),
        ({"ladder": {"gateway_keep_alive_seconds": 55.0}}, False),
        ({"alerts": {"slow_request_seconds": 8.0}}, False),
        ({"alerts": {"slow_query_seconds": 3.0}}, False),
        ({"alerts": {"slow_request_seconds": 7.9, "slow_query_seconds": 2.9}}, True),
    ],
)
def test_a_tie_breaks_a_rung_only_where_less_is_asked_for(
    sections: dict[str, dict[str, object]], *, stands: bool
) -> None:
    assert (check_ladder(changed(**sections)) == []) is stands


GATEWAY_10 = {"CONVO_LADDER__GATEWAY_SECONDS": "10"}
GATEWAY_15 = {"CONVO_LADDER__GATEWAY_SECONDS": "15"}
POOL_WAIT_30 = {"CONVO_DATABASE__ACQUIRE_SECONDS": "30"}
TEN_AND_TEN = {"CONVO_DATABASE__ACQUIRE_SECONDS": "10", "CONVO_DATABASE__STATEMENT_SECONDS": "10"}
ACCEPT = "2 x (database.acquire_seconds + database.statement_seconds)"

OLD: list[tuple[dict[str, str], tuple[str, ...]]] = [
    # as it was: 30 s for a place in the pool, whichever budget one tries to put around it
    (GATEWAY_10 | POOL_WAIT_30, (f"{ACCEPT} = 64 s is not below web.request_seconds = 8 s",)),
    (
        GATEWAY_10 | POOL_WAIT_30 | {"CONVO_WEB__REQUEST_SECONDS": "65"},
        ("web.request_seconds + connection.write_seconds = 66.5 s is not below ladder.gateway_seconds = 10 s: the",),
    ),
    # as it was mended: 10 + 10 s under a gateway of 10 to 15 s
    (GATEWAY_10 | TEN_AND_TEN, (f"{ACCEPT} = 40 s is not below web.request_seconds = 8 s",)),
    (
        GATEWAY_15 | TEN_AND_TEN | {"CONVO_WEB__REQUEST_SECONDS": "13"},
        (f"{ACCEPT} = 40 s is not below web.request_seconds = 13 s",),
    ),
    (
        GATEWAY_15 | TEN_AND_TEN | {"CONVO_WEB__REQUEST_SECONDS": "41"},
        ("web.request_seconds + connection.write_seconds = 42.5 s is not below ladder.gateway_seconds = 15 s",),
    ),
    (
        {
            "CONVO_MEMORY__ATTEMPT_SECONDS": "240",
            "CONVO_MEMORY__ATTEMPTS": "1",
            "CONVO_ANALYSIS__JOB_SECONDS": "180",
        },
        ("memory.attempt_seconds x attempts + backoffs = 240 s is above analysis.job_seconds = 180 s",),
    ),
    (
        GATEWAY_10 | {"CONVO_ALERTS__SLOW_REQUEST_SECONDS": "10"},
        ("alerts.slow_request_seconds = 10 s is not below web.request_seconds = 8 s: no request would be reported",),
    ),
]


@pytest.mark.parametrize(("environ", "faults"), OLD)
def test_the_numbers_of_the_old_service_would_not_start(environ: dict[str, str], faults: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    told = str(caught.value).splitlines()[1:]
    assert len(told) == len(faults)
    for line, fault in zip(told, faults, strict=True):
        assert line.strip().startswith(fault)


def test_all_faults_of_the_old_service_at_once_are_each_named() -> None:
    everything = {name: text for environ, _ in OLD for name, text in environ.items()} | {
        "CONVO_WEB__REQUEST_SECONDS": "10"
    }
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=everything | {"CONVO_LADDER__GATEWAY_SECONDS": "10"})
    told = str(caught.value)
    for pair in (
        (ACCEPT, "web.request_seconds = 10 s"),
        ("web.request_seconds + connection.write_seconds = 11.5 s", "ladder.gateway_seconds = 10 s"),
        ("memory.attempt_seconds", "analysis.job_seconds = 180 s"),
        ("alerts.slow_request_seconds = 10 s", "web.request_seconds = 10 s"),
    ):
        assert re.search(f"{re.escape(pair[0])}.* (is not below|is above) {re.escape(pair[1])}", told), pair


def test_a_broken_ladder_is_read_for_whoever_wants_to_see_it() -> None:
    settings = read_settings(environ={"CONVO_WEB__REQUEST_SECONDS": "11"})
    assert [rung.stands for rung in ladder(settings)].count(False) == 1


def test_every_rung_has_its_test() -> None:
    # Whoever adds a rung adds it here: all of them broken at once are as many sentences as there are rungs.
    everything: dict[str, dict[str, object]] = {}
    for sections, _, _ in RUNGS:
        for section, keys in sections.items():
            everything.setdefault(section, {}).update(keys)
    everything["alerts"] = {"slow_request_seconds": 60.0, "slow_query_seconds": 60.0}
    settings = changed(**everything)
    assert len(check_ladder(settings)) == len(RUNGS) == len(ladder(settings))
