"""The job that the running task works for, as its calls to remote services know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_at_work: ContextVar[int | None] = ContextVar("job_at_work", default=None)


@contextmanager
def working_for(seq: int) -> Iterator[None]:
    """Have all calls inside know that they are made for the job ``seq``."""
    token = _at_work.set(seq)
    try:
        yield
    finally:
        _at_work.reset(token)


def job_at_work() -> int | None:
    """Return the job that this task works for; None outside of one."""
    return _at_work.get()
