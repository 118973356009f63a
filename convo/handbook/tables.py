"""Makes the handbook's tables from the code that they describe; open it when a page should list something else.

Each table is Markdown, with one row for each row of its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec import NODEFAULT, inspect

from convo import errors
from convo.alerts.rules import CAPS, KINDS, LEVELS, REPEAT
from convo.audit_actions import AUDIT_ACTIONS
from convo.config import DEFAULT_FILE
from convo.errors import ConvoError
from convo.event_types import EVENT_TYPES
from convo.ladder import ladder
from convo.observe import metrics
from convo.runtime import waits
from convo.settings import Secret, Settings

_SECTION = re.compile(r"\[(?P<name>\w+)\]\s*(?:#\s*(?P<text>.*))?")
_KEY = re.compile(r"(?P<name>\w+) = .*?(?:\s#\s(?P<text>.*))?")
_MORE = re.compile(r"\s+#\s(?P<text>.*)")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"


# --- the ladder and the waits


def _ladder() -> str:
    rows = (
        (
            rung.inside,
            f"{rung.inside_seconds:g} s",
            f"{rung.relation} {rung.outside}",
            f"{rung.outside_seconds:g} s",
            rung.otherwise,
        )
        for rung in ladder(Settings())
    )
    return _table(("inside", "default", "outside", "default", "otherwise"), rows)


def _waits() -> str:
    return _table(("wait", "what it bounds"), ((_code(name), text) for name, text in waits.NAMES.items()))


# --- alerts


def _alerts() -> str:
    rows = (
        (_code(name), kind.level, "one process for all" if kind.shared else "each process", kind.do)
        for name, kind in KINDS.items()
    )
    return _table(("alert", "level", "raised by", "what to do"), rows)


def _alert_levels() -> str:
    repeat_seconds = Settings().alerts.repeat_seconds
    rows = ((level, f"{repeat_seconds * REPEAT[level] / 60:g} min", _cap(level)) for level in LEVELS)
    return _table(("level", "repeated while it lasts, every", "for one type and component, at most"), rows)


def _cap(level: Any) -> str:
    if level not in CAPS:
        return "no limit"
    most, seconds = CAPS[level]
    return f"{most} in {seconds / 60:g} min"


# --- the audit log


def _audit_actions() -> str:
    return _table(("action", "what a row means"), ((_code(name), text) for name, text in AUDIT_ACTIONS.items()))


# --- events


def _event_types() -> str:
    return _table(("type", "what it means"), ((_code(name), text) for name, text in EVENT_TYPES.items()))


# --- metrics


def _metrics() -> str:
    rows = (
        (_code(one.name), one.kind, ", ".join(map(_code, one.labels)), one.text) for one in metrics.describe_metrics()
    )
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


# --- problems


def _problems() -> str:
    rows = (
        (str(kind.status), _code(kind.code), kind.title, _trying_again(kind))
        for kind in sorted(_answered(), key=lambda kind: (kind.status, kind.code))
    )
    return _table(("status", "code", "meaning", "trying again"), rows)


def _trying_again(kind: type[ConvoError]) -> str:
    if kind.retryable:
        return "send the same again" + (", after `Retry-After`" if kind.status in (429, 503) else "")
    return "a fault in convo; the same may be sent again" if kind.status == 500 else "the same request fails again"


def _answered() -> Iterable[type[ConvoError]]:
    """Find the errors that a client can receive: those in the description of the API, and what derives from them."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ConvoError)]
    codes = _documented_codes()
    documented = tuple(kind for kind in kinds if kind.code in codes and kind is not ConvoError)
    found = {kind.code: kind for kind in reversed(kinds) if kind.code in codes or issubclass(kind, documented)}
    return found.values()


def _documented_codes() -> set[str]:
    # The other tables are made without it: see `pages`.
    from convo.web.description import openapi  # noqa: PLC0415

    operations = [one for methods in openapi.document()["paths"].values() for one in methods.values()]
    contents = [response.get("content", {}) for one in operations for response in one["responses"].values()]
    return {
        code for content in contents for code in content.get("application/problem+json", {"examples": {}})["examples"]
    }


# --- settings


def _settings() -> str:
    sections, keys = setting_comments()
    parts = []
    for section, fields in _sections():
        rows = ((_code(key.name), _default(key), _allowed(key.type), _meaning(section, key, keys)) for key in fields)
        text = sections.get(section, "")
        parts += [f"## [{section}]", *([f"{text[0].upper()}{text[1:]}."] if text else [])]
        parts.append(_table(("key", "default", "allowed", "meaning"), rows))
    return "\n\n".join(parts)


def setting_comments() -> tuple[Mapping[str, str], Mapping[tuple[str, str], str]]:
    """Read the comments of ``config.toml``: of each section, and of each key by section and key.

    Both are empty where the program was installed without that file.
    """
    sections: dict[str, str] = {}
    keys: dict[tuple[str, str], str] = {}
    if not DEFAULT_FILE.exists():
        return sections, keys
    section = key = ""
    for line in DEFAULT_FILE.read_text("utf-8").splitlines():
        if found := _SECTION.fullmatch(line):
            section, key = found["name"], ""
            sections[section] = found["text"] or ""
        elif found := _KEY.fullmatch(line):
            key = found["name"]
            keys[section, key] = found["text"] or ""
        elif section and (found := _MORE.fullmatch(line)):
            if key:
                keys[section, key] += f" {found['text']}"
            else:
                sections[section] += f" {found['text']}"
    return sections, keys


def _sections() -> Iterator[tuple[str, tuple[inspect.Field, ...]]]:
    described = inspect.type_info(Settings)
    assert isinstance(described, inspect.StructType)  # noqa: S101  (Settings is a Struct of Structs)
    for section in described.fields:
        # [parts] has tables of its owner's: the page on them lists their keys.
        if isinstance(section.type, inspect.StructType):
            yield section.name, section.type.fields


def _default(key: inspect.Field) -> str:
    value = key.default if key.default is not NODEFAULT else key.default_factory()
    if isinstance(value, Secret):
        return "none"
    return _code(json.dumps(value, default=str))


def _allowed(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(_code(str(value)) for value in kind.values)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        least = f"above {kind.gt:g}" if kind.gt is not None else f"from {_plain(kind.ge)}"
        return f"{least} to {_plain(kind.le)}"
    return {
        inspect.BoolType: "true, false",
        inspect.DateType: "a date",
        inspect.StrType: "text",
        inspect.DictType: "a table",
        inspect.VarTupleType: "a list",
    }.get(type(kind), "secret text")


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}" if number == int(number) else f"{number:g}"


def _meaning(section: str, key: inspect.Field, comments: Mapping[tuple[str, str], str]) -> str:
    """Return the key's comment; the file has no place for a secret, so that one names its variable."""
    if (section, key.name) not in comments and isinstance(key.type, inspect.CustomType):
        return f"secret; only from the environment: `CONVO_{section.upper()}__{key.name.upper()}`"
    return comments.get((section, key.name), "")


TABLES: dict[str, Callable[[], str]] = {
    "alerts": _alerts,
    "alert-levels": _alert_levels,
    "audit-actions": _audit_actions,
    "event-types": _event_types,
    "ladder": _ladder,
    "metrics": _metrics,
    "problems": _problems,
    "settings": _settings,
    "waits": _waits,
}
"""Every table that a page may ask for, by the name in its marker."""
