"""Several dependencies that do the same work, asked in a row until one answers: each has a breaker of its own.

Jobs know them as one. It flows while any of them does, and is out while none is.

- Whatever the error of one is, the next one is asked: it is out, asks for a pause, refuses the key, the model or this
  request, or its answer cannot be used. An attempt that could not have its whole time is not begun.
- Each judges its own failures (``resilience.systemic``), also where another one has answered afterwards.
- Where none answers, the job is at fault only if it is at each of them. While one of them is out, no attempt is spent.
  A job that another one refuses then comes back once in a while only, as each refusal may have its price.
"""

from __future__ import annotations

import random as dice
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from convo.errors import RemoteError
from convo.resilience.dependency import Dependency
from convo.resilience.systemic import SpentAttempt

T = TypeVar("T")
AskLink = Callable[[int, bool], Awaitable[T]]
"""Asks the dependency at this place in the row; true where another one can be asked after it."""

REFUSED_SECONDS = 60.0
"""So long at least a job waits that one of them refuses while another one is out."""


class Chain:
    """A row of dependencies; ``name`` is what jobs wait for."""

    def __init__(self, name: str, links: Sequence[Dependency], *, random: Callable[[], float] = dice.random) -> None:
        self._name = name
        self._links = tuple(links)
        self._by_name = {link.name: link for link in links}
        self._random = random

    @property
    def name(self) -> str:
        """What jobs wait for."""
        return self._name

    def flows(self) -> bool:
        """Return whether work that waits for it can go on."""
        return any(link.flows() for link in self._links)

    def described(self) -> str:
        """Return how this process calls each of them at present."""
        return "; ".join(link.described() for link in self._links)

    def wants_probe(self) -> bool:
        """Return whether one piece of work should find out if any is back; while one flows, its calls find out."""
        return not self.flows() and any(link.wants_probe() for link in self._links)

    def probe_sent(self) -> None:
        """Note that a piece of work is on the way to find out."""
        for link in self._links:
            if link.wants_probe():
                link.probe_sent()

    # --- a job that failed

    def is_at_fault(self, error: RemoteError, job: int) -> bool:
        """Return whether any of them is at fault, each by its own error, and not the job."""
        verdicts = [self._by_name[one.dependency].is_at_fault(one, job) for one in error.asked or (error,)]
        return any(verdicts)

    def note_spent(self, error: RemoteError, job: int, attempt: SpentAttempt) -> None:
        """Note that ``job`` spent an attempt on these errors."""
        for one in error.asked or (error,):
            self._by_name[one.dependency].note_spent(one, job, attempt)

    def take_owed(self) -> dict[int, int]:
        """Return the attempts to give back, by job, and owe them no more."""
        owed: dict[int, int] = {}
        for link in self._links:
            for job, attempts in link.take_owed().items():
                owed[job] = owed.get(job, 0) + attempts
        return owed

    def owe_again(self, owed: dict[int, int]) -> None:
        """Owe attempts that could not be given back."""
        self._links[0].owe_again(owed)

    def forget_jobs(self) -> None:
        """Forget which jobs failed."""
        for link in self._links:
            link.forget_jobs()

    # --- a call

    async def ask(self, attempt: AskLink[T], job: int | None = None) -> T:
        """Ask one after the other until one answers; ``job`` is who each of them notes its failures for.

        Raises:
            RemoteError: none did; ``asked`` holds the error of each.
        """
        asked: list[RemoteError] = []
        for place, link in enumerate(self._links):
            if asked and not link.has_time():
                break
            try:
                return await attempt(place, any(one.flows() for one in self._links[place + 1 :]))
            except RemoteError as error:
                if job is not None:
                    link.is_at_fault(error, job)
                asked.append(error)
        raise self._standing(asked)

    def _standing(self, asked: Sequence[RemoteError]) -> RemoteError:
        """Return the error that stands for all: an outage, if there is one, else the first."""
        standing = next((one for one in asked if one.outage), asked[0])
        standing.asked = tuple(asked)
        if standing.outage and standing.later_seconds is None and not all(one.outage for one in asked):
            standing.later_seconds = REFUSED_SECONDS * (1 + self._random())
        return standing
