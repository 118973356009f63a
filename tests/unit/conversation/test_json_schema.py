from __future__ import annotations

from typing import Any

import pytest

from convo.conversation.json_schema import (
    ANSWER_TEXT_CHARS_MAX,
    DEPTH_MAX,
    ITEMS_MAX,
    fits,
    pruned,
    schema_faults,
    strict,
)


def answer(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({}, "the answer of a part is an object"),
        ({"type": "array", "items": {"type": "string"}}, "the answer of a part is an object"),
        ({"type": "object", "properties": {}}, "the answer of a part is an object"),
        (answer(a={"type": "text"}), "$.properties.a.type = 'text': must be one of object"),
        (answer(a={}), "$.properties.a: has neither type nor enum"),
        (answer(a={"enum": []}), "$.properties.a.enum: must be a list of values"),
        (answer(a={"type": "string", "pattern": "x"}), "$.properties.a.pattern: is no keyword that convo knows"),
        (answer(a={"type": "string", "maximum": 3}), "$.properties.a.maximum: is no keyword that convo knows of the"),
        (answer(a={"$ref": "#/x"}), "$.properties.a.$ref: is no keyword"),
        (answer(a={"type": "array"}), "$.properties.a.items: must be a table"),
        (answer(a={"type": "array", "items": {"type": "x"}}), "$.properties.a.items.type = 'x'"),
        (answer(a={"type": "string", "maxLength": -1}), "$.properties.a.maxLength = -1: must be a whole number"),
        ({**answer(a={"type": "null"}), "required": ["b"]}, "$.required: holds 'b', which is none of the properties"),
        ({**answer(a={"type": "null"}), "additionalProperties": {}}, "additionalProperties: must be true or false"),
        (deep(DEPTH_MAX + 1), "may stand 8 deep"),
    ],
)
def test_what_is_wrong_in_a_schema_is_told_with_its_path(schema: dict[str, Any], fault: str) -> None:
    assert any(fault in one for one in schema_faults(schema)), schema_faults(schema)


def test_a_schema_of_all_keywords_has_no_fault() -> None:
    schema = {
        "type": "object",
        "title": "t",
        "description": "d",
        "required": ["a"],
        "additionalProperties": True,
        "properties": {
            "a": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1},
            "b": {"enum": ["x", 1, None]},
            "c": {"const": True},
            "d": {"type": "string", "minLength": 1, "maxLength": 3},
            "e": {"type": "boolean"},
            "f": {"type": "null"},
        },
    }
    assert schema_faults(schema) == schema_faults(deep(DEPTH_MAX)) == []


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ({"type": "string"}, ["", "a" * ANSWER_TEXT_CHARS_MAX], [1, None, "a" * (ANSWER_TEXT_CHARS_MAX + 1)]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ["a", "ab"], ["", "abc"]),
        ({"type": "integer"}, [0, -3, 2.0], [True, 1.5, "1", float("nan"), float("inf")]),
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1], [-0.1, 1.1, False]),
        ({"type": "boolean"}, [True, False], [0, 1, "true"]),
        ({"type": "null"}, [None], [0, ""]),
        ({"enum": ["a", 1]}, ["a", 1], ["b", True, None]),
        ({"const": False}, [False], [0, None]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, [[], [None]], [[None, None], [1], "x", {}]),
        ({"type": "array", "items": {"type": "null"}}, [[None] * ITEMS_MAX], [[None] * (ITEMS_MAX + 1)]),
        ({**answer(a={"type": "null"}), "required": ["a"]}, [{"a": None}], [{}, {"a": 1}, {"a": None, "b": 1}, []]),
        ({**answer(a={"type": "null"}), "additionalProperties": True}, [{"b": 1}, {}], [{"a": 1}]),
    ],
)
def test_a_value_fits_or_does_not(kind: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, kind)] == []
    assert [value for value in bad if fits(value, kind)] == []


def test_what_a_server_is_given_requires_every_field_and_lets_those_be_null_that_may_be_missing() -> None:
    schema = {
        **answer(
            must={"enum": ["a", "b"], "title": "t"},
            may={"type": "integer"},
            one={"enum": ["x"]},
            list={"type": "array", "items": answer(deep={"type": "string"})},
        ),
        "required": ["must"],
    }
    made = strict(schema)
    assert made["required"] == ["must", "may", "one", "list"]
    assert made["additionalProperties"] is False
    assert made["properties"]["must"] == {"enum": ["a", "b"], "type": "string"}
    assert made["properties"]["may"] == {"type": ["integer", "null"]}
    assert made["properties"]["one"] == {"enum": ["x", None], "type": ["string", "null"]}
    assert made["properties"]["list"]["items"]["required"] == ["deep"]


def test_an_answer_loses_its_nulls_and_the_fields_that_nobody_asked_for() -> None:
    schema = {**answer(a={"type": "null"}, b={"type": "string"}), "required": ["a"]}
    listed = answer(list={"type": "array", "items": schema})
    assert pruned({"a": None, "b": None, "c": 1}, schema) == {"a": None}
    assert pruned({"list": [{"a": None, "b": "x"}, {"b": None}]}, listed) == {"list": [{"a": None, "b": "x"}, {}]}
    assert pruned("text", schema) == "text"
    assert pruned({"b": "x", "c": 1}, {**schema, "additionalProperties": True}) == {"b": "x", "c": 1}
