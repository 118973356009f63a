"""The ladder of deadlines: compares the deadlines of all settings, and names those that cannot work together.

**The ladder.** Every layer must give up before the one above it does, or the one above answers for it. The service
this one replaces waited 30 s for a pool slot under a gateway that gave up after 10 s: each request was answered 504
while its work went on, and the client's retry doubled it. So the numbers are compared before anything starts, rung by
rung (``ladder``); ``serve`` refuses to start on one that is broken, ``convo check`` and the handbook show them all.

- An accept may have to wait for the batch under way and then for its own: hence the 2 of the first rung.
- Backoffs are counted at their longest, ``backoff_max_seconds`` each. That is an upper bound: they begin lower, and
  jitter only shortens them. The wait that a dependency demands (``retry-after``) is not counted: a wait that leaves no
  time for an attempt is not begun (``resilience.retry``).
- With fallbacks each model but the last has two attempts a call, and the two that take longest must fit into a job. Of
  those behind them none is asked where there is no time for a whole attempt (``resilience.chain``).
- ``database.connect_seconds`` is no rung. The opening of a connection ends with the wait around it: with
  ``acquire_seconds``, that of a dedicated connection with its unit of work. This number can only end it sooner.
- What runs at the same time (``jobs.workers``, ``concurrency``) is no rung either: it limits throughput, not answers.
- A request's time begins with the first byte of its head. ``web.request_seconds`` covers head, body and work; only the
  writing of the answer comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from convo.settings import (
    ATTEMPTS_BEFORE_ANOTHER,
    RemoteSettings,
    Settings,
    dependency_sections,
    http_parts,
    llm_servers,
)

SLOW_PART = 0.8
"""The share of a budget after which something is reported as slow, where no threshold is set."""


class Rung(Struct, frozen=True, kw_only=True):
    """Two durations: the inside one must end before the outside one gives up, or ``otherwise`` happens."""

    inside: str
    inside_seconds: float
    relation: Literal["<", "<="]
    outside: str
    outside_seconds: float
    otherwise: str

    @property
    def stands(self) -> bool:
        """Return whether the two durations fit."""
        below = self.inside_seconds < self.outside_seconds
        return below or (self.relation == "<=" and self.inside_seconds == self.outside_seconds)

    @property
    def complaint(self) -> str:
        """Return one sentence: both settings, both numbers, and what would happen at run time."""
        wrong = "is not below" if self.relation == "<" else "is above"
        return (
            f"{self.inside} = {self.inside_seconds:g} s {wrong} {self.outside} = {self.outside_seconds:g} s:"
            f" {self.otherwise}"
        )


def check_ladder(settings: Settings) -> list[str]:
    """Compare every deadline with the one above it; return one sentence for each broken rung."""
    return [rung.complaint for rung in ladder(settings) if not rung.stands]


def ladder(settings: Settings) -> tuple[Rung, ...]:
    """List every rung, broken or not, from the request to the alerts."""
    return (
        *_request_rungs(settings),
        *_job_rungs(settings),
        *_webhook_rungs(settings),
        *_stream_rungs(settings),
        *_log_rungs(settings),
        *_process_rungs(settings),
        *_alert_rungs(settings),
    )


def slow_seconds(threshold_seconds: float, budget_seconds: float) -> float:
    """Return after how long something is reported as slow: its threshold, or a share of its budget where that is 0."""
    return threshold_seconds or SLOW_PART * budget_seconds


def _request_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="2 x (database.acquire_seconds + database.statement_seconds)",
        inside_seconds=2 * s.database.unit_seconds,
        relation="<",
        outside="web.request_seconds",
        outside_seconds=s.web.request_seconds,
        otherwise="an accept that waits for the batch before it and then for its own would end while its commit still"
        " runs",
    )
    for phase, seconds in (("head", s.connection.head_seconds), ("body", s.connection.body_seconds)):
        yield Rung(
            inside=f"connection.{phase}_seconds",
            inside_seconds=seconds,
            relation="<=",
            outside="web.request_seconds",
            outside_seconds=s.web.request_seconds,
            otherwise=f"the request's time would always run out first, and this limit of its {phase} would never apply",
        )
    yield Rung(
        inside="web.request_seconds + connection.write_seconds",
        inside_seconds=s.web.request_seconds + s.connection.write_seconds,
        relation="<",
        outside="ladder.gateway_seconds",
        outside_seconds=s.ladder.gateway_seconds,
        otherwise="the gateway would answer 504 to requests that convo still works on",
    )


def _job_rungs(s: Settings) -> Iterator[Rung]:
    for name, remote in {**dependency_sections(s), **http_parts(s)}.items():
        yield Rung(
            inside=f"{name}.attempt_seconds x attempts + backoffs",
            inside_seconds=remote.attempt_seconds * remote.attempts
            + remote.backoff_max_seconds * (remote.attempts - 1),
            relation="<=",
            outside="analysis.job_seconds",
            outside_seconds=s.analysis.job_seconds,
            otherwise="the job would end before the answer to its last attempt",
        )
    yield from _fallback_rungs(s)
    yield Rung(
        inside="jobs.heartbeat_seconds x 3",
        inside_seconds=s.jobs.heartbeat_seconds * 3,
        relation="<=",
        outside="jobs.lease_seconds",
        outside_seconds=s.jobs.lease_seconds,
        otherwise="two lost heartbeats would lose every lease",
    )


def _fallback_rungs(s: Settings) -> Iterator[Rung]:
    servers = llm_servers(s.llm)
    if len(servers) == 1:
        return
    (first, first_seconds), (second, second_seconds) = sorted(
        ((name, _tried_seconds(one)) for name, one in servers.items()), key=lambda one: one[1], reverse=True
    )[:2]
    yield Rung(
        inside=f"two attempts + backoff at {first}, and then at {second}",
        inside_seconds=first_seconds + second_seconds,
        relation="<=",
        outside="analysis.job_seconds",
        outside_seconds=s.analysis.job_seconds,
        otherwise="the job would end before a second model has answered",
    )


def _tried_seconds(remote: RemoteSettings) -> float:
    attempts = min(remote.attempts, ATTEMPTS_BEFORE_ANOTHER)
    return remote.attempt_seconds * attempts + remote.backoff_max_seconds * (attempts - 1)


def _webhook_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="webhooks.attempt_seconds",
        inside_seconds=s.webhooks.attempt_seconds,
        relation="<",
        outside="events.hold_seconds",
        outside_seconds=s.events.hold_seconds,
        otherwise="an event would step aside before its first attempt has ended",
    )


def _stream_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="events.heartbeat_seconds",
        inside_seconds=s.events.heartbeat_seconds,
        relation="<",
        outside="ladder.gateway_seconds",
        outside_seconds=s.ladder.gateway_seconds,
        otherwise="the gateway would end streams in which nothing happens",
    )


def _log_rungs(s: Settings) -> Iterator[Rung]:
    if not s.logs.in_objects:
        return
    yield Rung(
        inside="logs.attempt_seconds x attempts + backoffs",
        inside_seconds=s.logs.attempt_seconds * s.logs.attempts + s.logs.backoff_seconds * (s.logs.attempts - 1),
        relation="<",
        outside="web.request_seconds",
        outside_seconds=s.web.request_seconds,
        otherwise="a read of an old log would end with the request's time, and not with 503 logs_unavailable",
    )
    yield Rung(
        inside="logs.attempt_seconds",
        inside_seconds=s.logs.attempt_seconds,
        relation="<=",
        outside="logs.write_seconds",
        outside_seconds=s.logs.write_seconds,
        otherwise="a whole object of logs would have less time than one log of it",
    )


def _process_rungs(s: Settings) -> Iterator[Rung]:
    stop = s.shutdown
    yield Rung(
        inside="shutdown.notice_seconds + intake_seconds + workers_seconds + settle_seconds",
        inside_seconds=stop.notice_seconds + stop.intake_seconds + stop.workers_seconds + stop.settle_seconds,
        relation="<",
        outside="ladder.kill_seconds",
        outside_seconds=s.ladder.kill_seconds,
        otherwise="the process would be killed during its stop",
    )
    yield Rung(
        inside="ladder.gateway_keep_alive_seconds",
        inside_seconds=s.ladder.gateway_keep_alive_seconds,
        relation="<",
        outside="connection.keep_alive_seconds",
        outside_seconds=s.connection.keep_alive_seconds,
        otherwise="the gateway would send requests on connections that convo closes",
    )


def _alert_rungs(s: Settings) -> Iterator[Rung]:
    yield Rung(
        inside="alerts.slow_request_seconds",
        inside_seconds=slow_seconds(s.alerts.slow_request_seconds, s.web.request_seconds),
        relation="<",
        outside="web.request_seconds",
        outside_seconds=s.web.request_seconds,
        otherwise="no request would be reported as slow before its budget ends",
    )
    yield Rung(
        inside="alerts.slow_query_seconds",
        inside_seconds=slow_seconds(s.alerts.slow_query_seconds, s.database.unit_seconds),
        relation="<",
        outside="database.acquire_seconds + database.statement_seconds",
        outside_seconds=s.database.unit_seconds,
        otherwise="no unit of database work would be reported as slow before its deadline ends",
    )
