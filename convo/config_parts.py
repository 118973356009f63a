"""Reads ``[parts.NAME]``, the tables whose names their owner chooses, and ``CONVO_PARTS__NAME__KEY`` variables.

Open it to change what such a table may say of itself. What a declaration means is checked in ``analysis/declared.py``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import msgspec

from convo.errors import ConfigError
from convo.settings import PartSettings, Secret

PART_VARIABLES = "CONVO_PARTS__"
_KINDS = {field.name: field.type for field in msgspec.structs.fields(PartSettings)}
_SCHEMA_BYTES_MAX = 1 << 20


def check_parts(path: Path, parts: Any) -> None:
    """Check the tables of one file, and put in place of the name of a file what it holds; a path starts at its folder.

    Raises:
        ConfigError: a table does not fit, it holds a secret, or a schema cannot be read.
    """
    if parts is None:
        return
    if not isinstance(parts, dict) or not all(isinstance(table, dict) for table in parts.values()):
        raise ConfigError(f"{path}: [parts] holds tables alone: write [parts.summary], and its keys below it")
    for name, table in parts.items():
        if table.get("secret"):
            raise ConfigError(
                f"{path}: $.parts.{name}.secret is a secret, which must not be in a file; set"
                f" {_variable(name, 'secret')} instead"
            )
        _read_schema(f"{path}: parts.{name}", table, path.parent)
        if table.get("ca_file"):
            table["ca_file"] = str(path.parent / table["ca_file"])
        _check(f"{path}: parts.{name}", table)


def merge_parts(tables: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put what the environment says of parts over what the file says.

    Raises:
        ConfigError: no such key, or a value that it cannot have.
    """
    for variable, text in environ.items():
        if not variable.startswith(PART_VARIABLES):
            continue
        name, mark, key = variable.removeprefix(PART_VARIABLES).lower().partition("__")
        if not (name and mark) or key not in _KINDS:
            raise ConfigError(
                f"{variable}: there is no such setting{_nearest(key)}; names are CONVO_PARTS__NAME__KEY, as the keys of"
                " [parts.NAME] in config.toml"
            )
        table = tables.setdefault("parts", {}).setdefault(name, {})
        table[key] = _typed(variable, key, text)
        _read_schema(variable, table, Path())
        _check(variable, {key: table[key]})


def _typed(variable: str, key: str, text: str) -> Any:
    kind = _KINDS[key]
    if key == "schema" and not text.lstrip().startswith("{"):
        return text
    if key in ("when", "points") or get_origin(kind) is dict:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f'{variable}: its value is no JSON object like {{"name": "value"}}: {error}') from None
    try:
        value = msgspec.convert(text, kind, strict=False, dec_hook=secret_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{variable}: {error}") from None
    return value.reveal() if isinstance(value, Secret) else value


def _read_schema(where: str, table: dict[str, Any], folder: Path) -> None:
    named = table.get("schema")
    if not isinstance(named, str):
        return
    path = folder / named
    try:
        if path.stat().st_size > _SCHEMA_BYTES_MAX:
            raise ConfigError(f"{where}.schema = {named!r}: {path} has over {_SCHEMA_BYTES_MAX} bytes")
        table["schema"] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}.schema = {named!r}: {path} cannot be read as JSON: {error}") from error


def _check(where: str, table: Mapping[str, Any]) -> None:
    unknown = next((key for key in table if key not in _KINDS), None)
    if unknown is not None:
        raise ConfigError(f"{where}.{unknown}: there is no such key{_nearest(unknown)}")
    for key, value in table.items():
        try:
            msgspec.convert(value, _KINDS[key], dec_hook=secret_hook)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}.{key}: {error}") from None


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, _KINDS, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _variable(name: str, key: str) -> str:
    return f"{PART_VARIABLES}{name.upper()}__{key.upper()}"


def secret_hook(kind: type, value: object) -> Any:
    """Read a secret where msgspec meets one."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
