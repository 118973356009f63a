"""A convo that kills itself at one named point of its work, as a power cut would.

    python -m tests.support.crash POINT serve ...

A point is a unit of database work, by the name of its wait, and a moment of it: before its first statement, after its
last one but before the commit, or after the commit. The two methods that run a unit are wrapped, then ``convo`` is run
in this process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from convo.commands import cli
from convo.store.postgres import DedicatedConnection, Postgres

POINTS = (
    *("accept.before_insert", "accept.after_commit"),
    *(
        f"{unit}.{when}"
        for unit in ("lease", "part", "settle", "release")
        for when in ("before_commit", "after_commit")
    ),
)
OF_REVISIONS = ("revise.before_commit", "revise.after_commit")
"""Points that come only where a revision is sent."""


def arm(point: str) -> None:
    """Make this process kill itself when it first comes to ``point``."""
    every = (*POINTS, *OF_REVISIONS)
    assert point in every, f"{point} is none of {', '.join(every)}"
    unit, _, moment = point.partition(".")
    for owner in (Postgres, DedicatedConnection):
        setattr(owner, "run", _dying(owner.run, f"db.{unit}", moment))  # noqa: B010  (mypy refuses to assign a method)


def _dying(run: Callable[..., Awaitable[Any]], wait: str, moment: str) -> Callable[..., Awaitable[Any]]:
    def die_if(now: str, outcome: Any) -> None:
        # A unit that found nothing to lease or to release is not the one that the test waits for.
        found = outcome[0] if isinstance(outcome, tuple) else outcome
        if now == moment and (found is None or found):
            os.kill(os.getpid(), signal.SIGKILL)

    async def dying(self: Any, name: str, body: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        if name != wait:
            return await run(self, name, body, **options)

        async def dying_body(connection: Any) -> Any:
            die_if("before_insert", None)
            outcome = await body(connection)
            die_if("before_commit", outcome)
            return outcome

        outcome = await run(self, name, dying_body, **options)
        die_if("after_commit", outcome)
        return outcome

    return dying


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
