"""Everything the service tells, one function per event, with fields; it knows neither where lines go nor their form.

An event's name is its function's name. ``conversation_id`` is given outright where the caller has it; what is called
further in has it from ``bound``. No function takes settings or headers whole: secrets have no way in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any

import structlog
from structlog import contextvars

from convo.observe.seldom import Seldom

_log: Any = structlog.get_logger()
_seldom = Seldom()
Hear = Callable[[str, Mapping[str, Any]], None]


def _nobody(_name: str, _fields: Mapping[str, Any]) -> None:
    pass


_hear: Hear = _nobody


def tell_to(logger: Any) -> None:
    """Send every event to ``logger`` from now on."""
    global _log  # noqa: PLW0603  (a logger passed along with every call would be the only alternative)
    _log = logger
    _seldom.forget()


@contextmanager
def heard_by(listener: Hear) -> Iterator[None]:
    """Let one ``listener`` hear, inside the block, each event that can be the cause of an alert: its name and fields.

    It is called wherever the event is told, on any thread, and must return at once.
    """
    global _hear  # noqa: PLW0603  (as above)
    before, _hear = _hear, listener
    try:
        yield
    finally:
        _hear = before


def _tell(level: str, name: str, /, **fields: Any) -> None:
    """Tell what can be the cause of an alert."""
    _hear(name, fields)
    getattr(_log, level)(name, **fields)


class bound:  # noqa: N801  (reads as a statement)
    """Put ``fields`` on every line told inside the block, by this Trio task and those it starts.

    As structlog's own ``bound_contextvars``, which looks through the whole context each time. The variables are ours,
    and structlog finds them by the prefix of their names: its own bind and unbind know nothing of them.
    """

    __slots__ = ("_fields", "_tokens")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._tokens = []
        for name, value in self._fields.items():
            self._tokens.append(_variable(name).set(value))

    def __exit__(self, *_: object) -> None:
        for token in self._tokens:
            token.var.reset(token)


@functools.cache
def _variable(name: str) -> ContextVar[object]:
    return ContextVar(f"{contextvars.STRUCTLOG_KEY_PREFIX}{name}")


def _tell_seldom(level: str, event: str, key: str, /, **fields: object) -> None:
    """Tell a state that many failures bring: once, then at most every 10 s, ``untold`` the ones in between."""
    untold = _seldom.due((event, key), monotonic())
    if untold is not None:
        getattr(_log, level)(event, **fields, **({"untold": untold} if untold else {}))


def bound_in(context: Context) -> dict[str, Any]:
    """Return what is bound in a task's context, from whichever thread."""
    # A copy, for the context itself is in use by its task.
    return context.copy().run(contextvars.get_contextvars)


# --- the process


def service_started(*, url: str, pid: int, database: str, data_dir: str, **fields: object) -> None:
    """Tell that requests are taken; ``database`` is its name or place, never its URL with a password."""
    _log.info("service_started", url=url, pid=pid, database=database, data_dir=data_dir, **fields)


def service_stopping(*, reason: str) -> None:
    """Tell that the drain begins, and why."""
    _log.info("service_stopping", reason=reason)


def service_stopped(*, seconds: float | None = None) -> None:
    """Tell that all is closed, ``seconds`` after the drain began."""
    _log.info("service_stopped", seconds=seconds)


def asyncio_stray(*, text: str, error: str) -> None:
    """Tell of an asyncio failure that nobody awaited."""
    _log.error("asyncio_stray", text=text, error=error)


def unexpected(*, where: str, error: BaseException) -> None:
    """Tell of a bug that ended something other than a request or a job, with its traceback."""
    _log.error("unexpected", where=where, exc_info=error)


def loop_blocked(  # noqa: PLR0913  (each of them is one field)
    *,
    seconds: float,
    cause: str,
    over: bool,
    cpu_seconds: float,
    collector_seconds: float,
    suspended_seconds: float,
    stack: str | None = None,
    task: str | None = None,
    conversation_id: str | None = None,
    untold: int = 0,
) -> None:
    """Tell that a pass of the scheduler was held, by what, and how many more were not told since the last of this.

    A warning where code did it; the collector and a machine that is busy are worth knowing, and nothing to mend here.
    """
    _tell(
        "warning" if cause == "code" else "info",
        "loop_blocked",
        seconds=seconds,
        cause=cause,
        over=over,
        cpu_seconds=cpu_seconds,
        collector_seconds=collector_seconds,
        suspended_seconds=suspended_seconds,
        stack=stack,
        task=task,
        conversation_id=conversation_id,
        untold=untold,
    )


def task_waits(*, depth: int, task: str, **fields: object) -> None:
    """Tell where one of Trio's tasks waits, ``depth`` below the first; a warning, for it was asked for."""
    _log.warning("task_waits", depth=depth, task=task, **fields)


def log_dropped(*, lines: int) -> None:
    """Tell how many lines were dropped since the last one of this kind, the queue being full."""
    _log.warning("log_dropped", lines=lines)


# --- the database


def migrated(*, from_version: int, to_version: int) -> None:
    """Tell that the schema moved."""
    _log.info("migrated", from_version=from_version, to_version=to_version)


def embedded_started(*, folder: str, size_bytes: int, **fields: object) -> None:
    """Tell where the private PostgreSQL keeps its data, and how much that is."""
    _log.info("embedded_started", folder=folder, size_bytes=size_bytes, **fields)


def embedded_stopped(*, seconds: float | None = None) -> None:
    """Tell that the private PostgreSQL is down."""
    _log.info("embedded_stopped", seconds=seconds)


def durability_warning(*, setting: str, value: str) -> None:
    """Warn of a server setting with which a receipt may not outlive a crash."""
    _log.warning("durability_warning", setting=setting, value=value)


def disk_full(*, error: str) -> None:
    """Tell that the database has no room left on its disk."""
    _hear("disk_full", {"error": error})
    _tell_seldom("error", "disk_full", error, error=error)


def slow_query(*, name: str, seconds: float) -> None:
    """Warn of a unit of database work over its threshold."""
    _tell("warning", "slow_query", name=name, seconds=seconds)


# --- the door


def request_failed(*, route: str, method: str, error: BaseException, conversation_id: str | None = None) -> None:
    """Tell of an exception that no one foresaw and that ended one request, with its traceback."""
    _log.error("request_failed", route=route, method=method, conversation_id=conversation_id, exc_info=error)


def slow_request(*, route: str, method: str, status: int, seconds: float) -> None:
    """Warn of a request over its threshold."""
    _tell("warning", "slow_request", route=route, method=method, status=status, seconds=seconds)


def request_answered(*, route: str, method: str, status: int, seconds: float) -> None:
    """Tell of one answer; the access log, off by default."""
    _log.info("request_answered", route=route, method=method, status=status, seconds=seconds)


# --- connections


def connection_failed(*, error: BaseException, unsaid: int = 0) -> None:
    """Tell of an exception that no one foresaw and that ended one connection; ``unsaid`` more since the last line."""
    _log.error("connection_failed", unsaid=unsaid, exc_info=error)


def connections_full(*, peer: str, connections: int, unsaid: int = 0) -> None:
    """Warn that a connection was turned away: there are as many as there may be, in all or from its address."""
    _log.warning("connections_full", peer=peer, connections=connections, unsaid=unsaid)


def accept_slowed(*, reason: str, unsaid: int = 0) -> None:
    """Tell that new connections wait in the kernel's queue because the system gives us no more of them."""
    _log.error("accept_slowed", reason=reason, unsaid=unsaid)


def connections_capped(*, wanted: int, possible: int) -> None:
    """Warn that the system allows fewer open files than ``connection.connections_max`` asks for."""
    _log.warning("connections_capped", wanted=wanted, possible=possible)


# --- intake


def accepted(*, conversation_id: str, turns: int) -> None:
    """Tell that a conversation is safe."""
    _log.debug("accepted", conversation_id=conversation_id, turns=turns)


def replayed(*, conversation_id: str) -> None:
    """Tell that the same content came again under its id."""
    _log.debug("replayed", conversation_id=conversation_id)


def conflict(*, conversation_id: str) -> None:
    """Tell that other content came under an id that is taken."""
    _log.info("conflict", conversation_id=conversation_id)


def batch_committed(*, rows: int, bytes_: int, seconds: float) -> None:
    """Tell of one transaction of the committer."""
    _log.debug("batch_committed", rows=rows, bytes=bytes_, seconds=seconds)


def batch_split(*, rows: int, sqlstate: str) -> None:
    """Warn that the database refused a batch, which is now halved to find the row."""
    _log.warning("batch_split", rows=rows, sqlstate=sqlstate)


def batch_failed(*, rows: int, error: str) -> None:
    """Tell that a batch was not committed and its waiters were refused."""
    _tell_seldom("error", "batch_failed", error, rows=rows, error=error)


# --- remote dependencies


def breaker_opened(*, dependency: str, reason: str, seconds: float) -> None:
    """Tell that a dependency is down, and for how long nobody asks it."""
    _tell("error", "breaker_opened", dependency=dependency, reason=reason, seconds=seconds)


def breaker_closed(*, dependency: str) -> None:
    """Tell that a dependency is back."""
    _tell("warning", "breaker_closed", dependency=dependency)


# --- jobs


def jobs_leased(*, jobs: int, seconds: float | None = None) -> None:
    """Tell of one lease statement that found something."""
    _log.debug("jobs_leased", jobs=jobs, seconds=seconds)


def part_done(*, conversation_id: str, part: str, by: str, seconds: float) -> None:
    """Tell that one part is stored, and who made it."""
    _log.debug("part_done", conversation_id=conversation_id, part=part, by=by, seconds=seconds)


def part_failed(*, conversation_id: str, part: str, attempt: int, reason: str) -> None:
    """Warn that one part was not found at this attempt."""
    _log.warning("part_failed", conversation_id=conversation_id, part=part, attempt=attempt, reason=reason)


def job_settled(*, conversation_id: str, score: float, **fields: object) -> None:
    """Tell that a job is done and its score counted."""
    _log.info("job_settled", conversation_id=conversation_id, score=score, **fields)


def job_failed(*, conversation_id: str, attempt: int, reason: str, again_in_seconds: float | None = None) -> None:
    """Warn that an attempt was spent, and when the next one is due."""
    _log.warning(
        "job_failed", conversation_id=conversation_id, attempt=attempt, reason=reason, again_in_seconds=again_in_seconds
    )


def job_crashed(*, conversation_id: str, error: BaseException) -> None:
    """Tell of an exception that no one foresaw and that ended one job, with its traceback."""
    _log.error("job_crashed", conversation_id=conversation_id, exc_info=error)


def job_buried(*, conversation_id: str, attempts: int, reason: str) -> None:
    """Tell that a job is a dead letter now."""
    _log.error("job_buried", conversation_id=conversation_id, attempts=attempts, reason=reason)


def job_parked(*, conversation_id: str, waits_for: str, reason: str) -> None:
    """Tell that a job waits for a dependency that is out, its attempts as they were."""
    _log.info("job_parked", conversation_id=conversation_id, waits_for=waits_for, reason=reason)


def job_given_up(*, seq: int, reason: str) -> None:
    """Tell that a job is a dead letter for what happened around it: it is poison, or a dependency never came back."""
    _log.error("job_given_up", seq=seq, reason=reason)


def job_released(*, conversation_id: str, reason: str) -> None:
    """Tell that a job was given back with its attempt."""
    _log.info("job_released", conversation_id=conversation_id, reason=reason)


def job_retried(*, conversation_id: str) -> None:
    """Tell that a dead letter was revived."""
    _log.info("job_retried", conversation_id=conversation_id)


def lease_lost(*, conversation_id: str, reason: str) -> None:
    """Warn that a worker stopped because its lease is another's or has ended."""
    _log.warning("lease_lost", conversation_id=conversation_id, reason=reason)


def lease_rescued(*, count: int) -> None:
    """Warn that leases were taken back from holders that are gone."""
    _log.warning("lease_rescued", count=count)


def renewal_failed(*, leases: int, reason: str) -> None:
    """Tell that a heartbeat could not renew; the leases stand until their time."""
    _tell_seldom("warning", "renewal_failed", reason, leases=leases, reason=reason)


def lease_failed(*, reason: str) -> None:
    """Tell that no jobs could be leased now; the publisher tries again at its next poll."""
    _tell_seldom("warning", "lease_failed", reason, reason=reason)


def ending_failed(*, conversation_id: str, reason: str) -> None:
    """Tell that an ending could not be stored; the end of the lease makes the job ready again."""
    _tell_seldom("warning", "ending_failed", reason, conversation_id=conversation_id, reason=reason)


def watch_failed(*, reason: str) -> None:
    """Tell that endings in other processes could not be looked for now."""
    _tell_seldom("warning", "watch_failed", reason, reason=reason)


def sample_failed(*, reason: str) -> None:
    """Tell that the gauges of jobs could not be read now."""
    _log.warning("sample_failed", reason=reason)


def prepare_failed(*, reason: str) -> None:
    """Tell that the database is not there yet at the start; it is tried again."""
    _tell_seldom("warning", "prepare_failed", reason, reason=reason)


def own_leases_released(*, count: int) -> None:
    """Tell how many jobs of this process, or of the dead one whose name it bears, were given back."""
    _log.info("own_leases_released", count=count)


def ledger_gap(*, day: str, what: str, booked: int, found: int) -> None:
    """Tell that the tables do not hold what the books say of one day."""
    _tell("error", "ledger_gap", day=day, what=what, booked=booked, found=found)


def books_failed(*, reason: str) -> None:
    """Tell that the books could not be compared now."""
    _log.warning("books_failed", reason=reason)


def keys_failed(*, reason: str) -> None:
    """Tell that the keys could not be read now; those known before stay good."""
    _log.warning("keys_failed", reason=reason)


def connections_warning(*, connections: int, max_connections: int) -> None:
    """Tell that all living processes together may open more connections than the database takes."""
    _log.warning("connections_warning", connections=connections, max_connections=max_connections)


def llm_without_schema(*, seconds: float) -> None:
    """Tell that the model's server refused a JSON schema and took plain JSON; for how long it is asked that way."""
    _log.warning("llm_without_schema", seconds=seconds)


# --- alerts


def alert(*, change: str, type_: str, component: str, severity: str, **fields: object) -> None:
    """Tell of a condition that began, lasts or ended."""
    tell = _log.info if change in ("resolved", "test") else _log.error
    tell("alert", change=change, type=type_, component=component, severity=severity, **fields)


def alert_dropped(*, sink: str, type_: str, change: str, reason: str) -> None:
    """Tell that a sink was not told of an alert, and why."""
    _log.warning("alert_dropped", sink=sink, type=type_, change=change, reason=reason)


def look_failed(*, reason: str) -> None:
    """Tell that the database could not be asked for what alerts are made of."""
    _tell_seldom("warning", "look_failed", reason, reason=reason)


def canary_returned(*, conversation_id: str, seconds: float) -> None:
    """Tell that a canary came through the whole way."""
    _tell("debug", "canary_returned", conversation_id=conversation_id, seconds=seconds)


def canary_missing(*, conversation_id: str, seconds: float, reason: str) -> None:
    """Tell that a canary did not come through in time."""
    _tell("error", "canary_missing", conversation_id=conversation_id, seconds=seconds, reason=reason)


def canary_not_erased(*, reason: str) -> None:
    """Tell that canaries which came through could not be erased now."""
    _log.warning("canary_not_erased", reason=reason)


def job_acknowledged(*, conversation_id: str) -> None:
    """Tell that somebody has reviewed a dead letter and leaves it dead."""
    _log.info("job_acknowledged", conversation_id=conversation_id)
