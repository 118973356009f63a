"""The loop watch: tells of a pass of Trio's scheduler that was held, and of the stack that held it; it stops nothing.

Two halves. The hooks run in the loop's thread, twice a pass (a hook for each step would cost a hundred times more),
and note when the pass began. The watchdog, a thread, wakes at the moment a pass is over the limit and takes the stack
while it is still held. A C function that keeps the interpreter's lock (``json.loads``) keeps the watchdog out, too; it
comes in as soon as that function has returned, while the frame that called it is still the innermost.

**Whose fault.** A pass may be long because the code in it is, because the garbage collector ran, or because the
process did not: it was stopped (SIGSTOP), or its machine had no time for it. (The sleep of a laptop is no time at all
to this clock.) The collector is timed by its own callbacks. For how long a thread stood in line for a processor is
counted by Linux (schedstat). A process that was stopped shows in a watchdog that wakes too late though nothing used a
processor meanwhile. Only what remains is called the code's, and has a stack.
What a C extension sleeps without giving the lock back looks like a stopped process; nothing here can tell the two
apart.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import trio
from msgspec import Struct

from convo.observe import events, metrics

Cause = Literal["code", "collector", "suspended"]

PACKAGE = str(Path(__file__).parents[1]) + "/"
"""The folder of our own code."""

_OLD = 2
# Of a stack: so many of its innermost frames, whosever they are, so many of ours, and the outermost.
_INNERMOST, _OURS = 5, 8
# A loop that is held for ever would never be told of by a hook at the end of the pass.
_STUCK_SECONDS = 5.0
_TOLD_MAX, _TOLD_SECONDS = 10, 60.0


class Held(Struct, frozen=True, kw_only=True):
    """One pass over the limit; ``stack`` is ``file:line function`` from the innermost frame outwards.

    ``suspended_seconds`` are those in which the process did not run. A pass that is not over yet has no ``cause``
    but the code.
    """

    seconds: float
    cause: Cause
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
    """The clocks of the loop's thread at one moment: its processor time, and its time in line for a processor."""

    at: float
    cpu: float
    in_line: float
    stopped: float


class LoopWatch(trio.abc.Instrument):
    """Watches the Trio run that it is an instrument of; enter it in the loop's own thread.

    ``tell`` is called once for each pass over ``limit_seconds``: in the loop's thread when it is over, or by the
    watchdog when it seems never to end.
    """

    def __init__(self, limit_seconds: float, tell: Callable[[Held], None]) -> None:
        self._limit = limit_seconds
        self._tell = tell
        self._began = 0.0
        self._collected = 0.0
        self._collecting = 0.0
        self._stopped = 0.0
        self._due = self._slept_cpu = self._slept_in_line = 0.0
        self._root: trio.lowlevel.Task | None = None
        self._sight: _Sight | None = None
        self._told_of = 0.0
        self._telling = threading.Lock()
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="loop watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread, self._due = threading.get_ident(), math.inf
        self._ours = _open_counts(threading.get_native_id())
        self._its = None  # until it is known the watchdog does without
        self._watchdog.start()
        self._its = _open_counts(self._watchdog.native_id)
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
                os.close(counts)

    # --- in the loop's thread

    def after_io_wait(self, _seconds: float) -> None:
        """Note that a pass begins."""
        self._collected = 0.0
        began = time.perf_counter()
        # What a pass has used is reckoned from a little before it: reading these clocks at each costs too much.
        if began - self._mark.at > self._limit or self._root is None:
            self._mark = self._marked(self._stopped + self._late(began))
            self._root = trio.lowlevel.current_root_task()
        self._began = began

    def before_io_wait(self, _seconds: float) -> None:
        """Note that a pass is over, and tell of it when it was too long."""
        began = self._began
        if not began:
            return  # the watch came in the middle of it
        now = time.perf_counter()
        self._began = 0.0
        metrics.loop_pass_seconds.observe(now - began)
        if now - began > self._limit:
            held = self._judged(began, now)
            metrics.loop_blocked_total.labels(held.cause).inc()
            self._tell_once(began, held)

    def _judged(self, began: float, now: float) -> Held:
        seconds, before, after = now - began, self._mark, self._marked(self._stopped + self._late(now))
        collector = min(self._collected, seconds)
        stopped = after.stopped - before.stopped
        suspended = max(0.0, min(stopped + after.in_line - before.in_line, seconds - collector))
        # A stop is known only as well as the watchdog sleeps: to one limit.
        enough = 2 * self._limit if stopped > self._limit / 2 else self._limit
        cause: Cause = "code"
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

    def _held(self, began: float, *, cause: Cause, **figures: Any) -> Held:
        sight = self._sight
        if sight is None or sight.began != began:
            return Held(cause=cause, **figures)
        # Who happened to be at work when the collector or the machine came in between is not to blame.
        stack = sight.stack if cause == "code" else ()
        return Held(cause=cause, stack=stack, task=sight.task, conversation_id=sight.conversation_id, **figures)

    def _tell_once(self, began: float, held: Held) -> None:
        with self._telling:
            if self._told_of != began:
                self._told_of = began
                self._tell(held)

    def _marked(self, stopped: float) -> _Mark:
        return _Mark(time.perf_counter(), time.thread_time(), _in_line(self._ours), stopped)

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
        self._slept_in_line = self._both_in_line()
        self._due = time.perf_counter() + pause

    def _late(self, now: float) -> float:
        """Tell for how long the watchdog should be awake but is not, with nothing at work that would explain it."""
        late = now - self._due
        if late < self._limit / 2:
            return 0.0
        # The lock's holder may be at work, or in line for a processor with the lock in its hands.
        explained = time.process_time() - self._slept_cpu + self._both_in_line() - self._slept_in_line
        return max(0.0, late - explained)

    def _both_in_line(self) -> float:
        return _in_line(self._its) + _in_line(self._ours)

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
        if age > _STUCK_SECONDS and self._began == began:
            figures = dict.fromkeys(("cpu_seconds", "collector_seconds", "suspended_seconds"), 0.0)
            self._tell_once(began, self._held(began, cause="code", seconds=age, over=False, **figures))
        return self._limit

    def _see(self, began: float) -> None:
        frames = _frames_of(sys._current_frames().get(self._thread))  # noqa: SLF001  (the documented way)
        # The loop may already be past it, where a C function kept us out to its very end.
        if self._began != began:
            return
        task = _task_of(self._root, frames)
        bound = {} if task is None else events.bound_in(task.context)
        self._sight = _Sight(began, _told(frames), task and task.name, bound.get("conversation_id"))


def _open_counts(thread: int | None) -> int | None:
    """Open what the kernel counts of a thread, where it does."""
    try:
        return os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _in_line(counts: int | None) -> float:
    """Read for how long a thread could run but had no processor, since its start; 0 where the kernel does not say."""
    if counts is None:
        return 0.0
    try:
        # Some 60 times a second: no file object, no second opening.
        return int(os.pread(counts, 64, 0).split()[1]) / 1e9
    except ProcessLookupError:  # that thread has ended
        return 0.0


# --- the stack


def _frames_of(innermost: FrameType | None) -> list[FrameType]:
    """List the frames from the innermost to the task's own, or to Trio's loop where no task is at work."""
    frames: list[FrameType] = []
    frame = innermost
    while frame is not None and frame.f_code.co_name != "unrolled_run":
        frames.append(frame)
        frame = frame.f_back
    return frames


def _told(frames: list[FrameType]) -> tuple[str, ...]:
    ours = [frame for frame in frames[_INNERMOST:] if frame.f_code.co_filename.startswith(PACKAGE)]
    return tuple(dict.fromkeys(place(frame) for frame in (*frames[:_INNERMOST], *ours[:_OURS], *frames[-1:])))


def place(frame: FrameType) -> str:
    """Name a frame's file, line and function; the file as it is imported, without the folder it lies in."""
    file = frame.f_code.co_filename
    folders = [f"{folder}/" for folder in sys.path if folder and file.startswith(f"{folder}/")]
    return f"{file[len(max(folders, key=len, default='')) :]}:{frame.f_lineno} {frame.f_code.co_name}"


def _task_of(root: trio.lowlevel.Task | None, frames: list[FrameType]) -> trio.lowlevel.Task | None:
    """Find the task that the frames belong to: its coroutine's own frame is one of them."""
    outermost = set(frames[-3:])  # Trio may put a frame of its own around a task's
    return next((task for task in _tasks(root) if getattr(task.coro, "cr_frame", None) in outermost), None)


def _tasks(root: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    found = deque([root] if root else [])
    while found:
        task = found.popleft()
        yield task
        for nursery in task.child_nurseries:
            # Copied at once: the loop goes on when it likes.
            found.extend(list(nursery.child_tasks))


# --- for the service


@contextmanager
def watching(limit_seconds: float) -> Iterator[None]:
    """Watch this Trio run for passes over ``limit_seconds``, each told as an event; 0: do not."""
    if not limit_seconds:
        yield
        return
    with LoopWatch(limit_seconds, Teller().tell) as watch:
        trio.lowlevel.add_instrument(watch)
        try:
            yield
        finally:
            # Trio has dropped it where a hook of it failed.
            with suppress(KeyError):
                trio.lowlevel.remove_instrument(watch)


class Teller:
    """Tells of held passes, at most ten a minute; the others are counted on the next that is told."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_TOLD_MAX)
        self._untold = 0

    def tell(self, held: Held) -> None:
        """Tell of one, or only count it."""
        now = self._clock()
        if len(self._times) == _TOLD_MAX and now - self._times[0] < _TOLD_SECONDS:
            self._untold += 1
            return
        self._times.append(now)
        events.loop_blocked(
            seconds=held.seconds,
            cause=held.cause,
            over=held.over,
            cpu_seconds=held.cpu_seconds,
            collector_seconds=held.collector_seconds,
            suspended_seconds=held.suspended_seconds,
            stack=" < ".join(held.stack) or None,
            task=held.task,
            conversation_id=held.conversation_id,
            untold=self._untold,
        )
        self._untold = 0
