from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema_rs
import msgspec
import pytest

from convo import errors
from convo.conversation import decode, transcript
from convo.conversation.model import LogItem
from convo.web import answers, openapi, samples, shapes

DOCUMENT = json.loads(json.dumps(openapi.document()))
SCHEMAS = DOCUMENT["components"]["schemas"]

ROUTES = {
    ("post", "/v1/conversations/end"),
    ("get", "/v1/conversations"),
    ("get", "/v1/conversations/{conversation_id}"),
    ("get", "/v1/conversations/{conversation_id}/log"),
    ("get", "/v1/conversations/{conversation_id}/explain"),
    ("post", "/v1/conversations/{conversation_id}/retry"),
    ("get", "/v1/users/{user_id}/relationship"),
    ("get", "/v1/users/{user_id}/memories"),
    ("post", "/v1/conversations/{conversation_id}/acknowledge"),
    ("get", "/v1/alerts"),
    ("post", "/v1/alerts/test"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/debug/tasks"),
    ("get", "/openapi.json"),
    ("get", "/docs"),
}


def operation(method: str, path: str) -> Any:
    return DOCUMENT["paths"][path][method]


def check(schema: dict[str, Any], value: Any) -> None:
    """Raises where the value does not fit the schema, whose references lead into the document."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": DOCUMENT["components"]} | schema
    jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(value)


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, described in methods.items():
            places = {"body": described.get("requestBody", {})} | described["responses"]
            for place, one in places.items():
                for content in one.get("content", {}).values():
                    yield f"{method} {path} {place}", content


def sampled() -> dict[str, tuple[dict[str, Any], Any]]:
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for place, content in contents():
        values = {name: one["value"] for name, one in content.get("examples", {}).items()}
        if "example" in content:
            values["example"] = content["example"]
        found |= {f"{place} {name}": (content["schema"], value) for name, value in values.items()}
    return found


SAMPLED = sampled()


def test_every_route_is_described_and_no_other() -> None:
    assert {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods} == ROUTES


def test_every_reference_leads_somewhere() -> None:
    places = [part for part in json.dumps(DOCUMENT).split('"') if part.startswith("#/")]
    for place in places:
        found: Any = DOCUMENT
        for step in place.removeprefix("#/").split("/"):
            found = found[step]
    assert len(places) > 100


def test_schemas_have_no_pattern_that_only_python_understands() -> None:
    assert r"\\Z" not in json.dumps(DOCUMENT)


@pytest.mark.parametrize("place", SAMPLED)
def test_every_sample_fits_its_schema(place: str) -> None:
    schema, value = SAMPLED[place]
    check(schema, value)


def test_every_json_answer_has_a_sample() -> None:
    for path in DOCUMENT["paths"].keys() - {"/openapi.json"}:
        for described in DOCUMENT["paths"][path].values():
            for answer in described["responses"].values():
                content = answer.get("content", {}).get("application/json", {"example": "none is needed"})
                assert "example" in content


def test_times_are_described_as_times() -> None:
    view = SCHEMAS["ConversationView"]["properties"]
    assert view["started_at"] == {"type": "string", "format": "date-time"}
    assert "format" not in view["conversation_id"]
    assert {"type": "string", "format": "date-time"} in SCHEMAS["QuestionsView"]["properties"]["updated_at"]["anyOf"]
    assert {"type": "string", "format": "date-time"} in SCHEMAS["ConversationEnded"]["properties"]["end_time"]["anyOf"]


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("post", "/v1/conversations/end", "202", {"Location", "Idempotent-Replayed", "Server-Timing"}),
        ("post", "/v1/conversations/end", "503", {"Retry-After", "Server-Timing"}),
        ("get", "/v1/conversations/{conversation_id}", "200", {"ETag", "Server-Timing"}),
        ("get", "/v1/conversations/{conversation_id}", "304", {"ETag", "Server-Timing"}),
        ("get", "/v1/conversations", "405", {"Allow", "Server-Timing"}),
        ("get", "/v1/conversations/{conversation_id}/log", "304", {"ETag", "Server-Timing"}),
        ("get", "/readyz", "503", {"Server-Timing"}),
    ],
)
def test_answers_name_their_headers(method: str, path: str, status: str, headers: set[str]) -> None:
    assert operation(method, path)["responses"][status]["headers"].keys() == headers


def test_the_accept_route_names_every_problem() -> None:
    responses = operation("post", "/v1/conversations/end")["responses"]
    bad = {"400", "401", "403", "405", "408", "409", "413", "414", "415", "422", "429", "431"}
    assert responses.keys() == {"202", *bad, "500", "503", "505"}
    codes = responses["503"]["content"]["application/problem+json"]["examples"].keys()
    assert codes == {"disk_full", "unavailable", "database_unavailable", "deadline_exceeded", "draining", "overloaded"}


def test_not_modified_has_no_content() -> None:
    assert "content" not in operation("get", "/v1/conversations/{conversation_id}")["responses"]["304"]


# --- the log's shapes


@pytest.mark.parametrize("shape", samples.SENT)
def test_a_sample_request_of_each_shape_is_accepted(shape: str) -> None:
    ended = decode.decode(msgspec.json.encode(samples.SENT[shape]))
    assert transcript.check(ended).turns == 2


def literals(shape: type, field: str) -> set[str]:
    (kind,) = (one.type for one in msgspec.structs.fields(shape) if one.name == field)
    return set(get_args(kind))


def test_the_shapes_name_exactly_the_speakers_that_the_transcript_knows() -> None:
    assert literals(shapes.CharacterItem, "character") == set(transcript._CHARACTERS)
    assert literals(shapes.SpeakerItem, "speaker") == set(transcript._SPEAKERS)
    assert literals(shapes.RoleItem, "role") == set(transcript._ROLES)
    assert literals(shapes.FromItem, "from_") == set(transcript._SENDERS)


def test_the_shapes_have_together_exactly_the_fields_of_a_log_item() -> None:
    described = {one.encode_name for shape in shapes.ITEM_SHAPES for one in msgspec.structs.fields(shape)}
    assert described == {one.encode_name for one in msgspec.structs.fields(LogItem)}


@pytest.mark.parametrize(
    "item",
    [
        {"character": "BOT", "content": None},
        {"speaker": "user", "text": "x", "turn_id": "3", "timestamp": "2026-03-02T08:00:00Z", "more": 1},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]},
        {"from": "human"},
    ],
)
def test_the_schema_takes_what_the_transcript_takes(item: dict[str, Any]) -> None:
    check({"$ref": "#/components/schemas/LogItem"}, item)
    transcript.check(decode.decode(sent_with(item)))


@pytest.mark.parametrize(
    "item",
    [
        {"content": "x"},
        {"character": "CAT", "content": "x"},
        {"speaker": "user", "text": "x", "timestamp": "yesterday"},
        {"role": "user", "content": [{"type": "text"}]},
        {"from": "human", "value": 3},
    ],
)
def test_the_schema_refuses_what_the_transcript_refuses(item: dict[str, Any]) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        check({"$ref": "#/components/schemas/LogItem"}, item)
    with pytest.raises(errors.Invalid):
        transcript.check(decode.decode(sent_with(item)))


def sent_with(item: dict[str, Any]) -> bytes:
    return msgspec.json.encode(samples.SENT["character"] | {"conversation_log": [item]})


# --- problems


def test_a_problem_leaves_out_what_it_does_not_know() -> None:
    encoded = msgspec.to_builtins(answers.problem(errors.NotFound("no such conversation")))
    assert encoded == {
        "type": "/docs#not_found",
        "title": "Not found",
        "status": 404,
        "code": "not_found",
        "detail": "no such conversation",
    }


def test_a_problem_names_the_field_and_the_conversation_where_known() -> None:
    made = answers.problem(errors.Invalid("must be text", path="$.bot_id"), "c-1")
    assert (made.path, made.conversation_id) == ("$.bot_id", "c-1")


def test_links_are_percent_encoded() -> None:
    made = answers.links("số 1?#%")
    assert made.self == "/v1/conversations/s%E1%BB%91%201%3F%23%25"
    assert made.log == made.self + "/log"
