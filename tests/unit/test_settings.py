from __future__ import annotations

import msgspec
import pytest

from convo.settings import (
    DatabaseSettings,
    LlmFallback,
    LlmSettings,
    MemorySettings,
    PartSettings,
    Secret,
    ServerSettings,
    Settings,
    fallback_settings,
    host_settings,
    proxies,
    shared_origins,
)


@pytest.mark.parametrize("shown", [repr, str, "{}".format, lambda secret: repr(DatabaseSettings(url=secret))])
def test_a_secret_is_in_no_text_of_it(shown: object) -> None:
    assert callable(shown)
    assert "sekrit" not in shown(Secret("sekrit"))
    assert Secret("sekrit").reveal() == "sekrit"


def test_secrets_are_equal_by_their_text_and_an_empty_one_is_false() -> None:
    assert Secret("one") == Secret("one") != Secret("other")
    assert {Secret("one"), Secret("one")} == {Secret("one")}
    assert not Secret()


def test_a_unit_of_work_takes_its_wait_and_its_statement() -> None:
    assert DatabaseSettings(acquire_seconds=1.5, statement_seconds=2.0).unit_seconds == 3.5


def test_lists_are_separated_by_commas_or_spaces() -> None:
    assert proxies(ServerSettings(trusted_proxies="10.0.0.0/8, ::1 127.0.0.1")) == ["10.0.0.0/8", "::1", "127.0.0.1"]
    assert host_settings(ServerSettings(hosts="a.example,b")) == ["a.example", "b"]
    assert shared_origins(ServerSettings(cors_origins="https://a\n https://b")) == ["https://a", "https://b"]
    assert proxies(ServerSettings()) == host_settings(ServerSettings()) == shared_origins(ServerSettings()) == []


@pytest.mark.parametrize("section", Settings.__struct_fields__)
def test_a_section_is_frozen_and_refuses_unknown_keys(section: str) -> None:
    value = getattr(Settings(), section) if section != "parts" else PartSettings()
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], None)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"no_such_key": 1}, type(value))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"api_version": "v3"}, "is for dialect = mem0"),
        ({"event_path": "/events/"}, "must hold {event_id}"),
        ({"add_path": "memories"}, "regex"),
        ({"list_path": "/a b"}, "regex"),
        ({"api_version": "v4", "dialect": "mem0"}, "Invalid enum value"),
    ],
)
def test_paths_of_a_memory_service_that_cannot_be_are_refused(wrong: dict[str, str], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert(wrong, MemorySettings)
    msgspec.convert({"dialect": "mem0", "api_version": "v3", "event_path": "/e/{event_id}"}, MemorySettings)


# --- fallbacks

FIRST = LlmSettings(
    model="m",
    base_url="https://first/v1",
    api_key=Secret("sk-first"),
    headers={"x": "1"},
    query={"v": "1"},
    extra={"seed": 1},
    ca_file="/first.pem",
    verify=False,
    temperature=0.7,
    attempt_seconds=9.0,
    price_in=1.0,
    price_out=2.0,
    daily_budget=5.0,
)


def test_a_fallback_at_another_address_takes_nothing_that_is_the_first_servers() -> None:
    found = fallback_settings(FIRST, LlmFallback(base_url="https://second/v1", api_key=Secret("sk-second")))
    assert (found.model, found.temperature, found.attempt_seconds) == ("m", 0.7, 9.0)
    assert (found.base_url, found.api_key.reveal()) == ("https://second/v1", "sk-second")
    plain = LlmSettings()
    for name in ("headers", "query", "extra", "ca_file", "verify", "api_key_header"):
        assert getattr(found, name) == getattr(plain, name), name
    assert not fallback_settings(FIRST, LlmFallback(base_url="https://second/v1")).api_key


def test_another_model_of_the_same_server_takes_all_but_the_price() -> None:
    found = fallback_settings(FIRST, LlmFallback(model="n", attempts=1))
    assert (found.model, found.attempts, found.api_key.reveal()) == ("n", 1, "sk-first")
    assert (found.headers, found.extra, found.verify) == ({"x": "1"}, {"seed": 1}, False)
    assert (found.priced, found.daily_budget, found.fallbacks) == (False, 0.0, {})
    assert fallback_settings(FIRST, LlmFallback(model="n", price_in=0.0, price_out=0.0)).priced
