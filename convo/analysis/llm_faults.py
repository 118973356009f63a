"""Says what a refusal of a model's server means: whose fault it is, and what in the request can be changed about it.

Servers say the same in many ways: by the status, by a code, by a sentence, or in the body of an answer that is good by
its status. Codes go before sentences, because a sentence may quote what it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct, structs

from convo.analysis.llm_form import FIELDS, Trait
from convo.errors import (
    RemoteBusy,
    RemoteDeclined,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.outbound import RemoteAnswer, failure
from convo.remote_faults import RemoteFault, decoded
from convo.remote_pauses import body_pause_seconds

_NAME = "llm"
Remedy = Literal["none", "trait", "next", "shorter"]


class ModelRefusal(Struct, frozen=True, kw_only=True):
    """What a refusal means: the error, and what to change in the request before the error is raised.

    ``trait``: that one trait; ``next``: it does not say what, so the next form down; ``shorter``: the record, to
    ``share`` of its length.
    """

    error: RemoteError
    remedy: Remedy = "none"
    trait: Trait | None = None
    share: float = 0.5


# --- the words by which servers say it

_CONTENT = frozenset(
    {
        *("content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"),
        *("datainspectionfailed", "moderation_blocked", "flagged_input", "prohibited_content", "content_blocked"),
        *("safety", "blocklist", "sensitive_content", "content_moderation", "input_moderation", "invalid_prompt"),
        *(
            "content_policy",
            "contentfilter",
            "contentpolicyviolationerror",
            "guardrail_intervened",
            "recitation",
            "image_safety",
            "spii",
        ),
    }
)
FILTERED = frozenset({*_CONTENT, "sensitive", "refusal", "content-filter", "safety_block"})
"""Finish reasons by which a server says that its filter cut the answer off."""
_GARBAGE = frozenset({"json_validate_failed", "output_parse_failed", "tool_use_failed"})
_TOO_LARGE = frozenset(
    {"context_length_exceeded", "string_above_max_length", "request_too_large", "exceed_context_size_error"}
)
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"})
_RATE = frozenset(
    {
        *("rate_limit_exceeded", "rate_limit_error", "rate_limited", "too_many_requests", "resource_exhausted"),
        *("tokens", "requests", "throttled", "throttling", "throttlingexception", "ratelimiterror", "rate_limit"),
        *("rate_limit_reached", "ratelimitreached", "rate_exceeded"),
    }
)
_KEY = frozenset(
    {
        *("invalid_api_key", "api_key_invalid", "authentication_error", "invalid_authentication", "unauthenticated"),
        *("unauthorized", "access_denied", "permission_denied", "permission_error", "api_key_expired"),
        *("incorrect_api_key", "missing_api_key", "no_auth_credentials", "authenticationerror", "invalid_key"),
        *("api_key_service_blocked", "consumer_invalid", "expired_api_key", "account_deactivated", "invalidapikey"),
        "no_db_connection",  # a LiteLLM without a database, of any key but its master key
    }
)
_MODEL = frozenset(
    {
        *("model_not_found", "model_decommissioned", "model_not_available", "model_not_active", "invalid_model"),
        *("deploymentnotfound", "model_terms_required", "unknown_model", "modelnotfound", "model_not_supported"),
        *("model_permission_blocked_org", "model_permission_blocked_project", "notfounderror", "not_found_error"),
    }
)
_UNAVAILABLE = frozenset({"overloaded_error", "server_error", "api_error", "internal", "internal_server_error"})

_CONTENT_TEXT = re.compile(
    r"content[ _]?(?:management|filter|policy|moderation)|was filtered|flagged (?:as|by|for|input)|usage polic"
    r"|inappropriate content|safety (?:system|filter|polic)|blocked by .{0,20}(?:safety|polic|moderation)"
)
_GARBAGE_TEXT = re.compile(r"failed to (?:generate|validate|parse) (?:valid )?json")
_TOO_LARGE_TEXT = re.compile(
    r"context[ _]?(?:length|window|size)|too many tokens|prompt is too long|request (?:is )?too large|input is too long"
    r"|reduce the length|maximum (?:number of )?(?:input )?tokens|exceeds the (?:maximum|limit of) .{0,20}tokens"
    r"|longer than the model|payload too large|request entity too large"
)
_QUOTA_TEXT = re.compile(r"insufficient (?:quota|credits?|balance|funds)|out of credits?|credit balance is too low")
_RATE_TEXT = re.compile(r"rate[ _-]?limit|too many requests|quota exceeded|throttl|tokens per (?:min|day)|try again in")
_KEY_TEXT = re.compile(
    r"api[ _-]?key.{0,40}(?:not valid|invalid|incorrect|missing|expired|required|not found|wrong|revoked|disabled)"
    r"|(?:invalid|incorrect|missing|expired|wrong|no|revoked|disabled)(?: or \w+)? api[ _-]?key"
    r"|(?:invalid|incorrect|missing|expired|no) (?:access |bearer |auth\w* )?(?:token|credentials|subscription key)"
    r"|unauthori[sz]ed|authentication (?:failed|error|required)|authenticationerror|authorization header"
    r"|subscription key"
)
_MODEL_GONE_TEXT = re.compile(
    r"(?:model|deployment).{0,80}(?:does not exist|doesn't exist|not exist|not found|decommissioned|no longer|retired)"
    r"|(?:unknown|no such|unrecognized) model|not a valid model|no endpoints found for",
    re.DOTALL,
)
_MODEL_TEXT = re.compile(
    r"model.{0,80}(?:not available|deprecated|unavailable|is not supported|not loaded|not allowed|no access)"
    r"|(?:invalid|unsupported) model",
    re.DOTALL,
)
_NOT_TAKEN_TEXT = re.compile(r"support|not allow|invalid|unknown|unrecognized|not available|not permitted|unexpected")
_TRAIT_TEXTS: Mapping[Trait, re.Pattern[str]] = {
    "response_format": re.compile(
        r"response[ _]format|json[ _]schema|json[ _]object|json[ _]mode|structured[ _]output|guided|grammar"
    ),
    "temperature": re.compile(r"temperature"),
    "tokens": re.compile(r"max_tokens|max_completion_tokens|max_new_tokens|max tokens"),
    "role": re.compile(
        r"(?:system|developer)\W{0,3}(?:role|message|instruction|prompt)|role\W{0,12}(?:system|developer)"
        r"|messages\[0\]\.role|(?:does not|doesn't|not) support\W{0,3}(?:the )?\W?(?:system|developer)"
        r"|conversation roles|alternate user|['\"`](?:system|developer)['\"`]"
    ),
    "reasoning": re.compile(r"reasoning|thinking|chat_template_kwargs"),
}
# "Limit 6000, Requested 12000": how much of it would fit.
_LIMITS = re.compile(
    r"limit[: ]+(?P<limit>\d{2,9})\b.{0,40}?requested[: ]+(?P<asked>\d{2,9})"
    r"|maximum context length is (?P<most>\d{2,9}) tokens.{0,60}?(?P<had>\d{2,9}) tokens",
    re.DOTALL,
)
_HEAD_CHARS = 400
_ROLES = ("role", "system", "developer")
_OWN_FIELDS = frozenset({"model", *(name for names in FIELDS.values() for name in names)})


def refusal_of(answer: RemoteAnswer, fault: RemoteFault, fields: Mapping[str, Any]) -> ModelRefusal:
    """Say what an answer means that is no completion; ``fields`` are those of the request.

    ``fault`` is what its body says. It may stand in an answer that is good by its status: then the status in the body
    counts, or the one that its words stand for.
    """
    if answer.good:
        status = fault.status or _status_of(fault)
        pause = answer.retry_after_seconds
        if pause is None:
            pause = body_pause_seconds(decoded(answer.body), datetime.now(UTC))
        answer = structs.replace(answer, status=status, code=fault.code, retry_after_seconds=pause)
        found = _meaning(answer, fault, fields)
        return structs.replace(found, error=_in_good_answer(found.error, status))
    return _meaning(answer, fault, fields)


def _status_of(fault: RemoteFault) -> int:
    """Return the status that an error without one stands for: an outage, unless its words say otherwise."""
    text = fault.message[:_HEAD_CHARS]
    for status, words, pattern in ((429, _RATE, _RATE_TEXT), (401, _KEY, _KEY_TEXT), (404, _MODEL, _MODEL_GONE_TEXT)):
        if words & fault.words or pattern.search(text):
            return status
    refused = fault.parameter or _CONTENT & fault.words or any("invalid" in word for word in fault.words)
    return 400 if refused or _CONTENT_TEXT.search(text) or _TOO_LARGE_TEXT.search(text) else 502


def _in_good_answer(error: RemoteError, status: int) -> RemoteError:
    detail = error.detail.partition(": ")[2].replace(f"answered {status}", f"answered 200 with an error {status}", 1)
    return type(error)(_NAME, detail, retry_after_seconds=error.retry_after_seconds)


def _meaning(answer: RemoteAnswer, fault: RemoteFault, fields: Mapping[str, Any]) -> ModelRefusal:  # noqa: PLR0911
    detail = failure(_NAME, answer).detail.partition(": ")[2]
    if _says(fault, _GARBAGE, _GARBAGE_TEXT):
        what = answer.code or answer.status
        return ModelRefusal(error=RemoteGarbage(_NAME, f"the model wrote no valid JSON ({what})"))
    if _says(fault, _CONTENT, _CONTENT_TEXT if answer.status in (400, 403, 422, 451) else None):
        return ModelRefusal(error=RemoteDeclined(_NAME, f"{detail}: a content filter refuses this conversation"))
    if answer.status < 400:
        return ModelRefusal(error=RemoteDenied(_NAME, f"{detail}; correct llm.base_url"))
    if answer.status in (401, 402, 403, 429):
        return _account(answer, fault, detail)
    trait = _trait(answer, fault)
    if answer.status == 413 or (_says(fault, _TOO_LARGE, _TOO_LARGE_TEXT) and not (trait and fault.parameter)):
        return _too_large(answer, fault, detail)
    wrong = _wrong_setting(answer, fault, trait, fields)
    if wrong:
        return ModelRefusal(error=RemoteDenied(_NAME, f"{detail}: {wrong}"))
    if trait is not None:
        return ModelRefusal(error=RemoteRefused(_NAME, f"{detail}: it refuses {trait}"), remedy="trait", trait=trait)
    return _other(answer, fault, detail)


def _says(fault: RemoteFault, words: Collection[str], pattern: re.Pattern[str] | None = None) -> bool:
    return not fault.words.isdisjoint(words) or bool(pattern and pattern.search(fault.message[:_HEAD_CHARS]))


def _account(answer: RemoteAnswer, fault: RemoteFault, detail: str) -> ModelRefusal:
    """Say what 401, 402, 403 and 429 mean: the key, the credit, or a limit for some time."""
    pause = answer.retry_after_seconds
    limited = _says(fault, _RATE, _RATE_TEXT) and answer.status != 401
    spent = answer.status == 402 or (pause is None and _says(fault, _QUOTA, _QUOTA_TEXT))
    if answer.status == 429 and not spent and _TOO_LARGE_TEXT.search(fault.message[:_HEAD_CHARS]):
        return _too_large(answer, fault, detail)
    if not spent and (answer.status == 429 or limited):
        return ModelRefusal(error=RemoteBusy(_NAME, detail, retry_after_seconds=pause))
    refused = "it refuses the key of CONVO_LLM__API_KEY"
    if answer.status == 403:
        refused = "the key of CONVO_LLM__API_KEY does not allow this, or not from here"
    return ModelRefusal(error=RemoteDenied(_NAME, f"{detail}: {'the account has no credit' if spent else refused}"))


def _too_large(answer: RemoteAnswer, fault: RemoteFault, detail: str) -> ModelRefusal:
    why = f"{detail}: the record is longer than the server takes; lower llm.text_chars_max"
    if answer.status == 429 or _says(fault, _RATE, _RATE_TEXT):
        # Of a minute's tokens there may be more in a minute.
        error: RemoteError = RemoteBusy(_NAME, why, retry_after_seconds=answer.retry_after_seconds)
    else:
        error = RemoteRefused(_NAME, why)
    return ModelRefusal(error=error, remedy="shorter", share=_share(fault.message))


def _share(message: str) -> float:
    found = _LIMITS.search(message)
    if found is None:
        return 0.5
    limit, asked = int(found["limit"] or found["most"]), int(found["asked"] or found["had"])
    # The instructions count as well, and characters are no tokens.
    return min(0.8, max(0.05, 0.8 * limit / asked)) if asked else 0.5


def _trait(answer: RemoteAnswer, fault: RemoteFault) -> Trait | None:
    """Find the one trait that a refusal names; a text that names several may quote the request."""
    text = fault.message[:_HEAD_CHARS]
    if fault.parameter:
        head = re.split(r"[.\[]", fault.parameter)[0]
        named = next((trait for trait, names in FIELDS.items() if head in names), "role" if head in _ROLES else None)
        # "messages" is the role only where it says so: it can be the text as well.
        if named is not None and (head != "messages" or "role" in f"{fault.parameter} {text}"):
            return named
        if named is None and head == "model":
            return None
    if answer.status == 404 or not (answer.status in (400, 422) or _NOT_TAKEN_TEXT.search(text)):
        return None
    found = [trait for trait, pattern in _TRAIT_TEXTS.items() if pattern.search(text)]
    return found[0] if len(found) == 1 and not _MODEL_GONE_TEXT.search(text) else None


def _wrong_setting(answer: RemoteAnswer, fault: RemoteFault, trait: Trait | None, fields: Mapping[str, Any]) -> str:
    """Say which setting a refusal is about, whatever its status; empty where it is about none."""
    told = answer.status in (400, 422)
    if trait is None and told and _says(fault, _KEY, _KEY_TEXT):
        return "it refuses the key of CONVO_LLM__API_KEY"
    gone = _says(fault, _MODEL, _MODEL_GONE_TEXT) or fault.parameter == "model"
    if trait is None and (gone or (told and _says(fault, (), _MODEL_TEXT))) and answer.status != 404:
        return "it does not have the model of llm.model"
    if answer.status == 404 and "requested parameters" not in fault.message:
        return "it does not have the model of llm.model, or llm.base_url is wrong"
    if answer.status in (405, 410):
        return "llm.base_url is wrong"
    extra = [name for name in fields if name not in _OWN_FIELDS]
    named = next((name for name in extra if fault.parameter == name or _names(fault.message, name)), "")
    return f"it refuses the parameter {named} of llm.extra" if told and named and trait is None else ""


def _names(message: str, field: str) -> bool:
    return re.search(rf"(?<![a-z_]){re.escape(field.lower())}(?![a-z_])", message[:_HEAD_CHARS]) is not None


def _other(answer: RemoteAnswer, fault: RemoteFault, detail: str) -> ModelRefusal:
    if answer.status == 404:
        # OpenRouter: no server behind it takes all of the parameters.
        return ModelRefusal(error=RemoteDenied(_NAME, f"{detail}: it refuses a parameter"), remedy="next")
    if answer.status not in (400, 422):
        return ModelRefusal(error=failure(_NAME, answer))
    if _says(fault, _RATE, _RATE_TEXT):
        return ModelRefusal(error=RemoteBusy(_NAME, detail, retry_after_seconds=answer.retry_after_seconds))
    if _says(fault, _UNAVAILABLE):
        return ModelRefusal(error=RemoteUnavailable(_NAME, detail))
    return ModelRefusal(error=RemoteRefused(_NAME, detail), remedy="next")
