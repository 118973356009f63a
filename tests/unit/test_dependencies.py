from __future__ import annotations

import pytest

from convo.alerts.causes import Causes
from convo.alerts.look import Look, SeenRecord
from convo.alerts.rules import KINDS
from convo.analysis.clients import CLIENTS
from convo.config import load_settings
from convo.dependencies import DEPENDENCIES
from convo.errors import ConfigError
from convo.ladder import ladder
from convo.runtime.waits import NAMES
from convo.settings import AlertsSettings, RemoteSettings, Settings, dependency_sections, used_dependencies

EACH = pytest.mark.parametrize("name", DEPENDENCIES)


def switched_on(name: str) -> dict[str, str]:
    return {f"CONVO_{name.upper()}__{DEPENDENCIES[name].switch.upper()}": "http://x"}


@EACH
def test_a_row_has_its_settings_and_its_client(name: str) -> None:
    section = dependency_sections(Settings())[name]
    assert isinstance(section, RemoteSettings)
    assert getattr(section, DEPENDENCIES[name].switch) == ""
    assert name in CLIENTS


def test_no_client_is_without_a_row() -> None:
    assert set(CLIENTS) == set(DEPENDENCIES)


@EACH
def test_a_dependency_is_used_where_its_switch_is_set(name: str) -> None:
    assert used_dependencies(Settings()) == []
    assert used_dependencies(load_settings(environ=switched_on(name))) == [name]


@EACH
def test_a_key_without_its_switch_is_refused(name: str) -> None:
    key = {f"CONVO_{name.upper()}__API_KEY": "k"}
    with pytest.raises(ConfigError, match=rf"{name}\.api_key is set but {name}\.{DEPENDENCIES[name].switch} is empty"):
        load_settings(environ=key)
    load_settings(environ={**key, **switched_on(name)})


@EACH
def test_every_wait_for_it_has_a_name(name: str) -> None:
    waits = DEPENDENCIES[name].waits
    assert {f"{name}.{word}" for word in ("hold", "bulkhead", "ping", "check")} < set(waits)
    assert waits.items() <= NAMES.items()


@EACH
def test_its_attempts_have_a_rung_of_the_ladder(name: str) -> None:
    assert any(rung.inside.startswith(f"{name}.attempt_seconds") for rung in ladder(Settings()))


@EACH
def test_its_troubles_are_alerts(name: str) -> None:
    prefix = DEPENDENCIES[name].alert_prefix
    ends = ("TIMEOUT", "RATE_LIMIT", "UNAVAILABLE", "MISCONFIGURED")
    assert {f"{prefix}_{end}" for end in ends} < set(KINDS)
    opened = Look(records=(SeenRecord("breaker_opened", {"dependency": name, "reason": "it"}),))
    (found,) = Causes(AlertsSettings(), 0.0, Look()).conditions(1.0, opened)
    assert (found.type, found.component) == (f"{prefix}_UNAVAILABLE", name)
