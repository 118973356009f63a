"""Every call to a remote dependency goes through here: retry, breaker, hold, bulkhead and deadline, from outside in.

An attempt is any coroutine function that fails with one of our errors. An error with ``outage`` is the dependency's
fault and counts for the breaker; any other is the call's own fault, unless it is the same for all
(``resilience.systemic``). A timeout is the call's fault when another call succeeded meanwhile, else the dependency's.
"""

from __future__ import annotations

import math
import random as dice
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from convo.dependencies import row_name
from convo.errors import (
    ConvoError,
    DeadlineExceeded,
    RemoteBusy,
    RemoteDenied,
    RemoteDown,
    RemoteError,
    RemotePending,
    RemoteTimeout,
    RemoteUnavailable,
    RemoteWithheld,
)
from convo.observe import log_records, metrics, tracing
from convo.resilience.breaker import Breaker, Permit, Rules, State
from convo.resilience.budget import RetryBudget
from convo.resilience.retry import retrying
from convo.resilience.systemic import FailedWay, SpentAttempt, SystemicFaults
from convo.runtime.deadline import deadline, ends_at
from convo.settings import ATTEMPTS_BEFORE_ANOTHER, CallSettings

T = TypeVar("T")


class JobDependency(Protocol):
    """What jobs wait for, as those see it who decide which jobs start and whose fault a failure is.

    A ``Dependency`` is one, and so are several in a row (``resilience.chain``).
    """

    @property
    def name(self) -> str:
        """The value of ``waits_for``."""

    def flows(self) -> bool: ...  # noqa: D102  (all as ``Dependency`` says)
    def described(self) -> str: ...  # noqa: D102
    def wants_probe(self) -> bool: ...  # noqa: D102
    def probe_sent(self) -> None: ...  # noqa: D102
    def is_at_fault(self, error: RemoteError, job: int) -> bool: ...  # noqa: D102
    def note_spent(self, error: RemoteError, job: int, attempt: SpentAttempt) -> None: ...  # noqa: D102
    def take_owed(self) -> dict[int, int]: ...  # noqa: D102
    def owe_again(self, owed: dict[int, int]) -> None: ...  # noqa: D102
    def forget_jobs(self) -> None: ...  # noqa: D102


AnswerSeen = tuple[int, str]
"""The status and the first words of an answer."""


class Dependency:
    """One for each dependency and process; every caller of it goes through ``call``.

    The bulkhead also keeps an HTTP client alive: a call that is cancelled while it waits for a connection costs httpx a
    slot of its pool. So calls wait in the bulkhead, and ``concurrency`` must not exceed the client's connections.
    """

    def __init__(
        self,
        name: str,
        settings: CallSettings,
        *,
        random: Callable[[], float] = dice.random,
        answer_seen: Callable[[], AnswerSeen | None] = lambda: None,
    ) -> None:
        """Make the one called ``name``; ``answer_seen`` returns what the running attempt was answered, if anything."""
        self._name = name
        # Its waits are named by its kind: a fallback's are those of the model.
        self._waits = row_name(name)
        self._settings = settings
        self._random = random
        self._breaker = Breaker(
            Rules(
                failures=settings.breaker_failures,
                calls=settings.breaker_calls,
                open_seconds=settings.breaker_open_seconds,
            )
        )
        self._budget = RetryBudget(settings.retries_ratio, settings.retries_floor)
        self._slots = trio.CapacityLimiter(settings.concurrency)
        self._held_until = -math.inf
        self._succeeded_at = -math.inf
        self._probe_sent_at = -math.inf
        self._misconfigured = ""
        self._answer_seen = answer_seen
        self.withheld: Callable[[], str] = str
        """Returns why no call is made though it may be up, for a reason of our own; empty where there is none."""
        self.systemic = SystemicFaults(settings.breaker_jobs)
        """Which calls fail for all jobs alike."""
        metrics.breaker_open.labels(name).set_function(lambda: self._breaker.probe_at is not None)

    @property
    def name(self) -> str:
        """What it is called: its section of the settings, or ``llm.NAME`` for a fallback."""
        return self._name

    # --- for those who decide whether to call it

    def state(self) -> State:
        """Return the state of the breaker."""
        return self._breaker.state(trio.current_time())

    def flows(self) -> bool:
        """Return whether work that waits for it can go on: it is neither down, nor did it ask for a pause."""
        return self.state() == "closed" and self._held_until <= trio.current_time() and not self.withheld()

    def described(self) -> str:
        """Return one sentence on how this process calls it at present."""
        return (
            f"{self._standing()}; its settings are wrong: {self._misconfigured}"
            if self._misconfigured
            else self._standing()
        )

    def _standing(self) -> str:
        now = trio.current_time()
        if withheld := self.withheld():
            return f"{self.name}: {withheld}"
        if self._breaker.probe_at is not None:
            left = self._breaker.probe_at - now
            next_probe = f"the next probe is due in {left:.0f} s" if left > 0 else "a probe is due"
            told = f" ({self.systemic.told})" if self.systemic.lasts() else ""
            return f"{self.name}: its breaker is {self.state()} in this process, {next_probe}{told}"
        if self._held_until > now:
            return f"{self.name}: it asked for a pause; {self._held_until - now:.0f} s of it are left"
        return f"{self.name}: it is called by this process as usual"

    def seconds_until_probe(self) -> float | None:
        """Return in how many seconds its breaker lets a call through again; None while it is closed."""
        probe_at = self._breaker.probe_at
        return None if probe_at is None else max(0.0, probe_at - trio.current_time())

    def wants_probe(self) -> bool:
        """Return whether one piece of work should find out if the dependency is back."""
        now = trio.current_time()
        if self.withheld():
            return False
        if self._breaker.state(now) != "half-open" or not self._breaker.lets_through(now) or self._held_until > now:
            return False
        # One that was sent may still be on its way, or have ended for a reason of its own: send another after a while.
        return now >= self._probe_sent_at + self._settings.attempt_seconds

    def probe_sent(self) -> None:
        """Note that a piece of work is on the way to find out."""
        self._probe_sent_at = trio.current_time()

    # --- how busy it is

    @property
    def concurrency(self) -> int:
        """How many of its calls may be under way in this process at a time."""
        return self._settings.concurrency

    @property
    def in_flight(self) -> int:
        """How many of its calls are under way in this process."""
        return self._slots.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many calls wait for a place among those under way."""
        return self._slots.statistics().tasks_waiting

    # --- its settings

    @property
    def misconfigured(self) -> str:
        """What is wrong with its settings, as far as this process knows; empty for nothing."""
        return self._misconfigured

    def note_misconfigured(self, reason: str) -> None:
        """Note that its settings are wrong: every call fails until one succeeds. The first ``reason`` stands."""
        if not self._misconfigured:
            self._misconfigured = reason
            log_records.misconfigured(dependency=self.name, reason=reason)

    def note_configured(self) -> None:
        """Note that a call succeeded: its settings are right."""
        if self._misconfigured:
            log_records.configured(dependency=self.name)
        self._misconfigured = ""

    # --- a job that failed

    def is_at_fault(self, error: RemoteError, job: int) -> bool:
        """Note that ``job`` failed with ``error``; return whether the dependency is at fault, and not the job.

        The error is an outage from then on. The breaker opens when this job is the one that shows it.
        """
        out = self._breaker.probe_at is not None
        if not error.wait:
            return error.outage
        if error.outage and not error.systemic:
            if out:
                self.systemic.owe_all(error.wait)
            return True
        lasted = self.systemic.lasts(error.wait)
        if not self.systemic.failed(error.wait, job, _way(error), in_outage=out):
            return False
        error.outage = error.systemic = True
        if not lasted:
            self._breaker.open(trio.current_time())
            log_records.breaker_opened(
                dependency=self.name, reason=self.systemic.told, seconds=self._settings.breaker_open_seconds
            )
        return True

    def note_spent(self, error: RemoteError, job: int, attempt: SpentAttempt) -> None:
        """Note that ``job`` spent an attempt on ``error``, where the job was at fault."""
        if not error.outage:
            self.systemic.spent(error.wait, job, attempt)

    def take_owed(self) -> dict[int, int]:
        """As ``SystemicFaults.take_owed``."""
        return self.systemic.take_owed()

    def owe_again(self, owed: dict[int, int]) -> None:
        """As ``SystemicFaults.owe_again``."""
        self.systemic.owe_again(owed)

    def forget_jobs(self) -> None:
        """As ``SystemicFaults.forget``."""
        self.systemic.forget()

    # --- a call

    def has_time(self) -> bool:
        """Return whether an attempt that begins now has its whole time before the caller's own deadline."""
        return trio.current_time() <= self._last_start()

    async def call(self, wait: str, attempt: Callable[[], Awaitable[T]], *, elsewhere: bool = False) -> T:
        """Make ``attempt`` under the deadline named ``wait``, again where that can help.

        ``elsewhere``: another server can be asked instead. Then a pause is not waited for, and fewer attempts are made.

        Raises:
            RemoteError: the last attempt failed, or none was begun: the breaker is open, or no slot became free while
                there was time left for a whole attempt.
        """
        attempts, paused = self._settings.attempts, False

        async def once() -> T:
            nonlocal paused
            try:
                return await self._once(wait, attempt, elsewhere=elsewhere)
            except RemoteBusy:
                paused = True
                raise

        def may_retry() -> bool:
            return not (elsewhere and paused) and self._may_retry()

        self._budget.note_call(trio.current_time())
        return await retrying(
            once,
            attempts=min(attempts, ATTEMPTS_BEFORE_ANOTHER) if elsewhere else attempts,
            backoff_seconds=self._settings.backoff_seconds,
            backoff_max_seconds=self._settings.backoff_max_seconds,
            may_retry=may_retry,
            attempt_seconds=self._settings.attempt_seconds,
            random=self._random,
        )

    def _may_retry(self) -> bool:
        now = trio.current_time()
        allowed = self._breaker.lets_through(now) and self._budget.spend(now)
        metrics.retries_total.labels(self.name, "made" if allowed else "refused").inc()
        return allowed

    async def _once(self, wait: str, attempt: Callable[[], Awaitable[T]], *, elsewhere: bool) -> T:
        if withheld := self.withheld():
            raise RemoteWithheld(self.name, withheld)
        self._refuse_if_down()
        await self._hold(elsewhere=elsewhere)
        async with self.slot():
            permit = self._breaker.admit(trio.current_time())
            if permit is None:  # it opened while this call waited
                raise self._down()
            with tracing.child_span(wait, "client", wait=wait) as span:
                if span is not None:
                    span.attributes["convo.dependency"] = self.name
                return await self._admitted(permit, wait, attempt)

    async def _admitted(self, permit: Permit, wait: str, attempt: Callable[[], Awaitable[T]]) -> T:
        started = trio.current_time()
        try:
            with deadline(wait, self._settings.attempt_seconds):
                found = await attempt()
        except DeadlineExceeded as error:
            raise self._failed(permit, wait, self._timeout(error, started)) from error
        except RemotePending:
            # It is up, and what it will find is not known: that is no success of the call.
            self._is_up(permit)
            raise
        except RemoteError as error:
            raise self._failed(permit, wait, error) from error.__cause__
        except BaseException:
            self._breaker.dropped(permit)
            raise
        self.systemic.succeeded(wait)
        self._is_up(permit)
        return found

    def _is_up(self, permit: Permit) -> None:
        self._succeeded_at = trio.current_time()
        self.note_configured()
        metrics.remote_calls_total.labels(self.name, "ok").inc()
        if self.systemic.lasts():
            # Another of its calls still fails for all jobs: it is not back.
            self._breaker.dropped(permit)
        elif self._breaker.succeeded(permit):
            log_records.breaker_closed(dependency=self.name)

    def _failed(self, permit: Permit, wait: str, error: RemoteError) -> RemoteError:
        now = trio.current_time()
        error.wait = wait
        error.answer_status, error.answer_words = self._answer_seen() or (None, "")
        metrics.remote_calls_total.labels(self.name, error.code).inc()
        if isinstance(error, RemoteDenied):
            self.note_misconfigured(error.detail)
        asked = error.retry_after_seconds
        if asked is not None:
            self._held_until = max(self._held_until, now + asked)
        if not error.outage and self.systemic.lasts(wait):
            error.outage = error.systemic = True
        # A dependency that asks for a pause is up: it gets its pause, and the breaker stays closed.
        is_down = isinstance(error, RemoteTimeout) or (error.outage and asked is None)
        if not is_down:
            self._breaker.dropped(permit)
        elif self._breaker.failed(permit, now):
            log_records.breaker_opened(
                dependency=self.name, reason=error.detail, seconds=self._settings.breaker_open_seconds
            )
        return error

    def _timeout(self, error: DeadlineExceeded, started: float) -> RemoteError:
        return RemoteTimeout(self.name, error.detail, outage=self._succeeded_at < started)

    def _refuse_if_down(self) -> None:
        if not self._breaker.lets_through(trio.current_time()):
            raise self._down()

    def _down(self) -> RemoteDown:
        left = self.seconds_until_probe() or 0.0
        return RemoteDown(self.name, f"its breaker is open; the next probe is due in {left:.0f} s")

    async def _hold(self, *, elsewhere: bool) -> None:
        """Wait for the end of the pause that the dependency asked for, each caller a little longer by chance."""
        while (left := self._held_until - trio.current_time()) > 0:
            left += self._random() * min(left, 1.0)
            if elsewhere or trio.current_time() + left > self._last_start():
                raise RemoteBusy(self.name, f"it asked for a pause; {left:.1f} s of it are left")
            with deadline(f"{self._waits}.hold", math.inf):
                await trio.sleep(left)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places of the bulkhead.

        Raises:
            RemoteUnavailable: none became free while there was time left for a whole attempt.
        """
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_slot()
        try:
            yield
        finally:
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        try:
            with deadline(f"{self._waits}.bulkhead", self._last_start() - trio.current_time()):
                await self._slots.acquire()
        except DeadlineExceeded as error:
            raise RemoteUnavailable(
                self.name, f"no place became free among its {self._settings.concurrency} concurrent calls"
            ) from error

    def _last_start(self) -> float:
        """Return when an attempt must begin to have its whole time before the caller's own deadline."""
        return ends_at() - self._settings.attempt_seconds


def _way(error: RemoteError) -> FailedWay:
    if error.answer_status is None:
        return FailedWay(kind=error.code, told=error.detail)
    return FailedWay(
        kind=f"{error.code} {error.answer_status}",
        told=f"{error.detail}; it answered {error.answer_status}: {error.answer_words}",
    )


def is_outage(error: ConvoError) -> bool:
    """Return whether a failure is the dependency's fault, and not the work's own."""
    return isinstance(error, RemoteError) and error.outage
