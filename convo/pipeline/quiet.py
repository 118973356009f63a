"""When this process does nothing else for the sake of a suspect, and for how long it works for the others afterwards.

Open it to change what suspects cost the others. It reads no clock and asks no database: the publisher does both.
"""

from __future__ import annotations

import math


class QuietTime:
    """The time that this process keeps for suspects: at most half of it, one suspect at a time.

    It lasts from the moment when nothing else starts here until the suspect has ended. Then the others have at least as
    long, unless none of them is due.
    """

    def __init__(self) -> None:
        self.suspects_due = False
        self.at_work = False
        self._since: float | None = None
        self._others_until = -math.inf

    @property
    def waiting(self) -> bool:
        """Whether what is at work here is awaited, so that a suspect can start."""
        return self._since is not None and not self.at_work

    def wanted(self, now: float) -> bool:
        """Return whether a suspect is due and the others have had their time."""
        return self.suspects_due and self._since is None and now >= self._others_until

    def begin(self, now: float) -> None:
        """Start nothing else from now on."""
        self._since = now

    def handed_over(self) -> None:
        """Note that the suspect is at work."""
        self.at_work = True

    def none_found(self) -> None:
        """Go on with the others: another process has the claim, or no suspect is due."""
        self._since, self.suspects_due = None, False

    def end(self, now: float) -> None:
        """Note that the suspect has ended: the others have as long as it took."""
        if self._since is not None:
            self._others_until = now + (now - self._since)
        self._since, self.at_work = None, False

    def skip_others(self) -> bool:
        """Note that no other job is due; return whether a suspect can start before the others' time is over."""
        waiting = self.suspects_due and self._others_until > -math.inf
        self._others_until = -math.inf
        return waiting
