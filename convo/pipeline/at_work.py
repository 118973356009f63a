"""One job at work: its lease, what its work has waited for, and what it has found that is not stored yet.

Open it to change when a part is stored by itself. What arrives in the same moment as the last part is stored with the
settle, in its transaction. What was paid for and has to wait for other parts is stored by itself; what the embedded
analyst finds costs nothing to find again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from convo.analysis.analyze import PartFailure
from convo.analysis.job_calls import JobCalls
from convo.conversation.model import Finding, PartName
from convo.errors import BadRow
from convo.observe.tracing import Span
from convo.store.jobs.lease import Lease
from convo.store.jobs.runs import Waits

StorePart = Callable[[Lease, PartName, str, Finding], Awaitable[None]]

TOGETHER_SECONDS = 0.1
"""For so long a part that was paid for waits for the last one before it is stored by itself."""


class JobAtWork:
    """What is known of one job while its parts are found.

    ``missing`` are the parts that are not stored, ``calls`` what has been asked of language models. ``span`` is the
    step of its trace that ends with the job, None where that is not recorded.
    """

    __slots__ = ("_last", "_missing", "_storing", "calls", "found", "lease", "left", "span", "waits")

    def __init__(
        self,
        lease: Lease,
        waits: Waits,
        missing: Collection[PartName] = (),
        calls: JobCalls | None = None,
        span: Span | None = None,
    ) -> None:
        self.lease = lease
        self.calls = calls
        self.span = span
        self.waits = waits
        self.found: dict[PartName, tuple[str, Finding]] = {}
        self.left: Mapping[PartName, PartFailure] = {}
        """Parts that the score does not wait for and that failed: each gets a job of its own with the settle."""
        self._missing = set(missing)
        self._last: trio.Event | None = None
        self._storing = trio.Lock()

    def note(self, name: PartName, by: str, finding: Finding) -> None:
        """Note what one part found: from now on it goes along with the ending of the job."""
        self.found[name] = (by, finding)
        self._missing.discard(name)
        if not self._missing and self._last is not None:
            self._last.set()

    async def store_if_others_are_slow(self, store: StorePart) -> None:
        """Store what is found, unless the last part comes within a moment.

        Raises:
            ConvoError: as ``store_found``.
        """
        if not self._missing:
            return
        if self._last is None:
            self._last = trio.Event()
        with trio.move_on_after(TOGETHER_SECONDS):
            await self._last.wait()
            return
        await self.store_found(store)

    async def store_found(self, store: StorePart) -> None:
        """Store what is found and not stored yet, each by itself; what the database refuses is dropped.

        Raises:
            BadRow: it refuses one of them; the others are stored.
            ConvoError: what else ``store`` raised; what was not stored still goes along with the ending.
        """
        refused: BadRow | None = None
        # Each part that was slow comes here: one after the other, so that what one stores is not stored by the next.
        async with self._storing:
            for name, (by, finding) in list(self.found.items()):
                try:
                    await store(self.lease, name, by, finding)
                except BadRow as error:
                    refused = error
                self.found.pop(name, None)
        if refused is not None:
            raise refused
