from __future__ import annotations

import msgspec

from convo.changed_settings import changed_settings
from convo.config import read_settings
from convo.settings import Settings

GIVEN = {
    "CONVO_JOBS__WORKERS": "3",
    "CONVO_AUTH__KEYS": "true",
    "CONVO_LLM__MODEL": "llama",
    "CONVO_LLM__API_KEY": "sk-sekrit",
    "CONVO_LLM__BASE_URL": "https://me:sekrit@llm.example/v1",
    "CONVO_LLM__HEADERS": '{"x-api-key": "sekrit"}',
    "CONVO_MEMORY__URL": "https://memory.example/v1?key=sekrit",
    "CONVO_DATABASE__URL": "postgresql://me:sekrit@db.example/convo",
    "CONVO_ALERTS__SLACK_URL": "https://hooks.example/sekrit",
}


def test_settings_as_they_are_by_default_are_no_change() -> None:
    found = changed_settings(Settings())
    assert (found.settings, found.not_shown) == ({}, ())


def test_what_differs_is_shown_with_its_value_and_a_secret_by_its_name_only() -> None:
    found = changed_settings(read_settings(None, GIVEN, {("server", "data_dir"): ".convo"}))
    assert found.settings == {"jobs.workers": 3, "auth.keys": True, "llm.model": "llama"}
    assert set(found.not_shown) == {
        *("llm.api_key", "llm.base_url", "llm.headers", "memory.url", "database.url", "alerts.slack_url")
    }
    assert b"sekrit" not in msgspec.json.encode(found)


def test_a_text_is_such_that_the_database_takes_it() -> None:
    found = changed_settings(read_settings(None, {}, {("server", "data_dir"): "a\0b\udcff" + "c" * 1000}))
    text = found.settings["server.data_dir"]
    assert text.startswith("a?b?ccc")
    assert len(text) == 201
    msgspec.json.encode(found)
