"""Lets whoever runs the embedded analyst in a thread do something between two turns, such as giving way to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


def _nothing() -> None:
    pass


between_turns: ContextVar[Callable[[], None]] = ContextVar("between_turns", default=_nothing)
"""Called before each turn is looked at, in the thread in which the analyst works."""


def each(turns: Iterable[T]) -> Iterator[T]:
    """Yield each turn, and call ``between_turns`` before."""
    pause = between_turns.get()
    for turn in turns:
        pause()
        yield turn
