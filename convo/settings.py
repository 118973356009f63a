"""Every setting of one process, with its default and its bounds: a frozen Struct for each section; add one here.

``config`` reads them from ``config.toml`` and the environment; ``ladder`` compares the deadlines among them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from convo.conversation.identity import DEFAULT_TENANT
from convo.conversation.score import Weights
from convo.conversation.tenant import NAME_PATTERN
from convo.dependencies import DEPENDENCIES, OLD_LOGS
from convo.event_types import EventType

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 34)]
Days = Annotated[int, Meta(ge=0, le=36_500)]
FairKey = Literal["user", "bot", "none"]
ApiPath = Annotated[str, Meta(pattern=r"^(/[!-~]{0,500})?\Z")]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class Secret:
    """A text that no log and no error shows: only ``reveal`` returns it."""

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
    """Where the process listens, and where its files are."""

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
    hosts: str = ""
    cors_origins: str = ""


class ConnectionSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of each phase of a client connection, and the number of connections."""

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
    """The limits of the gateway and the supervisor around the process; whoever runs it sets them."""

    gateway_seconds: Seconds = 10.0
    gateway_keep_alive_seconds: Seconds = 50.0
    kill_seconds: Seconds = 30.0


class WebSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one request."""

    request_seconds: Seconds = 8.0
    raw_bytes_max: Bytes = 16 << 20
    body_bytes_max: Bytes = 2 << 20
    offload_bytes: Bytes = 96 << 10
    list_rows_max: Count = 200
    log_turns_max: Count = 1000
    reads_max: Count = 256
    read_bytes_max: Bytes = 64 << 20


class TenantLimits(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all keys of one tenant may send together; a rate of 0 is no limit."""

    requests_per_second: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class ClientsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one client, by its address; a rate of 0 is no limit."""

    requests_per_second: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    requests_burst: Annotated[float, Meta(ge=1, le=1e9)] = 100.0
    bytes_per_second: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    bytes_burst: Annotated[float, Meta(ge=1, le=1e12)] = 16_777_216.0
    tracked_max: Count = 10_000
    tenants: dict[str, TenantLimits] = {}


class DatabaseSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PostgreSQL: the one at ``url``, or the embedded one where that is empty."""

    url: Secret = Secret()
    pool_max: Annotated[int, Meta(ge=2, le=1000)] = 4
    acquire_seconds: Seconds = 1.0
    statement_seconds: SecondsOrNone = 2.0  # only so that a 0 is refused with its reason
    connect_seconds: Seconds = 2.0

    def __post_init__(self) -> None:
        if not self.statement_seconds:
            raise ValueError(
                "statement_seconds = 0 would be no limit: a statement that hangs would keep its connection for ever,"
                " and no request could keep its budget; set a number above 0"
            )

    @property
    def unit_seconds(self) -> float:
        """The longest that one unit of work lasts, with its wait for a connection."""
        return self.acquire_seconds + self.statement_seconds


class IntakeSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the process accepts at a time, and how much of it one transaction of the committer stores."""

    in_flight_max: Count = 512
    bytes_in_flight_max: Bytes = 64 << 20
    items_max: Count = 20_000
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
    """Whether clients need a key, and how many wrong ones an address may show."""

    keys: bool = False
    open_to_network: bool = False
    refresh_seconds: Seconds = 10.0
    wrong_keys_per_second: Annotated[float, Meta(ge=0.001, le=1e6)] = 1.0
    wrong_keys_burst: Annotated[float, Meta(ge=1, le=1e6)] = 20.0


class FairnessSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By which key the workers share their time: each user, or each bot, gets one job after the other."""

    key: FairKey = "user"


class AnalysisSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one analysis."""

    job_seconds: Seconds = 120.0


class RemoteSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that every remote dependency has."""

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
    breaker_jobs: Annotated[int, Meta(ge=2, le=1000)] = 10
    breaker_open_seconds: Seconds = 60.0
    ca_file: str = ""
    verify: bool = True


class LlmSettings(RemoteSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The language model; where ``model`` is empty, the embedded analyst does its parts."""

    base_url: str = "https://api.groq.com/openai/v1"
    model: str = ""
    text_chars_max: Annotated[int, Meta(ge=1_000, le=10_000_000)] = 60_000
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    answer_tokens_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    reasoning_effort: Annotated[str, Meta(pattern=r"^[a-z]{0,16}\Z")] = ""
    api_key_header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")] = "authorization"
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    extra: dict[str, Any] = {}


class MemorySettings(RemoteSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory service; where ``url`` is empty, the embedded analyst does its part."""

    dialect: Literal["extract_facts", "mem0"] = "extract_facts"
    url: str = ""
    api_version: Literal["", "v1", "v2", "v3"] = ""
    add_path: ApiPath = ""
    list_path: ApiPath = ""
    event_path: ApiPath = ""
    delete_path: ApiPath = ""
    delete_user_path: ApiPath = ""

    def __post_init__(self) -> None:
        if self.api_version and self.dialect != "mem0":
            raise ValueError(f"api_version = {self.api_version} is for dialect = mem0")
        if self.event_path and "{event_id}" not in self.event_path:
            raise ValueError("event_path must hold {event_id}, as in /v1/event/{event_id}/")
        if self.delete_path and "{memory_id}" not in self.delete_path:
            raise ValueError("delete_path must hold {memory_id}, as in /v1/memories/{memory_id}/")
        if self.delete_user_path and "{user_id}" not in self.delete_user_path:
            raise ValueError("delete_user_path must hold {user_id}, as in /v1/memories/?user_id={user_id}")


class ShutdownSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long each step of a stop may take."""

    notice_seconds: SecondsOrNone = 0.0
    intake_seconds: Seconds = 10.0
    workers_seconds: Seconds = 12.0
    settle_seconds: Seconds = 4.0


class ObserveSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs, metrics and the loop watch."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "pretty"] = "auto"
    log_queue_lines: Count = 10_000
    access_log: bool = False
    sample_seconds: Seconds = 15.0
    ping_seconds: Seconds = 2.0
    remote_ping_seconds: Seconds = 15.0
    loop_block_seconds: SecondsOrNone = 0.05


class AlertsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When alerts are raised, and which sinks get them; a slow threshold of 0 is ``SLOW_PART`` of its budget."""

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
    ca_file: str = ""
    verify: bool = True
    webhook_url: Secret = Secret()
    webhook_secret: Secret = Secret()
    slack_url: Secret = Secret()
    google_chat_url: Secret = Secret()


class AuditLogSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the audit log notes besides what it always does."""

    reads: bool = True


class BotRetention(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After how many days what belongs to one bot goes; None is as for the other bots, 0 is never."""

    logs_days: Days | None = None
    conversations_days: Days | None = None
    runs_days: Days | None = None
    dead_days: Days | None = None


class TenantRetention(BotRetention, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After how many days what belongs to one tenant goes, and of it what belongs to some of its bots.

    None is as for the other tenants, 0 is never.
    """

    memories_days: Days | None = None
    audit_log_days: Days | None = None
    bots: dict[str, BotRetention] = {}


class RetentionSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After how many days what is over goes by itself; 0 is never.

    ``bots`` are those of the tenant ``default``: the bots of another tenant stand with that one.
    """

    logs_days: Days = 0
    conversations_days: Days = 0
    runs_days: Days = 0
    dead_days: Days = 0
    memories_days: Days = 0
    audit_log_days: Days = 0
    bots: dict[str, BotRetention] = {}
    tenants: dict[str, TenantRetention] = {}
    whole_months: bool = False
    look_seconds: Seconds = 600.0

    def days_of_month(self, name: Literal["logs_days", "runs_days"]) -> int:
        """Return after how many days such rows are over whosever they are; 0 where some stay for ever."""
        named = [("default", None), *(("default", bot) for bot in self.bots)]
        named += [(one, bot) for one, tenant in self.tenants.items() for bot in (None, *tenant.bots)]
        every = [self, *(self.of(one, bot) for one, bot in named)]
        # They go with their conversation, too.
        own = [(getattr(one, name), one.conversations_days) for one in every]
        first = [min((days for days in pair if days), default=0) for pair in own]
        return max(first) if all(first) else 0

    def of(self, tenant: str | None, bot_id: str | None = None) -> RetentionSettings:
        """Return the days of one bot of one tenant, None being the default one; without a bot those of the tenant."""
        whole = self.tenants.get(tenant or "default", TenantRetention())
        bots = {**self.bots, **whole.bots} if tenant in (None, "default") else whole.bots
        own = bots.get(bot_id) if bot_id is not None else None
        given = _given(whole) | ({} if own is None else _given(own))
        return structs.replace(self, **given) if given else self

    def shortest(self, *names: str) -> int:
        """Return the fewest of these days of all tenants and bots; 0 where all are 0."""
        tenants = self.tenants.values()
        every = (self, *self.bots.values(), *tenants, *(bot for one in tenants for bot in one.bots.values()))
        return min((days for one in every for name in names if (days := getattr(one, name, None))), default=0)


def _given(own: BotRetention) -> dict[str, int]:
    return {name: days for name, days in structs.asdict(own).items() if name != "bots" and days is not None}


class EventsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events are appended to the outbox, and how long they are kept; with no type there are none."""

    types: tuple[EventType, ...] = ()
    keep_days: Annotated[int, Meta(ge=1, le=365)] = 7
    hold_seconds: Seconds = 300.0
    streams_max: Annotated[int, Meta(ge=0, le=10_000)] = 256
    heartbeat_seconds: Annotated[float, Meta(gt=0, le=14)] = 5.0


class WebhooksSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are posted to the endpoints that were registered."""

    allow_private: bool = False
    attempt_seconds: Seconds = 10.0
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 8
    ca_file: str = ""
    verify: bool = True


class RabbitmqSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """RabbitMQ: where events are published, and conversations taken from; with no ``url`` nothing is."""

    url: Secret = Secret()
    exchange: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,200}\Z")] = "convo.events"
    types: tuple[EventType, ...] = ()
    attempt_seconds: Seconds = 5.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    backoff_seconds: Seconds = 2.0
    breaker_open_seconds: Seconds = 10.0
    heartbeat_seconds: Annotated[int, Meta(ge=1, le=3600)] = 20
    intake_queue: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{0,200}\Z")] = ""
    intake_tenant: Annotated[str, Meta(pattern=rf"^{NAME_PATTERN}\Z")] = DEFAULT_TENANT
    prefetch: Annotated[int, Meta(ge=1, le=10_000)] = 200
    ca_file: str = ""
    verify: bool = True


class LogsSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where logs are kept: in PostgreSQL, or after a while in the bucket of an S3.

    ``attempt_seconds`` is for reading one log, ``write_seconds`` for everything else.
    """

    store: Literal["postgres", "s3"] = "postgres"
    endpoint: str = ""
    bucket: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?\Z")] = ""
    prefix: Annotated[str, Meta(pattern=r"^([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?\Z", max_length=200)] = "convo"
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}\Z")] = "us-east-1"
    path_style: bool = True
    access_key_id: Secret = Secret()
    secret_access_key: Secret = Secret()
    ca_file: str = ""
    verify: bool = True
    pack_after_seconds: Seconds = 86_400.0
    pack_bytes: Annotated[int, Meta(ge=1024, le=256 << 20)] = 8 << 20
    local_bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    cache_bytes: Annotated[int, Meta(ge=0, le=1 << 34)] = 16 << 20
    attempt_seconds: Seconds = 2.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 2
    backoff_seconds: Seconds = 0.2
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 8
    write_seconds: Annotated[float, Meta(gt=0, le=120)] = 30.0
    breaker_failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    breaker_open_seconds: Seconds = 10.0
    look_seconds: Seconds = 10.0
    batch_seconds: Seconds = 86_400.0
    behind_seconds: Seconds = 3_600.0

    @property
    def in_objects(self) -> bool:
        """Whether logs move into object storage."""
        return self.store == "s3"


class CanarySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The test conversation that convo sends to itself at an interval."""

    enabled: bool = False
    interval_seconds: Seconds = 60.0
    within_seconds: Seconds = 30.0


class Settings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one process, section by section."""

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
    audit_log: AuditLogSettings = AuditLogSettings()
    retention: RetentionSettings = RetentionSettings()
    events: EventsSettings = EventsSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    rabbitmq: RabbitmqSettings = RabbitmqSettings()
    logs: LogsSettings = LogsSettings()
    canary: CanarySettings = CanarySettings()


def dependency_sections(settings: Settings) -> dict[str, RemoteSettings]:
    """Return the section of each dependency, by its name."""
    return {name: getattr(settings, name) for name in DEPENDENCIES}


def used_dependencies(settings: Settings) -> list[str]:
    """Name the dependencies that are switched on."""
    sections = dependency_sections(settings)
    return [name for name, row in DEPENDENCIES.items() if getattr(sections[name], row.switch)]


def waited_for(settings: Settings) -> list[str]:
    """Name what a job of this process can wait for: the dependencies that are used, and where old logs are."""
    return [*used_dependencies(settings), *([OLD_LOGS] if settings.logs.in_objects else [])]


def proxies(server: ServerSettings) -> list[str]:
    """Return the addresses and networks of the proxies whose header with a client's address is trusted."""
    return _listed(server.trusted_proxies)


def host_settings(server: ServerSettings) -> list[str]:
    """Return the names that clients may call the server by, besides loopback names and the listening address."""
    return _listed(server.hosts)


def shared_origins(server: ServerSettings) -> list[str]:
    """Return the origins of the pages that may call the server from a browser."""
    return _listed(server.cors_origins)


def _listed(text: str) -> list[str]:
    return text.replace(",", " ").split()
