"""Takes a reading of this process now and then, keeps the last ones, and shows the load ratio to autoscalers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from convo.capacity.load_ratio import Fill, LoadRatio, load_shares
from convo.capacity.machine_cpu import MachineCpu
from convo.capacity.reading import read_usage
from convo.capacity.usage import Usage
from convo.observe import metrics
from convo.runtime.scheduled import ThreadTimes
from convo.settings import CapacitySettings


class Meter:
    """The readings of one process.

    ``accept_busy_seconds``, ``fill`` and ``pace_seconds`` return what no metric holds.
    """

    def __init__(  # noqa: PLR0913  (all that is read, and what it is measured by)
        self,
        settings: CapacitySettings,
        accept_busy_seconds: Callable[[], float],
        fill: Callable[[], Fill],
        machine: MachineCpu | None = None,
        *,
        batch_rows: int = 1,
        pace_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """``batch_rows`` is the most that one transaction of accepts stores."""
        self._settings = settings
        self._accept_busy_seconds = accept_busy_seconds
        self._fill = fill
        self._batch_rows = batch_rows
        self._pace_seconds = pace_seconds
        self.machine = MachineCpu() if machine is None else machine
        kept = int(settings.window_seconds / settings.sample_seconds) + 1
        self._readings: deque[Usage] = deque(maxlen=max(2, kept))
        self.ratio = LoadRatio(settings.smoothing_seconds)

    async def run(self) -> None:
        """Take a reading every ``capacity.sample_seconds`` until cancelled; run it in the loop's own thread."""
        due = trio.current_time()
        with ThreadTimes() as loop:
            await self._take_readings(due, loop)

    async def _take_readings(self, due: float, loop: ThreadTimes) -> None:
        while True:
            self.take_reading(loop.read())
            due += self._settings.sample_seconds
            if due <= trio.current_time():
                # After a pause of the machine: the readings in between are not made up for.
                due = trio.current_time() + self._settings.sample_seconds
            await trio.sleep_until(due)

    def take_reading(self, loop: tuple[float, float] = (0.0, 0.0)) -> None:
        """Take one reading, and set the gauges; ``loop`` is as ``ThreadTimes.read`` returns it."""
        reading = read_usage(
            Usage(
                at=trio.current_time(),
                machine_seconds=self.machine.read(),
                loop_seconds=loop[0],
                queued_seconds=loop[1],
                accept_busy_seconds=self._accept_busy_seconds(),
                pace_seconds=self._pace_seconds(),
            )
        )
        step = reading.since(self._readings[-1]) if self._readings else None
        self._readings.append(reading)
        if step is None or step.at <= 0:
            return
        shares = load_shares(step, self._fill(), self._settings.backlog_seconds, self._batch_rows)
        self.ratio.note(shares, step.at)
        for name, share in self.ratio.shares.items():
            metrics.load_share.labels(name).set(share)
        metrics.load_ratio.set(self.ratio.value or 0.0)

    def readings(self) -> tuple[Usage, ...]:
        """Return the readings that are kept, oldest first."""
        return tuple(self._readings)
