"""What the refusals of known servers mean: the sentences are theirs, and new ones belong into these tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convo.analysis.llm_faults import ModelRefusal, refusal_of
from convo.analysis.llm_form import FIRST_FORM, Trait, request_fields
from convo.analysis.prompt import QUESTIONS, asking
from convo.errors import (
    RemoteBusy,
    RemoteDeclined,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.outbound import RemoteAnswer
from convo.remote_faults import fault_in, fault_in_value
from convo.settings import LlmSettings

SETTINGS = LlmSettings(model="gpt-5", answer_tokens_max=900, reasoning_effort="low", extra={"seed": 1})
FIELDS: Mapping[str, Any] = request_fields(
    FIRST_FORM, SETTINGS, asking([QUESTIONS]), "What is an API key? The model was not found."
)


def meant(status: int, body: Any, pause: float | None = None) -> ModelRefusal:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    fault = fault_in(raw)
    answer = RemoteAnswer(status=status, code=fault.code, retry_after_seconds=pause, body=raw)
    return refusal_of(answer, fault, FIELDS)


def in_good(error: Any) -> ModelRefusal:
    fault = fault_in_value({"error": error})
    assert fault is not None
    body = json.dumps({"error": error}).encode()
    return refusal_of(RemoteAnswer(status=200, code="", retry_after_seconds=None, body=body), fault, FIELDS)


def said(message: str, **more: Any) -> Any:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


TRAITS: list[tuple[Any, Trait]] = [
    (said("temperature must be the default here", code="unsupported_value", param="temperature"), "temperature"),
    (said("Unsupported value: 'temperature' does not support 0 with this model."), "temperature"),
    (said("`temperature` is deprecated for this model."), "temperature"),
    (said("response_format is not supported"), "response_format"),
    (said("This model does not support response format `json_schema`."), "response_format"),
    (said("JSON mode is not enabled for models/gemma-3"), "response_format"),
    (said("x", param="response_format.json_schema"), "response_format"),
    (
        said("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."),
        "tokens",
    ),
    (said("Unknown field", param="max_completion_tokens"), "tokens"),
    (
        said(
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.", param="messages[0].role"
        ),
        "role",
    ),
    (said("Developer instruction is not enabled for models/gemma-3-27b-it"), "role"),
    (said("System role not supported"), "role"),
    (said("x", param="system"), "role"),
    (said("Unsupported value: 'system' is not supported with this model."), "role"),
    (said("role 'system' is not allowed"), "role"),
    (said("Conversation roles must alternate user/assistant/user/assistant/..."), "role"),
    (said("`reasoning_effort` is not supported with this model"), "reasoning"),
    (said("Unrecognized request argument supplied: reasoning_effort"), "reasoning"),
    ({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Input should be 'user' or 'assistant'"}]}, "role"),
    ({"detail": [{"loc": ["body", "response_format", "type"], "msg": "Input should be 'text'"}]}, "response_format"),
    (
        said(
            "litellm.UnsupportedParamsError: x does not support parameters: ['response_format'], for model=x.",
            param="None",
            code="400",
        ),
        "response_format",
    ),
    ({"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]}, "response_format"),
]


@pytest.mark.parametrize(("body", "trait"), TRAITS)
@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_of_one_trait_names_it(status: int, body: Any, trait: Trait) -> None:
    refusal = meant(status, body)
    assert (refusal.remedy, refusal.trait) == ("trait", trait)
    assert type(refusal.error) is RemoteRefused


def test_a_server_that_breaks_on_a_trait_names_it_too() -> None:
    assert meant(500, "response_format is not supported").trait == "response_format"
    assert meant(501, said("guided decoding is not supported")).trait == "response_format"


@pytest.mark.parametrize(
    "body",
    [
        said("Bad request."),
        "",
        said("x", code="invalid_request_error"),
        said(json.dumps(FIELDS)),
        {"detail": "Bad Request"},
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_that_says_nothing_leads_to_the_next_form(status: int, body: Any) -> None:
    assert meant(status, body).remedy == "next"


DENIED = [
    (401, {}),
    (402, {}),
    (403, {}),
    (404, {}),
    (405, {}),
    (410, {}),
    (308, {}),
    (404, said("The model `grok-reasoning` does not exist", code="model_not_found")),
    # a wrong key told by 400
    (400, [{"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}]),
    (400, said("Incorrect API key provided: sk-***")),
    (400, said("Missing API key")),
    (400, said("No connected db.", type="no_db_connection", code="400")),
    (400, said("x", code="invalid_api_key")),
    (400, {"error": {"type": "authentication_error", "message": "x"}}),
    # a wrong model told by 400
    (400, said("The model `llama3-8b-8192` has been decommissioned", code="model_decommissioned")),
    (400, said("The model `qwen-thinking` does not exist")),
    (400, said("gpt-9 is not a valid model ID")),
    (400, said("Invalid model name passed in model=x")),
    (400, said("x", param="model")),
    (400, said("models/gemini-1.5 is not found for API version v1beta")),
    (422, {"detail": "Model x not found"}),
    # a parameter of llm.extra
    (400, said("Unrecognized request argument supplied: seed")),
    (400, said("x", param="seed")),
    # no credit
    (429, said("You exceeded your current quota, please check your plan", code="insufficient_quota")),
    (429, said("Insufficient balance")),
]


@pytest.mark.parametrize(("status", "body"), DENIED)
def test_a_wrong_setting_parks_however_it_is_told(status: int, body: Any) -> None:
    refusal = meant(status, body)
    assert (type(refusal.error), refusal.remedy) == (RemoteDenied, "none")


@pytest.mark.parametrize(
    ("status", "body", "setting"),
    [
        (401, {}, "CONVO_LLM__API_KEY"),
        (400, said("API key not valid"), "CONVO_LLM__API_KEY"),
        (404, {}, "llm.base_url"),
        (400, said("x", code="model_not_found"), "llm.model"),
        (400, said("x", param="seed"), "llm.extra"),
        (413, {}, "llm.text_chars_max"),
    ],
)
def test_an_error_names_the_setting_to_correct(status: int, body: Any, setting: str) -> None:
    assert setting in meant(status, body).error.detail


BUSY = [
    (429, {}),
    (429, said("Rate limit reached. Visit https://platform.openai.com/account/billing to add a payment method")),
    (429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota"}}),
    (400, said("Too many requests")),
    (403, said("rate limit exceeded")),
]


@pytest.mark.parametrize(("status", "body"), BUSY)
def test_a_limit_for_some_time_is_obeyed(status: int, body: Any) -> None:
    error = meant(status, body, 7.0).error
    assert (type(error), error.retry_after_seconds) == (RemoteBusy, 7.0)


FILTERS = [
    (400, said("The prompt was filtered.", code="content_filter")),
    (400, {"error": {"code": "BadRequest", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    (400, said("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.")),
    (400, said("Your request was flagged as potentially violating our usage policy", code="invalid_prompt")),
    (400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."}),
    (403, {"error": {"code": 403, "message": "x", "metadata": {"flagged_input": "…", "reasons": ["violence"]}}}),
    (422, said("x", code="content_policy_violation")),
    (400, said("litellm.ContentPolicyViolationError: AzureException - no", type=None, code="400")),
]


@pytest.mark.parametrize(("status", "body"), FILTERS)
def test_a_content_filter_declines(status: int, body: Any) -> None:
    assert type(meant(status, body).error) is RemoteDeclined


TOO_LARGE: list[tuple[int, Any, type[RemoteError]]] = [
    (413, said("Request too large on tokens per minute", type="tokens", code="rate_limit_exceeded"), RemoteBusy),
    (413, "Payload Too Large", RemoteRefused),
    (429, said("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 60000."), RemoteBusy),
    (400, said("This model's maximum context length is 8192 tokens", code="context_length_exceeded"), RemoteRefused),
    (400, said("prompt is too long: 210000 tokens > 200000 maximum"), RemoteRefused),
    (500, said("the request exceeds the available context size"), RemoteRefused),
]


@pytest.mark.parametrize(("status", "body", "kind"), TOO_LARGE)
def test_a_record_that_is_too_long_is_shortened(status: int, body: Any, kind: type[RemoteError]) -> None:
    refusal = meant(status, body)
    assert (refusal.remedy, type(refusal.error)) == ("shorter", kind)
    assert "llm.text_chars_max" in refusal.error.detail


def test_the_record_is_shortened_to_what_the_server_says_that_it_takes() -> None:
    assert meant(413, said("Limit 6000, Requested 12000")).share == pytest.approx(0.4)
    longest = "maximum context length is 4096 tokens. However, you requested 16384 tokens"
    assert meant(400, said(longest)).share == pytest.approx(0.2)
    assert meant(413, "no figures").share == 0.5


@pytest.mark.parametrize(
    "body", [said("x", code="json_validate_failed"), said("Failed to generate JSON. Please adjust")]
)
def test_json_that_the_model_failed_to_write_is_garbage(body: Any) -> None:
    assert type(meant(400, body).error) is RemoteGarbage


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529, 408])
def test_trouble_of_the_server_is_an_outage(status: int) -> None:
    assert type(meant(status, said("thinking is overloaded")).error) is RemoteUnavailable


# --- errors in an answer that is good by its status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "upstream is rate limited"}, RemoteBusy),
        ({"code": 502, "message": "upstream died"}, RemoteUnavailable),
        ({"code": 401, "message": "x"}, RemoteDenied),
        ({"code": 404, "message": "x"}, RemoteDenied),
        ({"code": "429"}, RemoteBusy),
        ("Rate limit exceeded", RemoteBusy),
        ("invalid api key", RemoteDenied),
        ({"code": "model_not_found"}, RemoteDenied),
        ({"message": "model 'x' not found"}, RemoteDenied),
        ({"code": "content_filter"}, RemoteDeclined),
        ({"message": "upstream broke"}, RemoteUnavailable),
        ({"type": "invalid_request_error", "message": "no"}, RemoteRefused),
        ("", RemoteUnavailable),
    ],
)
def test_an_error_in_a_good_answer_is_what_it_says(error: Any, kind: type[RemoteError]) -> None:
    fault = in_good(error or {"x": 1}).error
    assert type(fault) is kind
    assert "answered 200 with an error" in fault.detail or kind is RemoteGarbage


def test_a_trait_that_is_refused_in_a_good_answer_is_learnt_too() -> None:
    assert in_good({"code": 400, "message": "temperature is not supported"}).trait == "temperature"


def test_a_pause_in_a_good_answer_is_obeyed() -> None:
    assert in_good({"code": 429, "message": "Please try again in 8s."}).error.retry_after_seconds == 8.0


# --- nothing of what was sent is shown


def test_no_text_of_an_answer_stands_in_an_error() -> None:
    for status in (400, 401, 403, 404, 413, 429, 500):
        assert "secret" not in meant(status, said("the secret word", param="secret", code="is secret")).error.detail
