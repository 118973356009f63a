from __future__ import annotations

from typing import Any

import msgspec
import pytest

from convo.analysis.declared import Declarations, Facts, declarations, sampled_at, served_dependencies
from convo.analysis.ready_made import READY_MADE
from convo.config_parts import secret_hook
from convo.conversation.json_schema import fits, schema_faults
from convo.conversation.owed import DEFAULT_PARTS, Owed
from convo.errors import ConfigError
from convo.settings import LlmSettings, MemorySettings, PartSettings, Settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
TIER = {"type": "object", "properties": {"tier": {"enum": ["gold", "basic"]}}, "required": ["tier"]}
CRM = {"who": "http", "url": "http://crm/analyse", "secret": SECRET, "schema": TIER}
ALL = {"rubric": {"criteria": {"polite": "Is polite."}}, "fields": {"fields": {"order": "text: its number"}}}


def settings(model: str = "m", /, **parts: dict[str, Any]) -> Settings:
    made = {name: msgspec.convert(table, PartSettings, dec_hook=secret_hook) for name, table in parts.items()}
    return Settings(llm=LlmSettings(model=model), parts=made)


def declared(**parts: dict[str, Any]) -> Declarations:
    found = declarations(settings(**parts))
    assert found is not None
    return found


def facts(conversation_id: str = "talk-1", **others: Any) -> Facts:
    usual = {"bot_id": "pika", "bot_type": None, "language": None, "turns": 3, "user_turns": 1}
    return Facts(conversation_id=conversation_id, **{**usual, **others})


def skipped(owed: Owed, name: str = "summary") -> str:
    return next(part.skipped for part in owed.parts if part.name == name)


def test_without_a_table_nothing_is_declared() -> None:
    assert declarations(Settings()) is None


def test_a_table_switches_a_ready_made_part_on_beside_the_default_ones() -> None:
    parts = declared(summary={}).parts
    assert [part.name for part in parts] == [*DEFAULT_PARTS, "summary"]
    assert [part.required for part in parts] == [True, True, True, False]
    assert [part.who for part in parts] == ["llm", "llm", "local", "llm"]
    assert (parts[-1].analyst, parts[-1].version[:3]) == ("m", "p1:")


@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_part_has_a_prompt_and_a_schema_that_can_be_filled(name: str) -> None:
    part = declared(**{name: ALL.get(name, {})}).parts[-1]
    assert schema_faults(part.schema) == []
    assert len(part.prompt) > 100
    assert not fits({"what": "nobody asked for"}, part.schema)


def test_the_prompts_of_a_rubric_and_of_fields_hold_what_their_tables_say() -> None:
    rubric, fields = (declared(**{name: table}).parts[-1] for name, table in ALL.items())
    assert "polite: Is polite." in rubric.prompt
    assert fits({"polite": {"grade": 4, "reason": "It is."}}, rubric.schema)
    assert not fits({"polite": {"grade": 5, "reason": "It is."}}, rubric.schema)
    assert "order: its number" in fields.prompt
    assert fits({}, fields.schema)


@pytest.mark.parametrize(
    "change",
    [{"prompt": "other"}, {"model": "other"}, {"schema": {**TIER, "required": []}}],
)
def test_what_is_asked_of_whom_makes_the_version(change: dict[str, Any]) -> None:
    tier = {"prompt": "Which?", "schema": TIER}
    before, after = (declared(tier=table).parts[-1].version for table in (tier, {**tier, **change}))
    assert before != after


@pytest.mark.parametrize(
    "change", [{"required": True}, {"when": {"sample": 0.5}}, {"points": {"field": "tier", "values": {"gold": 1}}}]
)
def test_what_an_answer_is_worth_and_when_it_is_owed_is_no_new_version(change: dict[str, Any]) -> None:
    tier = {"prompt": "Which?", "schema": TIER}
    before, after = (declared(tier=table).parts[-1].version for table in (tier, {**tier, **change}))
    assert before == after


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"Big": {}}, r"\[parts\.Big\]: a part is called by small letters"),
        ({"a__b": {}}, "single underscores"),
        ({"tier": {}}, r"parts\.tier\.schema: .*ready-made parts are summary"),
        ({"tier": {"schema": TIER}}, r"parts\.tier\.prompt is empty"),
        ({"tier": {"schema": {**TIER, "x": 1}, "prompt": "p"}}, r"parts\.tier\.schema: \$\.x: is no keyword"),
        ({"summary": {"url": "http://x"}}, 'are for who = "http"'),
        ({"summary": {"who": "memory"}}, "that is for the default parts"),
        ({"summary": {"criteria": {"a": "b"}}}, r"belongs to \[parts\.rubric\] alone"),
        ({"rubric": {}}, r"parts\.rubric\.criteria: .*that one needs it"),
        ({"fields": {"fields": {"order": "number"}}}, r"parts\.fields\.fields\.order = 'number': write a type"),
        ({"crm": {**CRM, "url": "crm.internal"}}, r"parts\.crm\.url = 'crm\.internal': write the http"),
        ({"crm": {**CRM, "secret": ""}}, "CONVO_PARTS__CRM__SECRET: .*make one with"),
        ({"crm": {**CRM, "model": "m"}}, 'is for who = "llm"'),
        ({"emotion": {"prompt": "x"}}, r"parts\.emotion\.prompt: of this part only who, when, required"),
        ({"emotion": {"who": "http"}}, 'this part is found by "llm" or "local"'),
        ({"memories": {"required": False}}, r"parts\.memories\.required = false"),
        ({"memories": {"who": "memory"}}, r"not switched on: set \[memory\]"),
        ({"tier": {"schema": TIER, "prompt": "p", "points": {"field": "tier"}}}, "write each = for a number"),
        ({"tier": {"schema": TIER, "prompt": "p", "points": {"each": 1}}}, "name one field"),
        ({"tier": {"schema": TIER, "prompt": "p", "points": {"field": "x", "each": 1}}}, "none of the properties"),
        ({"tier": {"schema": TIER, "prompt": "p", "points": {"count": "tier", "each": 1}}}, "is no list"),
        ({"tier": {"schema": TIER, "prompt": "p", "points": {"field": "tier", "each": 1}}}, "no number, boolean or"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_told_at_the_start_with_what_to_do(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        declarations(settings(**parts))


def test_a_part_of_a_model_needs_one() -> None:
    with pytest.raises(ConfigError, match=r"\[parts\.summary\] is found by a language model, and llm\.model is empty"):
        declarations(settings("", summary={}))
    assert declarations(settings("", crm=CRM)) is not None


def test_a_default_part_can_be_left_to_the_embedded_analyst_and_the_score_need_not_wait() -> None:
    with_memory = msgspec.structs.replace(
        settings(emotion={"who": "local", "required": False}), memory=MemorySettings(url="http://m")
    )
    found = declarations(with_memory)
    assert found is not None
    assert [(part.who, part.required) for part in found.parts] == [("llm", True), ("local", False), ("memory", True)]


def test_a_process_has_the_services_of_its_parts_by_their_versions() -> None:
    version = declared(crm=CRM).parts[-1].version
    assert served_dependencies(settings(crm=CRM, summary={})) == ["llm", "part.crm", f"part.crm@{version}"]
    assert served_dependencies(Settings()) == []


# --- when


@pytest.mark.parametrize(
    ("when", "owed", "not_owed"),
    [
        ({"min_turns": 3}, {"turns": 3}, {"turns": 2}),
        ({"min_user_turns": 2}, {"user_turns": 2}, {"user_turns": 1}),
        ({"bots": ["a", "b"]}, {"bot_id": "b"}, {"bot_id": "c"}),
        ({"bot_types": ["TALK"]}, {"bot_type": "TALK"}, {"bot_type": None}),
        ({"languages": ["vi"]}, {"language": "vi-VN"}, {"language": "vie"}),
        ({"languages": ["en", "vi"]}, {"language": "VI"}, {"language": None}),
        ({"sample": 1.0}, {}, None),
        ({"sample": 0.0}, None, {}),
    ],
)
def test_a_part_is_owed_where_its_condition_holds(when: Any, owed: Any, not_owed: Any) -> None:
    found = declared(summary={"when": when})
    if owed is not None:
        assert skipped(found.owed(facts(**owed))) == ""
    if not_owed is not None:
        assert skipped(found.owed(facts(**not_owed))) != ""


def test_a_sample_is_the_same_everywhere_and_a_larger_one_holds_a_smaller_one() -> None:
    ids = [f"talk-{number}" for number in range(2_000)]
    small, large = (declared(summary={"when": {"sample": size}}) for size in (0.1, 0.3))
    owed = [{one for one in ids if not skipped(found.owed(facts(one)))} for found in (small, large)]
    assert owed[0] < owed[1]
    assert 150 < len(owed[0]) < 250
    assert sampled_at("talk-1") == 0.5419200469710992


def test_conversations_for_which_the_same_holds_are_owed_one_set() -> None:
    found = declared(summary={"when": {"bots": ["a"]}})
    assert found.owed(facts("1")) is found.owed(facts("2"))
    assert found.owed(facts(bot_id="a")).number != found.owed(facts()).number
    again = declared(summary={"when": {"bots": ["a"]}})
    assert again.owed(facts()).number == found.owed(facts()).number
