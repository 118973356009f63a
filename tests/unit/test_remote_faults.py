from __future__ import annotations

import json
from typing import Any

import pytest

from convo.remote_faults import RemoteFault, decoded, fault_in, fault_in_value


def read(value: Any) -> RemoteFault:
    return fault_in(json.dumps(value).encode())


FORMS: list[tuple[Any, str, str, str, int | None]] = [
    # OpenAI and most others
    (
        {
            "error": {
                "message": "No T",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
        "unsupported_value",
        "no t",
        "temperature",
        None,
    ),
    (
        {"error": {"message": "x", "type": "invalid_request_error", "code": None}},
        "invalid_request_error",
        "x",
        "",
        None,
    ),
    # Google
    (
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid.",
                    "status": "INVALID_ARGUMENT",
                    "details": [{"reason": "API_KEY_INVALID"}],
                }
            }
        ],
        "API_KEY_INVALID",
        "api key not valid.",
        "",
        400,
    ),
    # OpenRouter
    ({"error": {"code": 429, "message": "busy", "metadata": {"raw": "upstream"}}}, "", "busy\nupstream", "", 429),
    # Azure's gateway
    ({"statusCode": 401, "message": "Access denied"}, "", "access denied", "", 401),
    # Anthropic
    (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "overloaded_error",
        "overloaded",
        "",
        None,
    ),
    # Ollama and many small servers
    ({"error": "model not found"}, "", "model not found", "", None),
    # vLLM
    (
        {"object": "error", "message": "bad", "type": "BadRequestError", "param": None, "code": 400},
        "BadRequestError",
        "bad",
        "",
        400,
    ),
    # FastAPI
    ({"detail": "Not authenticated"}, "", "not authenticated", "", None),
    (
        {"detail": [{"loc": ["body", "top_p"], "msg": "Field", "type": "extra_forbidden"}]},
        "extra_forbidden",
        "field",
        "top_p",
        None,
    ),
    # Cloudflare
    (
        {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]},
        "",
        "authentication error",
        "",
        None,
    ),
]


@pytest.mark.parametrize(("body", "code", "message", "parameter", "status"), FORMS)
def test_a_fault_is_read_in_the_form_of_each_service(
    body: Any, code: str, message: str, parameter: str, status: int | None
) -> None:
    fault = read(body)
    assert (fault.code, fault.message, fault.parameter, fault.status) == (code, message, parameter, status)


def test_azures_filter_is_found_below_the_error() -> None:
    fault = read({"error": {"code": "BadRequest", "innererror": {"code": "ResponsibleAIPolicyViolation"}}})
    assert "responsibleaipolicyviolation" in fault.words


@pytest.mark.parametrize("code", ["sk-123 secret", "a" * 65, "", "ключ", "with space"])
def test_what_looks_like_no_code_is_not_shown(code: str) -> None:
    assert read({"error": {"code": code}}).code == ""


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[" * 100_000, b"7", b"null", b"[]", b"{}", b'{"error": null}'])
def test_a_body_without_a_fault_says_nothing_that_could_be_shown(body: bytes) -> None:
    assert fault_in(body).code == ""


def test_a_body_that_is_no_json_is_the_message() -> None:
    assert fault_in(b"No such MODEL").message == "no such model"


def test_a_byte_order_mark_is_no_part_of_the_json() -> None:
    assert decoded(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [{"error": {"code": 429}}, [{"error": {"code": 429}}], {"error": "x"}, {"errors": ["x"]}, {"success": False}],
)
def test_an_error_is_found_in_an_answer_that_is_good_by_its_status(value: Any) -> None:
    assert fault_in_value(value) is not None


@pytest.mark.parametrize(
    "value", [{}, {"choices": []}, {"error": None}, {"error": ""}, {"message": "hi"}, [], [{}], "x"]
)
def test_an_answer_without_an_error_has_none(value: Any) -> None:
    assert fault_in_value(value) is None
