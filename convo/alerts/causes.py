"""What causes each alert: makes conditions of the figures of one ``Look``. Add a new cause here.

Two kinds of condition: what *is* so (a breaker is open, a backlog is old) lasts as long as it is; what *happened* (a
timeout, a slow request) lasts until it has not happened for ``quiet_seconds``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from convo.alerts.look import Look, SeenRecord, Vitals
from convo.alerts.rules import IDS_MAX, KINDS, Condition, Evidence, condition
from convo.dependencies import DEPENDENCIES, alert_prefix
from convo.settings import AlertsSettings
from convo.store.ledger import Gap

POOL_BUSY_RATIO = 0.8
BURN_RATIO = 0.01
UNTOLD_SECONDS = 86_400.0
_RATE_SECONDS = 60.0
_AWAY_AFTER = 2


Figures = dict[str, float | int | str]


class _Happened(Struct):
    at: float
    trigger: str
    figures: Figures
    ids: tuple[str, ...] = ()
    fresh: int = 1


_COUNTED = {
    "POSTGRES_POOL_EXHAUSTED": "no connection became free within database.acquire_seconds",
    "POSTGRES_QUERY_TIMEOUT": "a unit of database work ran into its deadline",
    **{
        f"{row.alert_prefix}_TIMEOUT": f"a call of {row.title} ran into {row.name}.attempt_seconds"
        for row in DEPENDENCIES.values()
    },
    **{f"{row.alert_prefix}_RATE_LIMIT": f"{row.title} answered 429" for row in DEPENDENCIES.values()},
}

_OF_WEBHOOKS = {
    "webhook_off": ("WEBHOOK_OFF", "every attempt to deliver to an endpoint has failed for five days"),
    "event_set_aside": ("EVENT_ASIDE", "an event could not be delivered within events.hold_seconds"),
    "event_given_up": ("EVENT_UNDELIVERED", "an event could not be delivered for ten hours, others could"),
    "events_expiring": ("EVENTS_EXPIRING", "events will soon be removed that their receiver has not confirmed"),
}

_NO_ACCEPTS = ("POSTGRES_UNAVAILABLE", "accepts")

CAUSE_RECORDS = frozenset(
    {
        *("slow_request", "slow_query", "disk_full", "loop_blocked", "ledger_gap"),
        *("breaker_opened", "breaker_closed", "canary_missing", "canary_returned", "folder_copied"),
        *("old_primary", "accepts_failing", "accepts_returned", "database_went_back", "log_mismatch"),
        *("settings_disagree", "settings_agree", "keys_too_old", "misconfigured", "configured"),
        *("budget_spent", "budget_free"),
        *("webhook_off", "event_set_aside", "event_given_up", "events_expiring"),
        *("logs_behind", "logs_caught_up", "log_not_found"),
    }
)
"""The log records that can be the cause of an alert."""


class Causes:
    """Remembers of earlier looks what a condition needs: how far counters were, since when, how often."""

    def __init__(self, settings: AlertsSettings, now: float, start: Look) -> None:
        """Begin at ``now`` with the look ``start``: what was counted before it raises nothing."""
        self._settings = settings
        self._counted = dict(start.counted)
        self._happened: dict[tuple[str, str], _Happened] = {}
        self._busy_since: float | None = None
        self._broken: dict[str, tuple[float, str]] = {}
        self._misconfigured: dict[str, str] = {}
        self._spent: Mapping[str, Any] | None = None
        self._missing: Mapping[str, Any] | None = None
        self._disagreeing = ""
        self._logs_behind: Mapping[str, Any] | None = None
        self._unserved_since: dict[str, float] = {}
        self._requests = deque([(now, start.requests, start.on_deadline)])
        self._rates: deque[Vitals] = deque()
        for record in start.records:
            self._note_record(now, record)

    def conditions(self, now: float, look: Look) -> list[Condition]:
        """Return what holds at ``now``, in the order of the types."""
        self._count(now, look)
        for record in look.records:
            self._note_record(now, record)
        found = [
            *self._lately(now),
            *self._pool(now, look),
            *self._database(look),
            *self._disk(look),
            *self._dependencies(now),
            *self._budget(),
            *self._burn(now, look),
            *self._canary(),
            *self._settings_of_others(),
            *self._logs(),
            *self._shared(now, look),
        ]
        order = list(KINDS)
        return sorted(found, key=lambda one: order.index(one.type))

    # --- what happened

    def _count(self, now: float, look: Look) -> None:
        for key, count in look.counted.items():
            fresh = round(count - self._counted.get(key, 0.0))
            self._counted[key] = count
            if fresh > 0:
                self._note(key, _Happened(now, _COUNTED[key[0]], {}, fresh=fresh))

    def _note_record(self, now: float, record: SeenRecord) -> None:
        fields = record.fields
        match record.name:
            case "slow_request":
                figures: Figures = {"seconds": round(fields["seconds"], 3), "status": fields["status"]}
                trigger = "a request took longer than alerts.slow_request_seconds"
                key = ("SLOW_REQUEST", f"{fields['method']} {fields['route']}")
                self._note(key, _Happened(now, trigger, figures))
            case "slow_query":
                trigger = "a unit of database work took longer than alerts.slow_query_seconds"
                figures = {"seconds": round(fields["seconds"], 3)}
                self._note(("SLOW_DATABASE_QUERY", fields["name"]), _Happened(now, trigger, figures))
            case "loop_blocked":
                self._note_blocked(now, fields)
            case "breaker_opened" | "breaker_closed" | "misconfigured" | "configured" | "budget_spent" | "budget_free":
                self._note_dependency(now, record.name, fields)
            case "canary_missing" | "canary_returned":
                self._missing = fields if record.name == "canary_missing" else None
            case "settings_disagree" | "settings_agree":
                self._disagreeing = fields.get("reason", "")
            case "logs_behind" | "logs_caught_up":
                self._logs_behind = fields or None
            case "folder_copied":
                figures = {"process": fields["process"], "other": fields["other"]}
                trigger = "a living process has a copy of this process's data folder"
                self._note(("FOLDER_COPIED", "data_dir"), _Happened(now, trigger, figures))
            case "webhook_off" | "event_set_aside" | "event_given_up" | "events_expiring":
                self._note_webhook(now, record)
            case _:
                self._note_database(now, record)

    def _note_dependency(self, now: float, name: str, fields: Mapping[str, Any]) -> None:
        dependency = fields["dependency"]
        match name:
            case "budget_spent":
                self._spent = fields
            case "budget_free":
                self._spent = None
            case "breaker_opened":
                # The first reason is the cause; each probe that fails later has one of its own.
                self._broken.setdefault(dependency, (now, fields["reason"]))
            case "breaker_closed":
                self._broken.pop(dependency, None)
            case "misconfigured":
                self._misconfigured[dependency] = fields["reason"]
            case "configured":
                self._misconfigured.pop(dependency, None)

    def _note_webhook(self, now: float, record: SeenRecord) -> None:
        kind, trigger = _OF_WEBHOOKS[record.name]
        figures: Figures = dict(record.fields)
        receiver = figures.pop("webhook_id", "") or figures.pop("receiver")
        self._note((kind, str(receiver)), _Happened(now, trigger, figures))

    def _note_database(self, now: float, record: SeenRecord) -> None:
        match record.name:
            case "disk_full":
                self._note(("DISK_LOW", "database"), _Happened(now, "the database found no room on its disk", {}))
            case "old_primary":
                trigger = "a database server takes writes on an older timeline than one seen before"
                self._note(("POSTGRES_OLD_PRIMARY", "database"), _Happened(now, trigger, dict(record.fields)))
            case "database_went_back":
                # What was counted before is another database's.
                self._rates.clear()
                figures: Figures = {name: record.fields[name] for name in ("receipts", "missing")}
                trigger = f"the database went back: {record.fields['reason']}"
                ids = tuple(record.fields["conversation_ids"][:IDS_MAX])
                self._note(("DATABASE_WENT_BACK", "database"), _Happened(now, trigger, figures, ids))
            case "log_mismatch":
                trigger = "a stored log is not the one that was acknowledged; it was not analysed"
                self._note(("LOG_MISMATCH", "logs"), _Happened(now, trigger, {}, (record.fields["conversation_id"],)))
            case "log_not_found":
                trigger = "an object of logs does not hold a log that was put there"
                self._note(("LOG_MISMATCH", "objects"), _Happened(now, trigger, dict(record.fields)))
            case "keys_too_old":
                figures = {"reason": record.fields["reason"]}
                self._note(("KEYS_NOT_READ", "keys"), _Happened(now, "no key of a client is accepted", figures))
            case "accepts_failing":
                figures = {"seconds": round(record.fields["seconds"], 1), "error": record.fields["error"]}
                self._note(_NO_ACCEPTS, _Happened(now, "the database stores no conversation", figures))
            case "accepts_returned":
                self._happened.pop(_NO_ACCEPTS, None)

    def _note_blocked(self, now: float, fields: Mapping[str, Any]) -> None:
        # Nobody can move what the collector or the machine caused; what is not over comes again when it is.
        if fields["cause"] != "code" or not fields["over"]:
            return
        ids = (str(fields["conversation_id"]),) if fields["conversation_id"] else ()
        figures: Figures = {"seconds": round(fields["seconds"], 3)}
        figures |= {name: fields[name] for name in ("stack", "task") if fields[name]}
        one = _Happened(now, "something held the event loop", figures, ids)
        self._note(("LOOP_BLOCKED", "loop"), one)

    def _note(self, key: tuple[str, str], one: _Happened) -> None:
        before = self._happened.get(key)
        if before is not None:
            one.fresh += before.fresh
            one.ids = (*one.ids, *(known for known in before.ids if known not in one.ids))[:IDS_MAX]
        self._happened[key] = one

    def _lately(self, now: float) -> Iterator[Condition]:
        quiet = [key for key, one in self._happened.items() if now >= one.at + self._settings.quiet_seconds]
        for key in quiet:
            del self._happened[key]
        for (kind, component), one in self._happened.items():
            evidence = Evidence(figures=one.figures, ids=one.ids)
            yield condition(kind, component, one.trigger, count=one.fresh, evidence=evidence)
            one.fresh = 0

    # --- what is so in this process

    def _pool(self, now: float, look: Look) -> Iterator[Condition]:
        if look.pool_used <= POOL_BUSY_RATIO * look.pool_max:
            self._busy_since = None
            return
        self._busy_since = now if self._busy_since is None else self._busy_since
        seconds = now - self._busy_since
        if seconds >= self._settings.pool_busy_seconds:
            trigger = f"over {POOL_BUSY_RATIO:.0%} of the pool in use for {self._settings.pool_busy_seconds:g} s"
            figures: Figures = {"used": look.pool_used, "pool_max": look.pool_max, "seconds": round(seconds, 1)}
            evidence = Evidence(figures=figures)
            yield condition("POSTGRES_POOL_EXHAUSTED", "in use", trigger, level="HIGH", evidence=evidence)

    def _database(self, look: Look) -> Iterator[Condition]:
        if look.failed_looks >= _AWAY_AFTER:
            evidence = Evidence(figures={"failed_looks": look.failed_looks})
            yield condition("POSTGRES_UNAVAILABLE", "database", "the database does not answer", evidence=evidence)

    def _disk(self, look: Look) -> Iterator[Condition]:
        free, least = look.disk_free_bytes, self._settings.disk_free_bytes
        if free is not None and free < least:
            evidence = Evidence(figures={"free_bytes": free, "least_bytes": least})
            yield condition("DISK_LOW", "data_dir", "less than alerts.disk_free_bytes free", evidence=evidence)

    def _dependencies(self, now: float) -> Iterator[Condition]:
        for name, (since, reason) in self._broken.items():
            figures: Figures = {"seconds": round(now - since, 1)}
            evidence = Evidence(figures=figures)
            kind = f"{alert_prefix(name)}_UNAVAILABLE"
            yield condition(kind, name, f"the breaker of {name} is open: {reason}", evidence=evidence)
        for name, reason in self._misconfigured.items():
            yield condition(f"{alert_prefix(name)}_MISCONFIGURED", name, reason)

    def _budget(self) -> Iterator[Condition]:
        if self._spent is not None:
            figures: Figures = {name: self._spent[name] for name in ("budget", "spent", "day")}
            trigger = "llm.daily_budget is spent: no model is called until 00:00 UTC"
            yield condition("LLM_BUDGET_SPENT", "llm", trigger, evidence=Evidence(figures=figures))

    def _burn(self, now: float, look: Look) -> Iterator[Condition]:
        self._requests.append((now, look.requests, look.on_deadline))
        # The newest look outside the window is where the window begins.
        while len(self._requests) > 1 and self._requests[1][0] <= now - self._settings.burn_seconds:
            self._requests.popleft()
        _, requests, late = self._requests[0]
        requests, late = look.requests - requests, look.on_deadline - late
        if late > BURN_RATIO * requests:
            trigger = f"over {BURN_RATIO:.0%} of requests in {self._settings.burn_seconds:g} s ended on a deadline"
            figures: Figures = {"requests": round(requests), "on_deadline": round(late)}
            evidence = Evidence(figures=figures)
            yield condition("DEADLINE_BURN", "requests", trigger, evidence=evidence)

    def _canary(self) -> Iterator[Condition]:
        if self._missing is not None:
            figures: Figures = {"seconds": round(self._missing["seconds"], 1)}
            evidence = Evidence(figures=figures, ids=(str(self._missing["conversation_id"]),))
            yield condition("CANARY_MISSING", "canary", str(self._missing["reason"]), evidence=evidence)

    def _settings_of_others(self) -> Iterator[Condition]:
        if self._disagreeing:
            yield condition("SETTINGS_DISAGREE", "settings", self._disagreeing)

    def _logs(self) -> Iterator[Condition]:
        if self._logs_behind is not None:
            fields = self._logs_behind
            rounded: Figures = {name: round(fields[name]) for name in ("seconds", "oldest_seconds", "busy_seconds")}
            evidence = Evidence(figures={**fields, **rounded})
            trigger = "logs have not moved into object storage for longer than logs.behind_seconds"
            yield condition("LOGS_BEHIND", "logs", trigger, evidence=evidence)

    # --- what is so in the database

    def _shared(self, now: float, look: Look) -> Iterator[Condition]:
        if look.vitals is None:
            return
        yield from self._backlog(look.vitals)
        yield from _dead_letters(look.vitals)
        yield from self._unserved(now, look.vitals)
        yield from _gaps(look.gaps)
        yield from _untold(look.vitals)
        yield from self._silence(look.vitals)

    def _backlog(self, vitals: Vitals) -> Iterator[Condition]:
        if not self._rates or self._rates[-1].at < vitals.at:
            self._rates.append(vitals)
        while len(self._rates) > 1 and self._rates[1].at <= vitals.at - _RATE_SECONDS:
            self._rates.popleft()
        if vitals.oldest_seconds <= self._settings.backlog_seconds:
            return
        figures: Figures = {"oldest_seconds": round(vitals.oldest_seconds, 1)}
        figures |= {"ready": vitals.ready, **forecast(self._rates[0], vitals)}
        trigger = f"the oldest ready job is older than {self._settings.backlog_seconds:g} s; {figures['drained']}"
        yield condition("BACKLOG_OLD", "jobs", trigger, evidence=Evidence(figures=figures, ids=vitals.oldest_ids))

    def _unserved(self, now: float, vitals: Vitals) -> Iterator[Condition]:
        # Not at once: the one process that has it may be starting again.
        self._unserved_since = {name: self._unserved_since.get(name, now) for name in vitals.unserved}
        for name, since in self._unserved_since.items():
            if now >= since + self._settings.quiet_seconds:
                trigger = f"jobs wait for {name}, and no process that takes jobs has it"
                yield condition("NOBODY_SERVES", name, trigger, evidence=Evidence(ids=vitals.unserved_ids))

    def _silence(self, vitals: Vitals) -> Iterator[Condition]:
        longest, silent = self._settings.silence_seconds, vitals.silent_seconds
        if longest and silent > longest:
            evidence = Evidence(figures={"seconds": round(silent, 1)})
            yield condition("SILENCE", "accepts", f"nothing was accepted for {longest:g} s", evidence=evidence)


def _dead_letters(vitals: Vitals) -> Iterator[Condition]:
    if vitals.dead:
        evidence = Evidence(figures={"unreviewed": vitals.dead}, ids=vitals.dead_ids)
        yield condition("DEAD_LETTER", "jobs", "there are dead letters that were not reviewed", evidence=evidence)


def _untold(vitals: Vitals) -> Iterator[Condition]:
    if vitals.untold_seconds > UNTOLD_SECONDS:
        evidence = Evidence(figures={"deletions": vitals.untold, "seconds": round(vitals.untold_seconds)})
        trigger = "the memory service has not confirmed for over a day that it deleted what was erased here"
        yield condition("ERASURE_NOT_TOLD", "memory", trigger, evidence=evidence)


def _gaps(gaps: tuple[Gap, ...]) -> Iterator[Condition]:
    if gaps:
        figures: Figures = {
            f"{gap.day.isoformat()} {gap.what}": f"{gap.booked} booked, {gap.found} found" for gap in gaps[:IDS_MAX]
        }
        evidence = Evidence(figures=figures)
        yield condition("LEDGER_GAP", "books", "the tables do not hold what the ledger has booked", evidence=evidence)


def forecast(earlier: Vitals, now: Vitals) -> Figures:
    """Compute from two looks how fast jobs end and come, and when at these rates none is left."""
    seconds = now.at - earlier.at
    if seconds <= 0:
        return {"drained": "the drain rate is not known yet"}
    ended, came = (now.ended - earlier.ended) / seconds, (now.accepted - earlier.accepted) / seconds
    return {
        "ended_per_second": round(ended, 2),
        "accepted_per_second": round(came, 2),
        "drained": _drained(now.ready, ended, came),
    }


def _drained(ready: int, ended: float, came: float) -> str:
    # Three cases: more ends than comes, as much comes as ends or more, nothing ends.
    if ended > came:
        return f"drained in {ready / (ended - came):.0f} s at the present rates"
    if ended > 0:
        return f"it grows; drained in {ready / ended:.0f} s once nothing more comes"
    return "nothing is being drained"
