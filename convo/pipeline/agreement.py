"""Whether this process may take jobs: only while its settings agree with those of the processes that take jobs already.

Open it to change what a process does whose settings would give other results. Which settings these are stands in
``store/process_settings.py``.

The right to take jobs is a lease too: it ends ``jobs.lease_seconds`` after the last comparison. So a process that was
stopped or cut off compares first, and another process may have taken its place meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.settings import Settings
from convo.store import process_settings
from convo.store.postgres import Postgres
from convo.store.process_settings import Comparison, Difference

AgreementChanged = Callable[[str], None]
"""Called with what differs, or an empty text, whenever that or the right to take jobs changes."""

# Every weight of [score] can differ from those of every process.
_NAMED_MAX = 10


class Agreement:
    """Compares the settings of this process with those of the others at every heartbeat."""

    def __init__(
        self, postgres: Postgres, settings: Settings, name: Callable[[], str], changed: AgreementChanged
    ) -> None:
        self._postgres = postgres
        self._settings = settings
        self._name = name
        self._changed = changed
        self._takes_until = -math.inf
        self._differences: tuple[Difference, ...] = ()
        self.others_take = False
        """Whether another process takes jobs, as of the last comparison."""

    def takes_jobs(self) -> bool:
        """Return whether this process may take jobs now."""
        return trio.current_time() < self._takes_until

    async def run(self) -> None:
        """Compare at once and at every heartbeat, until cancelled."""
        while True:
            asked = trio.current_time()
            try:
                found = await process_settings.compare(self._postgres, self._name(), self._settings)
            except ConvoError as error:
                # The last comparison holds until its lease ends.
                log_records.comparison_failed(reason=error.detail)
            else:
                self._note(asked, found)
            await trio.sleep(self._settings.jobs.heartbeat_seconds)

    async def leave(self) -> None:
        """Stand in nobody's way any more: this process stops."""
        await process_settings.forget(self._postgres, self._name())

    def _note(self, asked: float, found: Comparison) -> None:
        before = (self.takes_jobs(), self._differences)
        self._takes_until = asked + self._settings.jobs.lease_seconds if found.takes_jobs else -math.inf
        self._differences, self.others_take = found.differences, found.others_take
        if (self.takes_jobs(), self._differences) == before:
            return
        reason = described(found.differences, workers=self._settings.jobs.workers) if found.differences else ""
        if found.differences:
            log_records.settings_disagree(reason=reason)
        elif before[1]:
            log_records.settings_agree()
        self._changed(reason)


def described(found: Sequence[Difference], *, workers: int) -> str:
    """Name each difference, at most ``_NAMED_MAX`` of them, and say what this process does meanwhile."""
    more = f"; and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
    meanwhile = "until they agree this process takes no jobs" if workers else "this process accepts with its own value"
    return "; ".join(map(str, found[:_NAMED_MAX])) + f"{more}: {meanwhile}"
