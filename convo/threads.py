"""Threads for what would hold the loop: few at a time; it knows no work.

There is one interpreter. Twenty threads that each decode a log leave the loop a twentieth of it; in line they take no
longer, and the loop keeps a third.
"""

from __future__ import annotations

import trio

REQUESTS = trio.CapacityLimiter(2)
"""For what a client waits for."""

JOBS = trio.CapacityLimiter(1)
"""For what nobody waits for."""
