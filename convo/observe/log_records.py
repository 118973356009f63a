"""Every record that convo logs, one function each: add one here to log something new, or look a record's fields up.

A record's name is its function's name. ``conversation_id`` is given outright where the caller has it; what is called
further in has it from ``bound``. No function takes settings or headers whole, so that no secret can get in.

A record goes to every function in ``record_observers`` and to the log. ``log`` decides where lines go and their form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any

import structlog
from structlog import contextvars

from convo.observe.observers import Observers
from convo.observe.throttle import Throttle

_log: Any = structlog.get_logger()
_seldom = Throttle()

RecordObserver = Callable[[str, Mapping[str, Any]], None]
"""Takes a record's name and its fields, without the bound ones; on any thread, whatever the log level."""

record_observers: Observers[RecordObserver] = Observers()


def log_to(logger: Any) -> Any:
    """Send every record to ``logger`` from now on; return the logger that they went to until now."""
    # A logger passed along with every call would be the only alternative.
    global _log
    before, _log = _log, logger
    _seldom.forget()
    return before


def _record(level: str, name: str, /, **fields: Any) -> None:
    for observe in record_observers.current:
        observe(name, fields)
    getattr(_log, level)(name, **fields)


def _record_seldom(level: str, name: str, key: str, /, **fields: Any) -> None:
    """Log a state that many failures bring once, then at most every 10 s, ``suppressed`` the number in between.

    Observers get each of them.
    """
    for observe in record_observers.current:
        observe(name, fields)
    suppressed = _seldom.due((name, key), monotonic())
    if suppressed is not None:
        getattr(_log, level)(name, **fields, **({"suppressed": suppressed} if suppressed else {}))


class bound:  # noqa: N801  (reads as a statement)
    """Put ``fields`` on every line logged inside the block, by this Trio task and those it starts.

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


def bound_in(context: Context) -> dict[str, Any]:
    """Return what is bound in a task's context, from whichever thread."""
    # A copy, for the context itself is in use by its task.
    return context.copy().run(contextvars.get_contextvars)


# --- the process


def service_started(*, url: str, pid: int, database: str, data_dir: str, **fields: object) -> None:
    """Log that requests are taken; ``database`` is its name or place, never its URL with a password."""
    _record("info", "service_started", url=url, pid=pid, database=database, data_dir=data_dir, **fields)


def service_reloading(*, reason: str) -> None:
    """Log that the certificate and the clients' keys are read again, and why."""
    _record("info", "service_reloading", reason=reason)


def exception_lost(*, where: str, error: BaseException | None) -> None:
    """Log an exception that Python could raise to nobody: in a finalizer, or at the end of a thread."""
    _record("error", "exception_lost", where=where, exc_info=error)


def service_stopping(*, reason: str) -> None:
    """Log that the drain begins, and why."""
    _record("info", "service_stopping", reason=reason)


def service_stopped(*, seconds: float | None = None) -> None:
    """Log that all is closed, ``seconds`` after the drain began."""
    _record("info", "service_stopped", seconds=seconds)


def asyncio_stray(*, text: str, error: str) -> None:
    """Log an asyncio failure that no code awaited."""
    _record("error", "asyncio_stray", text=text, error=error)


def unexpected(*, where: str, error: BaseException) -> None:
    """Log a bug that ended something other than a request or a job, with its traceback."""
    _record("error", "unexpected", where=where, exc_info=error)


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
) -> None:
    """Log that a pass of the scheduler took too long, and why.

    A warning where code caused it. The collector and a busy machine are worth knowing, and nothing to mend here.
    """
    _record_seldom(
        "warning" if cause == "code" else "info",
        "loop_blocked",
        cause,
        seconds=seconds,
        cause=cause,
        over=over,
        cpu_seconds=cpu_seconds,
        collector_seconds=collector_seconds,
        suspended_seconds=suspended_seconds,
        stack=stack,
        task=task,
        conversation_id=conversation_id,
    )


def task_waits(*, depth: int, task: str, **fields: object) -> None:
    """Log where one of Trio's tasks waits, ``depth`` below the first; a warning, for it was asked for."""
    _record("warning", "task_waits", depth=depth, task=task, **fields)


def log_dropped(*, lines: int) -> None:
    """Log how many lines were dropped since the last one of this kind, the queue being full."""
    _record("warning", "log_dropped", lines=lines)


# --- the database


def migrated(*, from_version: int, to_version: int) -> None:
    """Log that the schema moved."""
    _record("info", "migrated", from_version=from_version, to_version=to_version)


def migration_waits(*, tables: list[str], held_by: list[str], reason: str, again_every_seconds: float) -> None:
    """Log that a migration did not get the locks that it needs, or held them for too long; who has locks on them."""
    fields = {"tables": tables, "held_by": held_by, "reason": reason, "again_every_seconds": again_every_seconds}
    _record_seldom("warning", "migration_waits", ",".join(tables), **fields)


def contract_waits(*, number: int, reason: str) -> None:
    """Warn that a migration waits until no older process is left, and who holds it back."""
    _record_seldom("warning", "contract_waits", str(number), number=number, reason=reason)


def embedded_started(*, folder: str, size_bytes: int, **fields: object) -> None:
    """Log where the private PostgreSQL keeps its data, and how much that is."""
    _record("info", "embedded_started", folder=folder, size_bytes=size_bytes, **fields)


def embedded_moves(  # noqa: PLR0913  (each of them is one field)
    *, folder: str, from_major: str, to_version: str, size_bytes: int, needed_bytes: int, disk_free_bytes: int
) -> None:
    """Warn that a start moves the data of the private PostgreSQL to another major version, and what room that needs."""
    _record(
        "warning",
        "embedded_moves",
        folder=folder,
        from_major=from_major,
        to_version=to_version,
        size_bytes=size_bytes,
        needed_bytes=needed_bytes,
        disk_free_bytes=disk_free_bytes,
    )


def embedded_moved(*, folder: str, from_major: str) -> None:
    """Warn that the data of the private PostgreSQL are of another major version now, and the old folder is removed."""
    _record("warning", "embedded_moved", folder=folder, from_major=from_major)


def programs_not_kept(*, error: str) -> None:
    """Warn that PostgreSQL's programs could not be copied beside the data, where a later version may need them."""
    _record("warning", "programs_not_kept", error=error)


def embedded_stopped(*, seconds: float | None = None) -> None:
    """Log that the private PostgreSQL is down."""
    _record("info", "embedded_stopped", seconds=seconds)


def durability_warning(*, setting: str, value: str) -> None:
    """Warn of a server setting with which a receipt may not outlive a crash."""
    _record("warning", "durability_warning", setting=setting, value=value)


def disk_full(*, error: str) -> None:
    """Log that the database has no room left on its disk."""
    _record_seldom("error", "disk_full", error, error=error)


def old_primary(*, address: str, timeline: int, newest: int) -> None:
    """Log a database server that takes writes on an older timeline than one seen before; it is not used."""
    _record_seldom("error", "old_primary", address, address=address, timeline=timeline, newest=newest)


def timeline_not_saved(*, path: str, error: str) -> None:
    """Log that the database's newest timeline is not on the disk: the next start may take an old primary."""
    _record("error", "timeline_not_saved", path=path, error=error)


def address_not_saved(*, path: str, error: str) -> None:
    """Warn that the file with this server's URL could not be written: commands on this machine need ``--url``."""
    _record("warning", "address_not_saved", path=path, error=error)


def history_not_saved(*, path: str, error: str) -> None:
    """Log that what was seen of the database's history is not on the disk: the next start may not see it go back."""
    _record("error", "history_not_saved", path=path, error=error)


def history_failed(*, reason: str) -> None:
    """Warn that the database's history could not be compared; the next heartbeat does."""
    _record("warning", "history_failed", reason=reason)


def database_went_back(*, reason: str, receipts: int, missing: int, conversation_ids: list[str]) -> None:
    """Log that the database is in an earlier state, and how many of ``receipts`` it does not know any more."""
    _record(
        "error",
        "database_went_back",
        reason=reason,
        receipts=receipts,
        missing=missing,
        conversation_ids=conversation_ids,
    )


def receipts_missing(*, conversation_ids: list[str]) -> None:
    """Log conversations that this process acknowledged and that the database does not know."""
    _record("error", "receipts_missing", conversation_ids=conversation_ids)


def log_mismatch(*, conversation_id: str) -> None:
    """Log that a stored log is not the one that was acknowledged; nobody gets it."""
    _record("error", "log_mismatch", conversation_id=conversation_id)


def log_not_found(*, seq: int, storage_ref: str) -> None:
    """Log that an object of logs does not hold a log as it was put there, or is not there; nobody gets that log."""
    _record("error", "log_not_found", seq=seq, storage_ref=storage_ref)


def logs_packed(*, into: str, logs: int, bytes: int) -> None:  # noqa: A002  (the field's name)
    """Log that so many logs have moved into an object."""
    _record("info", "logs_packed", into=into, logs=logs, bytes=bytes)


def object_rewritten(*, old: str, into: str, logs: int, left_out: int) -> None:
    """Log that an object of logs was written anew without those that were erased."""
    _record("info", "object_rewritten", old=old, into=into, logs=logs, left_out=left_out)


def objects_swept(*, abandoned: int, unknown: int) -> None:
    """Log that objects will be deleted to which nothing refers: a process died, or an older backup was restored."""
    _record("warning", "objects_swept", abandoned=abandoned, unknown=unknown)


def logs_waiting(*, what: str, reason: str) -> None:
    """Log that something of the logs in object storage cannot be done now, and is tried again."""
    _record_seldom("warning", "logs_waiting", what, what=what, reason=reason)


def logs_behind(*, seconds: float, oldest_seconds: float, local_bytes: int, busy_seconds: float, reason: str) -> None:
    """Log that logs have not moved for longer than ``logs.behind_seconds``.

    ``busy_seconds`` is the longest wait for an idle moment in the last try.
    """
    fields = {"seconds": seconds, "oldest_seconds": oldest_seconds, "local_bytes": local_bytes}
    _record_seldom("error", "logs_behind", "", **fields, busy_seconds=busy_seconds, reason=reason)


def logs_caught_up() -> None:
    """Log that logs move again."""
    _record("info", "logs_caught_up")


def erased(*, kind: str, hmac: str, rows: int) -> None:
    """Log that a conversation or a user was erased, with how many rows went."""
    _record("info", "erased", kind=kind, hmac=hmac, rows=rows)


def erased_again(*, conversations: int, users: int, memories: int) -> None:
    """Log what was stored again although it was erased, as after a restore, and is erased again."""
    _record("warning", "erased_again", conversations=conversations, users=users, memories=memories)


def erasures_not_kept(*, path: str, reason: str) -> None:
    """Log that the list of erasures in the data folder is not whole: a restore on this host would need another one."""
    _record_seldom("error", "erasures_not_kept", reason, path=path, reason=reason)


def erasures_not_finished(*, reason: str) -> None:
    """Warn that the list of erasures could not be followed, or what it names not erased, now; it is tried again."""
    _record_seldom("warning", "erasures_not_finished", reason, reason=reason)


def untold_failed(*, service: str, reason: str) -> None:
    """Warn that a service has not confirmed a deletion; it is told again."""
    _record_seldom("warning", "untold_failed", service, service=service, reason=reason)


def audit_rows_kept(*, rows: int, reason: str) -> None:
    """Warn that rows of the audit log could not be stored now; they wait for the next try."""
    _record_seldom("warning", "audit_rows_kept", reason, rows=rows, reason=reason)


def audit_rows_lost(*, rows: int) -> None:
    """Log that a process ended before so many rows of the audit log were known to be stored."""
    _record("error", "audit_rows_lost", rows=rows)


def slow_query(*, name: str, seconds: float) -> None:
    """Warn of a unit of database work over its threshold."""
    _record("warning", "slow_query", name=name, seconds=seconds)


# --- requests


def request_failed(*, route: str, method: str, error: BaseException, conversation_id: str | None = None) -> None:
    """Log an exception that no one foresaw and that ended one request, with its traceback."""
    _record("error", "request_failed", route=route, method=method, conversation_id=conversation_id, exc_info=error)


def slow_request(*, route: str, method: str, status: int, seconds: float) -> None:
    """Warn of a request over its threshold."""
    _record("warning", "slow_request", route=route, method=method, status=status, seconds=seconds)


request_key: ContextVar[str | None] = ContextVar("request_key", default=None)
"""The id of the key that the present request has shown and that is valid: a claimed one must not be in the log."""


def request_answered(  # noqa: PLR0913  (what the access log names)
    *, route: str, method: str, status: int, seconds: float, peer: str, key_id: str | None = None
) -> None:
    """Log one answer; the access log, off by default.

    ``route`` is a route's pattern and ``method`` one of those known: what else the client sent may be anybody's words.
    """
    fields = {"route": route, "method": method, "status": status, "seconds": seconds, "peer": peer, "key_id": key_id}
    _record("info", "request_answered", **fields)


# --- connections


def connection_failed(*, error: BaseException, suppressed: int = 0) -> None:
    """Log an exception that no one foresaw and that ended one connection; ``suppressed`` more since the last line."""
    _record("error", "connection_failed", suppressed=suppressed, exc_info=error)


def connections_full(*, peer: str, connections: int, suppressed: int = 0) -> None:
    """Warn that a connection was turned away: there are as many as there may be, in all or from its address."""
    _record("warning", "connections_full", peer=peer, connections=connections, suppressed=suppressed)


def accept_slowed(*, reason: str, suppressed: int = 0) -> None:
    """Log that new connections wait in the kernel's queue because the system gives us no more of them."""
    _record("error", "accept_slowed", reason=reason, suppressed=suppressed)


def connections_capped(*, wanted: int, possible: int) -> None:
    """Warn that the system allows fewer open files than ``connection.connections_max`` asks for."""
    _record("warning", "connections_capped", wanted=wanted, possible=possible)


def caller_refused(*, code: str, reason: str) -> None:
    """Log that a request came by a foreign name or for a page of another site; ``reason`` says what to set."""
    _record_seldom("warning", "caller_refused", code, code=code, reason=reason)


def certificate_reloaded(*, certfile: str, sha256: str) -> None:
    """Log that new connections have the certificate with this fingerprint."""
    _record("info", "certificate_reloaded", certfile=certfile, sha256=sha256)


def certificate_kept(*, reason: str) -> None:
    """Log that the certificate could not be read again: new connections still have the one before."""
    _record("error", "certificate_kept", reason=reason)


# --- intake


def accepted(*, conversation_id: str, turns: int) -> None:
    """Log that a conversation is safe."""
    _record("debug", "accepted", conversation_id=conversation_id, turns=turns)


def replayed(*, conversation_id: str) -> None:
    """Log that the same content came again under its id."""
    _record("debug", "replayed", conversation_id=conversation_id)


def conflict(*, conversation_id: str) -> None:
    """Log that other content came under an id that is taken."""
    _record("info", "conflict", conversation_id=conversation_id)


def batch_committed(*, rows: int, bytes_: int, seconds: float) -> None:
    """Log one transaction of the committer."""
    _record("debug", "batch_committed", rows=rows, bytes=bytes_, seconds=seconds)


def batch_split(*, rows: int, sqlstate: str) -> None:
    """Warn that the database refused a batch, which is now halved to find the row."""
    _record("warning", "batch_split", rows=rows, sqlstate=sqlstate)


def batch_failed(*, rows: int, error: str) -> None:
    """Log that a batch was not committed and its waiters were refused."""
    _record_seldom("error", "batch_failed", error, rows=rows, error=error)


def accepts_failing(*, seconds: float, error: str) -> None:
    """Log that no batch was stored for so long, and what the last one failed with."""
    _record_seldom("error", "accepts_failing", error, seconds=seconds, error=error)


def accepts_returned(*, seconds: float) -> None:
    """Log that a batch is stored again, so long after the first that was not."""
    _record("info", "accepts_returned", seconds=seconds)


# --- remote dependencies


def breaker_opened(*, dependency: str, reason: str, seconds: float) -> None:
    """Log that a dependency is down, and for how long it is not called."""
    _record("error", "breaker_opened", dependency=dependency, reason=reason, seconds=seconds)


def breaker_closed(*, dependency: str) -> None:
    """Log that a dependency is back."""
    _record("warning", "breaker_closed", dependency=dependency)


def misconfigured(*, dependency: str, reason: str) -> None:
    """Log that the settings of a dependency are wrong: it refuses every call, or none can be made."""
    _record("error", "misconfigured", dependency=dependency, reason=reason)


def configured(*, dependency: str) -> None:
    """Log that a dependency whose settings were wrong takes calls."""
    _record("warning", "configured", dependency=dependency)


def budget_spent(*, dependency: str, budget: float, spent: float, day: str) -> None:
    """Log that the budget of the day is spent: no model is called until the next day, or until it is raised."""
    _record("error", "budget_spent", dependency=dependency, budget=budget, spent=spent, day=day)


def budget_free(*, dependency: str, budget: float) -> None:
    """Log that models are called again: a new day has begun."""
    _record("warning", "budget_free", dependency=dependency, budget=budget)


def costs_not_stored(*, rows: int, reason: str) -> None:
    """Log that what calls cost could not be stored yet, and how many rows wait for that."""
    _record("warning", "costs_not_stored", rows=rows, reason=reason)


def day_sum_not_read(*, reason: str) -> None:
    """Log that what was spent today could not be read: the last sum stands."""
    _record("warning", "day_sum_not_read", reason=reason)


# --- jobs


def jobs_leased(*, jobs: int, seconds: float | None = None) -> None:
    """Log one lease statement that found something."""
    _record("debug", "jobs_leased", jobs=jobs, seconds=seconds)


def part_done(*, conversation_id: str, part: str, by: str, seconds: float) -> None:
    """Log that one part is stored, and who made it."""
    _record("debug", "part_done", conversation_id=conversation_id, part=part, by=by, seconds=seconds)


def part_failed(*, conversation_id: str, part: str, attempt: int, reason: str) -> None:
    """Warn that one part was not found at this attempt."""
    _record("warning", "part_failed", conversation_id=conversation_id, part=part, attempt=attempt, reason=reason)


def part_job_done(*, conversation_id: str, part: str, by: str) -> None:
    """Log that a part was found after its conversation was done."""
    _record("debug", "part_job_done", conversation_id=conversation_id, part=part, by=by)


def part_job_failed(*, conversation_id: str, part: str, attempt: int, reason: str, last: bool) -> None:
    """Warn that a part was not found by itself either, and whether it is tried again."""
    fields = {"part": part, "attempt": attempt, "reason": reason, "last": last}
    _record("warning", "part_job_failed", conversation_id=conversation_id, **fields)


def part_jobs_given_up(*, count: int, seconds: float) -> None:
    """Warn that parts are failed which nobody has taken for ``seconds``: no process has what they need."""
    _record("warning", "part_jobs_given_up", count=count, seconds=seconds)


def part_jobs_failed(*, reason: str) -> None:
    """Warn that parts that are found by themselves could not be taken or stored."""
    _record("warning", "part_jobs_failed", reason=reason)


def rerun_failed(*, part: str, reason: str) -> None:
    """Warn that conversations of a re-run could not be taken, stored or given back."""
    _record("warning", "rerun_failed", part=part, reason=reason)


def part_found_again(*, part: str, by: str, points: int) -> None:
    """Log that one part of a conversation was found again, and by how much that has moved its score."""
    _record("info", "part_found_again", part=part, by=by, points=points)


def memory_list_failed(*, reason: str) -> None:
    """Warn that what the memory service has of a user could not be read: a part is uncertain."""
    _record("warning", "memory_list_failed", reason=reason)


def job_settled(*, conversation_id: str, score: float, **fields: object) -> None:
    """Log that a job is done and its score counted."""
    _record("debug", "job_settled", conversation_id=conversation_id, score=score, **fields)


def job_failed(*, conversation_id: str, attempt: int, reason: str, again_in_seconds: float | None = None) -> None:
    """Warn that an attempt was spent, and when the next one is due."""
    _record(
        "warning",
        "job_failed",
        conversation_id=conversation_id,
        attempt=attempt,
        reason=reason,
        again_in_seconds=again_in_seconds,
    )


def job_crashed(*, conversation_id: str, error: BaseException) -> None:
    """Log an exception that no one foresaw and that ended one job, with its traceback."""
    _record("error", "job_crashed", conversation_id=conversation_id, exc_info=error)


def job_buried(*, conversation_id: str, attempts: int, reason: str) -> None:
    """Log that a job is a dead letter now."""
    _record("error", "job_buried", conversation_id=conversation_id, attempts=attempts, reason=reason)


def job_parked(*, conversation_id: str, waits_for: str, reason: str) -> None:
    """Log that a job waits for a dependency that is out, its attempts as they were."""
    _record("info", "job_parked", conversation_id=conversation_id, waits_for=waits_for, reason=reason)


def attempts_given_back(*, dependency: str, jobs: int, revived: int) -> None:
    """Warn that jobs have attempts back which they spent on a fault of a dependency, and how many were dead letters."""
    _record("warning", "attempts_given_back", dependency=dependency, jobs=jobs, revived=revived)


def job_given_up(*, seq: int, reason: str) -> None:
    """Log that a job is a dead letter for what happened around it: it is poison, or a dependency never came back."""
    _record("error", "job_given_up", seq=seq, reason=reason)


def job_released(*, conversation_id: str, reason: str) -> None:
    """Log that a job was given back with its attempt."""
    _record("info", "job_released", conversation_id=conversation_id, reason=reason)


def job_retried(*, conversation_id: str) -> None:
    """Log that a dead letter was revived."""
    _record("info", "job_retried", conversation_id=conversation_id)


def jobs_retried(*, jobs: int) -> None:
    """Log that a batch of dead letters was revived."""
    _record("info", "jobs_retried", jobs=jobs)


def lease_lost(*, conversation_id: str, reason: str) -> None:
    """Warn that a worker stopped because its lease is another's or has ended."""
    _record("warning", "lease_lost", conversation_id=conversation_id, reason=reason)


def lease_rescued(*, count: int) -> None:
    """Warn that leases were taken back from holders that are gone."""
    _record("warning", "lease_rescued", count=count)


def renewal_failed(*, leases: int, reason: str) -> None:
    """Log that a heartbeat could not renew; the leases stand until their time."""
    _record_seldom("warning", "renewal_failed", reason, leases=leases, reason=reason)


def lease_failed(*, reason: str) -> None:
    """Log that no jobs could be leased now; the publisher tries again at its next poll."""
    _record_seldom("warning", "lease_failed", reason, reason=reason)


def bell_failed(*, reason: str) -> None:
    """Log that other processes could not be woken, or not be listened to; polls find the jobs meanwhile."""
    _record_seldom("info", "bell_failed", reason, reason=reason)


def ending_failed(*, conversation_id: str, reason: str) -> None:
    """Log that an ending could not be stored; the end of the lease makes the job ready again."""
    _record_seldom("warning", "ending_failed", reason, conversation_id=conversation_id, reason=reason)


def watch_failed(*, reason: str) -> None:
    """Log that endings in other processes could not be looked for now."""
    _record_seldom("warning", "watch_failed", reason, reason=reason)


def sample_failed(*, reason: str) -> None:
    """Log that the gauges of jobs could not be read now."""
    _record("warning", "sample_failed", reason=reason)


def figures_failed(*, reason: str) -> None:
    """Log that the figures of all processes could not be read now; those of this one are shown alone."""
    _record_seldom("warning", "figures_failed", reason, reason=reason)


def prepare_failed(*, database: str, reason: str, again_every_seconds: float) -> None:
    """Log that the database is not there yet at the start; it is tried again."""
    fields = {"database": database, "reason": reason, "again_every_seconds": again_every_seconds}
    _record_seldom("warning", "prepare_failed", reason, **fields)


def own_leases_released(*, count: int) -> None:
    """Log how many jobs of this process, or of an earlier start on its folder, were given back."""
    _record("info", "own_leases_released", count=count)


def folder_copied(*, process: str, other: str) -> None:
    """Log that the living process ``other`` has the folder id of this one: a data folder was copied."""
    _record("error", "folder_copied", process=process, other=other)


def process_declared_dead(*, process: str) -> None:
    """Log that a process was not seen for so long that its jobs count a crash."""
    _record("warning", "process_declared_dead", process=process)


def process_came_back(*, process: str, crashes: int) -> None:
    """Log that this process had counted as dead, and how many crashes of jobs it gave back."""
    _record("warning", "process_came_back", process=process, crashes=crashes)


def ledger_gap(*, day: str, what: str, booked: int, found: int) -> None:
    """Log a figure of one day that is not what the ledger has booked."""
    _record("error", "ledger_gap", day=day, what=what, booked=booked, found=found)


def books_failed(*, reason: str) -> None:
    """Log that the tables could not be compared with the ledger now."""
    _record("warning", "books_failed", reason=reason)


def keys_failed(*, reason: str) -> None:
    """Log that the keys could not be read now; those read before stay good for a while."""
    _record_seldom("warning", "keys_failed", reason, reason=reason)


def keys_too_old(*, reason: str) -> None:
    """Log that the keys were not read for so long that none is accepted any more."""
    _record_seldom("error", "keys_too_old", reason, reason=reason)


def key_use_not_noted(*, reason: str) -> None:
    """Log that the last use of keys could not be noted; it is noted with the next one."""
    _record_seldom("info", "key_use_not_noted", reason, reason=reason)


def connections_warning(*, connections: int, max_connections: int) -> None:
    """Log that all living processes together may open more connections than the database takes."""
    _record("warning", "connections_warning", connections=connections, max_connections=max_connections)


def llm_form_learnt(*, form: str, again_in_seconds: float) -> None:
    """Log what the model's server takes, when that is news, and when one call tries again what it refused."""
    _record("warning", "llm_form_learnt", form=form, again_in_seconds=again_in_seconds)


def part_refused(*, conversation_id: str, part: str, reason: str) -> None:
    """Log that an analyst refuses a conversation, for ever: its part ends without a finding."""
    _record_seldom("warning", "part_refused", part, conversation_id=conversation_id, part=part, reason=reason)


def certificates_unchecked(*, section: str) -> None:
    """Log at the start that the certificates of a service are not checked, because the setting ``verify`` is false."""
    _record("warning", "certificates_unchecked", section=section)


# --- alerts


def alert(*, change: str, type_: str, component: str, severity: str, **fields: object) -> None:
    """Log an alert that began, lasts or ended."""
    level = "info" if change in ("acknowledged", "resolved", "test") else "error"
    _record(level, "alert", change=change, type=type_, component=component, severity=severity, **fields)


def alert_dropped(*, sink: str, type_: str, change: str, reason: str) -> None:
    """Log that a sink did not get an alert, and why."""
    _record("warning", "alert_dropped", sink=sink, type=type_, change=change, reason=reason)


def people_notified(*, type_: str, component: str, step: int, people: list[str]) -> None:
    """Log who of the rotation is notified of an alert; ``step`` is 0 at first, and more the further it goes."""
    _record("info", "people_notified", type=type_, component=component, step=step, people=people)


def alerts_not_stored(*, reason: str) -> None:
    """Log that the database did not take which alerts last, so that acknowledgements count in this process alone."""
    _record_seldom("warning", "alerts_not_stored", reason, reason=reason)


def look_failed(*, reason: str) -> None:
    """Log that the database could not be asked for what alerts are made of."""
    _record_seldom("warning", "look_failed", reason, reason=reason)


def canary_returned(*, conversation_id: str, seconds: float) -> None:
    """Log that a canary came through the whole way."""
    _record("debug", "canary_returned", conversation_id=conversation_id, seconds=seconds)


def canary_missing(*, conversation_id: str, seconds: float, reason: str) -> None:
    """Log that a canary did not come through in time."""
    _record("error", "canary_missing", conversation_id=conversation_id, seconds=seconds, reason=reason)


def settings_disagree(*, reason: str) -> None:
    """Log that this process has other settings than a process that takes jobs; ``reason`` names them."""
    _record("error", "settings_disagree", reason=reason)


def settings_agree() -> None:
    """Log that the settings which differed are the same now, or that the other process is gone."""
    _record("info", "settings_agree")


def comparison_failed(*, reason: str) -> None:
    """Log that the settings of the processes could not be compared."""
    _record_seldom("warning", "comparison_failed", reason, reason=reason)


def canary_not_erased(*, reason: str) -> None:
    """Log that canaries which came through could not be erased now."""
    _record("warning", "canary_not_erased", reason=reason)


def retired(*, seconds: float, **counts: int) -> None:
    """Log what one pass of retention removed, by kind."""
    _record("info", "retired", seconds=seconds, **counts)


def month_dropped(*, month: str, rows: int, seconds: float) -> None:
    """Log that a month of logs or of runs went as a whole; who read or wrote the table waited for so long at most."""
    _record("info", "month_dropped", month=month, rows=rows, seconds=seconds)


def month_begun(*, number: int) -> None:
    """Log that the next month's partition is in use from now on."""
    _record("info", "month_begun", number=number)


def months_failed(*, reason: str) -> None:
    """Log that the next months could not be prepared now: what is received goes on in the partition of the day."""
    _record_seldom("warning", "months_failed", reason, reason=reason)


def job_room_given_back(*, bytes_before: int, bytes_now: int, seconds: float) -> None:
    """Log that the indexes of jobs were rebuilt after a backlog; accepts waited for so long at most."""
    _record("info", "job_room_given_back", bytes_before=bytes_before, bytes_now=bytes_now, seconds=seconds)


def job_room_failed(*, reason: str) -> None:
    """Log that the room of jobs could not be given back now: they keep what their largest backlog took."""
    _record_seldom("warning", "job_room_failed", reason, reason=reason)


def tenant_indexes_made(*, seconds: float) -> None:
    """Log that the lists of the tenant default have indexes of their own, because there are several tenants."""
    _record("info", "tenant_indexes_made", seconds=seconds)


def tenant_indexes_failed(*, reason: str) -> None:
    """Log that these indexes could not be looked for or made now: the lists go on walking over other tenants' rows."""
    _record_seldom("warning", "tenant_indexes_failed", reason, reason=reason)


def retention_failed(*, reason: str) -> None:
    """Log that what is over could not be looked for or removed now."""
    _record_seldom("warning", "retention_failed", reason, reason=reason)


def retention_waits(*, reason: str) -> None:
    """Log that nothing is removed yet: an older program is at work on the database, or a month cannot be locked."""
    _record_seldom("warning", "retention_waits", reason, reason=reason)


def job_acknowledged(*, conversation_id: str) -> None:
    """Log that a dead letter was reviewed and stays dead."""
    _record("info", "job_acknowledged", conversation_id=conversation_id)


def events_waiting(*, what: str, reason: str) -> None:
    """Log that events wait: to be numbered, delivered, published or removed, as ``what`` names it."""
    _record_seldom("warning", "events_waiting", what, what=what, reason=reason)


def spans_waiting(*, spans: int, reason: str) -> None:
    """Log that the collector takes no spans, how many wait, and why."""
    _record_seldom("warning", "spans_waiting", "", spans=spans, reason=reason)


def spans_dropped(*, spans: int, reason: str) -> None:
    """Log that spans were dropped: too many waited, or the collector failed or refused them."""
    _record_seldom("warning", "spans_dropped", reason, spans=spans, reason=reason)


def otel_records_waiting(*, records: int, reason: str) -> None:
    """Log that the collector takes no log records, how many wait, and why."""
    _record_seldom("warning", "otel_records_waiting", "", records=records, reason=reason)


def otel_records_dropped(*, records: int, reason: str) -> None:
    """Log that log records were not sent: too many waited, or the collector failed or refused them."""
    _record_seldom("warning", "otel_records_dropped", reason, records=records, reason=reason)


def intake_waiting(*, queue: str, reason: str) -> None:
    """Log that messages of a queue wait: they cannot be taken now, or not be stored."""
    _record_seldom("warning", "intake_waiting", queue, queue=queue, reason=reason)


def message_refused(*, queue: str, code: str, conversation_id: str | None) -> None:
    """Log that a message of a queue was refused for good, and put aside with its problem."""
    _record("warning", "message_refused", queue=queue, code=code, conversation_id=conversation_id)


def events_expiring(*, receiver: str, at: str) -> None:
    """Log that a receiver has not confirmed an event that is removed soon; ``at`` is when that event happened."""
    _record("error", "events_expiring", receiver=receiver, at=at)


def webhook_active(*, webhook_id: str) -> None:
    """Log that an endpoint has answered its ping, and gets events from now on."""
    _record("info", "webhook_active", webhook_id=webhook_id)


def webhook_off(*, webhook_id: str, reason: str) -> None:
    """Log that an endpoint was switched off, because it failed for too long."""
    _record("error", "webhook_off", webhook_id=webhook_id, reason=reason)


def webhook_failing(*, webhook_id: str, reason: str) -> None:
    """Log that an attempt to deliver to an endpoint failed."""
    _record_seldom("warning", "webhook_failing", webhook_id, webhook_id=webhook_id, reason=reason)


def event_set_aside(*, webhook_id: str, event_id: str, reason: str) -> None:
    """Log that an event could not be delivered for ``events.hold_seconds``, and is tried apart from the others."""
    _record("warning", "event_set_aside", webhook_id=webhook_id, event_id=event_id, reason=reason)


def event_given_up(*, webhook_id: str, event_id: str) -> None:
    """Log that an event is not delivered to an endpoint: it failed for too long. It can be sent again by hand."""
    _record("error", "event_given_up", webhook_id=webhook_id, event_id=event_id)
