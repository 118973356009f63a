"""The most conversations a second that all resources of a process together allow, and whether that is known well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from convo.capacity.resources import Resource

RANGE_CLOSE = 1.6
"""Where the most is at most so many times the least, a ceiling is one figure: within about a quarter. Else a range."""

ENOUGH_LOAD = 1 / 3
"""From this share of the end on, a load says where the end is."""

SLOWED_MUCH = 1.5
"""Where the loop waits for processors so long, the end depends on whoever else wants them."""

_Figure = Annotated[float, Meta(ge=0)]


class Ceiling(Struct, frozen=True, kw_only=True):
    """The most conversations a second of one process, and the resource that decides it.

    Nine times in ten it is from ``low`` to ``high``. Where that is too far apart for one figure, ``sharpen`` says what
    would bring them together; else it is empty.
    """

    per_second: _Figure
    low: _Figure
    high: _Figure
    bottleneck: str
    sharpen: str = ""


def find_ceiling(
    resources: Sequence[Resource], of: Sequence[str], seen_most: float, *, apart: bool = True, slowed: float = 1.0
) -> Ceiling | None:
    """Return the least of the resources that limit ``of``; None where there is none.

    ``seen_most`` is the highest rate that was seen, ``apart`` whether its costs were told apart from those of others,
    and ``slowed`` how many times longer work takes because the loop waits for a processor.
    """
    # What is analysed was taken in before: the resources of accepts end it, too.
    chosen = [one for one in resources if one.limits in of]
    if not chosen:
        return None
    if "both" in of:
        chosen += [one for one in resources if one.limits == "accepts"]
    least = min(chosen, key=lambda one: one.per_second)
    low, high = min(one.low for one in chosen), min(one.high for one in chosen)
    return Ceiling(
        per_second=least.per_second,
        low=low,
        high=high,
        bottleneck=least.name,
        sharpen=_sharpen(least.per_second * ENOUGH_LOAD, seen_most, apart=apart, slowed=slowed)
        if high > RANGE_CLOSE * low
        else "",
    )


def _sharpen(enough: float, seen_most: float, *, apart: bool, slowed: float) -> str:
    if not apart:
        return "accepts came with one analysis each: a minute of more accepts than analyses tells them apart"
    if seen_most < enough:
        return f"the highest load was {seen_most:,.1f}/s; a minute at {enough:,.0f}/s or more says where the end is"
    if slowed >= SLOWED_MUCH:
        return "others on the machine want its processors; a minute at this load without them says where the end is"
    return "a minute at a higher load, and one without any, say better where the end is"
