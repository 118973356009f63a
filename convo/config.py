"""The settings of one process: from ``config.toml`` and ``CONVO_SECTION__KEY`` variables, checked, then frozen.

Nothing else reads the environment or TOML. It knows what each number means beside the others, not who uses it.

**The ladder.** Every layer must give up before the one above it does, or the one above answers for it. The service
this one replaces waited 30 s for a pool slot under a gateway that gave up after 10 s: each request was answered 504
while its work went on, and the client's retry doubled it. So the numbers are compared before anything starts
(``check_ladder``), with what would happen at run time:

    from the inside                                                     to the outside
    2 x (database.acquire + database.statement)                     <   web.request
    web.request                                                     <   ladder.gateway
    llm.attempt x attempts + backoffs                               <=  analysis.job
    memory.attempt x attempts + backoffs                            <=  analysis.job
    jobs.heartbeat x 3                                              <=  jobs.lease
    shutdown.notice + intake + workers + settle                     <   ladder.kill
    ladder.gateway_keep_alive                                       <   connection.keep_alive

An accept may have to wait for the batch under way and then for its own: hence the 2.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from convo.conversation.score import Weights
from convo.errors import ConfigError

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 34)]
FairKey = Literal["user", "bot", "none"]
CrashPoint = Literal[
    "",
    "accept.before_insert",
    "accept.before_commit",
    "accept.after_commit",
    "lease.before_commit",
    "lease.after_commit",
    "part.before_commit",
    "part.after_commit",
    "settle.before_commit",
    "settle.after_commit",
    "release.before_commit",
    "release.after_commit",
]
Port = Annotated[int, Meta(ge=0, le=65_535)]

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.toml"
"""The repository's own file: read when no other is named and it is there."""

# Variables that are not settings: the tests' own database, and where the terminal commands find a server.
_NOT_SETTINGS = ("CONVO_TEST_DATABASE_URL", "CONVO_URL", "CONVO_KEY")
_SECRET_KEYS = (("llm", "api_key"), ("memory", "api_key"))


class Secret:
    """A text that shows itself to nobody who does not ask by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret('')"


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of ``config.toml``."""


class ServerSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the process listens and keeps its files."""

    host: str = "127.0.0.1"
    port: Port = 30020
    data_dir: str = ".convo"
    backlog: Count = 1024


class ConnectionSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client connection may take."""

    keep_alive_seconds: Seconds = 55.0


class LadderSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around the process, told by whoever runs it."""

    gateway_seconds: Seconds = 10.0
    gateway_keep_alive_seconds: Seconds = 50.0
    kill_seconds: Seconds = 30.0


class WebSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may take."""

    request_seconds: Seconds = 8.0
    body_bytes_max: Bytes = 2 << 20
    offload_bytes: Bytes = 256 << 10
    list_rows_max: Count = 200
    slow_seconds: SecondsOrNone = 0.0


class ClientsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client, by its address, may send; a rate of 0 is no limit."""

    requests_per_second: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    requests_burst: Annotated[float, Meta(ge=1, le=1e9)] = 100.0
    bytes_per_second: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    bytes_burst: Annotated[float, Meta(ge=1, le=1e12)] = 16_777_216.0
    tracked_max: Count = 10_000


class DatabaseSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PostgreSQL: a given one, or the embedded one when ``url`` is empty."""

    url: Secret = Secret()
    pool_max: Annotated[int, Meta(ge=2, le=1000)] = 8
    acquire_seconds: Seconds = 1.0
    statement_seconds: Seconds = 2.0
    connect_seconds: Seconds = 2.0


class IntakeSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is let in at a time, and how much of it one transaction of the committer takes."""

    in_flight_max: Count = 512
    bytes_in_flight_max: Bytes = 64 << 20
    batch_rows: Count = 256
    batch_bytes: Bytes = 8 << 20


class JobsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs, their leases and their attempts."""

    workers: Annotated[int, Meta(ge=0, le=1000)] = 8
    lease_seconds: Seconds = 30.0
    heartbeat_seconds: Seconds = 5.0
    poll_seconds: Seconds = 1.0
    attempts_max: Count = 5
    backoff_seconds: Seconds = 5.0
    backoff_max_seconds: Seconds = 600.0
    give_up_seconds: Seconds = 604_800.0
    handover_bytes: Bytes = 32 << 20


class FairnessSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Among whom the workers take turns."""

    key: FairKey = "user"


class AnalysisSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One analysis as a whole."""

    job_seconds: Seconds = 120.0


class RemoteSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the clients of remote dependencies have in common."""

    api_key: Secret = Secret()
    attempt_seconds: Seconds = 15.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    backoff_seconds: Seconds = 2.0
    backoff_max_seconds: Seconds = 10.0
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 8
    retries_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.2
    retries_floor: Annotated[int, Meta(ge=0, le=1000)] = 3
    breaker_failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    breaker_calls: Annotated[int, Meta(ge=2, le=1000)] = 20
    breaker_open_seconds: Seconds = 60.0


class LlmSettings(RemoteSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The language model; with an empty ``model`` the embedded analyst does its parts."""

    base_url: str = "https://api.groq.com/openai/v1"
    model: str = ""
    text_chars_max: Annotated[int, Meta(ge=1_000, le=10_000_000)] = 60_000


class MemorySettings(RemoteSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory service; with an empty ``url`` the embedded analyst does its part."""

    dialect: Literal["extract_facts", "mem0"] = "extract_facts"
    url: str = ""


class ShutdownSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the grace of a stop is shared out."""

    notice_seconds: SecondsOrNone = 0.0
    intake_seconds: Seconds = 10.0
    workers_seconds: Seconds = 12.0
    settle_seconds: Seconds = 4.0


class ObserveSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process tells about itself."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = "auto"
    log_queue_lines: Count = 10_000
    access_log: bool = False
    sample_seconds: Seconds = 15.0
    crash_at: CrashPoint = ""


class Settings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one process is told, section by section."""

    server: ServerSettings = ServerSettings()
    connection: ConnectionSettings = ConnectionSettings()
    ladder: LadderSettings = LadderSettings()
    web: WebSettings = WebSettings()
    clients: ClientsSettings = ClientsSettings()
    database: DatabaseSettings = DatabaseSettings()
    intake: IntakeSettings = IntakeSettings()
    jobs: JobsSettings = JobsSettings()
    fairness: FairnessSettings = FairnessSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    llm: LlmSettings = LlmSettings()
    memory: MemorySettings = MemorySettings()
    score: Weights = Weights()
    shutdown: ShutdownSettings = ShutdownSettings()
    observe: ObserveSettings = ObserveSettings()


def client_address(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return where the terminal commands find a server (``CONVO_URL``), and the key they show it (``CONVO_KEY``)."""
    default = f"http://{ServerSettings().host}:{ServerSettings().port}"
    return environ.get("CONVO_URL", default), environ.get("CONVO_KEY", "")


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> Settings:
    """Read the settings: the file, over it the environment, over both the command line's ``arguments``.

    A relative ``data_dir`` in a file is taken from the file's own folder, anywhere else from the working folder.

    Raises:
        ConfigError: a file that is not there or not TOML, an unknown key, a wrong type, a broken rule; with its path.
    """
    tables = _read(file)
    for (section, key), text in {**_from_environment(environ), **(arguments or {})}.items():
        tables.setdefault(section, {})[key] = _typed(section, key, text)
    settings = _convert(tables)
    _check_meaning(settings)
    return settings


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None and not DEFAULT_FILE.exists():
        return {}
    path = (file or DEFAULT_FILE).resolve()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name one with --config, or leave it out") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    for section, key in _SECRET_KEYS:
        if isinstance(tables.get(section), dict) and tables[section].get(key):
            raise ConfigError(f"{path}: $.{section}.{key} stands in a file; set {_variable(section, key)} instead")
    if isinstance(tables.get("database"), dict) and _has_password(str(tables["database"].get("url", ""))):
        raise ConfigError(f"{path}: $.database.url holds a password; set {_variable('database', 'url')} instead")
    _convert(tables)  # a mistake in the file is told before anything lies over it
    if "data_dir" in tables.get("server", {}):
        tables["server"]["data_dir"] = str(path.parent / tables["server"]["data_dir"])
    return tables


def _has_password(url: str) -> bool:
    return ":" in url.partition("://")[2].rpartition("@")[0] or "password=" in url.partition("?")[2]


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    found = {}
    for name, text in environ.items():
        if not name.startswith("CONVO_") or name in _NOT_SETTINGS:
            continue
        section, mark, key = name.removeprefix("CONVO_").lower().partition("__")
        if not mark or key not in _fields(section):
            raise ConfigError(f"{name}: there is no such setting; names are CONVO_SECTION__KEY as in config.toml")
        found[section, key] = text
    return found


def _fields(section: str) -> dict[str, Any]:
    table = next((f.type for f in msgspec.structs.fields(Settings) if f.name == section), None)
    return {} if table is None else {f.name: f.type for f in msgspec.structs.fields(table)}


def _typed(section: str, key: str, text: str) -> Any:
    """Read a text as the key's own type, so that CONVO_SERVER__PORT=80 is a number."""
    try:
        value = msgspec.convert(text, _fields(section)[key], strict=False, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{_variable(section, key)}={_shown(section, key, text)}: {error}") from error
    return value.reveal() if isinstance(value, Secret) else value


def _variable(section: str, key: str) -> str:
    return f"CONVO_{section.upper()}__{key.upper()}"


def _shown(section: str, key: str, text: str) -> str:
    return "***" if _fields(section)[key] is Secret else repr(text)


def _convert(tables: dict[str, dict[str, Any]]) -> Settings:
    try:
        return msgspec.convert(tables, Settings, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise ConfigError(f"config: {error}") from error


def _secret(kind: type, value: object) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


def _check_meaning(settings: Settings) -> None:
    if settings.llm.api_key and not settings.llm.model:
        raise ConfigError(
            "llm.api_key is set but llm.model is empty: name the model (CONVO_LLM__MODEL), or unset the key"
            " to let the embedded analyst do the work"
        )
    if settings.memory.api_key and not settings.memory.url:
        raise ConfigError("memory.api_key is set but memory.url is empty: name the service, or unset the key")
    broken = check_ladder(settings)
    if broken:
        raise ConfigError("the ladder of deadlines does not stand:\n  " + "\n  ".join(broken))


def check_ladder(settings: Settings) -> list[str]:
    """Compare every deadline with the one above it; return one sentence a violation, none when the ladder stands."""
    s = settings
    accept = 2 * (s.database.acquire_seconds + s.database.statement_seconds)
    stop = (
        s.shutdown.notice_seconds + s.shutdown.intake_seconds + s.shutdown.workers_seconds + s.shutdown.settle_seconds
    )
    broken = []
    if not accept < s.web.request_seconds:
        broken.append(
            f"2 x (database.acquire_seconds + database.statement_seconds) = {accept:g} s is not below"
            f" web.request_seconds = {s.web.request_seconds:g} s: an accept that waits for the batch under way and"
            " then for its own would be cut off while its commit still runs"
        )
    if not s.web.request_seconds < s.ladder.gateway_seconds:
        broken.append(
            f"web.request_seconds = {s.web.request_seconds:g} s is not below ladder.gateway_seconds ="
            f" {s.ladder.gateway_seconds:g} s: the gateway would answer 504 for requests that are still at work"
        )
    for name, remote in (("llm", s.llm), ("memory", s.memory)):
        call = remote.attempt_seconds * remote.attempts + remote.backoff_max_seconds * (remote.attempts - 1)
        if not call <= s.analysis.job_seconds:
            broken.append(
                f"{name}.attempt_seconds x attempts + backoffs = {call:g} s is above analysis.job_seconds ="
                f" {s.analysis.job_seconds:g} s: the job would be cut off before its last attempt could answer"
            )
    if not s.jobs.heartbeat_seconds * 3 <= s.jobs.lease_seconds:
        broken.append(
            f"jobs.heartbeat_seconds x 3 = {s.jobs.heartbeat_seconds * 3:g} s is above jobs.lease_seconds ="
            f" {s.jobs.lease_seconds:g} s: two lost heartbeats would lose every lease"
        )
    if not stop < s.ladder.kill_seconds:
        broken.append(
            f"shutdown.notice + intake + workers + settle = {stop:g} s is not below ladder.kill_seconds ="
            f" {s.ladder.kill_seconds:g} s: the process would be killed in the middle of its stop"
        )
    if not s.ladder.gateway_keep_alive_seconds < s.connection.keep_alive_seconds:
        broken.append(
            f"ladder.gateway_keep_alive_seconds = {s.ladder.gateway_keep_alive_seconds:g} s is not below"
            f" connection.keep_alive_seconds = {s.connection.keep_alive_seconds:g} s: the gateway would post into"
            " sockets that are being closed"
        )
    return broken
