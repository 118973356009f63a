"""Finds the settings of a process that differ from their defaults, without what is or may be a secret."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from convo.settings import Secret, Settings

_TEXT_CHARS_MAX = 200


class ChangedSettings(Struct, frozen=True, kw_only=True):
    """Settings by their names: those that can be shown with their values, and the names of the others."""

    settings: dict[str, Any]
    not_shown: tuple[str, ...]


def changed_settings(settings: Settings) -> ChangedSettings:
    """Return what differs from the defaults."""
    shown: dict[str, Any] = {}
    hidden: list[str] = []
    defaults = Settings()
    # A declared part is a table of its owner's: its name alone.
    hidden += [f"parts.{name}" for name in settings.parts]
    for section in (name for name in Settings.__struct_fields__ if name != "parts"):
        default = msgspec.structs.asdict(getattr(defaults, section))
        for key, value in msgspec.structs.asdict(getattr(settings, section)).items():
            if value == default[key]:
                continue
            if _may_be_secret(value):
                hidden.append(f"{section}.{key}")
            else:
                shown[f"{section}.{key}"] = _storable(value) if isinstance(value, str) else value
    return ChangedSettings(settings=shown, not_shown=tuple(hidden))


def _may_be_secret(value: object) -> bool:
    if isinstance(value, Secret | dict):
        # A table is of headers or of parameters, which can carry a key.
        return True
    # An address can hold a login before its host, and a key behind its path.
    return isinstance(value, str) and "://" in value and ("@" in value or "?" in value)


def _storable(text: str) -> str:
    # From the environment, a text may hold bytes that are no UTF-8, and a file may hold a NUL.
    text = text.encode("utf-8", "replace").decode().replace("\0", "?")
    return text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]}…"
