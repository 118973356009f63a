from __future__ import annotations

import json
from pathlib import Path

import pytest

from convo.config import read_settings
from convo.errors import ConfigError
from convo.settings import Secret, Settings

TIER = {"type": "object", "properties": {"tier": {"enum": ["gold"]}}}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
MODEL = {"CONVO_LLM__MODEL": "m"}


def read(folder: Path, text: str, **variables: str) -> Settings:
    file = folder / "config.toml"
    file.write_text(text, "utf-8")
    return read_settings(file, {**MODEL, **variables})


def test_a_table_is_a_part_and_its_schema_may_stand_in_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "tier.json").write_text(json.dumps(TIER))
    summary = '[parts.summary]\nwhen = { bots = ["shop"], sample = 0.5 }'
    text = f'{summary}\n[parts.tier]\nprompt = "Which?"\nschema = "tier.json"'
    parts = read(tmp_path, text).parts
    assert list(parts) == ["summary", "tier"]
    assert (parts["summary"].when.bots, parts["summary"].when.sample) == (("shop",), 0.5)
    assert parts["tier"].schema == TIER


def test_the_environment_overrides_the_file_key_by_key(tmp_path: Path) -> None:
    schema = '{ type = "object", properties = { tier = { enum = ["gold"] } } }'
    text = f'[parts.crm]\nwho = "http"\nurl = "http://a"\nattempts = 2\nschema = {schema}'
    part = read(tmp_path, text, CONVO_PARTS__CRM__SECRET=SECRET, CONVO_PARTS__CRM__URL="http://b").parts["crm"]
    assert (part.url, part.attempts, part.secret) == ("http://b", 2, Secret(SECRET))


def test_a_part_can_be_declared_by_the_environment_alone(tmp_path: Path) -> None:
    named = {
        "CONVO_PARTS__TIER__PROMPT": "Which?",
        "CONVO_PARTS__TIER__SCHEMA": json.dumps(TIER),
        "CONVO_PARTS__TIER__WHEN": '{"min_turns": 2}',
        "CONVO_PARTS__TIER__REQUIRED": "true",
    }
    part = read(tmp_path, "", **named).parts["tier"]
    assert (part.prompt, part.schema, part.when.min_turns, part.required) == ("Which?", TIER, 2, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[parts]\nsummary = true", r"\[parts\] holds tables alone"),
        ("[parts.summary]\nwen = {}", r"parts\.summary\.wen: there is no such key; did you mean when\?"),
        ("[parts.summary]\nwhen = { turns = 1 }", r"parts\.summary\.when: Object contains unknown field `turns`"),
        ("[parts.summary]\nattempts = 0", r"parts\.summary\.attempts: Expected `int` >= 1"),
        ("[parts.summary]\nrequired = 1", r"parts\.summary\.required: "),
        ('[parts.crm]\nsecret = "whsec_x"', r"parts\.crm\.secret is a secret.*CONVO_PARTS__CRM__SECRET instead"),
        ('[parts.tier]\nschema = "none.json"', r"parts\.tier\.schema = 'none\.json': .*cannot be read as JSON"),
    ],
)
def test_a_wrong_table_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("CONVO_PARTS__SUMMARY__WEN", "{}", r"no such setting; did you mean when\?; names are CONVO_PARTS__NAME__KEY"),
        ("CONVO_PARTS__SUMMARY", "x", "names are CONVO_PARTS__NAME__KEY"),
        ("CONVO_PARTS__SUMMARY__WHEN", "{", "no JSON object"),
        ("CONVO_PARTS__SUMMARY__ATTEMPTS", "many", "Expected `int`"),
        ("CONVO_PARTS__SUMMARY__WHEN", '{"sample": 2}', "Expected `float` <= 1"),
    ],
)
def test_a_wrong_variable_is_told(tmp_path: Path, variable: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, "", **{variable: value})


def test_what_is_declared_is_checked_when_the_settings_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parts\.tier\.schema"):
        read(tmp_path, '[parts.tier]\nprompt = "Which?"')
