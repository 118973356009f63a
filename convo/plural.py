"""The noun behind a count: "1 conversation", "2 conversations"."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return ``noun``, which takes an s, as it stands behind a count."""
    return noun if abs(count) == 1 else f"{noun}s"
