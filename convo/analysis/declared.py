"""The parts that are declared in ``[parts]``: checks them, and finds which of them a conversation is owed.

Open it to change what a declaration may say, or when a part is owed. The three default parts are always declared: their
tables can only say when they are found, by whom, and whether the score waits for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from msgspec import Struct, structs

from convo.analysis.prompt import TASKS_VERSION
from convo.analysis.ready_made import READY_MADE
from convo.conversation.json_schema import schema_faults
from convo.conversation.owed import DEFAULT_PARTS, DeclaredPart, Owed, Points, Who, owed_of, version_of
from convo.dependencies import OLD_LOGS, part_dependency
from convo.errors import ConfigError
from convo.plural import plural
from convo.settings import PartSettings, Settings, WhenSettings, used_dependencies
from convo.standard_webhooks import signing_key

NAME_FORM = r"[a-z][a-z0-9]*(_[a-z0-9]+)*"
"""What a part may be called: no two underscores in a row, which part the names of environment variables."""
_NAME_CHARS_MAX = 40
_DEFAULT_WHO: Mapping[str, tuple[Who, ...]] = {
    "questions": ("llm", "local"),
    "emotion": ("llm", "local"),
    "memories": ("memory", "local"),
}
_OF_DEFAULT = ("who", "when", "required")


class Facts(Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a conversation when it is accepted, as far as conditions are about it."""

    conversation_id: str
    bot_id: str
    bot_type: str | None
    language: str | None
    turns: int
    user_turns: int


class Declarations:
    """What this process declares; the parts that a conversation is owed are made of it."""

    def __init__(self, parts: Sequence[tuple[DeclaredPart, WhenSettings]]) -> None:
        self._parts = parts
        # One for each combination of conditions: a set is made once, not for each conversation.
        self._sets: dict[tuple[str, ...], Owed] = {}

    @property
    def parts(self) -> tuple[DeclaredPart, ...]:
        """All parts, also those of which no conversation may be owed one."""
        return tuple(part for part, _ in self._parts)

    def owed(self, facts: Facts) -> Owed:
        """Return what a conversation is owed: the same in every process that declares the same."""
        skipped = tuple(_skipped(when, facts) for _, when in self._parts)
        found = self._sets.get(skipped)
        if found is None:
            found = owed_of(
                structs.replace(part, skipped=why) for (part, _), why in zip(self._parts, skipped, strict=True)
            )
            self._sets[skipped] = found
        return found


def declarations(settings: Settings) -> Declarations | None:
    """Return what is declared; None where that is nothing but the default parts.

    Raises:
        ConfigError: a declaration is wrong; the text names it, its value, and what to do.
    """
    if not settings.parts:
        return None
    # By their names, and not in the order of a file: the same declarations make the same set everywhere.
    own = {name: settings.parts[name] for name in sorted(settings.parts) if name not in DEFAULT_PARTS}
    declared = [(_default(name, settings), _when(settings, name)) for name in DEFAULT_PARTS]
    return Declarations([*declared, *((_declared(name, part, settings), part.when) for name, part in own.items())])


def _when(settings: Settings, name: str) -> WhenSettings:
    part = settings.parts.get(name)
    return part.when if part is not None else WhenSettings()


def _default(name: str, settings: Settings) -> DeclaredPart:
    part = settings.parts.get(name, PartSettings())
    remote, local = _DEFAULT_WHO[name]
    configured = settings.memory.url if remote == "memory" else settings.llm.model
    who = part.who or (remote if configured else local)
    if who not in (remote, local):
        raise ConfigError(f'parts.{name}.who = "{who}": this part is found by "{remote}" or "{local}"')
    if who == remote and not configured:
        raise ConfigError(f'parts.{name}.who = "{who}", but it is not switched on: set [{who}], or who = "local"')
    if name == "memories" and part.required is False:
        raise ConfigError(
            "parts.memories.required = false: what is new for the user is decided with the score, which has to wait for"
            " it; leave it out, or name when the part is owed"
        )
    for field in PartSettings.__struct_fields__:
        if field not in _OF_DEFAULT and getattr(part, field) != getattr(PartSettings(), field):
            raise ConfigError(
                f"parts.{name}.{field}: of this part only {', '.join(_OF_DEFAULT)} can be set; its points stand in"
                " [score]. Declare a part of another name to ask something else"
            )
    return DeclaredPart(name=name, who=who, required=part.required is not False)


def _declared(name: str, part: PartSettings, settings: Settings) -> DeclaredPart:
    where = f"parts.{name}"
    if not re.fullmatch(NAME_FORM, name) or len(name) > _NAME_CHARS_MAX:
        raise ConfigError(
            f"[{where}]: a part is called by small letters and digits, with single underscores between them, at most"
            f" {_NAME_CHARS_MAX} characters"
        )
    who = part.who or "llm"
    ready = READY_MADE.get(name)
    for field in ("criteria", "fields"):
        if bool(getattr(part, field)) != (ready is not None and field == {"rubric": "criteria"}.get(name, name)):
            raise ConfigError(
                f"{where}.{field}: belongs to [parts.{'rubric' if field == 'criteria' else 'fields'}] alone, and that"
                " one needs it"
            )
    prompt = part.prompt or (ready.prompt(part) if ready is not None else "")
    schema = part.schema or (ready.schema(part) if ready is not None else {})
    faults = schema_faults(schema)
    if faults:
        unknown = "" if ready or part.schema else f"; ready-made parts are {', '.join(READY_MADE)}"
        raise ConfigError(f"{where}.schema: {'; '.join(faults)}{unknown}")
    _check_points(where, part.points, schema)
    if who == "http":
        analyst = _service(where, part)
    elif who == "llm":
        analyst = _model(where, part, prompt, settings)
    else:
        raise ConfigError(f'{where}.who = "{who}": that is for the default parts; write "llm" or "http"')
    version = version_of(name, who, analyst, prompt, schema, TASKS_VERSION if who == "llm" else "")
    return DeclaredPart(
        name=name,
        who=who,
        version=version,
        analyst=analyst,
        prompt=prompt,
        schema=schema,
        points=part.points,
        required=bool(part.required),
    )


def _model(where: str, part: PartSettings, prompt: str, settings: Settings) -> str:
    if not prompt:
        raise ConfigError(f"{where}.prompt is empty: write what the model is to report")
    if part.url or part.secret:
        raise ConfigError(f'{where}.url and its secret are for who = "http"')
    if not settings.llm.model:
        raise ConfigError(
            f"[{where}] is found by a language model, and llm.model is empty: set it (CONVO_LLM__MODEL), or"
            ' who = "http"'
        )
    return part.model or settings.llm.model


def _service(where: str, part: PartSettings) -> str:
    variable = f"CONVO_{where.replace('.', '__').upper()}__SECRET"
    try:
        parts = urlsplit(part.url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{where}.url = {part.url!r}: write the http:// or https:// address of the service")
    if part.model:
        raise ConfigError(f'{where}.model is for who = "llm"')
    try:
        signing_key(part.secret.reveal())
    except ValueError as error:
        raise ConfigError(
            f"{variable}: {error}: what is sent to the service is signed with it; make one with"
            " `echo whsec_$(head -c 32 /dev/urandom | base64)`"
        ) from None
    return part.url


def _check_points(where: str, points: Points | None, schema: Mapping[str, object]) -> None:
    if points is None:
        return
    if bool(points.field) == bool(points.count):
        raise ConfigError(f"{where}.points: name one field, as field = or as count =")
    if bool(points.values) == bool(points.each) or (points.count and points.values):
        raise ConfigError(f"{where}.points: write each = for a number or a count, or values = for a field")
    properties = schema.get("properties")
    named = points.field or points.count
    kind = properties.get(named) if isinstance(properties, dict) else None
    if kind is None:
        raise ConfigError(f"{where}.points names {named!r}, which is none of the properties of its schema")
    if points.count and kind.get("type") != "array":
        raise ConfigError(f"{where}.points.count = {named!r}: is no list in its schema")
    graded = kind.get("type") == "object" and "grade" in kind.get("properties", {})
    if points.each and not points.count and not (graded or kind.get("type") in ("number", "integer", "boolean")):
        raise ConfigError(f"{where}.points.field = {named!r}: is no number, boolean or grade; write values = for it")


# --- when


def _skipped(when: WhenSettings, facts: Facts) -> str:
    """Return the first condition that does not hold, in words; empty where all do."""
    failed = (
        (facts.turns < when.min_turns, f"it has fewer than {when.min_turns} {plural(when.min_turns, 'turn')}"),
        (
            facts.user_turns < when.min_user_turns,
            f"the user spoke fewer than {when.min_user_turns} {plural(when.min_user_turns, 'time')}",
        ),
        (when.bots and facts.bot_id not in when.bots, "it is of another bot"),
        (when.bot_types and facts.bot_type not in when.bot_types, "its bot is of another type"),
        (when.languages and not _speaks(facts.language, when.languages), "it is in another language, or none was sent"),
        (
            when.sample < 1 and sampled_at(facts.conversation_id) >= when.sample,
            f"it is not in the sample of {when.sample:g}",
        ),
    )
    return next((reason for fails, reason in failed if fails), "")


def _speaks(tag: str | None, languages: Sequence[str]) -> bool:
    # "vi" also stands for vi-VN.
    return tag is not None and any(f"{tag}-".lower().startswith(f"{one}-".lower()) for one in languages)


def sampled_at(conversation_id: str) -> float:
    """Return the size of sample, from 0 to 1, from which on a conversation is in it: a hash of its id."""
    hashed = hashlib.sha256(conversation_id.encode()).digest()
    return int.from_bytes(hashed[:7], "big") / 2**56


def served_dependencies(settings: Settings) -> list[str]:
    """Name what a process with these settings has: jobs that wait for anything else are left to others.

    The service of a part is named twice: by itself, as it can be out, and with the version of the part.
    """
    used = [*used_dependencies(settings), *([OLD_LOGS] if settings.logs.in_objects else [])]
    return used + [name for part in declared_services(settings) for name in (part_dependency(part.name), part.needs)]


def declared_services(settings: Settings) -> list[DeclaredPart]:
    """Return the parts that a service of its own finds."""
    found = declarations(settings)
    return [] if found is None else [part for part in found.parts if part.who == "http"]
