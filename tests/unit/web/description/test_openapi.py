from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from convo.web.description.routes import ROUTES, Route
from tests.support.describing import DOCUMENT, check_fits

SCHEMAS = DOCUMENT["components"]["schemas"]


def operation(method: str, path: str) -> Any:
    return DOCUMENT["paths"][path][method]


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
    described = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_route_describes_the_scope_that_it_requires_and_how_it_is_refused(route: Route) -> None:
    described = operation(route.method, route.path)
    assert described["security"] == ([{"key": [route.scope]}] if route.scope else [])
    refusals = {"401", "429"}
    checks = route.scope is not None or route.signs_in
    assert refusals & described["responses"].keys() == (refusals if checks else set())
    assert ("keys_unavailable" in json.dumps(described["responses"].get("503"))) == checks


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
    check_fits(schema, value)


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
    bad = {"400", "401", "403", "405", "408", "409", "410", "413", "414", "415", "422", "429", "431"}
    assert responses.keys() == {"202", *bad, "500", "503", "505"}
    codes = responses["503"]["content"]["application/problem+json"]["examples"].keys()
    assert codes == {
        *("disk_full", "unavailable", "database_unavailable", "deadline_exceeded", "draining", "overloaded"),
        "keys_unavailable",
    }


def test_not_modified_has_no_content() -> None:
    assert "content" not in operation("get", "/v1/conversations/{conversation_id}")["responses"]["304"]
