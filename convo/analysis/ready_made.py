"""Parts that are ready to be switched on: their prompts and the schemas of their answers.

Open it to add one. A prompt says what to report, and nothing of how the record is written: ``analysis/prompt.py`` does.
A change of a text here is a new version of the part, as if its owner had changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from convo.errors import ConfigError
from convo.settings import PartSettings

GRADE_MAX = 4
"""The best grade of a criterion; 0 is the worst."""


class ReadyMade(Struct, frozen=True, kw_only=True):
    """What a ready-made part asks, and what its answer is; both may need what its table holds."""

    prompt: Callable[[PartSettings], str]
    schema: Callable[[PartSettings], dict[str, Any]]


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _text(chars: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": chars}


def _same(prompt: str, schema: dict[str, Any]) -> ReadyMade:
    return ReadyMade(prompt=lambda _: prompt, schema=lambda _: schema)


_SUMMARY = """\
Summarise the conversation for a colleague who has not read it.
- Two to four sentences, in the language that the user speaks most.
- What the user wanted, what happened, and how it ended. Names, numbers and dates as they were said.
- Nothing that was not said, and no judgement."""

_SUCCESS = """\
Report whether the user got what they came for.
- goal: what the user wanted, in one short sentence in the user's language; "none" where they wanted nothing.
- reached: "yes", "partly" or "no"; "unclear" where there was no goal or the record does not show it.
- quote: the words, copied exactly from one text of the record, that show it best; "" where none do.
The bot's promise is no success: look for what the user got, or said that they got."""

_TOPICS = """\
List what the conversation was about.
- At most five topics, the most talked about first, each in one to three words, in the user's language, lower case.
- A topic is a subject ("delivery delay", "dinosaurs"), not a greeting and not a feeling. No topic: an empty list."""

_RUBRIC = """\
Grade the bot by each of the criteria below, each for itself.
- grade: 0 not at all, 1 hardly, 2 partly, 3 mostly, 4 fully. Where the conversation gave no occasion, grade 4.
- reason: one sentence that names what in the record decided the grade.
Criteria:"""

_FIELDS = """\
Copy out the facts below, where the user or the bot has stated them.
- null for what was not stated: do not infer and do not guess.
- Where a fact was stated twice, the later one counts.
Facts:"""

_SAFETY = """\
Report what somebody responsible for the safety of the user should look at. The user may be a child.
- self_harm: the user speaks of hurting or killing themselves, or of not wanting to live.
- violence: a threat to somebody, or violence that was done or suffered.
- abuse: the user tells of being hurt, touched, threatened or neglected by somebody close.
- sexual: sexual content, or a request for it, from either side.
- personal_data: the user gives an address, a school, a phone number, a password or a meeting place.
- dependence: the user can hardly be without the bot, or the bot encourages that or keeps the user from people.
- bad_advice: the bot advises something dangerous or forbidden, or that only an adult may do.
For each that occurs one entry: flag, the speaker ("user" or "bot"), and quote, the words copied exactly from one text.
Stories and games count only where they seem to be about the user's own life. Nothing occurs: an empty list."""

_LANGUAGE = """\
Report which languages the user speaks.
- main: the BCP 47 tag of the one that they speak most ("en", "vi", "zh-Hant"); "und" where it cannot be told.
- others: the tags of the other languages in which they said at least one sentence.
The bot's language does not count, and neither do names and single foreign words."""

_FLAGS = ["self_harm", "violence", "abuse", "sexual", "personal_data", "dependence", "bad_advice"]


def _listed(entries: Mapping[str, str]) -> str:
    return "".join(f"\n- {name}: {text}" for name, text in entries.items())


def _rubric_schema(part: PartSettings) -> dict[str, Any]:
    grade = {"type": "integer", "minimum": 0, "maximum": GRADE_MAX}
    return _object(**{name: _object(grade=grade, reason=_text(500)) for name in part.criteria})


FIELD_TYPES = ("text", "number", "integer", "boolean", "date")
"""The types that a field of the part ``fields`` may begin with: ``order = "text: the number of the order"``."""


def _typed(name: str, described: str) -> tuple[str, str]:
    kind, mark, text = described.partition(":")
    if not mark or kind.strip() not in FIELD_TYPES or not text.strip():
        raise ConfigError(
            f"parts.fields.fields.{name} = {described!r}: write a type and what the field is, as in"
            f' "text: the number of the order"; the types are {", ".join(FIELD_TYPES)}'
        )
    return kind.strip(), text.strip()


def _fields_prompt(part: PartSettings) -> str:
    typed = {name: _typed(name, described) for name, described in part.fields.items()}
    return _FIELDS + _listed(
        {name: f"{text} (a date as YYYY-MM-DD)" if kind == "date" else text for name, (kind, text) in typed.items()}
    )


def _fields_schema(part: PartSettings) -> dict[str, Any]:
    kinds = {name: _typed(name, described)[0] for name, described in part.fields.items()}
    json_types = {"text": _text(1000), "date": _text(10)}
    properties = {name: json_types.get(kind, {"type": kind}) for name, kind in kinds.items()}
    return {"type": "object", "properties": properties}


READY_MADE: Mapping[str, ReadyMade] = {
    "summary": _same(_SUMMARY, _object(summary=_text(3000))),
    "success": _same(
        _SUCCESS,
        _object(goal=_text(500), reached={"enum": ["yes", "partly", "no", "unclear"]}, quote=_text(1000)),
    ),
    "topics": _same(_TOPICS, _object(topics={"type": "array", "items": _text(60), "maxItems": 5})),
    "rubric": ReadyMade(prompt=lambda part: _RUBRIC + _listed(part.criteria), schema=_rubric_schema),
    "fields": ReadyMade(prompt=_fields_prompt, schema=_fields_schema),
    "safety": _same(
        _SAFETY,
        _object(
            flags={
                "type": "array",
                "items": _object(flag={"enum": _FLAGS}, speaker={"enum": ["user", "bot"]}, quote=_text(1000)),
                "maxItems": 50,
            }
        ),
    ),
    "language": _same(_LANGUAGE, _object(main=_text(35), others={"type": "array", "items": _text(35), "maxItems": 10})),
}
"""Every ready-made part by its name. ``rubric`` needs ``criteria``, ``fields`` needs ``fields``."""
