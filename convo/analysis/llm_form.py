"""The form of a request to a model's server: what the server takes, learnt from what it refuses.

Servers differ in what they take: the response format, the temperature, the name of the token limit, the role of the
instructions, reasoning parameters, the length of the record. A refusal leads to the next form down; what works is kept.
After ``RELEARN_SECONDS`` one call tries the first form again, however many others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, structs

from convo.analysis.prompt import Ask
from convo.settings import LlmSettings

RELEARN_SECONDS = 600.0
"""How long a server is asked in the form that was learnt, until one call tries the first form again."""
# A call that tries the first form may end for another reason: so soon another one tries.
_AGAIN_SECONDS = 30.0

RECORD_CHARS_MIN = 1_000
"""A record is not shortened below this."""

ResponseFormat = Literal["json_schema", "json_object", "none"]
Trait = Literal["response_format", "temperature", "tokens", "role", "reasoning"]

FIELDS: Mapping[Trait, tuple[str, ...]] = {
    "response_format": ("response_format",),
    "temperature": ("temperature",),
    "tokens": ("max_tokens", "max_completion_tokens"),
    "role": ("messages",),
    "reasoning": (
        *("reasoning_effort", "reasoning", "reasoning_format", "include_reasoning", "thinking", "enable_thinking"),
        *("thinking_budget", "chat_template_kwargs"),
    ),
}
"""The fields of a request that each trait is about."""


class RequestForm(Struct, frozen=True, kw_only=True):
    """How a request is written; ``record_chars`` is None where the setting decides."""

    response_format: ResponseFormat = "json_schema"
    temperature: bool = True
    tokens: Literal["max_tokens", "max_completion_tokens", "none"] = "max_tokens"
    role: Literal["system", "developer", "user"] = "system"
    reasoning: bool = True
    record_chars: int | None = None

    @property
    def label(self) -> str:
        """Name the form in ASCII: empty for the first one. Other forms need other idempotency keys."""
        return "".join(f":{part}" for part in self._parts())

    def _parts(self) -> list[str]:
        parts: list[str] = [] if self.response_format == "json_schema" else [self.response_format]
        parts += [] if self.temperature else ["no_temperature"]
        parts += [] if self.tokens == "max_tokens" else [self.tokens if self.tokens != "none" else "no_max_tokens"]
        parts += [] if self.role == "system" else [self.role]
        parts += [] if self.reasoning else ["no_reasoning"]
        return parts + ([] if self.record_chars is None else [f"{self.record_chars}_characters"])


FIRST_FORM = RequestForm()

_FORMATS: dict[ResponseFormat, ResponseFormat] = {"json_schema": "json_object", "json_object": "none"}


def without(form: RequestForm, trait: Trait, fields: Mapping[str, Any]) -> RequestForm | None:  # noqa: PLR0911  (one trait each)
    """Return the next form down for one trait, None where there is none; ``fields`` are those that were sent."""
    match trait:
        case "response_format" if form.response_format in _FORMATS:
            return structs.replace(form, response_format=_FORMATS[form.response_format])
        case "temperature" if form.temperature and "temperature" in fields:
            return structs.replace(form, temperature=False)
        case "tokens" if "max_tokens" in fields:
            return structs.replace(form, tokens="max_completion_tokens")
        case "tokens" if "max_completion_tokens" in fields:
            return structs.replace(form, tokens="none")
        case "role" if form.role != "user":
            return structs.replace(form, role="developer" if form.role == "system" else "user")
        case "reasoning" if form.reasoning and not fields.keys().isdisjoint(FIELDS["reasoning"]):
            return structs.replace(form, reasoning=False)
        case _:
            return None


def next_down(form: RequestForm, fields: Mapping[str, Any]) -> RequestForm | None:
    """Return the next form after a refusal that does not say what it is about; None where all were tried.

    First the response format, which servers most often do not know, then all that can be left out, then the role.
    """
    formats = without(form, "response_format", fields)
    if formats is not None:
        return formats
    bare = structs.replace(form, temperature=False, tokens="none", reasoning=False)
    optional = (*FIELDS["temperature"], *FIELDS["tokens"], *FIELDS["reasoning"])
    if any(name in fields for name in optional):
        return bare
    return structs.replace(form, role="user") if form.role != "user" else None


def shorter(form: RequestForm, record_chars: int, share: float = 0.5) -> RequestForm | None:
    """Return the form with a record of this ``share`` of one of ``record_chars`` characters; None where it is short."""
    chars = max(RECORD_CHARS_MIN, int(record_chars * share))
    return structs.replace(form, record_chars=chars) if chars < record_chars else None


def request_fields(form: RequestForm, settings: LlmSettings, ask: Ask, text: str) -> dict[str, Any]:
    """Write a request in a form; ``llm.extra`` wins over what convo sends itself, and the form over both."""
    # One message of the user and not two: templates of many models refuse two in a row.
    text = f"{text}\n\n{ask.tasks}" if ask.tasks else text
    if form.role == "user":
        messages = [{"role": "user", "content": f"{ask.system}\n{text}"}]
    else:
        messages = [{"role": form.role, "content": ask.system}, {"role": "user", "content": text}]
    fields: dict[str, Any] = {
        "model": settings.model,
        "temperature": _plain(settings.temperature),
        "messages": messages,
        "response_format": _response_format(form.response_format, ask),
    }
    if settings.answer_tokens_max:
        fields["max_tokens"] = settings.answer_tokens_max
    if settings.reasoning_effort:
        fields["reasoning_effort"] = settings.reasoning_effort
    fields |= settings.extra
    return _as_learnt(form, fields)


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _response_format(kind: ResponseFormat, ask: Ask) -> dict[str, Any]:
    if kind == "json_schema":
        return {"type": kind, "json_schema": {"name": ask.name, "strict": True, "schema": ask.schema}}
    return {"type": kind}


def _as_learnt(form: RequestForm, fields: dict[str, Any]) -> dict[str, Any]:
    left_out: set[str] = set()
    if form.response_format == "none":
        left_out.add("response_format")
    if not form.temperature:
        left_out.add("temperature")
    if not form.reasoning:
        left_out.update(FIELDS["reasoning"])
    limit = next((fields[name] for name in FIELDS["tokens"] if name in fields), None)
    if limit is not None and form.tokens != "max_tokens":
        left_out.update(FIELDS["tokens"])
    kept = {name: value for name, value in fields.items() if name not in left_out}
    return kept | ({form.tokens: limit} if limit is not None and form.tokens == "max_completion_tokens" else {})


# --- what was learnt


class FormUse(Struct, frozen=True, kw_only=True):
    """The form that a call begins with; ``relearns`` where it is the call that tries the first form again."""

    form: RequestForm
    relearns: bool = False


class LearntForm:
    """The form that one server takes, as far as is known; times are the caller's."""

    def __init__(self) -> None:
        self.form = FIRST_FORM
        self.tried = False
        """Whether any call has worked."""
        self._relearn_at = 0.0

    def use(self, now: float) -> FormUse:
        """Return the form for one call at ``now``."""
        if self.form == FIRST_FORM or now < self._relearn_at:
            return FormUse(form=self.form)
        # The others go on with what was learnt.
        self._relearn_at = now + _AGAIN_SECONDS
        return FormUse(form=FIRST_FORM, relearns=True)

    def note_taken(self, use: FormUse, taken: RequestForm, now: float) -> bool:
        """Note that the server took a call in the form ``taken``; return whether that is news."""
        self.tried = True
        if use.relearns:
            found = taken
        elif taken != use.form:
            found = _both(self.form, taken)
        else:
            return False
        news = found != self.form
        if use.relearns or self.form == FIRST_FORM:
            # Not with each call: the first form must be tried again however many calls there are.
            self._relearn_at = now + RELEARN_SECONDS
        self.form = found
        return news


def _both(known: RequestForm, taken: RequestForm) -> RequestForm:
    """Put together what two calls learnt side by side: of each trait what differs from the first form."""
    first = structs.asdict(FIRST_FORM)
    learnt = {name: value for name, value in structs.asdict(taken).items() if value != first[name]}
    lengths = [one.record_chars for one in (known, taken) if one.record_chars is not None]
    return structs.replace(known, **{**learnt, "record_chars": min(lengths, default=None)})
