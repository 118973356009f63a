"""Holds the phase of this process: migrating, open or draining; ``/readyz`` and the door read it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from convo.dependencies import alert_prefix
from convo.errors import Unavailable
from convo.resilience.dependency import Dependency

Phase = Literal["migrating", "open", "draining"]


class Readiness:
    """The phase of this process, and the warnings that ``/readyz`` shows."""

    def __init__(self, dependencies: Collection[Dependency] = ()) -> None:
        self.phase: Phase = "migrating"
        self.warnings: list[str] = []
        # What differs from the settings of the other processes: empty where they agree.
        self.disagreement = ""
        self._dependencies = dependencies
        self._others: Callable[[], Sequence[str]] = tuple

    def watch(self, others: Callable[[], Sequence[str]]) -> None:
        """Show from now on what ``others`` warns of."""
        self._others = others

    @property
    def shown_warnings(self) -> tuple[str, ...]:
        """The warnings of the start, and what holds now."""
        return (
            *self.warnings,
            *([f"SETTINGS_DISAGREE: {self.disagreement}"] if self.disagreement else []),
            *(
                f"{alert_prefix(one.name)}_MISCONFIGURED: {one.misconfigured}"
                for one in self._dependencies
                if one.misconfigured
            ),
            *self._others(),
        )

    def check(self) -> None:
        """Check that requests which need the database can be served.

        Raises:
            Unavailable: the database was not reached or not migrated yet.
        """
        if self.phase == "migrating":
            raise Unavailable(
                "the database is not ready yet: it is being connected to and migrated", retry_after_seconds=1
            )

    def open(self) -> None:
        """Begin to serve, unless the process is stopping already."""
        if self.phase == "migrating":
            self.phase = "open"

    def close(self) -> None:
        """Refuse requests that need the database until ``open`` is called again."""
        if self.phase == "open":
            self.phase = "migrating"

    def drain(self) -> None:
        """Begin to stop: requests are still served, but ``/readyz`` answers 503, so that no new ones are sent here."""
        self.phase = "draining"
