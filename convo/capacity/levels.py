"""Readings of a process put together by how much it did: each load that was seen counts once, however long it lasted.

An hour at a low rate would otherwise outweigh the minute at a high one, which says most about the end. Work that costs
the same each time may be added up: what a fit finds stays right, and its noise grows less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import Struct

from convo.capacity.usage import Usage

# Rates that are within so many times of each other are one load.
_APART = 1.5


class LoadLevel(Struct, frozen=True, kw_only=True):
    """What was used and done in all readings of one load; ``done.at`` is how many seconds they lasted together."""

    readings: int
    done: Usage

    @property
    def accepted_per_second(self) -> float:
        """The rate of accepts at this load."""
        return self.done.accepted / self.done.at

    @property
    def rows(self) -> float:
        """How many accepts shared a transaction on average; 0 where there was none."""
        return self.done.accepted / self.done.commits if self.done.commits else 0.0


def find_steps(readings: Sequence[Usage]) -> list[Usage]:
    """Return what lies between each two readings, oldest first."""
    steps = [later.since(earlier) for earlier, later in pairwise(readings)]
    return [step for step in steps if step.at > 0]


def is_quiet(step: Usage) -> bool:
    """Return whether nothing was accepted and nothing analysed."""
    return not step.accepted and not step.analysed


def find_levels(steps: Iterable[Usage]) -> list[LoadLevel]:
    """Put the steps with work together by their rates of accepts and analyses; the load with most accepts is last."""
    found: dict[tuple[int, int], LoadLevel] = {}
    for step in steps:
        if is_quiet(step):
            continue
        key = (_size(step.accepted / step.at), _size(step.analysed / step.at))
        so_far = found.get(key)
        if so_far is None:
            found[key] = LoadLevel(readings=1, done=step)
        else:
            found[key] = LoadLevel(readings=so_far.readings + 1, done=so_far.done.plus(step))
    return sorted(found.values(), key=lambda level: level.accepted_per_second)


def _size(rate: float) -> int:
    # Below one a minute all rates are one; none at all is a load of its own.
    return round(math.log(max(rate, 1 / 60), _APART)) if rate else -100
