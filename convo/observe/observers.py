"""Lists of functions that are called when something happens: how a listener is added to deadlines or log records.

Each source (``runtime.deadline``, ``observe.log_records``) holds one ``Observers`` and calls every function in
``current``. Metrics, the waits of one job and the alerts are such functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Observer = TypeVar("Observer")


class Observers(Generic[Observer]):
    """Functions that one source calls, in the order in which they were added."""

    __slots__ = ("current",)

    def __init__(self, *first: Observer) -> None:
        # A tuple that is replaced and never changed: a source on another thread may be in the middle of it.
        self.current: tuple[Observer, ...] = first

    @contextmanager
    def adding(self, observer: Observer) -> Iterator[None]:
        """Call ``observer`` as well, inside the block; it runs inside the source and must return at once."""
        self.current = (*self.current, observer)
        try:
            yield
        finally:
            last = len(self.current) - 1 - self.current[::-1].index(observer)
            self.current = (*self.current[:last], *self.current[last + 1 :])
