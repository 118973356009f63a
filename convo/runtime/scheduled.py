"""For how long a thread has worked, and waited for a processor: what Linux counts of each (schedstat)."""

from __future__ import annotations

import os
import threading
from typing import Self

_PER_SECOND = 1e9


class ThreadTimes:
    """What the kernel counts of one thread since its start, kept open: it is read many times a second.

    Where the kernel counts nothing, both times stay 0. Close it, or use it as a context manager.
    """

    def __init__(self, native_id: int | None = None) -> None:
        """``native_id`` is the thread's id for the kernel; None: of the thread that calls."""
        thread = threading.get_native_id() if native_id is None else native_id
        self._file: int | None
        try:
            self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counted(self) -> bool:
        """Whether the kernel counts."""
        return self._file is not None

    def read(self) -> tuple[float, float]:
        """Return for how many seconds it has worked, and for how many it could run but had no processor."""
        if self._file is None:
            return 0.0, 0.0
        try:
            worked, queued = os.pread(self._file, 64, 0).split()[:2]
        except ProcessLookupError:  # that thread has ended
            return 0.0, 0.0
        return int(worked) / _PER_SECOND, int(queued) / _PER_SECOND

    def close(self) -> None:
        """Close what was opened."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
