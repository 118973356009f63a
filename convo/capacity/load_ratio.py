"""The load ratio: how full one process is, as one number for autoscalers, smooth enough to act on.

Open it to change what counts as load. It is the largest of the shares below, each a mean in which older readings count
less. 1 is full. PostgreSQL, the model and the memory service are no part of it: more processes would not help them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from convo.capacity.processors import FULL
from convo.capacity.usage import Usage
from convo.runtime.pace import BOOKKEEPING_SECONDS

# A backlog that is twice as old as it may be asks for twice the processes. More at once would be a guess.
_BACKLOG_MAX = 2.0


class Fill(Struct, frozen=True, kw_only=True):
    """How full the places of a process are at one moment, each from 0 to 1, and the age of the oldest due job."""

    admission: float
    workers: float
    backlog_seconds: float


def load_shares(step: Usage, fill: Fill, backlog_target_seconds: float, batch_rows: int) -> Mapping[str, float]:
    """Return how full each resource was between two readings; ``fill`` is how it is at the second.

    Each is the load as a share of what ends it, as the forecast knows the ends. The interpreter is full where it
    works, or waits for a processor, for ``FULL`` of the time. Transactions follow each other without a pause long
    before the end, and take more rows then: they are full where each has ``batch_rows``. Analyses are full where they
    need all that the pace allows them.

    Workers count as far as jobs wait for them: all at work are no load while nothing is late. With every one of them at
    work, a job that has been due for ``backlog_target_seconds`` makes 1, and an older one up to 2.
    """
    late = min(fill.backlog_seconds / backlog_target_seconds, _BACKLOG_MAX)
    rows = step.accepted / step.commits / batch_rows if step.commits else 0.0
    analyses = step.analyst_seconds + step.analysed * BOOKKEEPING_SECONDS
    return {
        "interpreter": (max(step.process_seconds, step.loop_seconds) + step.queued_seconds) / step.at / FULL,
        "committer": step.commit_seconds / step.at * min(rows, 1.0),
        "pace": min(analyses / step.pace_seconds, 1.0) if step.accepted and step.pace_seconds else 0.0,
        "admission": fill.admission,
        "workers": min(fill.workers, 1.0) * late,
    }


class LoadRatio:
    """The shares of one process as smooth means, and the largest of them."""

    def __init__(self, smoothing_seconds: float) -> None:
        self._smoothing_seconds = smoothing_seconds
        self.shares: dict[str, float] = {}

    @property
    def value(self) -> float | None:
        """The largest share; None before the first reading."""
        return max(self.shares.values(), default=None)

    def note(self, found: Mapping[str, float], seconds: float) -> None:
        """Note the shares of the last ``seconds``: after ``smoothing_seconds``, 63 % of a change have arrived."""
        weight = 1.0 - math.exp(-seconds / self._smoothing_seconds)
        for name, share in found.items():
            before = self.shares.get(name, share)
            self.shares[name] = before + (share - before) * weight
