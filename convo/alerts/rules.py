"""Which alerts there are, and when one is told; it reads no clock, knows no cause and sends nothing.

An alert is a condition, known by its type and component (its key). It is **raised** when it begins to hold, told again
as **lasting** at most every ``repeat_seconds`` times its level's factor, and **resolved** when it holds no more. What
happens again within ``FOLD_SECONDS`` of a telling, and what is over its level's cap, is counted and not told; who was
told of a raise is always told of its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args
from urllib.parse import quote

from msgspec import Struct, structs

Level = Literal["CRITICAL", "HIGH", "MEDIUM", "LOW"]
LEVELS: tuple[Level, ...] = get_args(Level)
Change = Literal["raised", "lasting", "resolved", "test"]
Key = tuple[str, str]

FOLD_SECONDS = 60.0
"""A condition that is back within this time of its last telling is folded into a count."""
CAPS: dict[Level, tuple[int, float]] = {"HIGH": (5, 300.0), "MEDIUM": (3, 600.0), "LOW": (1, 1800.0)}
"""How often one key may be told (raised or lasting) in so many seconds; CRITICAL is bound by folding and repeating."""
REPEAT: dict[Level, int] = {"CRITICAL": 1, "HIGH": 2, "MEDIUM": 4, "LOW": 8}
"""How many times ``repeat_seconds`` lie between two tellings while a condition lasts."""
IDS_MAX = 10
_RECENT = 100
_WINDOW_SECONDS = max(seconds for _, seconds in CAPS.values())


class Kind(Struct, frozen=True):
    """One type of alert: its usual level and what to do; ``shared`` ones are raised by one process for all."""

    level: Level
    do: str
    shared: bool = False


KINDS: dict[str, Kind] = {
    "POSTGRES_POOL_EXHAUSTED": Kind(
        "CRITICAL", "See what holds the connections (pg_stat_activity); raise database.pool_max or stop that query."
    ),
    "POSTGRES_QUERY_TIMEOUT": Kind("MEDIUM", "Look for locks, missing vacuum and a slow disk on the database."),
    "POSTGRES_UNAVAILABLE": Kind("CRITICAL", "Bring PostgreSQL back: accepts are refused with 503 until it answers."),
    "DISK_LOW": Kind("HIGH", "Free or add disk space: on a full disk nothing is accepted."),
    "LLM_TIMEOUT": Kind("HIGH", "See whether the model's provider is slow; its jobs are tried again."),
    "LLM_RATE_LIMIT": Kind("HIGH", "Lower llm.concurrency or raise the account's limit; its jobs wait."),
    "LLM_UNAVAILABLE": Kind("HIGH", "See the provider's status page and the key; jobs are parked and lose nothing."),
    "MEMORY_TIMEOUT": Kind("MEDIUM", "See whether the memory service is slow; its jobs are tried again."),
    "MEMORY_RATE_LIMIT": Kind("MEDIUM", "Lower memory.concurrency or raise the service's limit; its jobs wait."),
    "MEMORY_UNAVAILABLE": Kind("HIGH", "Bring the memory service back; jobs are parked and lose nothing."),
    "SLOW_REQUEST": Kind("HIGH", "Compare convo_wait_seconds by name: the slowest wait is the reason."),
    "SLOW_DATABASE_QUERY": Kind("LOW", "Look at this unit's statements with EXPLAIN, and at the database's load."),
    "BACKLOG_OLD": Kind("HIGH", "Add workers or processes, or see what slows the analyses down.", shared=True),
    "DEAD_LETTER": Kind("CRITICAL", "convo dead, then convo retry ID or convo acknowledge ID.", shared=True),
    "LOOP_BLOCKED": Kind("HIGH", "Move the named call to a thread, or make it smaller."),
    "DEADLINE_BURN": Kind("HIGH", "See convo_deadline_exceeded_total by name for the wait that uses the time up."),
    "LEDGER_GAP": Kind("CRITICAL", "Stop deleting by hand; convo audit lists what differs.", shared=True),
    "SILENCE": Kind("MEDIUM", "See whether the clients still post, and whether they reach us.", shared=True),
    "CANARY_MISSING": Kind("HIGH", "The whole way is broken somewhere: look at the other alerts and at /readyz."),
}


class Evidence(Struct, frozen=True, kw_only=True):
    """What speaks for a condition: figures by name, and at most ``IDS_MAX`` conversations."""

    figures: dict[str, float | int | str] = {}
    ids: tuple[str, ...] = ()


class Condition(Struct, frozen=True, kw_only=True):
    """What holds now; ``count`` is how often it happened since the last look, 0 for what merely lasts."""

    type: str
    component: str
    trigger: str
    level: Level
    count: int = 0
    evidence: Evidence = Evidence()

    @property
    def key(self) -> Key:
        """By this the same condition is known again."""
        return self.type, self.component


class Alert(Struct, frozen=True, kw_only=True):
    """A condition from its first look (``since``) to its last (``until``, None while it lasts), on the caller's clock.

    ``count`` is how often it happened in that time, ``told`` how often it was told.
    """

    condition: Condition
    since: float
    until: float | None = None
    count: int = 1
    told: int = 0


class Notice(Struct, frozen=True, kw_only=True):
    """What is to be told of an alert."""

    change: Change
    alert: Alert


def condition(kind: str, component: str, trigger: str, **more: Any) -> Condition:
    """Make a condition of this type at its usual level, unless ``more`` names another."""
    return Condition(type=kind, component=component, trigger=trigger, **{"level": KINDS[kind].level, **more})


def explain_link(conversation_id: str) -> str:
    """Return where a conversation says why it waits."""
    return f"/v1/conversations/{quote(conversation_id, safe='')}/explain"


class Board:
    """The alerts that last and those that ended lately, and what is to be told of them."""

    def __init__(self, repeat_seconds: float) -> None:
        self._repeat_seconds = repeat_seconds
        self._lasting: dict[Key, Alert] = {}
        self._ended: deque[Alert] = deque(maxlen=_RECENT)
        self._told: dict[Key, deque[float]] = {}
        # What began and ended without being told; it goes into the count of the next one that is.
        self._folded: dict[Key, int] = {}

    @property
    def active(self) -> tuple[Alert, ...]:
        """Those that last, in the order in which they began."""
        return tuple(self._lasting.values())

    @property
    def recent(self) -> tuple[Alert, ...]:
        """Those that ended, the last one first."""
        return tuple(reversed(self._ended))

    def update(self, now: float, conditions: Iterable[Condition]) -> list[Notice]:
        """Note what holds at ``now``, and return what is to be told."""
        notices, holding = [], set()
        for found in conditions:
            holding.add(found.key)
            notices += self._holds(now, found)
        for key in [key for key in self._lasting if key not in holding]:
            notices += self._ends(now, key)
        return notices

    def forget(self, which: Callable[[Alert], bool]) -> None:
        """Drop alerts that are another process's to tell from now on; nobody is told of their end here."""
        self._lasting = {key: alert for key, alert in self._lasting.items() if not which(alert)}

    def _holds(self, now: float, found: Condition) -> list[Notice]:
        before = self._lasting.get(found.key)
        if before is None:
            folded = self._folded.pop(found.key, 0)
            alert = Alert(condition=found, since=now, count=max(1, found.count) + folded)
        else:
            alert = structs.replace(before, condition=found, count=before.count + found.count)
        told = self._may_tell(now, alert)
        if told:
            self._told[found.key].append(now)
            alert = structs.replace(alert, told=alert.told + 1)
        self._lasting[found.key] = alert
        return [Notice(change="raised" if alert.told == 1 else "lasting", alert=alert)] if told else []

    def _ends(self, now: float, key: Key) -> list[Notice]:
        alert = structs.replace(self._lasting.pop(key), until=now)
        self._ended.append(alert)
        if not alert.told:
            self._folded[key] = alert.count
        return [Notice(change="resolved", alert=alert)] if alert.told else []

    def _may_tell(self, now: float, alert: Alert) -> bool:
        level = alert.condition.level
        told = self._told.setdefault(alert.condition.key, deque())
        while len(told) > 1 and told[0] <= now - _WINDOW_SECONDS:
            told.popleft()
        pause = FOLD_SECONDS if not alert.told else max(FOLD_SECONDS, self._repeat_seconds * REPEAT[level])
        if told and now < told[-1] + pause:
            return False
        if level not in CAPS:
            return True
        most, seconds = CAPS[level]
        return sum(at > now - seconds for at in told) < most
