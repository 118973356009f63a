"""Tells a systemic fault of a dependency from jobs that fail for reasons of their own.

A refusal or an unusable answer is the job's own failure, as a rule: nothing says that the next job fares worse. But a
server that changes its ways refuses every job alike, and would bury a whole backlog. So failures are compared:

- **A fault begins** when the last ``distinct`` jobs that a call failed for failed in the same way, and the call
  succeeded for none in between. A job that fails again and again is one job.
- **In an outage** two jobs are enough: nothing shows yet that the dependency is back, and a server that starts may
  refuse everything for a while.
- **While it lasts** every failure of that call is the dependency's, in whatever way it fails. The attempts that jobs
  spent on it since its last success are owed to them. So are those that jobs spent before an outage, without a success
  of the call in between: it was on its way.
- **It ends** with the first success of that call. The jobs that made it up may then have been at fault themselves
  (ten poisonous ones in a row). From then on they begin no fault: what they spend is spent, until another one begins.

Each call, known by the name of its wait, is judged by itself: a server may do well at one and fail at the other. All of
this is one process's memory, and ends with it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from msgspec import Struct

_DISTINCT_IN_AN_OUTAGE = 2
JOBS_MAX = 1_000
"""So many failed jobs of one call, and so many that began a fault before, are remembered at most."""


class FailedWay(Struct, frozen=True, kw_only=True):
    """How a call failed for a job: ``kind`` is what is compared, ``told`` what a person reads of it."""

    kind: str
    told: str


class SpentAttempt(Struct, kw_only=True):
    """One attempt that a job spent on one failed call or several, at one dependency or several: given back once."""

    given_back: bool = False


class _Failed(Struct, kw_only=True):
    way: FailedWay
    counts: bool
    spent: list[SpentAttempt]


class SystemicFaults:
    """The systemic faults of one dependency, call by call; a job is known by any number of its own."""

    def __init__(self, distinct: int) -> None:
        self._distinct = distinct
        # By call, the jobs that failed since its last success, the newest last.
        self._failed: dict[str, OrderedDict[int, _Failed]] = {}
        self._lasting: dict[str, str] = {}
        self._earlier: OrderedDict[int, None] = OrderedDict()
        self._owed: Counter[int] = Counter()

    def lasts(self, call: str | None = None) -> bool:
        """Return whether a fault lasts: of this call, or of any."""
        return bool(self._lasting) if call is None else call in self._lasting

    @property
    def told(self) -> str:
        """What a person reads of the fault that lasts longest; empty for none."""
        return next(iter(self._lasting.values()), "")

    def failed(self, call: str, job: int, way: FailedWay, *, in_outage: bool = False) -> bool:
        """Note that ``call`` failed for ``job``; return whether a fault of it lasts, from now on or already.

        ``in_outage``: the dependency was out when the call was made, and nothing has succeeded since.
        """
        jobs = self._failed.setdefault(call, OrderedDict())
        known = jobs.pop(job, None)
        jobs[job] = _Failed(way=way, counts=job not in self._earlier, spent=known.spent if known else [])
        if len(jobs) > JOBS_MAX:
            jobs.popitem(last=False)
        distinct = min(_DISTINCT_IN_AN_OUTAGE, self._distinct) if in_outage else self._distinct
        if call not in self._lasting and (first := _first_of_row(jobs, distinct)) is not None:
            self._lasting[call] = f"the last {distinct} conversations failed in the same way, the first: {first}"
            self.owe_all(call)
        return call in self._lasting

    def owe_all(self, call: str) -> None:
        """Owe what jobs spent on ``call`` since its last success: the dependency was at fault."""
        for job, one in self._failed.get(call, {}).items():
            for attempt in one.spent:
                self._owe(job, attempt)

    def spent(self, call: str, job: int, attempt: SpentAttempt) -> None:
        """Note that ``job`` spent an attempt on a failure of ``call``, noted before."""
        if call in self._lasting:
            # The fault began while the attempt was being stored.
            self._owe(job, attempt)
        elif call in self._failed and job in self._failed[call]:
            self._failed[call][job].spent.append(attempt)

    def _owe(self, job: int, attempt: SpentAttempt) -> None:
        if not attempt.given_back:
            attempt.given_back = True
            self._owed[job] += 1

    def take_owed(self) -> dict[int, int]:
        """Return the attempts to give back, by job, and owe them no more."""
        owed, self._owed = dict(self._owed), Counter()
        return owed

    def owe_again(self, owed: dict[int, int]) -> None:
        """Owe attempts that could not be given back."""
        self._owed.update(owed)

    def succeeded(self, call: str) -> None:
        """Note that ``call`` succeeded: a fault of it ends, and what failed before counts no more."""
        jobs = self._failed.pop(call, None)
        if self._lasting.pop(call, None) is not None and jobs:
            self._earlier.update(dict.fromkeys(jobs))
            while len(self._earlier) > JOBS_MAX:
                self._earlier.popitem(last=False)

    def forget(self) -> None:
        """Forget which jobs failed: their numbers are another database's. The faults that last go on."""
        self._failed.clear()
        self._earlier.clear()
        self._owed.clear()


def _first_of_row(jobs: OrderedDict[int, _Failed], distinct: int) -> str | None:
    """Return how the first of the last ``distinct`` jobs failed, if all of them failed in the same way."""
    row: list[FailedWay] = []
    for one in reversed(jobs.values()):
        if one.counts:
            row.append(one.way)
            if one.way.kind != row[0].kind:
                return None
            if len(row) == distinct:
                return one.way.told
    return None
