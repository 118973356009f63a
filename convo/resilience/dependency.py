"""One remote dependency as all its callers together see it: whether it is up, and how its calls are bounded.

From outside in: retry, breaker, hold, bulkhead, deadline. It knows no transport: an attempt is any coroutine function
that fails with one of our errors.

What a failure says is the error's own word: ``outage`` speaks of the dependency and counts for the breaker, anything
else speaks of the call. A timeout speaks of the call when another call succeeded meanwhile, else of the dependency.
"""

from __future__ import annotations

import math
import random as dice
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from convo.config import RemoteSettings
from convo.deadline import deadline, ends_at
from convo.errors import (
    ConvoError,
    DeadlineExceeded,
    RemoteBusy,
    RemoteDown,
    RemoteError,
    RemoteTimeout,
    RemoteUnavailable,
)
from convo.observe import events, metrics
from convo.resilience.breaker import Breaker, Permit, Rules, State
from convo.resilience.budget import RetryBudget
from convo.resilience.retry import retrying

T = TypeVar("T")


class Dependency:
    """One for each dependency and process; every caller of it goes through ``call``.

    The bulkhead is also what keeps an HTTP client alive: calls that are cancelled while they wait for a connection
    cost httpx slots of its pool, so nobody waits there. ``concurrency`` must not exceed the client's connections.
    """

    def __init__(self, name: str, settings: RemoteSettings, *, random: Callable[[], float] = dice.random) -> None:
        self.name = name
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
        metrics.breaker_open.labels(name).set_function(lambda: self._breaker.probe_at is not None)

    # --- what those see who do not call it yet

    def state(self) -> State:
        """Tell how the breaker stands."""
        return self._breaker.state(trio.current_time())

    def flows(self) -> bool:
        """Tell whether work that waits for this dependency can go on: it is neither down nor asks to be left alone."""
        return self.state() == "closed" and self._held_until <= trio.current_time()

    def told(self) -> str:
        """Tell in a sentence how it stands in this process."""
        now = trio.current_time()
        if self._breaker.probe_at is not None:
            left = self._breaker.probe_at - now
            next_probe = f"the next probe is due in {left:.0f} s" if left > 0 else "a probe is due"
            return f"{self.name}: its breaker is {self.state()} in this process, {next_probe}"
        if self._held_until > now:
            return f"{self.name}: it asked to be left alone, for {self._held_until - now:.0f} s more"
        return f"{self.name}: it is called by this process as usual"

    def wants_probe(self) -> bool:
        """Tell whether one piece of work should find out if the dependency is back."""
        now = trio.current_time()
        if self._breaker.state(now) != "half-open" or not self._breaker.lets_through(now) or self._held_until > now:
            return False
        # One that was sent is on its way, or came to an end that said nothing; then there is another after a while.
        return now >= self._probe_sent_at + self._settings.attempt_seconds

    def probe_sent(self) -> None:
        """Note that somebody is on the way to find out."""
        self._probe_sent_at = trio.current_time()

    # --- a call

    async def call(self, wait: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make ``attempt`` under the deadline named ``wait``, again where that can help.

        Raises:
            RemoteError: the last attempt failed, or none was begun: the breaker is open, or no slot became free while
                there was time left for a whole attempt.
        """

        async def once() -> T:
            return await self._once(wait, attempt)

        self._budget.note_call(trio.current_time())
        return await retrying(
            once,
            attempts=self._settings.attempts,
            backoff_seconds=self._settings.backoff_seconds,
            backoff_max_seconds=self._settings.backoff_max_seconds,
            may_retry=self._may_retry,
            attempt_seconds=self._settings.attempt_seconds,
            random=self._random,
        )

    def _may_retry(self) -> bool:
        now = trio.current_time()
        allowed = self._breaker.lets_through(now) and self._budget.spend(now)
        metrics.retries_total.labels(self.name, "made" if allowed else "refused").inc()
        return allowed

    async def _once(self, wait: str, attempt: Callable[[], Awaitable[T]]) -> T:
        self._refuse_if_down()
        await self._hold()
        async with self.slot():
            permit = self._breaker.admit(trio.current_time())
            if permit is None:  # it opened while this call waited
                raise self._down()
            return await self._admitted(permit, wait, attempt)

    async def _admitted(self, permit: Permit, wait: str, attempt: Callable[[], Awaitable[T]]) -> T:
        started = trio.current_time()
        try:
            with deadline(wait, self._settings.attempt_seconds):
                found = await attempt()
        except DeadlineExceeded as error:
            raise self._failed(permit, self._timeout(error, started)) from error
        except RemoteError as error:
            raise self._failed(permit, error) from error.__cause__
        except BaseException:
            self._breaker.dropped(permit)
            raise
        self._succeeded_at = trio.current_time()
        metrics.remote_calls_total.labels(self.name, "ok").inc()
        if self._breaker.succeeded(permit):
            events.breaker_closed(dependency=self.name)
        return found

    def _failed(self, permit: Permit, error: RemoteError) -> RemoteError:
        now = trio.current_time()
        metrics.remote_calls_total.labels(self.name, error.code).inc()
        asked = error.retry_after_seconds
        if asked is not None:
            self._held_until = max(self._held_until, now + asked)
        # Whoever asks to be left alone for a while is up: holding back is the answer to that.
        is_down = isinstance(error, RemoteTimeout) or (error.outage and asked is None)
        if not is_down:
            self._breaker.dropped(permit)
        elif self._breaker.failed(permit, now):
            events.breaker_opened(
                dependency=self.name, reason=error.detail, seconds=self._settings.breaker_open_seconds
            )
        return error

    def _timeout(self, error: DeadlineExceeded, started: float) -> RemoteError:
        return RemoteTimeout(self.name, error.detail, outage=self._succeeded_at < started)

    def _refuse_if_down(self) -> None:
        if not self._breaker.lets_through(trio.current_time()):
            raise self._down()

    def _down(self) -> RemoteDown:
        probe_at = self._breaker.probe_at
        left = max(0.0, (probe_at or 0.0) - trio.current_time())
        return RemoteDown(self.name, f"its breaker is open; the next probe is due in {left:.0f} s")

    async def _hold(self) -> None:
        """Wait until the dependency wants to be called again, spread out a little; for all its callers alike."""
        while (left := self._held_until - trio.current_time()) > 0:
            left += self._random() * min(left, 1.0)
            if trio.current_time() + left > self._last_start():
                raise RemoteBusy(self.name, f"it asks to be left alone for {left:.1f} s more")
            with deadline(f"{self.name}.hold", math.inf):
                await trio.sleep(left)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places for calls side by side.

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
            with deadline(f"{self.name}.bulkhead", self._last_start() - trio.current_time()):
                await self._slots.acquire()
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, f"all {self._settings.concurrency} calls at a time are taken") from error

    def _last_start(self) -> float:
        """Return when an attempt must begin to have its whole time before the caller's own deadline."""
        return ends_at() - self._settings.attempt_seconds


def is_outage(error: ConvoError) -> bool:
    """Tell whether a failure is the dependency's, and none of the work's own."""
    return isinstance(error, RemoteError) and error.outage
