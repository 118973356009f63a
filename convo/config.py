"""Read the settings from ``config.toml``, ``CONVO_SECTION__KEY`` variables and the command line, and check them.

No other module reads the environment or TOML. The settings themselves, with their defaults, are in ``settings``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from convo.config_parts import PART_VARIABLES, check_parts, merge_parts, secret_hook
from convo.dependencies import DEPENDENCIES
from convo.errors import ConfigError
from convo.ladder import check_ladder
from convo.otel_variables import otel_settings
from convo.setting_checks import check_meaning
from convo.setting_values import variable, wanted
from convo.settings import LlmFallback, PersonSettings, Secret, ServerSettings, Settings

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.toml"
"""The repository's own file, read where no other file is given and this one exists."""

ADDRESS_FILE = "address"
"""The file of the data folder with the URL of its server: what ``serve --port 0`` listens on, only the server knows."""

# Variables that are not settings: the servers of the tests, and the server and key of the terminal commands.
_NOT_SETTINGS = ("CONVO_TEST_DATABASE_URL", "CONVO_TEST_RABBITMQ_URL", "CONVO_URL", "CONVO_KEY")
_SECRET_KEYS = (
    *((name, "api_key") for name in DEPENDENCIES),
    *(("alerts", name) for name in ("webhook_url", "webhook_secret", "slack_url", "google_chat_url", "pagerduty_key")),
    ("smtp", "password"),
    ("rabbitmq", "url"),
    *(("logs", name) for name in ("access_key_id", "secret_access_key")),
    *(("otel", name) for name in ("headers", "traces_headers", "logs_headers")),
)
# Tables of tables whose names and keys can stand in the names of variables.
_NESTED_TABLES: dict[tuple[str, str], type[Struct]] = {
    ("llm", "fallbacks"): LlmFallback,
    ("oncall", "people"): PersonSettings,
}
_NESTED_WORDS = 4
_WANTED_LIST = 'must be a JSON array, e.g. ["conversation.analysed", "conversation.dead"]'
# A header or parameter of such a name carries a secret.
_SECRET_NAME = re.compile(r"authorization|cookie|key|token|secret|password", re.IGNORECASE)
_PATHS = (
    *(("server", key) for key in ("data_dir", "certfile", "keyfile")),
    *((name, "ca_file") for name in (*DEPENDENCIES, "alerts", "smtp", "webhooks", "rabbitmq", "logs", "otel")),
)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `\$\.(?P<section>\w+)`)?", re.DOTALL)
_WRONG = re.compile(r" - at `\$\.(?P<section>\w+)\.(?P<key>\w+)")
# The address on its own machine of a server that listens on every address.
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def client_address(
    environ: Mapping[str, str] = os.environ,
    url: str = "",
    file: Path | None = None,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> tuple[str, str]:
    """Return the URL of the server that the terminal commands call, and the key that they send (``CONVO_KEY``).

    The URL is ``url`` or ``CONVO_URL``, with or without its scheme. Without one, it is where the server of the data
    folder listens (``ADDRESS_FILE``); where none does, the address of these settings.

    Raises:
        ConfigError: the settings cannot be read, or ``server.port`` is 0 and no server listens.
    """
    found = url or environ.get("CONVO_URL") or _listened_at(_merged(file, environ, arguments or {}).server)
    return found if "://" in found else f"http://{found}", environ.get("CONVO_KEY", "")


def _listened_at(server: ServerSettings) -> str:
    try:
        return (Path(server.data_dir) / ADDRESS_FILE).read_text("utf-8").strip() or _served_at(server)
    except (OSError, UnicodeDecodeError):
        return _served_at(server)


def _served_at(server: ServerSettings) -> str:
    if not server.port:
        raise ConfigError(
            "server.port is 0, so the port of the server is unknown: name the server with --url or CONVO_URL"
        )
    host = _LOOPBACK_OF.get(server.host, server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> Settings:
    """Read the settings as ``read_settings``, and refuse them where the ladder of deadlines is broken.

    Raises:
        ConfigError: as ``read_settings``, or a rung is broken; the text names every broken one.
    """
    settings = read_settings(file, environ, arguments)
    broken = check_ladder(settings)
    if broken:
        raise ConfigError("the ladder of deadlines is broken:\n  " + "\n  ".join(broken))
    return settings


def read_settings(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> Settings:
    """Read the settings: the environment overrides the file, and the command line's ``arguments`` override both.

    A relative path in a file starts at the folder of the file, any other at the working folder.

    Raises:
        ConfigError: a missing file, a file that is no TOML, an unknown key, a wrong type, values that do not fit.
    """
    settings = _merged(file, environ, arguments or {})
    check_meaning(settings)
    return settings


def _merged(file: Path | None, environ: Mapping[str, str], arguments: Mapping[tuple[str, str], str]) -> Settings:
    tables = _read(file)
    # Each source is checked alone: a mistake in one is reported also where another source overrides it.
    merge_parts(tables, environ)
    for (section, key), (text, name) in otel_settings(environ).items():
        tables.setdefault(section, {})[key] = _typed(section, key, text, name)
    for source, named in ((_from_environment(environ), variable), (arguments, _option)):
        for (section, key), text in source.items():
            tables.setdefault(section, {})[key] = _typed(section, key, text, named(section, key))
    _set_nested(tables, environ)
    if "data_dir" not in tables.get("server", {}) and not DEFAULT_FILE.exists():
        tables.setdefault("server", {})["data_dir"] = str(_platform_folder(environ))
    return _convert(tables)


def _platform_folder(environ: Mapping[str, str]) -> Path:
    """Return the user's folder for the data of programs: an installed convo is started in any folder."""
    given = environ.get("XDG_DATA_HOME", "")
    # The specification has a relative path ignored.
    if Path(given).is_absolute():
        return Path(given, "convo")
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        # A user without a name, as some containers have: there is no other folder to go by.
        return Path(ServerSettings().data_dir)
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "convo"


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None and not DEFAULT_FILE.exists():
        return {}
    path = (file or DEFAULT_FILE).resolve()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; name an existing one with --config, or omit the option"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    _check_no_secret(path, tables)
    check_parts(path, tables.get("parts"))
    _convert(tables, str(path))  # before another source can hide a mistake in the file
    for section, key in _PATHS:
        if tables.get(section, {}).get(key):
            tables[section][key] = str(path.parent / tables[section][key])
    for where, table in _model_tables(tables):
        if where[1:] and table.get("ca_file"):
            table["ca_file"] = str(path.parent / table["ca_file"])
    return tables


def _check_no_secret(path: Path, tables: Mapping[str, Any]) -> None:
    for section, key in _SECRET_KEYS:
        if isinstance(tables.get(section), dict) and tables[section].get(key):
            raise ConfigError(
                f"{path}: $.{section}.{key} is a secret, which must not be in a file;"
                f" set {variable(section, key)} instead"
            )
    for where, table in _model_tables(tables):
        key_variable = variable(*where)
        if where[1:] and table.get("api_key"):
            raise ConfigError(
                f"{path}: $.{'.'.join(where)}.api_key is a secret, which must not be in a file; set"
                f" {key_variable}__API_KEY instead"
            )
        for key in ("headers", "query"):
            named = table.get(key)
            secret = next(filter(_SECRET_NAME.search, named), None) if isinstance(named, dict) else None
            if secret is not None:
                raise ConfigError(
                    f"{path}: $.{'.'.join(where)}.{key} holds {secret}, which looks like a secret, and a secret must"
                    f" not be in a file; set {key_variable}__{key.upper()} instead, as JSON"
                )
    _check_no_secret_of_people(path, tables)
    if isinstance(tables.get("database"), dict) and _has_password(str(tables["database"].get("url", ""))):
        raise ConfigError(f"{path}: $.database.url holds a password; set {variable('database', 'url')} instead")


def _model_tables(tables: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the table of each model, and where it stands."""
    llm = tables.get("llm")
    if not isinstance(llm, dict):
        return
    yield ("llm",), llm
    fallbacks = llm.get("fallbacks")
    for name, one in fallbacks.items() if isinstance(fallbacks, dict) else ():
        if isinstance(one, dict):
            yield ("llm", "fallbacks", name), one


def _check_no_secret_of_people(path: Path, tables: Mapping[str, Any]) -> None:
    for name, person in _people_tables(tables):
        for key in ("pagerduty_key", "slack_url"):
            if person.get(key):
                raise ConfigError(
                    f"{path}: $.oncall.people.{name}.{key} is a secret, which must not be in a file; set"
                    f" {variable('oncall', 'people', name, key)} instead"
                )


def _people_tables(tables: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the table of each person of the rotation, by name."""
    oncall = tables.get("oncall")
    people = oncall.get("people") if isinstance(oncall, dict) else None
    for name, one in people.items() if isinstance(people, dict) else ():
        if isinstance(one, dict):
            yield name, one


def _has_password(url: str) -> bool:
    return ":" in url.partition("://")[2].rpartition("@")[0] or "password=" in url.partition("?")[2]


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    found = {}
    for name, text in environ.items():
        if not name.startswith("CONVO_") or name in _NOT_SETTINGS or name.startswith(PART_VARIABLES):
            continue
        section, mark, key = name.removeprefix("CONVO_").lower().partition("__")
        if _nested(name) is not None:
            continue
        if not mark or key not in _fields(section):
            every = [
                variable(one.name, known) for one in msgspec.structs.fields(Settings) for known in _fields(one.name)
            ]
            near = _nearest(name, every)
            raise ConfigError(f"{name}: there is no such setting{near}; names are CONVO_SECTION__KEY as in config.toml")
        found[section, key] = text
    return found


class _Nested(Struct, frozen=True, kw_only=True):
    """A variable of a table within a table: ``CONVO_LLM__FALLBACKS__NAME__KEY``."""

    section: str
    table: str
    name: str
    key: str


def _nested(variable_name: str) -> _Nested | None:
    words = variable_name.removeprefix("CONVO_").lower().split("__")
    if len(words) != _NESTED_WORDS or (words[0], words[1]) not in _NESTED_TABLES:
        return None
    return _Nested(section=words[0], table=words[1], name=words[2], key=words[3])


def _set_nested(tables: dict[str, dict[str, Any]], environ: Mapping[str, str]) -> None:
    """Set the keys of tables within tables; names that stand in the environment alone come last, by the alphabet."""
    for variable_name in sorted(environ):
        found = _nested(variable_name) if variable_name.startswith("CONVO_") else None
        if found is None:
            continue
        fields = {one.name: one.type for one in msgspec.structs.fields(_NESTED_TABLES[found.section, found.table])}
        if found.key not in fields:
            near = _nearest(found.key, fields)
            raise ConfigError(f"{variable_name}: [{found.section}.{found.table}.{found.name}] has no such key{near}")
        value = _nested_value(fields[found.key], environ[variable_name], variable_name)
        tables.setdefault(found.section, {}).setdefault(found.table, {}).setdefault(found.name, {})[found.key] = value


def _nested_value(kind: Any, text: str, variable_name: str) -> Any:
    if any(get_origin(one) is dict for one in (kind, *get_args(kind))):
        return _table(kind, text, variable_name)
    try:
        value = msgspec.convert(text, kind, strict=False, dec_hook=secret_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{variable_name}: {error}") from None
    return value.reveal() if isinstance(value, Secret) else value


def _fields(section: str) -> dict[str, Any]:
    table = next((f.type for f in msgspec.structs.fields(Settings) if f.name == section), None)
    # [parts] is a table of tables, one for each part, whose names its owner chooses.
    return {f.name: f.type for f in msgspec.structs.fields(table)} if isinstance(table, type) else {}


def _typed(section: str, key: str, text: str, typed_as: str) -> Any:
    """Convert a text to the type of the setting, so that CONVO_SERVER__PORT=80 is a number; a table is JSON."""
    kind = _fields(section)[key]
    if get_origin(kind) is dict:
        return _table(kind, text, typed_as)
    if get_origin(kind) is tuple:
        return _list(kind, text, f"{typed_as}={text!r}: {_WANTED_LIST}")
    try:
        value = msgspec.convert(text, kind, strict=False, dec_hook=secret_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{typed_as}={_shown(section, key, text)}: {_expected(section, key, error)}") from error
    return value.reveal() if isinstance(value, Secret) else value


def _table(kind: Any, text: str, typed_as: str) -> Any:
    try:
        msgspec.json.decode(text, type=kind, dec_hook=secret_hook)
        # As a file would have it, so that what stands in variables of its own can be set in it.
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        # Its text can hold a secret.
        raise ConfigError(f'{typed_as}: its value is no JSON object like {{"name": "value"}}: {error}') from None


def _list(kind: Any, text: str, complaint: str) -> Any:
    try:
        msgspec.json.decode(text, type=kind)
        # As a file would have it: an item may be a table.
        return list(msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        raise ConfigError(f"{complaint} ({error})") from None


def _option(_section: str, key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _expected(section: str, key: str, error: msgspec.ValidationError) -> str:
    # A text's own rules stand in the error only.
    words = wanted(section, key)
    return str(error) if words == "text" else f"must be {words}"


def _shown(section: str, key: str, text: str) -> str:
    return "***" if _fields(section)[key] is Secret else repr(text)


def _convert(tables: dict[str, Any], source: str = "config") -> Settings:
    try:
        return msgspec.convert(tables, Settings, dec_hook=secret_hook)
    except msgspec.ValidationError as error:
        unknown, wrong = _UNKNOWN.fullmatch(str(error)), _WRONG.search(str(error))
        if unknown:
            raise ConfigError(f"{source}: {_unknown_key(**unknown.groupdict())}") from error
        # A table is not shown: a header can be a secret.
        if wrong is None or get_origin(_fields(wrong["section"]).get(wrong["key"], dict[str, Any])) is dict:
            flat = next((name for name, table in tables.items() if not isinstance(table, dict)), None)
            hint = f"; {flat} is a section: write the line [{flat}], and its keys below it" if flat else ""
            raise ConfigError(f"{source}: {error}{hint}") from error
        section, key = wrong["section"], wrong["key"]
        value = json.dumps(tables[section][key], default=str)
        raise ConfigError(f"{source}: {section}.{key} = {value}: {_expected(section, key, error)}") from error


def _unknown_key(key: str, section: str | None) -> str:
    known = _fields(section) if section else [field.name for field in msgspec.structs.fields(Settings)]
    near = _nearest(key, known)
    homes = [field.name for field in msgspec.structs.fields(Settings) if key in _fields(field.name)]
    if homes and not (near and section):
        near = f"; it belongs below {' or '.join(f'[{home}]' for home in homes)}"
    return f"$.{f'{section}.' if section else ''}{key}: there is no such key{near}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
