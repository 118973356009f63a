"""The loop watch: finds a pass of Trio's scheduler that took too long, with its cause and its stack; it stops nothing.

Two halves. The hooks run in the loop's thread, twice a pass (a hook for each step would cost a hundred times more),
and note when the pass began. The watchdog, a thread, wakes at the moment a pass is over the limit and takes the stack
while it is still held. A C function that keeps the interpreter's lock (``json.loads``) keeps the watchdog out, too. The
watchdog comes in as soon as that function has returned, while the frame that called it is still the innermost.

**Cause.** A pass may be long because the code in it is, because the garbage collector ran, or because the process did
not run: it was stopped (SIGSTOP), or its machine had no time for it. (This clock does not count a laptop's sleep.) The
collector is timed by its own callbacks. For how long a thread waited for a processor is counted by Linux (schedstat).
A process that was stopped shows in a watchdog that wakes too late though nothing used a processor meanwhile. Only what
remains is called the code's, and has a stack.
What a C extension sleeps without giving the lock back looks like a stopped process; nothing here can tell the two
apart.
"""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self

import trio
from msgspec import Struct

from convo.observe import log_records, metrics
from convo.runtime import stacks
from convo.runtime.scheduled import ThreadTimes

BlockCause = Literal["code", "collector", "suspended"]

_OLD = 2
# A loop that is held for ever would never be reported by a hook at the end of the pass.
_STUCK_SECONDS = 5.0


class LoopBlock(Struct, frozen=True, kw_only=True):
    """One pass over the limit; ``stack`` is ``file:line function`` from the innermost frame outwards.

    ``suspended_seconds`` are those in which the process did not run. A pass that is not over yet has the
    ``cause`` code.
    """

    seconds: float
    cause: BlockCause
    over: bool
    cpu_seconds: float
    collector_seconds: float
    suspended_seconds: float
    stack: tuple[str, ...] = ()
    task: str | None = None
    conversation_id: str | None = None

    @property
    def own_seconds(self) -> float:
        """What remains when the collector and the machine have had their part."""
        return self.seconds - self.collector_seconds - self.suspended_seconds


class _Sight(Struct, frozen=True):
    """What the watchdog saw of the pass that began at ``began``."""

    began: float
    stack: tuple[str, ...]
    task: str | None
    conversation_id: str | None


class _Mark(Struct, frozen=True):
    """The clocks of the loop's thread at one moment: its processor time, and how long it waited for one."""

    at: float
    cpu: float
    queued: float
    stopped: float


class LoopWatch(trio.abc.Instrument):
    """Watches the Trio run that it is an instrument of; enter it in the loop's own thread.

    ``report`` is called for each pass over ``limit_seconds``, in the loop's thread when it is over. When it seems never
    to end the watchdog calls it, once, before that.
    """

    def __init__(self, limit_seconds: float, report: Callable[[LoopBlock], None]) -> None:
        self._limit = limit_seconds
        self._report = report
        self._began = 0.0
        self._collected = 0.0
        self._collecting = 0.0
        self._stopped = 0.0
        self._due = self._slept_cpu = self._slept_queued = 0.0
        self._root: trio.lowlevel.Task | None = None
        self._sight: _Sight | None = None
        self._stuck = 0.0
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="loop watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread, self._due = threading.get_ident(), math.inf
        self._ours = ThreadTimes()
        self._its: ThreadTimes | None = None  # until it is known the watchdog does without
        self._watchdog.start()
        self._its = ThreadTimes(self._watchdog.native_id)
        self._mark = self._marked(0.0)
        gc.callbacks.append(self._on_collector)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        gc.callbacks.remove(self._on_collector)
        self._watchdog.join()
        for counts in (self._ours, self._its):
            if counts is not None:
                counts.close()

    # --- in the loop's thread

    def after_io_wait(self, _seconds: float) -> None:
        """Note that a pass begins."""
        self._collected = 0.0
        began = time.perf_counter()
        # What a pass has used is counted from a little before it: reading these clocks at each costs too much.
        if began - self._mark.at > self._limit or self._root is None:
            self._mark = self._marked(self._stopped + self._late(began))
            self._root = trio.lowlevel.current_root_task()
        self._began = began

    def before_io_wait(self, _seconds: float) -> None:
        """Note that a pass is over, and report it when it was too long."""
        began = self._began
        if not began:
            return  # the watch came in the middle of it
        now = time.perf_counter()
        self._began = 0.0
        metrics.loop_pass_seconds.observe(now - began)
        if now - began > self._limit:
            held = self._judged(began, now)
            metrics.loop_blocked_total.labels(held.cause).inc()
            self._report(held)

    def _judged(self, began: float, now: float) -> LoopBlock:
        seconds, before, after = now - began, self._mark, self._marked(self._stopped + self._late(now))
        collector = min(self._collected, seconds)
        stopped = after.stopped - before.stopped
        suspended = max(0.0, min(stopped + after.queued - before.queued, seconds - collector))
        # A stop is known only as well as the watchdog sleeps: to one limit.
        enough = 2 * self._limit if stopped > self._limit / 2 else self._limit
        cause: BlockCause = "code"
        if seconds - collector - suspended <= enough:
            cause = "collector" if collector > suspended else "suspended"
        return self._held(
            began,
            seconds=seconds,
            cause=cause,
            over=True,
            cpu_seconds=min(after.cpu - before.cpu, seconds),
            collector_seconds=collector,
            suspended_seconds=suspended,
        )

    def _held(self, began: float, *, cause: BlockCause, **figures: Any) -> LoopBlock:
        sight = self._sight
        if sight is None or sight.began != began:
            return LoopBlock(cause=cause, **figures)
        # Whatever was at work when the collector or the machine came in between is not the cause.
        stack = sight.stack if cause == "code" else ()
        return LoopBlock(cause=cause, stack=stack, task=sight.task, conversation_id=sight.conversation_id, **figures)

    def _marked(self, stopped: float) -> _Mark:
        return _Mark(time.perf_counter(), time.thread_time(), self._ours.read()[1], stopped)

    def _on_collector(self, phase: str, info: dict[str, int]) -> None:
        # In whichever thread: it has the interpreter's lock, so the loop waits as well. Young generations are quick.
        if info["generation"] < _OLD:
            return
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        else:
            self._collected += now - self._collecting

    # --- in the watchdog's

    def _watch(self) -> None:
        pause = self._limit
        while not self._ended.wait(pause):
            now = time.perf_counter()
            self._stopped += self._late(now)
            self._due = math.inf
            pause = self._look(now)
            self._note_sleep(pause)

    def _note_sleep(self, pause: float) -> None:
        self._slept_cpu = time.process_time()
        self._slept_queued = self._both_queued()
        self._due = time.perf_counter() + pause

    def _late(self, now: float) -> float:
        """Return for how long the watchdog should be awake but is not, with nothing at work that would explain it."""
        late = now - self._due
        if late < self._limit / 2:
            return 0.0
        # The lock's holder may be at work, or wait for a processor and hold the lock meanwhile.
        explained = time.process_time() - self._slept_cpu + self._both_queued() - self._slept_queued
        return max(0.0, late - explained)

    def _both_queued(self) -> float:
        return (0.0 if self._its is None else self._its.read()[1]) + self._ours.read()[1]

    def _look(self, now: float) -> float:
        """Look at the pass under way; return how long nothing will need another look."""
        began = self._began
        if not began:
            return self._limit
        age = now - began
        if age < self._limit:
            return self._limit - age
        if self._sight is None or self._sight.began != began:
            self._see(began)
        if age > _STUCK_SECONDS and self._began == began != self._stuck:
            self._stuck = began
            figures = dict.fromkeys(("cpu_seconds", "collector_seconds", "suspended_seconds"), 0.0)
            self._report(self._held(began, cause="code", seconds=age, over=False, **figures))
        return self._limit

    def _see(self, began: float) -> None:
        frames = stacks.frames_of(sys._current_frames().get(self._thread))  # noqa: SLF001  (the documented way)
        # The loop may already be past it, where a C function kept us out to its very end.
        if self._began != began:
            return
        task = stacks.task_of(self._root, frames)
        bound = {} if task is None else log_records.bound_in(task.context)
        self._sight = _Sight(began, stacks.summary(frames), task and task.name, bound.get("conversation_id"))


# --- for the service


@contextmanager
def watching(limit_seconds: float) -> Iterator[None]:
    """Watch this Trio run for passes over ``limit_seconds`` and log each; 0: do not watch."""
    if not limit_seconds:
        yield
        return
    with LoopWatch(limit_seconds, _log_block) as watch:
        trio.lowlevel.add_instrument(watch)
        try:
            yield
        finally:
            # Trio has dropped it where a hook of it failed.
            with suppress(KeyError):
                trio.lowlevel.remove_instrument(watch)


def _log_block(block: LoopBlock) -> None:
    log_records.loop_blocked(
        seconds=block.seconds,
        cause=block.cause,
        over=block.over,
        cpu_seconds=block.cpu_seconds,
        collector_seconds=block.collector_seconds,
        suspended_seconds=block.suspended_seconds,
        stack=" < ".join(block.stack) or None,
        task=block.task,
        conversation_id=block.conversation_id,
    )
