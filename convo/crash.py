"""A test's hook (``observe.crash_at``): kills this process at one named point of its work, as a power cut would.

The function that lies at the point is wrapped when the process starts; where none is named, nothing is.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from convo.config import CrashPoint
from convo.store import intake, parts, runs, settle, turns
from convo.store.jobs import Jobs


class _Point(Struct, frozen=True):
    owner: Any
    name: str
    when: Literal["before", "after"]
    # Of the calls of that function, those that count; given the arguments, and what it returned (None before).
    counts: Callable[[tuple[Any, ...], Any], bool] = lambda _, __: True


_POINTS: dict[CrashPoint, _Point] = {
    "accept.before_insert": _Point(intake, "_insert", "before"),
    "accept.after_commit": _Point(intake.Committer, "_tell", "before"),
    "lease.before_commit": _Point(turns, "take", "after", lambda _, rows: bool(rows)),
    "lease.after_commit": _Point(Jobs, "lease", "after", lambda _, leases: bool(leases)),
    "part.before_commit": _Point(parts, "store", "after"),
    "part.after_commit": _Point(Jobs, "store_parts", "after"),
    "settle.before_commit": _Point(settle, "_relate", "after"),
    "settle.after_commit": _Point(settle, "_outcome", "before"),
    "release.before_commit": _Point(runs, "note", "after", lambda given, _: "release" in given),
    "release.after_commit": _Point(Jobs, "release", "after"),
}


def arm(at: CrashPoint) -> None:
    """Make this process kill itself when it first comes to ``at``."""
    point = _POINTS[at]
    setattr(point.owner, point.name, _wrapped(point, getattr(point.owner, point.name)))


def _wrapped(point: _Point, function: Callable[..., Any]) -> Callable[..., Any]:
    def die_if(when: str, given: tuple[Any, ...], returned: Any) -> None:
        if point.when == when and point.counts(given, returned):
            os.kill(os.getpid(), signal.SIGKILL)

    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def plain(*given: Any, **named: Any) -> Any:
            die_if("before", given, None)
            returned = function(*given, **named)
            die_if("after", given, returned)
            return returned

        return plain

    @functools.wraps(function)
    async def crossing(*given: Any, **named: Any) -> Any:
        die_if("before", given, None)
        returned = await function(*given, **named)
        die_if("after", given, returned)
        return returned

    return crossing
