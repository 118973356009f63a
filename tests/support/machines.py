"""Machines whose end is known, and the readings that a process on one of them would take: for tests of forecasts.

They follow queues and not the forecast's formulas: transactions gather rows while one is under way, take longer the
fuller the loop is, and the loop's thread waits for a processor the more the others use them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Struct

from convo.capacity.usage import Usage
from convo.runtime.pace import SETTLE_GATHER_SECONDS

# Nobody keeps up with more than this share of a processor; with accepts alone, the loop waits for transactions besides.
_KEEPS_UP, _ACCEPTS_KEEP_UP = 0.93, 0.83


class Moment(Struct, frozen=True, kw_only=True):
    """What a machine does at one rate, each second: in cores, transactions, and rows of one of them.

    ``settled`` is how many analyses end in one transaction, ``leases`` how many there are for each.
    """

    loop: float
    queued: float
    machine: float
    rows: float
    transaction_seconds: float
    settled: float
    leases: float
    settle_seconds: float


class SyntheticMachine(Struct, frozen=True, kw_only=True):
    """A process with its PostgreSQL and its client: processor seconds of each kind of work, and how long others take.

    ``others`` are cores that something else uses, and ``job_seconds`` is how long a job holds one of ``places``.
    """

    cores: float = 8.0
    idle: float = 0.015
    accept: float = 0.00015
    commit: float = 0.00045
    analysis: float = 0.0
    upkeep: float = 0.0
    database_row: float = 0.00004
    database_commit: float = 0.0003
    client: float = 0.00005
    disk: float = 0.0015
    rows_max: int = 256
    others: float = 0.0
    job_seconds: float = 0.0
    places: int = 0

    def at(self, rate: float) -> Moment:
        """Return what goes on at so many conversations a second."""
        rows, loop, machine, queued, seconds, settled, settle_seconds = 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0
        each = 3.0
        # What is done depends on how many rows share a transaction, which depends on how long it takes.
        for _ in range(60):
            loop = self.idle + rate * (self.accept + self.commit / rows + self.analysis + self.upkeep * each)
            database = rate * (self.database_row + self.database_commit / rows + self.client)
            machine = loop + database + self.others
            # All cores are busy with others.
            taken = min(0.9, (machine - loop) / self.cores) ** self.cores
            queued = loop * 1.15 * taken / (1 - taken)
            stretched = 1 / max(0.1, 1 - min(0.9, (loop + queued) ** 4))
            seconds = self.disk + (self.commit + self.database_commit + rows * self.database_row) * stretched
            rows += (min(max(1.0, rate * seconds), self.rows_max) - rows) / 2
            settle_seconds = self.disk + self.upkeep * stretched
            # Where there is nothing to do, a lease finds nothing.
            each += (2 - min(1.0, loop + queued) + 1 / settled - each) / 2
            settled += (max(1.0, rate * (settle_seconds + SETTLE_GATHER_SECONDS)) - settled) / 2
        return Moment(
            loop=loop,
            queued=queued,
            machine=machine,
            rows=rows,
            transaction_seconds=seconds,
            settled=settled,
            leases=each - 1 / settled,
            settle_seconds=settle_seconds,
        )

    def keeps_up(self, rate: float) -> bool:
        """Return whether so many conversations a second can be done for ever."""
        found = self.at(rate)
        loop = _KEEPS_UP if self.analysis else _ACCEPTS_KEEP_UP
        fits = found.loop + found.queued < loop and found.machine < _KEEPS_UP * self.cores
        return fits and rate * found.transaction_seconds < self.rows_max and self._has_places(rate)

    def end(self) -> float:
        """Return the most conversations a second."""
        low, high = 0.0, 1e6
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.keeps_up(middle) else (low, middle)
        return low

    def readings(self, rates: Sequence[float], *, each: int = 20, quiet: int = 6, seed: int = 1) -> list[Usage]:
        """Return readings of a second each: ``quiet`` without work, then ``each`` at every rate, with noise."""
        chance = random.Random(seed)
        found = [Usage(at=100.0)]
        for rate in [0.0] * quiet + [rate for rate in rates for _ in range(each)]:
            found.append(found[-1].plus(self._second(rate, chance)))
        return found

    def _has_places(self, rate: float) -> bool:
        return not self.places or rate * self.job_seconds < self.places

    def _second(self, rate: float, chance: random.Random) -> Usage:
        found = self.at(rate)
        accepted = float(round(rate * chance.gauss(1, 0.03)))
        commits = float(max(1, round(accepted / found.rows))) if accepted else 0.0
        analysed = accepted if self.analysis else 0.0
        settles = round(analysed / found.settled) if self.upkeep else 0.0
        noise, others = chance.lognormvariate(0, 0.07), self.others * chance.gauss(1, 0.1)
        return Usage(
            at=1.0,
            process_seconds=found.loop * noise,
            machine_seconds=min(self.cores, (found.machine - self.others) * noise + others),
            loop_seconds=found.loop * noise,
            queued_seconds=found.queued * chance.lognormvariate(0, 0.3),
            accepted=accepted,
            commits=commits,
            commit_seconds=commits * found.transaction_seconds * chance.lognormvariate(0, 0.3),
            analysed=analysed,
            settles=settles,
            settle_seconds=settles * found.settle_seconds,
            leases=analysed * found.leases if self.upkeep else 0.0,
            job_seconds=analysed * self.job_seconds,
            analyst_seconds=analysed * max(0.0, self.analysis - 0.002),
            calls={"llm": analysed} if self.places else {},
            call_seconds={"llm": analysed * self.job_seconds} if self.places else {},
        )


# Each with what ends it.
KNOWN_MACHINES = {
    "the loop": (SyntheticMachine(), "interpreter"),
    "the loop of a slow machine": (
        SyntheticMachine(accept=0.0006, commit=0.0018, database_row=0.00016, database_commit=0.0012),
        "interpreter",
    ),
    "the loop, with costly transactions": (SyntheticMachine(commit=0.0006), "interpreter"),
    "the loop, with cheap transactions": (SyntheticMachine(commit=0.0003), "interpreter"),
    "the loop, which others keep waiting": (SyntheticMachine(cores=4.0, others=2.2), "interpreter"),
    "the core": (SyntheticMachine(cores=1.0, database_row=0.00015, database_commit=0.0006, client=0.0001), "machine"),
    "the disk": (SyntheticMachine(disk=0.08, rows_max=64), "committer"),
    "the loop, with analyses": (SyntheticMachine(analysis=0.005), "interpreter"),
    "the loop, with analyses that end together": (SyntheticMachine(analysis=0.005, upkeep=0.001), "interpreter"),
    # As measured: 2 ms for each lease and settle.
    "the loop of a slow machine, with analyses": (
        SyntheticMachine(cores=2.0, accept=0.0004, commit=0.0008, analysis=0.0058, upkeep=0.002, disk=0.002),
        "interpreter",
    ),
    "the model": (SyntheticMachine(analysis=0.004, job_seconds=0.4, places=16), "llm"),
}
