"""The subset of JSON Schema in which the answer of a part is declared: checked at start, and checked against answers.

Open it to add a keyword; the handbook lists those that there are. A keyword that is not known here would be ignored, so
it is refused instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
DEPTH_MAX = 8
"""So many objects and lists may stand within each other."""
ANSWER_TEXT_CHARS_MAX = 20_000
ITEMS_MAX = 1_000
"""What an answer may hold where its schema does not say."""

_ANY = frozenset({"type", "enum", "const", "description", "title"})
_OF_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "number": frozenset({"minimum", "maximum"}),
    "integer": frozenset({"minimum", "maximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
KEYWORDS = frozenset.union(_ANY, *_OF_TYPE.values())
_LIMITS = ("minItems", "maxItems", "minLength", "maxLength")


def schema_faults(schema: object) -> list[str]:
    """Return what is wrong with the schema of a part's answer, each with the path where it stands."""
    if not isinstance(schema, dict) or schema.get("type") != "object" or not schema.get("properties"):
        return ['$: the answer of a part is an object: write type = "object" with its properties']
    return list(_faults(schema, "$", 0))


def _faults(schema: object, path: str, depth: int) -> Iterator[str]:  # noqa: C901  (a keyword each)
    if not isinstance(schema, dict):
        yield f"{path}: must be a table"
        return
    if depth > DEPTH_MAX:
        yield f"{path}: objects and lists may stand {DEPTH_MAX} deep within each other, not deeper"
        return
    kind = schema.get("type")
    if kind is None and not ("enum" in schema or "const" in schema):
        yield f"{path}: has neither type nor enum; the types are {', '.join(TYPES)}"
    if kind is not None and kind not in TYPES:
        yield f"{path}.type = {kind!r}: must be one of {', '.join(TYPES)}"
        return
    allowed = _ANY | (_OF_TYPE[kind] if kind else frozenset())
    for keyword in schema.keys() - allowed:
        where = f"of the type {kind}" if kind else "without a type"
        yield f"{path}.{keyword}: is no keyword that convo knows {where}; it knows {', '.join(sorted(allowed))}"
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        yield f"{path}.enum: must be a list of values"
    for name in _LIMITS:
        if name in schema and not (isinstance(schema[name], int) and schema[name] >= 0):
            yield f"{path}.{name} = {schema[name]!r}: must be a whole number from 0 on"
    if kind == "array":
        yield from _faults(schema.get("items"), f"{path}.items", depth + 1)
    if kind == "object":
        yield from _object_faults(schema, path, depth)


def _object_faults(schema: Mapping[str, Any], path: str, depth: int) -> Iterator[str]:
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        yield f"{path}.properties: must be a table"
        return
    for name, inner in properties.items():
        yield from _faults(inner, f"{path}.properties.{name}", depth + 1)
    for name in schema.get("required", ()):
        if name not in properties:
            yield f"{path}.required: holds {name!r}, which is none of the properties"
    if schema.get("additionalProperties", False) not in (True, False):
        yield f"{path}.additionalProperties: must be true or false"


def fits(value: object, schema: Mapping[str, Any]) -> bool:  # noqa: PLR0911  (a type each)
    """Return whether a value fits a schema that has no faults."""
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    match schema.get("type"):
        case None:
            return True
        case "object":
            return isinstance(value, dict) and _fits_object(value, schema)
        case "array":
            return isinstance(value, list) and _fits_array(value, schema)
        case "string":
            return isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get(
                "maxLength", ANSWER_TEXT_CHARS_MAX
            )
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case kind:
            return _fits_number(value, schema, whole=kind == "integer")


def _same(value: object, other: object) -> bool:
    # To Python true is 1, to JSON it is not.
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _fits_object(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    if any(name not in value for name in schema.get("required", ())):
        return False
    if not schema.get("additionalProperties", False) and value.keys() - properties.keys():
        return False
    return all(fits(value[name], inner) for name, inner in properties.items() if name in value)


def _fits_array(value: list[Any], schema: Mapping[str, Any]) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", ITEMS_MAX):
        return False
    return all(fits(one, schema["items"]) for one in value)


def _fits_number(value: object, schema: Mapping[str, Any], *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float) and (not math.isfinite(value) or (whole and not value.is_integer())):
        return False
    least, most = schema.get("minimum"), schema.get("maximum")
    return (least is None or value >= least) and (most is None or value <= most)


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as a model's server takes it: no object has a field that is not named, and all are required.

    That is what structured output asks for (``strict``). A field that may be missing may be null there; ``pruned``
    takes those out of the answer.
    """
    made = {name: value for name, value in schema.items() if name != "title"}
    if "type" not in made and all(isinstance(value, str) for value in made.get("enum", [0])):
        # Some servers ask for it.
        made["type"] = "string"
    if made.get("type") == "array":
        made["items"] = strict(made["items"])
    if made.get("type") == "object":
        required = set(made.get("required", ()))
        made["properties"] = {
            name: strict(inner) if name in required else _or_null(strict(inner))
            for name, inner in made.get("properties", {}).items()
        }
        made["required"] = list(made["properties"])
        made["additionalProperties"] = False
    return made


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        schema = {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def pruned(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return an answer without the nulls of fields that it may leave out, and without fields that nobody asked for."""
    match value:
        case list() if schema.get("type") == "array":
            return [pruned(one, schema["items"]) for one in value]
        case dict() if schema.get("type") == "object":
            properties, required = schema.get("properties", {}), schema.get("required", ())
            more = value.keys() if schema.get("additionalProperties", False) else properties.keys() & value.keys()
            kept = {name: pruned(value[name], properties.get(name, {})) for name in value if name in more}
            return {name: one for name, one in kept.items() if one is not None or name in required}
        case _:
            return value
