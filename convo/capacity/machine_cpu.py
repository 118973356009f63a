"""How much processor time the machine, or this container of it, has used, and how many cores there are.

Linux counts both. Where a container has a limit (cgroup version 2, ``cpu.max``), the container is the machine.
Elsewhere nothing is counted.
"""

from __future__ import annotations

import os
from pathlib import Path

_STAT, _CGROUP = Path("/proc/stat"), Path("/sys/fs/cgroup")
_PER_SECOND = 1e6
# Of the first line of /proc/stat: user, nice, system, irq, softirq and steal. Guests are in user; the rest is waiting.
_BUSY = (0, 1, 2, 5, 6, 7)


class MachineCpu:
    """The processors that a process shares with others."""

    def __init__(self, stat: Path = _STAT, cgroup: Path = _CGROUP) -> None:
        self._stat, self._used = stat, cgroup / "cpu.stat"
        limit = _limit(cgroup / "cpu.max")
        self._is_limited = limit is not None
        self.cores = limit if limit is not None else float(os.cpu_count() or 1)

    def read(self) -> float:
        """Return the seconds of processor time used since the start; always 0 where the system does not count them."""
        try:
            return self._container_seconds() if self._is_limited else self._all_seconds()
        except (OSError, ValueError, IndexError):
            return 0.0

    def _container_seconds(self) -> float:
        figures = dict(line.split(" ", 1) for line in self._used.read_text("ascii").splitlines())
        return int(figures.get("usage_usec", "0")) / _PER_SECOND

    def _all_seconds(self) -> float:
        with self._stat.open(encoding="ascii") as lines:
            fields = lines.readline().split()[1:]
        return sum(int(fields[at]) for at in _BUSY) / os.sysconf("SC_CLK_TCK")


def _limit(path: Path) -> float | None:
    try:
        quota, period = path.read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
