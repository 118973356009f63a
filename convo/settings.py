"""Every setting of one process, with its default and its bounds: a frozen Struct for each section; add one here.

``config`` reads them from ``config.toml`` and the environment; ``ladder`` compares the deadlines among them.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, structs

from convo.conversation.identity import DEFAULT_TENANT
from convo.conversation.owed import Points
from convo.conversation.score import Weights
from convo.conversation.tenant import NAME_PATTERN
from convo.dependencies import DEPENDENCIES, part_dependency
from convo.event_types import EventType

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 34)]
Days = Annotated[int, Meta(ge=0, le=36_500)]
FairKey = Literal["user", "bot", "none"]
ApiPath = Annotated[str, Meta(pattern=r"^(/[!-~]{0,500})?\Z")]
Port = Annotated[int, Meta(ge=0, le=65_535)]
TextChars = Annotated[int, Meta(ge=1_000, le=10_000_000)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
AnswerTokens = Annotated[int, Meta(ge=0, le=1_000_000)]
Effort = Annotated[str, Meta(pattern=r"^[a-z]{0,16}\Z")]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")]
Price = Annotated[float, Meta(ge=-1, le=1_000_000)]
# In lower case without two underscores in a row, so that it can stand in the name of a variable.
FallbackName = Annotated[str, Meta(max_length=32, pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")]
PersonName = FallbackName
# One address without a name before it: nothing that ends a line of SMTP or begins another address.
MailAddress = Annotated[
    str, Meta(max_length=254, pattern=r"^([A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?\Z")
]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
Paging = Literal["nobody", "person", "escalate", "all"]


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
    public_url: str = ""


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
    reads_share: Annotated[float, Meta(ge=0.01, le=1)] = 0.2


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
    revisions: bool = False


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
    session_seconds: Annotated[float, Meta(ge=0, le=2_592_000)] = 43_200.0


class FairnessSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By which key the workers share their time: each user, or each bot, gets one job after the other."""

    key: FairKey = "user"


class AnalysisSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one analysis."""

    job_seconds: Seconds = 120.0


class CallSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a remote service is called."""

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


class RemoteSettings(CallSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that every remote dependency has."""

    api_key: Secret = Secret()


NANO = 1_000_000_000
"""What costs is kept in billionths of the currency: whole numbers, whatever a token costs."""


class Priced:
    """What a million tokens of one model cost, in any one currency; -1 is not priced.

    Tokens that the server had in its cache are part of the tokens in; without a price of their own they cost as these.
    """

    __slots__ = ()
    price_in: float
    price_out: float
    price_cached: float

    def __post_init__(self) -> None:
        if (self.price_in < 0) != (self.price_out < 0):
            raise ValueError("only one of price_in and price_out is set: set both, or neither")
        if self.price_cached >= 0 > self.price_in:
            raise ValueError("price_cached is set, and price_in and price_out are not: set all three, or none")

    @property
    def priced(self) -> bool:
        """Whether calls have a price; it may be 0."""
        return self.price_in >= 0


class LlmFallback(Section, Priced, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another model, or the same at another server; None is as in ``[llm]``, as far as ``fallback_settings`` takes it.

    The key is only ever sent to the ``base_url`` that it was set for.
    """

    model: str | None = None
    base_url: str | None = None
    api_key: Secret = Secret()
    attempt_seconds: Seconds | None = None
    attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    concurrency: Annotated[int, Meta(ge=1, le=1000)] | None = None
    breaker_open_seconds: Seconds | None = None
    text_chars_max: TextChars | None = None
    temperature: Temperature | None = None
    answer_tokens_max: AnswerTokens | None = None
    reasoning_effort: Effort | None = None
    api_key_header: HeaderName | None = None
    headers: dict[str, str] | None = None
    query: dict[str, str] | None = None
    extra: dict[str, Any] | None = None
    ca_file: str | None = None
    verify: bool | None = None
    price_in: Price = -1.0
    price_out: Price = -1.0
    price_cached: Price = -1.0


class LlmSettings(RemoteSettings, Priced, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The language model; where ``model`` is empty, the embedded analyst does its parts."""

    base_url: str = "https://api.groq.com/openai/v1"
    model: str = ""
    text_chars_max: TextChars = 60_000
    temperature: Temperature = 0.0
    answer_tokens_max: AnswerTokens = 0
    reasoning_effort: Effort = ""
    api_key_header: HeaderName = "authorization"
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    extra: dict[str, Any] = {}
    parts_per_call: Annotated[int, Meta(ge=1, le=100)] = 8
    price_in: Price = -1.0
    price_out: Price = -1.0
    price_cached: Price = -1.0
    daily_budget: Annotated[float, Meta(ge=0, le=1_000_000_000)] = 0.0
    fallbacks: dict[FallbackName, LlmFallback] = {}


ATTEMPTS_BEFORE_ANOTHER = 2
"""So many attempts at most are made at a model for one call, where another one can be asked instead."""
# What belongs to one server, and is not that of another one.
_OF_ONE_SERVER = ("api_key", "api_key_header", "headers", "query", "extra", "ca_file", "verify")


def fallback_settings(llm: LlmSettings, fallback: LlmFallback) -> LlmSettings:
    """Return the whole section of a fallback: what it sets itself, and the rest as in ``[llm]``.

    With a ``base_url`` of its own it begins with the defaults in what belongs to one server, its key above all. Prices
    are always its own.
    """
    plain = LlmSettings()
    fresh = ("daily_budget", "fallbacks", *(_OF_ONE_SERVER if fallback.base_url else ()))
    given = {name: value for name, value in structs.asdict(fallback).items() if value is not None}
    if not fallback.api_key:
        del given["api_key"]
    return structs.replace(structs.replace(llm, **{name: getattr(plain, name) for name in fresh}), **given)


def llm_servers(llm: LlmSettings) -> dict[str, LlmSettings]:
    """Return the section of each model in the order in which they are asked: ``llm``, then ``llm.NAME``."""
    return {"llm": llm} | {f"llm.{name}": fallback_settings(llm, one) for name, one in llm.fallbacks.items()}


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


class WhenSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which conversations are owed a part: those for which all of this holds; an empty list is no condition."""

    min_turns: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    min_user_turns: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    bots: tuple[str, ...] = ()
    bot_types: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0


class PartSettings(CallSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of the analysis: ``[parts.NAME]``. What is empty is that of the ready-made part of the name.

    The deadlines, the breaker and the rest of how a service is called are for ``who = "http"`` alone.
    """

    who: Literal["", "llm", "memory", "local", "http"] = ""
    prompt: Annotated[str, Meta(max_length=20_000)] = ""
    schema: dict[str, Any] = {}
    criteria: dict[str, str] = {}
    fields: dict[str, str] = {}
    when: WhenSettings = WhenSettings()
    points: Points | None = None
    required: bool | None = None
    model: str = ""
    url: str = ""
    secret: Secret = Secret()


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
    pagerduty_url: str = "https://events.pagerduty.com/v2/enqueue"
    pagerduty_key: Secret = Secret()
    email_to: tuple[MailAddress, ...] = ()


class SmtpSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mail server that alerts are sent through; with no ``host`` none are."""

    host: str = ""
    port: Annotated[int, Meta(ge=1, le=65_535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password: Secret = Secret()
    sender: MailAddress = ""
    ca_file: str = ""
    verify: bool = True


class PersonSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one person is notified, in each way that is set."""

    email: MailAddress = ""
    pagerduty_key: Secret = Secret()
    slack_url: Secret = Secret()


class OncallOverride(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which another person is on call; without an offset it is a time in ``oncall.timezone``."""

    from_: datetime = field(name="from")
    until: datetime
    person: PersonName


class OncallSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is notified of an alert besides the sinks of all: a weekly rotation of people; with no ``people``, nobody.

    Week 0 begins at the hand-over on or before ``start``. Of overrides that overlap the last one counts.
    """

    people: dict[PersonName, PersonSettings] = {}
    rotation: tuple[PersonName, ...] = ()
    start: date = date(2026, 1, 5)
    handover_day: Weekday = "monday"
    handover_hour: Annotated[int, Meta(ge=0, le=23)] = 9
    timezone: str = "UTC"
    overrides: tuple[OncallOverride, ...] = ()
    levels: dict[Literal["CRITICAL", "HIGH", "MEDIUM", "LOW"], Paging] = field(
        default_factory=lambda: {"CRITICAL": "escalate", "HIGH": "escalate", "MEDIUM": "person", "LOW": "nobody"}
    )
    escalate_seconds: SecondsOrNone = 900.0

    @property
    def turns(self) -> tuple[str, ...]:
        """Whose weeks follow each other: ``rotation``, or all people in the order of their tables."""
        return self.rotation or tuple(self.people)

    def paging(self, level: Literal["CRITICAL", "HIGH", "MEDIUM", "LOW"]) -> Paging:
        """Return who is notified of alerts of a level; nobody where there is no rotation, or it names no such level."""
        return self.levels.get(level, "nobody") if self.turns else "nobody"


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
    busy_seconds: Seconds = 600.0

    @property
    def in_objects(self) -> bool:
        """Whether logs move into object storage."""
        return self.store == "s3"


class OtelSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces and log records for a collector of OpenTelemetry; none are made where there is no address."""

    endpoint: str = ""
    traces_endpoint: str = ""
    logs_endpoint: str = ""
    headers: Secret = Secret()
    traces_headers: Secret = Secret()
    logs_headers: Secret = Secret()
    traces: bool = True
    logs: bool = False
    sample: Annotated[float, Meta(ge=0, le=1)] = 0.01
    service_name: Annotated[str, Meta(min_length=1, max_length=255)] = "convo"
    resource_attributes: Annotated[str, Meta(max_length=4000)] = ""
    disabled: bool = False
    spans_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 8192
    records_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 8192
    compression: Literal["none", "gzip"] = "none"
    attempt_seconds: Annotated[float, Meta(gt=0, le=60)] = 5.0
    breaker_failures: Annotated[int, Meta(ge=1, le=1000)] = 3
    breaker_open_seconds: Seconds = 10.0
    ca_file: str = ""
    verify: bool = True

    @property
    def records(self) -> bool:
        """Whether traces are recorded and sent."""
        return self.traces and bool(self.traces_endpoint or self.endpoint) and not self.disabled

    @property
    def sends_logs(self) -> bool:
        """Whether log records are sent."""
        return self.logs and bool(self.logs_endpoint or self.endpoint) and not self.disabled

    @property
    def enabled(self) -> bool:
        """Whether anything is sent."""
        return self.records or self.sends_logs


class CanarySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The test conversation that convo sends to itself at an interval."""

    enabled: bool = False
    interval_seconds: Seconds = 60.0
    within_seconds: Seconds = 30.0


class CapacitySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the process measures what conversations cost it, and what its load ratio is made of."""

    sample_seconds: Annotated[float, Meta(ge=0, le=300)] = 5.0
    window_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 3_600.0
    smoothing_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 30.0
    backlog_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 30.0

    def __post_init__(self) -> None:
        if self.sample_seconds and not 2 * self.sample_seconds <= self.window_seconds <= 2_000 * self.sample_seconds:
            raise ValueError(
                f"window_seconds = {self.window_seconds:g} is not from 2 to 2,000 times sample_seconds ="
                f" {self.sample_seconds:g}: with fewer readings nothing is known, and more take memory"
            )


class PageSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The page for operators, and the figures behind it."""

    served: bool = True
    sample_seconds: Annotated[float, Meta(ge=0, le=60)] = 2.0


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
    parts: dict[str, PartSettings] = {}
    score: Weights = Weights()
    shutdown: ShutdownSettings = ShutdownSettings()
    observe: ObserveSettings = ObserveSettings()
    alerts: AlertsSettings = AlertsSettings()
    smtp: SmtpSettings = SmtpSettings()
    oncall: OncallSettings = OncallSettings()
    audit_log: AuditLogSettings = AuditLogSettings()
    retention: RetentionSettings = RetentionSettings()
    events: EventsSettings = EventsSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    rabbitmq: RabbitmqSettings = RabbitmqSettings()
    logs: LogsSettings = LogsSettings()
    otel: OtelSettings = OtelSettings()
    canary: CanarySettings = CanarySettings()
    capacity: CapacitySettings = CapacitySettings()
    page: PageSettings = PageSettings()


def dependency_sections(settings: Settings) -> dict[str, RemoteSettings]:
    """Return the section of each dependency, by its name."""
    return {name: getattr(settings, name) for name in DEPENDENCIES}


def used_dependencies(settings: Settings) -> list[str]:
    """Name the dependencies that are switched on."""
    sections = dependency_sections(settings)
    return [name for name, row in DEPENDENCIES.items() if getattr(sections[name], row.switch)]


def http_parts(settings: Settings) -> dict[str, PartSettings]:
    """Return the parts that a service of its own finds, by the name of its dependency."""
    return {part_dependency(name): part for name, part in settings.parts.items() if part.who == "http"}


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
