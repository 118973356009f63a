"""Threads for work that would block the loop: how many may run at a time, and how soon they yield to the loop.

There is one interpreter. Twenty threads that each decode a log leave the loop a twentieth of it. One after another they
take no longer, and the loop keeps a third. A thread that is at work costs the loop up to half a millisecond at each
read and write of a socket, so work that nobody waits for stops after each slice, for as long as its share says.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from time import perf_counter, sleep, thread_time
from typing import TypeVar, TypeVarTuple

import trio
from msgspec import Struct

from convo.errors import ConvoError
from convo.runtime.precedence import ACCEPTS, PATIENCE_SECONDS

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")

REQUESTS = trio.CapacityLimiter(2)
"""Limits the threads whose work a client waits for that sends a conversation."""

JOBS = trio.CapacityLimiter(1)
"""Limits the threads whose work no client waits for."""

LARGE = trio.CapacityLimiter(1)
"""Limits the threads that read JSON of more than ``LARGE_BYTES``, or of an unknown size, whoever waits for it.

As values JSON can take 30 times its length: of one body of 2 MB these are 50 MB.
"""

LARGE_BYTES = 512 << 10

# With Python's own 5 ms the loop would wait that long at each read and write while a thread works.
_SWITCH_SECONDS = 0.0005


SLICE_SECONDS = 0.001
"""How long a thread that gives way works before it looks at its share."""

SHARE_FLOOR = 0.25
"""The least share of a thread that gives way. What starts is paced more strictly (``runtime.pace``)."""

_LOOK_SECONDS = 0.001

_slice = threading.local()


class _Share:
    """The share of the interpreter that threads have which give way."""

    now = 1.0


def set_share(share: float) -> None:
    """Give threads that give way this share of the interpreter from now on, but no less than ``SHARE_FLOOR``."""
    _Share.now = max(SHARE_FLOOR, share)


def pause_seconds(worked_seconds: float) -> float:
    """Return how long work that took so much of the interpreter has to rest after it."""
    return worked_seconds * (1 / _Share.now - 1)


def timed(function: Callable[[*Arguments], T], *args: *Arguments) -> tuple[T, float]:
    """Call a function; return besides for how many seconds it had the processor in this thread."""
    began = thread_time()
    return function(*args), thread_time() - began


def _timed_in_slices(function: Callable[[*Arguments], T], *args: *Arguments) -> tuple[T, float]:
    """As ``timed``; of what the function did not note by ``give_way`` itself, other work rests, too."""
    began = _slice.began = thread_time()
    try:
        return function(*args), thread_time() - began
    finally:
        ACCEPTS.note_worked(thread_time() - _slice.began)


class ThreadBehindAccepts:
    """A thread for work of milliseconds that clients of little hurry wait for.

    One call comes after the other. Each begins while no accept is under way, or after a moment of waiting for that, and
    the thread rests between two of them as its share says, and for as long as accepts ask of others. A call that takes
    long gives way by itself (``give_way``); a single call into C cannot.
    """

    def __init__(self) -> None:
        self._one = trio.Lock()
        # A call that was abandoned goes on: the next one waits for its end.
        self._limiter = trio.CapacityLimiter(1)
        self._rests_until = 0.0

    async def call_behind(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """Call a function in the thread; it is abandoned when the caller is cancelled, who holds the deadline."""
        async with self._one:
            # No clock of Trio: each run has its own, and this thread is used by every run of a process.
            await trio.sleep(max(self._rests_until - perf_counter(), ACCEPTS.rest_left()))
            with trio.move_on_after(PATIENCE_SECONDS):
                await ACCEPTS.none_under_way()
            result, seconds = await trio.to_thread.run_sync(
                _timed_in_slices, function, *args, abandon_on_cancel=True, limiter=self._limiter
            )
            self._rests_until = perf_counter() + pause_seconds(seconds)
        return result


READS = ThreadBehindAccepts()
"""Makes large answers: clients that read must not hold up those that send."""

OPERATIONS = ThreadBehindAccepts()
"""Writes what operators read: metrics, the list of tasks. Many who ask wait for each other."""

MOVES = ThreadBehindAccepts()
"""Puts logs together that move into object storage: nobody waits for that."""


def give_way(*, to_accepts: bool = False) -> None:
    """Sleep in this thread once its slice is used up; call it often in work that takes long.

    ``to_accepts``: sleep also for as long as accepts ask of work that is neither an accept nor an analysis, and then
    until none is under way, or for a moment.
    """
    now = thread_time()
    worked = now - getattr(_slice, "began", now)
    if worked < SLICE_SECONDS:
        _slice.began = now - worked
        return
    pause = pause_seconds(worked)
    if to_accepts:
        ACCEPTS.note_worked(worked)
        pause = max(pause, ACCEPTS.rest_left())
    if pause:
        sleep(pause)
    if to_accepts:
        _await_none_under_way()
    _slice.began = thread_time()


def _await_none_under_way() -> None:
    # A thread cannot be woken as a task can, but an accept takes some of these looks only.
    for _ in range(round(PATIENCE_SECONDS / _LOOK_SECONDS)):
        if not ACCEPTS.under_way:
            return
        sleep(_LOOK_SECONDS)


class _Refusal(Struct, frozen=True):
    error: ConvoError


async def run_in_thread(function: Callable[[*Arguments], T], *args: *Arguments, limiter: trio.CapacityLimiter) -> T:
    """Call a function in a thread, which is abandoned when the caller is cancelled.

    An error of ours comes back without its frames. They would hold the arguments, a body of 16 MB among them: Trio's
    own frame holds the error that it raises, which holds the frame, and such a circle stays until the collector runs.

    Raises:
        ConvoError: what the function raised.
    """
    # no deadline: the caller's
    result = await trio.to_thread.run_sync(_without_frames, function, *args, abandon_on_cancel=True, limiter=limiter)
    if isinstance(result, _Refusal):
        try:
            raise result.error
        finally:
            del result
    return result


def _without_frames(function: Callable[[*Arguments], T], *args: *Arguments) -> T | _Refusal:
    try:
        return function(*args)
    except ConvoError as error:
        found: BaseException | None = error
        while found is not None:
            found.__traceback__ = None
            found = found.__cause__ or found.__context__
        return _Refusal(error)


def shorten_switch_interval() -> None:
    """Make threads of this process yield the interpreter to the loop sooner than Python's default."""
    sys.setswitchinterval(_SWITCH_SECONDS)
