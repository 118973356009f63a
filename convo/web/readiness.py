"""Whether requests can be served now, and why not; it decides nothing else."""

from __future__ import annotations

from typing import Literal

from convo.errors import Unavailable

Phase = Literal["migrating", "open", "draining"]


class Readiness:
    """The phase of this process, with the warnings that ``/readyz`` shows."""

    def __init__(self) -> None:
        self.phase: Phase = "migrating"
        self.warnings: list[str] = []

    def check(self) -> None:
        """Pass when requests that need the database can be served.

        Raises:
            Unavailable: the database is not reached or not migrated yet.
        """
        if self.phase == "migrating":
            raise Unavailable("the database is being reached and migrated; try again shortly", retry_after_seconds=1)

    def open(self) -> None:
        """Begin to serve, unless the stop has begun already."""
        if self.phase == "migrating":
            self.phase = "open"

    def drain(self) -> None:
        """Begin to stop: requests are still served, but ``/readyz`` sends new ones elsewhere."""
        self.phase = "draining"
