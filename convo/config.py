"""The settings of one process: from ``config.toml`` and ``CONVO_SECTION__KEY`` variables, checked, then frozen.

Nothing else reads the environment or TOML. It knows what each number means beside the others, not who uses it.

**The ladder.** Every layer must give up before the one above it does, or the one above answers for it. The service
this one replaces waited 30 s for a pool slot under a gateway that gave up after 10 s: each request was answered 504
while its work went on, and the client's retry doubled it. So the numbers are compared before anything starts, rung by
rung (``ladder``); ``serve`` refuses to start on one that is broken, ``convo check`` and the README show them all.

- An accept may have to wait for the batch under way and then for its own: hence the 2 of the first rung.
- Backoffs are counted at their longest, ``backoff_max_seconds`` each: an upper bound, for they begin lower and jitter
  only takes away. What a dependency itself asks for (``retry-after``) is not in it: a wait that would not leave time
  for an attempt is not begun (``resilience.retry``).
- ``database.connect_seconds`` is no rung. An opening ends with the wait it stands in, the pool's with
  ``acquire_seconds`` and a line's with its unit of work; this number can only end it sooner.
- How many work side by side (``jobs.workers``, ``concurrency``) is no rung either: it costs throughput, not answers.
- A request's time begins with the first byte of its head: ``web.request_seconds`` covers head, body and work, and what
  is left to do then is to write the answer.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
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

# Of the Standard Webhooks scheme.
_WEBHOOK_SECRET = re.compile(r"whsec_(?=.{32,88}\Z)(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")

SLOW_PART = 0.8
"""The part of a budget from which on something is told as slow, where no threshold is set."""

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.toml"
"""The repository's own file: read when no other is named and it is there."""

# Variables that are not settings: the tests' own database, and where the terminal commands find a server.
_NOT_SETTINGS = ("CONVO_TEST_DATABASE_URL", "CONVO_URL", "CONVO_KEY")
_SECRET_KEYS = (
    *(("llm", "api_key"), ("memory", "api_key")),
    *(("alerts", name) for name in ("webhook_url", "webhook_secret", "slack_url", "google_chat_url")),
)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `\$\.(?P<section>\w+)`)?", re.DOTALL)
# Where a server that listens on every address is found from its own machine.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


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
    operations_host: str = "127.0.0.1"
    operations_port: Port = 0
    data_dir: str = ".convo"
    backlog: Count = 1024
    certfile: str = ""
    keyfile: str = ""
    trusted_proxies: str = ""
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"


class ConnectionSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client connection may take, phase by phase, and how many there may be."""

    keep_alive_seconds: Seconds = 55.0
    handshake_seconds: Seconds = 5.0
    head_seconds: Seconds = 5.0
    body_seconds: Seconds = 7.0
    body_patience_seconds: Seconds = 2.0
    body_bytes_per_second_min: Annotated[int, Meta(ge=1, le=1 << 34)] = 4096
    write_seconds: Seconds = 1.5
    linger_seconds: Seconds = 2.0
    head_bytes_max: Annotated[int, Meta(ge=1024, le=65536)] = 16384
    target_bytes_max: Annotated[int, Meta(ge=256, le=65536)] = 8192
    connections_max: Count = 10_000
    connections_per_peer_max: Count = 8_000
    tcp_keepidle_seconds: Annotated[int, Meta(ge=1, le=32767)] = 30
    tcp_keepintvl_seconds: Annotated[int, Meta(ge=1, le=32767)] = 10
    tcp_keepcnt: Annotated[int, Meta(ge=1, le=127)] = 3
    tcp_user_timeout_seconds: Annotated[int, Meta(ge=1, le=32767)] = 30


class LadderSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around the process, told by whoever runs it."""

    gateway_seconds: Seconds = 10.0
    gateway_keep_alive_seconds: Seconds = 50.0
    kill_seconds: Seconds = 30.0


class WebSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may take."""

    request_seconds: Seconds = 8.0
    body_bytes_max: Bytes = 2 << 20
    offload_bytes: Bytes = 96 << 10
    list_rows_max: Count = 200


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
    statement_seconds: SecondsOrNone = 2.0  # only so that a 0 is refused with its reason
    connect_seconds: Seconds = 2.0

    def __post_init__(self) -> None:
        if not self.statement_seconds:
            raise ValueError(
                "statement_seconds = 0 would be no limit: a statement that hangs would hold its connection, and all who"
                " wait for one, for as long as it likes, and no request's budget could be kept; name a number"
            )

    @property
    def unit_seconds(self) -> float:
        """What one unit of work may take, with its wait for a connection."""
        return self.acquire_seconds + self.statement_seconds


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


class AuthSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who gets in: whoever shows a key, or everybody."""

    keys: bool = False
    open_to_network: bool = False
    refresh_seconds: Seconds = 10.0


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
    loop_block_seconds: SecondsOrNone = 0.05


class AlertsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something is told, and to whom; a slow threshold of 0 is ``SLOW_PART`` of the budget it watches."""

    slow_request_seconds: SecondsOrNone = 0.0
    slow_query_seconds: SecondsOrNone = 0.0
    evaluate_seconds: Seconds = 1.0
    look_seconds: Seconds = 5.0
    repeat_seconds: Seconds = 900.0
    quiet_seconds: Seconds = 60.0
    pool_busy_seconds: Seconds = 30.0
    burn_seconds: Seconds = 300.0
    backlog_seconds: Seconds = 300.0
    silence_seconds: SecondsOrNone = 0.0
    disk_free_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 1 << 30
    buffer_max: Count = 100
    deliver_seconds: Seconds = 5.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 5
    backoff_seconds: Seconds = 1.0
    webhook_url: Secret = Secret()
    webhook_secret: Secret = Secret()
    slack_url: Secret = Secret()
    google_chat_url: Secret = Secret()


class CanarySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A conversation of our own that goes the whole way, again and again."""

    enabled: bool = False
    interval_seconds: Seconds = 60.0
    within_seconds: Seconds = 30.0


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
    auth: AuthSettings = AuthSettings()
    fairness: FairnessSettings = FairnessSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    llm: LlmSettings = LlmSettings()
    memory: MemorySettings = MemorySettings()
    score: Weights = Weights()
    shutdown: ShutdownSettings = ShutdownSettings()
    observe: ObserveSettings = ObserveSettings()
    alerts: AlertsSettings = AlertsSettings()
    canary: CanarySettings = CanarySettings()


def client_address(environ: Mapping[str, str] = os.environ, url: str = "") -> tuple[str, str]:
    """Return where the terminal commands find a server, and the key they show it (``CONVO_KEY``).

    It is at ``url`` or ``CONVO_URL``; without one, where ``convo serve`` would listen with the same settings.

    Raises:
        ConfigError: the settings cannot be read, or leave the port to chance.
    """
    found = url or environ.get("CONVO_URL") or _served_at(_merged(None, environ, {}).server)
    return found, environ.get("CONVO_KEY", "")


def _served_at(server: ServerSettings) -> str:
    if not server.port:
        raise ConfigError("server.port is 0, which leaves the port to chance: name the server with --url or CONVO_URL")
    host = _EVERYWHERE.get(server.host, server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> Settings:
    """Read the settings that something is to start with: as ``read``, and the ladder must stand.

    Raises:
        ConfigError: as ``read``, or a rung is broken; every broken one is named.
    """
    settings = read(file, environ, arguments)
    broken = check_ladder(settings)
    if broken:
        raise ConfigError("the ladder of deadlines does not stand:\n  " + "\n  ".join(broken))
    return settings


def read(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    arguments: Mapping[tuple[str, str], str] | None = None,
) -> Settings:
    """Read the settings: the file, over it the environment, over both the command line's ``arguments``.

    A relative path in a file is taken from the file's own folder, anywhere else from the working folder.

    Raises:
        ConfigError: a file that is not there or not TOML, an unknown key, a wrong type, a broken rule; with its path.
    """
    settings = _merged(file, environ, arguments or {})
    _check_meaning(settings)
    return settings


def _merged(file: Path | None, environ: Mapping[str, str], arguments: Mapping[tuple[str, str], str]) -> Settings:
    tables = _read(file)
    # Each source by itself: a mistake in one is told also where another lies over it.
    for source in (_from_environment(environ), arguments):
        for (section, key), text in source.items():
            tables.setdefault(section, {})[key] = _typed(section, key, text)
    return _convert(tables)


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
    _convert(tables, str(path))  # a mistake in the file is told before anything lies over it
    for key in ("data_dir", "certfile", "keyfile"):
        if tables.get("server", {}).get(key):
            tables["server"][key] = str(path.parent / tables["server"][key])
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
            every = [
                _variable(one.name, known) for one in msgspec.structs.fields(Settings) for known in _fields(one.name)
            ]
            near = _nearest(name, every)
            raise ConfigError(f"{name}: there is no such setting{near}; names are CONVO_SECTION__KEY as in config.toml")
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


def _convert(tables: dict[str, dict[str, Any]], source: str = "config") -> Settings:
    try:
        return msgspec.convert(tables, Settings, dec_hook=_secret)
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN.fullmatch(str(error))
        raise ConfigError(f"{source}: {_told_unknown(**unknown.groupdict()) if unknown else error}") from error


def _told_unknown(key: str, section: str | None) -> str:
    known = _fields(section) if section else [field.name for field in msgspec.structs.fields(Settings)]
    return f"$.{f'{section}.' if section else ''}{key}: there is no such key{_nearest(key, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


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
    if not (settings.auth.keys or settings.auth.open_to_network or _is_loopback(settings.server.host)):
        raise ConfigError(
            f"server.host = {settings.server.host!r} is open to the network and auth.keys is off: anybody could post"
            " and read. Turn keys on (CONVO_AUTH__KEYS=true, then `scripts/convo key new NAME`), or say that something"
            " in front of convo checks who comes (CONVO_AUTH__OPEN_TO_NETWORK=true)"
        )
    if settings.server.operations_port and settings.server.operations_port == settings.server.port:
        raise ConfigError(
            f"server.operations_port = {settings.server.port} is server.port, too: what is there without a key would be"
            " here as well; choose another, or 0 for none"
        )
    if bool(settings.server.certfile) != bool(settings.server.keyfile):
        raise ConfigError("server.certfile and server.keyfile belong together: name both, or neither")
    for address in proxies(settings.server):
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ConfigError(f"server.trusted_proxies = {address!r} is no address and no network: {error}") from None
    _check_sinks(settings.alerts)


def _check_sinks(alerts: AlertsSettings) -> None:
    for name in ("webhook_url", "slack_url", "google_chat_url"):
        url = getattr(alerts, name).reveal()
        if url and not re.fullmatch(r"https?://[\x21-\x7e]+", url):
            raise ConfigError(f"{_variable('alerts', name)}: it is no http:// or https:// address")
    if bool(alerts.webhook_url) != bool(alerts.webhook_secret):
        raise ConfigError(
            f"{_variable('alerts', 'webhook_url')} and {_variable('alerts', 'webhook_secret')} go together: what is"
            " posted there is signed"
        )
    secret = alerts.webhook_secret.reveal()
    if secret and not _WEBHOOK_SECRET.fullmatch(secret):
        raise ConfigError(
            f"{_variable('alerts', 'webhook_secret')}: it is not whsec_ and the base64 of 24 to 64 bytes"
            " (head -c 32 /dev/urandom | base64)"
        )


# --- the ladder


class Rung(Struct, frozen=True, kw_only=True):
    """What stands inside ends before what stands outside gives up, or else ``otherwise`` happens."""

    inside: str
    inside_seconds: float
    relation: Literal["<", "<="]
    outside: str
    outside_seconds: float
    otherwise: str

    @property
    def stands(self) -> bool:
        """Tell whether the numbers are as they must be."""
        below = self.inside_seconds < self.outside_seconds
        return below or (self.relation == "<=" and self.inside_seconds == self.outside_seconds)

    @property
    def complaint(self) -> str:
        """Say in one sentence what is wrong: both keys, both numbers, and what would happen at run time."""
        wrong = "is not below" if self.relation == "<" else "is above"
        return (
            f"{self.inside} = {self.inside_seconds:g} s {wrong} {self.outside} = {self.outside_seconds:g} s:"
            f" {self.otherwise}"
        )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def proxies(server: ServerSettings) -> list[str]:
    """Return the addresses and networks of the proxies whose word on a client's address is believed."""
    return server.trusted_proxies.replace(",", " ").split()


def check_ladder(settings: Settings) -> list[str]:
    """Compare every deadline with the one above it; return one sentence a violation, none when the ladder stands."""
    return [rung.complaint for rung in ladder(settings) if not rung.stands]


def ladder(settings: Settings) -> tuple[Rung, ...]:
    """List every rung, from the request outwards to the alerts, standing or not."""
    return (*_request_rungs(settings), *_job_rungs(settings), *_process_rungs(settings), *_alert_rungs(settings))


def slow_seconds(threshold_seconds: float, budget_seconds: float) -> float:
    """Return from when on something is told as slow: its threshold, or where none is set a part of its budget."""
    return threshold_seconds or SLOW_PART * budget_seconds


def _request_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="2 x (database.acquire_seconds + database.statement_seconds)",
        inside_seconds=2 * s.database.unit_seconds,
        relation="<",
        outside="web.request_seconds",
        outside_seconds=s.web.request_seconds,
        otherwise="an accept that waits for the batch under way and then for its own would be cut off while its commit"
        " still runs",
    )
    for phase, seconds in (("head", s.connection.head_seconds), ("body", s.connection.body_seconds)):
        yield Rung(
            inside=f"connection.{phase}_seconds",
            inside_seconds=seconds,
            relation="<=",
            outside="web.request_seconds",
            outside_seconds=s.web.request_seconds,
            otherwise=f"a request would be out of time before its {phase} is",
        )
    yield Rung(
        inside="web.request_seconds + connection.write_seconds",
        inside_seconds=s.web.request_seconds + s.connection.write_seconds,
        relation="<",
        outside="ladder.gateway_seconds",
        outside_seconds=s.ladder.gateway_seconds,
        otherwise="the gateway would answer 504 for requests that are still at work",
    )


def _job_rungs(s: Settings) -> Iterator[Rung]:
    for name, remote in (("llm", s.llm), ("memory", s.memory)):
        yield Rung(
            inside=f"{name}.attempt_seconds x attempts + backoffs",
            inside_seconds=remote.attempt_seconds * remote.attempts
            + remote.backoff_max_seconds * (remote.attempts - 1),
            relation="<=",
            outside="analysis.job_seconds",
            outside_seconds=s.analysis.job_seconds,
            otherwise="the job would be cut off before its last attempt could answer",
        )
    yield Rung(
        inside="jobs.heartbeat_seconds x 3",
        inside_seconds=s.jobs.heartbeat_seconds * 3,
        relation="<=",
        outside="jobs.lease_seconds",
        outside_seconds=s.jobs.lease_seconds,
        otherwise="two lost heartbeats would lose every lease",
    )


def _process_rungs(s: Settings) -> Iterator[Rung]:
    stop = s.shutdown
    yield Rung(
        inside="shutdown.notice_seconds + intake_seconds + workers_seconds + settle_seconds",
        inside_seconds=stop.notice_seconds + stop.intake_seconds + stop.workers_seconds + stop.settle_seconds,
        relation="<",
        outside="ladder.kill_seconds",
        outside_seconds=s.ladder.kill_seconds,
        otherwise="the process would be killed in the middle of its stop",
    )
    yield Rung(
        inside="ladder.gateway_keep_alive_seconds",
        inside_seconds=s.ladder.gateway_keep_alive_seconds,
        relation="<",
        outside="connection.keep_alive_seconds",
        outside_seconds=s.connection.keep_alive_seconds,
        otherwise="the gateway would post into sockets that are being closed",
    )


def _alert_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="alerts.slow_request_seconds",
        inside_seconds=slow_seconds(s.alerts.slow_request_seconds, s.web.request_seconds),
        relation="<",
        outside="web.request_seconds",
        outside_seconds=s.web.request_seconds,
        otherwise="no request would be told as slow before its budget has run out",
    )
    yield Rung(
        inside="alerts.slow_query_seconds",
        inside_seconds=slow_seconds(s.alerts.slow_query_seconds, s.database.unit_seconds),
        relation="<",
        outside="database.acquire_seconds + database.statement_seconds",
        outside_seconds=s.database.unit_seconds,
        otherwise="no unit of database work would be told as slow before its deadline has run out",
    )
