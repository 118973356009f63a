"""Which alerts there are, and when one is notified: add a type of alert here, and its cause in ``causes``.

An alert is a condition, known by its type and component (its key). It is **raised** when it begins to hold, notified
again as **lasting** at most every ``repeat_seconds`` times its level's factor, and **resolved** when it holds no more.
What happens again within ``FOLD_SECONDS`` of a notification, and what is over its level's cap, is counted and not
notified. The end of an alert that was notified is always notified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args
from urllib.parse import quote

from msgspec import Struct, structs

from convo.dependencies import DEPENDENCIES, DependencySpec

AlertLevel = Literal["CRITICAL", "HIGH", "MEDIUM", "LOW"]
LEVELS: tuple[AlertLevel, ...] = get_args(AlertLevel)
Change = Literal["raised", "lasting", "escalated", "acknowledged", "resolved", "test"]
AlertKey = tuple[str, str]

FOLD_SECONDS = 60.0
"""A condition that is back within this time of its last notification is folded into a count."""
CAPS: dict[AlertLevel, tuple[int, float]] = {"HIGH": (5, 300.0), "MEDIUM": (3, 600.0), "LOW": (1, 1800.0)}
"""How often one key may be notified (raised or lasting) in so many seconds.

CRITICAL is bound by folding and repeating alone.
"""
REPEAT: dict[AlertLevel, int] = {"CRITICAL": 1, "HIGH": 2, "MEDIUM": 4, "LOW": 8}
"""How many times ``repeat_seconds`` lie between two notifications while a condition lasts."""
IDS_MAX = 10
_RECENT = 100
_WINDOW_SECONDS = max(seconds for _, seconds in CAPS.values())


class AlertKind(Struct, frozen=True):
    """One type of alert: its usual level and what to do; ``shared`` ones are raised by one process for all."""

    level: AlertLevel
    do: str
    shared: bool = False


def _kinds_of(row: DependencySpec) -> Iterator[tuple[str, AlertKind]]:
    slow: AlertLevel = row.slow_level
    yield (
        f"{row.alert_prefix}_TIMEOUT",
        AlertKind(slow, f"See whether {row.title} is slow; its jobs are tried again."),
    )
    yield (
        f"{row.alert_prefix}_RATE_LIMIT",
        AlertKind(slow, f"Lower {row.name}.concurrency or have the limit of {row.title} raised; its jobs wait."),
    )
    yield (
        f"{row.alert_prefix}_UNAVAILABLE",
        AlertKind("HIGH", f"{row.restore}; jobs are parked and lose nothing."),
    )
    yield (
        f"{row.alert_prefix}_MISCONFIGURED",
        AlertKind("HIGH", f"Correct [{row.name}] in the settings, or its key, and restart: convo check tries it."),
    )


KINDS: dict[str, AlertKind] = {
    "POSTGRES_POOL_EXHAUSTED": AlertKind(
        "CRITICAL", "See what holds the connections (pg_stat_activity); raise database.pool_max or stop that query."
    ),
    "POSTGRES_QUERY_TIMEOUT": AlertKind("MEDIUM", "Look for locks, missing vacuum and a slow disk on the database."),
    "POSTGRES_UNAVAILABLE": AlertKind(
        "CRITICAL", "Bring PostgreSQL back: accepts are refused with 503 until it answers."
    ),
    "POSTGRES_OLD_PRIMARY": AlertKind(
        "CRITICAL",
        "Stop that server: it is a primary from before a promotion. Where going back was meant, remove"
        " data_dir/timeline and restart.",
    ),
    "DATABASE_WENT_BACK": AlertKind(
        "CRITICAL",
        "Have the clients send the conversations again that the log names (receipts_missing), and see why the database"
        " went back.",
    ),
    "LOG_MISMATCH": AlertKind(
        "CRITICAL", "See what wrote into conversation_log; put the log back from a backup, then convo retry ID."
    ),
    "DISK_LOW": AlertKind("HIGH", "Free or add disk space: on a full disk nothing is accepted."),
    **{name: kind for row in DEPENDENCIES.values() for name, kind in _kinds_of(row)},
    "LLM_BUDGET_SPENT": AlertKind(
        "HIGH", "Raise llm.daily_budget and restart, or leave it: the parked jobs go on at 00:00 UTC, and lose nothing."
    ),
    "RABBITMQ_UNAVAILABLE": AlertKind(
        "HIGH", "Bring RabbitMQ back: events wait for it and lose nothing until events.keep_days are over."
    ),
    "RABBITMQ_MISCONFIGURED": AlertKind(
        "HIGH", "Correct what the message names: the address, the rights of its user, or a queue that is not bound."
    ),
    "PART_UNAVAILABLE": AlertKind("HIGH", "Bring the service of the part back: what waits for it loses nothing."),
    "PART_MISCONFIGURED": AlertKind(
        "HIGH", "Correct the address or the secret of [parts.NAME], or its service, and restart: convo check tries it."
    ),
    "LOGS_UNAVAILABLE": AlertKind(
        "HIGH", "Bring the object storage back: logs that lie there cannot be read, and none move; nothing is lost."
    ),
    "LOGS_MISCONFIGURED": AlertKind(
        "HIGH", "Correct what the message names in [logs]: the keys, the bucket or its rights; see convo check."
    ),
    "LOGS_BEHIND": AlertKind(
        "MEDIUM", "See logs_waiting in the log: until logs move, PostgreSQL grows, and erasures wait in objects."
    ),
    "OTEL_UNAVAILABLE": AlertKind(
        "LOW",
        "Bring the collector back, or empty otel.endpoint: spans and log records are dropped, nothing else waits.",
    ),
    "OTEL_MISCONFIGURED": AlertKind(
        "LOW", "Correct otel.endpoint or its headers: the collector refuses all that it is sent; convo check tries it."
    ),
    "SLOW_REQUEST": AlertKind("HIGH", "Compare convo_wait_seconds by name: the slowest wait is the reason."),
    "SLOW_DATABASE_QUERY": AlertKind("LOW", "Look at this unit's statements with EXPLAIN, and at the database's load."),
    "BACKLOG_OLD": AlertKind("HIGH", "Add workers or processes, or see what slows the analyses down.", shared=True),
    "DEAD_LETTER": AlertKind("CRITICAL", "convo dead, then convo retry ID or convo acknowledge ID.", shared=True),
    "LOOP_BLOCKED": AlertKind("HIGH", "Move the call that the stack names to a thread, or make it smaller."),
    "DEADLINE_BURN": AlertKind("HIGH", "See which wait grows most in convo_deadline_exceeded_total: it is the reason."),
    "SETTINGS_DISAGREE": AlertKind(
        "HIGH", "Give all processes the values that the message names, or stop the others; until then this one waits."
    ),
    "NOBODY_SERVES": AlertKind(
        "HIGH",
        "Start a process that has what these jobs wait for: its setting, or the version that knows it.",
        shared=True,
    ),
    "LEDGER_GAP": AlertKind("CRITICAL", "Stop deleting by hand; convo audit lists what differs.", shared=True),
    "ERASURE_NOT_TOLD": AlertKind(
        "HIGH",
        "Bring the memory service back, or see in /readyz why it refuses: it still has what was erased here a day ago.",
        shared=True,
    ),
    "SILENCE": AlertKind("MEDIUM", "See whether the clients still post, and whether they reach us.", shared=True),
    "CANARY_MISSING": AlertKind(
        "HIGH", "No conversation comes from its accept to its score: see the other alerts and /readyz."
    ),
    "KEYS_NOT_READ": AlertKind(
        "CRITICAL", "See why the keys cannot be read (keys_failed in the log): no key is accepted until they are."
    ),
    "WEBHOOK_OFF": AlertKind(
        "HIGH", "Mend the receiver, then switch the endpoint on: convo webhook change ID --on; it goes on where it was."
    ),
    "EVENT_ASIDE": AlertKind(
        "MEDIUM", "See what the receiver answers: convo webhook attempts ID; the event is tried for ten hours."
    ),
    "EVENT_UNDELIVERED": AlertKind(
        "HIGH", "See convo webhook attempts ID, mend the receiver, then convo webhook replay ID --event EVENT."
    ),
    "EVENTS_EXPIRING": AlertKind(
        "HIGH", "Mend the receiver, or delete its endpoint; raise events.keep_days to keep the events for longer."
    ),
    "FOLDER_COPIED": AlertKind(
        "HIGH", "Two processes started on copies of one data folder; leave `instance` out of images and snapshots."
    ),
}


class Evidence(Struct, frozen=True, kw_only=True):
    """What a condition is based on: figures by name, and at most ``IDS_MAX`` conversations."""

    figures: dict[str, float | int | str] = {}
    ids: tuple[str, ...] = ()


class Condition(Struct, frozen=True, kw_only=True):
    """What holds now; ``count`` is how often it happened since the last look, 0 for what merely lasts."""

    type: str
    component: str
    trigger: str
    level: AlertLevel
    count: int = 0
    evidence: Evidence = Evidence()

    @property
    def key(self) -> AlertKey:
        """What the same condition is recognised by."""
        return self.type, self.component


class Alert(Struct, frozen=True, kw_only=True):
    """A condition from its first look (``since``) to its last (``until``, None while it lasts), on the caller's clock.

    ``count`` is how often it happened in that time, ``notified`` how often it was notified.
    """

    condition: Condition
    since: float
    until: float | None = None
    count: int = 1
    notified: int = 0


class Notice(Struct, frozen=True, kw_only=True):
    """What is to be notified of an alert."""

    change: Change
    alert: Alert


def condition(kind: str, component: str, trigger: str, **more: Any) -> Condition:
    """Make a condition of this type at its usual level, unless ``more`` names another."""
    return Condition(type=kind, component=component, trigger=trigger, **{"level": KINDS[kind].level, **more})


def explain_link(conversation_id: str) -> str:
    """Return where a conversation says why it waits."""
    return f"/v1/conversations/{quote(conversation_id, safe='')}/explain"


def is_shared(alert: Alert) -> bool:
    """Return whether one process raises an alert for all."""
    return KINDS[alert.condition.type].shared


class Board:
    """The alerts that last and those that ended lately, and what is to be notified of them."""

    def __init__(self, repeat_seconds: float) -> None:
        self._repeat_seconds = repeat_seconds
        self._lasting: dict[AlertKey, Alert] = {}
        self._ended: deque[Alert] = deque(maxlen=_RECENT)
        self._notified: dict[AlertKey, deque[float]] = {}
        # What began and ended without a notification; it goes into the count of the next one that has one.
        self._folded: dict[AlertKey, int] = {}

    @property
    def active(self) -> tuple[Alert, ...]:
        """Those that last, in the order in which they began."""
        return tuple(self._lasting.values())

    def find(self, key: AlertKey) -> Alert | None:
        """Return the one of this key that lasts, or None."""
        return self._lasting.get(key)

    @property
    def recent(self) -> tuple[Alert, ...]:
        """Those that ended, the last one first."""
        return tuple(reversed(self._ended))

    def update(self, now: float, conditions: Iterable[Condition]) -> list[Notice]:
        """Note what holds at ``now``, and return what is to be notified."""
        notices, holding = [], set()
        for found in conditions:
            holding.add(found.key)
            notices += self._holds(now, found)
        for key in [key for key in self._lasting if key not in holding]:
            notices += self._ends(now, key)
        return notices

    def forget(self, which: Callable[[Alert], bool]) -> None:
        """Drop alerts that another process notifies from now on; their end is not notified here."""
        self._lasting = {key: alert for key, alert in self._lasting.items() if not which(alert)}

    def _holds(self, now: float, found: Condition) -> list[Notice]:
        before = self._lasting.get(found.key)
        if before is None:
            folded = self._folded.pop(found.key, 0)
            alert = Alert(condition=found, since=now, count=max(1, found.count) + folded)
        else:
            alert = structs.replace(before, condition=found, count=before.count + found.count)
        due = self._may_notify(now, alert)
        if due:
            self._notified[found.key].append(now)
            alert = structs.replace(alert, notified=alert.notified + 1)
        self._lasting[found.key] = alert
        return [Notice(change="raised" if alert.notified == 1 else "lasting", alert=alert)] if due else []

    def _ends(self, now: float, key: AlertKey) -> list[Notice]:
        alert = structs.replace(self._lasting.pop(key), until=now)
        self._ended.append(alert)
        if not alert.notified:
            self._folded[key] = alert.count
        return [Notice(change="resolved", alert=alert)] if alert.notified else []

    def _may_notify(self, now: float, alert: Alert) -> bool:
        level = alert.condition.level
        times = self._notified.setdefault(alert.condition.key, deque())
        while len(times) > 1 and times[0] <= now - _WINDOW_SECONDS:
            times.popleft()
        pause = FOLD_SECONDS if not alert.notified else max(FOLD_SECONDS, self._repeat_seconds * REPEAT[level])
        if times and now < times[-1] + pause:
            return False
        if level not in CAPS:
            return True
        most, seconds = CAPS[level]
        return sum(at > now - seconds for at in times) < most
