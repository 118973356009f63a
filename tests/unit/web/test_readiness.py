from __future__ import annotations

import pytest

from convo.errors import Unavailable
from convo.resilience.dependency import Dependency
from convo.settings import RemoteSettings
from convo.web.readiness import Readiness
from tests.support.making import told


def test_until_the_database_is_migrated_requests_are_refused() -> None:
    readiness = Readiness()
    with pytest.raises(Unavailable):
        readiness.check()
    readiness.open()
    readiness.check()


def test_a_process_that_stops_still_serves() -> None:
    readiness = Readiness()
    readiness.open()
    readiness.drain()
    readiness.check()
    assert readiness.phase == "draining"


def test_a_stop_during_the_start_is_not_undone_by_the_end_of_the_start() -> None:
    readiness = Readiness()
    readiness.drain()
    readiness.open()
    assert readiness.phase == "draining"


def test_what_differs_from_other_processes_is_a_warning_while_it_differs() -> None:
    readiness = Readiness()
    readiness.warnings.append("fsync is off")
    readiness.disagreement = "fairness.key is bot here"
    assert list(readiness.shown_warnings) == ["fsync is off", "SETTINGS_DISAGREE: fairness.key is bot here"]
    readiness.disagreement = ""
    assert list(readiness.shown_warnings) == ["fsync is off"]


def test_wrong_settings_of_a_dependency_are_a_warning_until_it_takes_a_call() -> None:
    memory = Dependency("memory", RemoteSettings())
    readiness = Readiness([memory])
    assert list(readiness.shown_warnings) == []
    with told() as events:
        memory.note_misconfigured("memory: answered 401")
        memory.note_misconfigured("memory: answered 401")
    assert list(readiness.shown_warnings) == ["MEMORY_MISCONFIGURED: memory: answered 401"]
    assert list(events) == ["misconfigured"]
