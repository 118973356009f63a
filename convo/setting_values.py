"""Says in words which values a setting takes, with its unit and an example: for errors that a person reads."""

from __future__ import annotations

import json

from msgspec import NODEFAULT, inspect

from convo.settings import Secret, Settings


def variable(*names: str) -> str:
    """Name the environment variable of a setting, given its section, the tables within that, and its key."""
    return f"CONVO_{'__'.join(names).upper()}"


def wanted(section: str, key: str) -> str:
    """Say what a setting may be: "a number of seconds above 0, up to 31536000, e.g. 8.0"."""
    field = next((one for one in _fields(section) if one.name == key), None)
    if field is None:
        return "no known setting"
    kind = field.type
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(map(str, kind.values))
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return f"{number}{_unit(key)} {_range(kind)}, e.g. {_example(field)}"
    return "text"


def _fields(section: str) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(Settings)
    sections = described.fields if isinstance(described, inspect.StructType) else ()
    kind = next((one.type for one in sections if one.name == section), None)
    return kind.fields if isinstance(kind, inspect.StructType) else ()


def _unit(key: str) -> str:
    if "bytes_per_second" in key:
        return " of bytes a second"
    if key.endswith("_seconds"):
        return " of seconds"
    return " of bytes" if "bytes" in key else ""


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    least = f"above {kind.gt:g}, up to" if kind.gt is not None else f"from {kind.ge or 0:.0f} to"
    return f"{least} {kind.le:.0f}" if kind.le is not None else least.removesuffix(" to")


def _example(field: inspect.Field) -> str:
    value = field.default if field.default is not NODEFAULT else field.default_factory()
    return "none" if isinstance(value, Secret) else json.dumps(value, default=str)
