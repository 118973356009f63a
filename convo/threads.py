"""Threads for what would hold the loop: few at a time; it knows no work.

There is one interpreter. Twenty threads that each decode a log leave the loop a twentieth of it; in line they take no
longer, and the loop keeps a third.
"""

from __future__ import annotations

import sys

import trio

REQUESTS = trio.CapacityLimiter(2)
"""For what a client waits for."""

JOBS = trio.CapacityLimiter(1)
"""For what nobody waits for."""

# Python's own 5 ms is what the loop would wait for each time that it reads or writes while a thread is at work.
_SWITCH_SECONDS = 0.0005


def favour_the_loop() -> None:
    """Let threads give way to the loop soon, in this process."""
    sys.setswitchinterval(_SWITCH_SECONDS)
