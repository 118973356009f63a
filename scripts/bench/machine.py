"""What a measurement was made on, and what the kernel says of a process; it knows no server by name."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("trio", "hypercorn", "quart-trio", "httptools", "asyncpg", "msgspec", "zstandard")
_LISTENING = "0A"


def about(database: str) -> dict[str, str]:
    """Describe the machine and the versions of what is measured; ``database`` is its server's own version."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, {platform.platform()}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "Python": platform.python_version(),
        "convo on": packages,
        "PostgreSQL": database,
        "client": _client(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _client() -> str:
    wrk = shutil.which("wrk")
    if wrk is None:
        return "our own (wrk is not installed)"
    return subprocess.run([wrk, "-v"], capture_output=True, text=True, check=False).stdout.partition("[")[0].strip()


# --- one process


def cpu_seconds(pid: int) -> float:
    """Read the CPU time that a process has used by itself; its children, PostgreSQL among them, do not count."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Read how much memory of a process is resident."""
    return _status(pid, "VmRSS") * 1024


def forget_peak(pid: int) -> None:
    """Have the peak of a process's memory begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_bytes(pid: int) -> int:
    """Read the most memory of a process that was resident since its start, or since ``forget_peak``."""
    return _status(pid, "VmHWM") * 1024


def threads(pid: int) -> int:
    """Count the threads of a process."""
    return _status(pid, "Threads")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def descriptors(pid: int) -> int:
    """Count the open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def connections(pid: int, port: int) -> int:
    """Count the sockets that a process holds of those that clients opened to its ``port``.

    One that its client has reset is in none of the kernel's tables any more, but the process may hold it all the same:
    so all sockets are counted that are nothing else.
    """
    return len(_inodes_of(pid) - _inodes_elsewhere(port))


def _inodes_of(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            # Closed since it was listed.
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _inodes_elsewhere(port: int) -> set[str]:
    """Return all sockets that listen, that are to or at another port, or that are no TCP."""
    local = f":{port:04X}"
    found = {line.split()[6] for line in _lines("/proc/net/unix")}
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        found |= {line.split()[9] for line in _lines(table)}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for fields in map(str.split, _lines(table)):
            if fields[3] == _LISTENING or not fields[1].endswith(local):
                found.add(fields[9])
    return found


def _lines(table: str) -> list[str]:
    return Path(table).read_text().splitlines()[1:]
