"""The report of ``convo capacity``: the bottleneck, how long many conversations take, and what a target rate needs.

Open it to change what is said of too little data. It is arithmetic alone; ``resources`` holds the laws, ``planning``
what a rate needs.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from convo.capacity.ceilings import Ceiling, find_ceiling
from convo.capacity.demands import Demands
from convo.capacity.planning import ConversationDemand, Plan, StoredBytes, Surroundings, make_plan
from convo.capacity.processors import UPKEEP_ALONE
from convo.capacity.resources import Allowance, Resource, find_resources
from convo.plural import plural

ENOUGH_CONVERSATIONS, ENOUGH_READINGS = 200, 10
"""With fewer conversations or readings, the report calls itself a guess."""

# On an idle machine a thread that wakes up waits a little, too.
_SLOWED_LEAST = 1.25
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)/(s|min|h|day)")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3_600, "day": 86_400}

_Figure = Annotated[float, Meta(ge=0)]
_Number = Annotated[int, Meta(ge=0)]


class MeasuredSpan(Struct, frozen=True, kw_only=True):
    """What the figures were measured over, and whether that is enough."""

    seconds: _Figure
    readings: _Number
    accepted: _Number
    analysed: _Number
    enough: bool
    note: str


class ManyForecast(Struct, frozen=True, kw_only=True):
    """How long it takes all processes together to take in, and to analyse, so many conversations, in seconds."""

    conversations: _Number
    accept_seconds: float | None
    analyse_seconds: float | None
    formula: str


class CapacityReport(Struct, frozen=True, kw_only=True):
    """What one process was measured to need, and what follows from that."""

    measured: MeasuredSpan
    processes: _Number
    load_ratio: float | None
    resources: tuple[Resource, ...]
    accepts: Ceiling | None
    analyses: Ceiling | None
    conversation: ConversationDemand
    many: ManyForecast | None
    plan: Plan | None


def rate_of(text: str) -> float:
    """Return the conversations a second that a target names: "500/s", "30000/min", "2000000/h" or "5000000/day".

    Raises:
        ValueError: it names no rate above 0.
    """
    found = _RATE.fullmatch(text.strip())
    rate = float(found[1]) / _UNIT_SECONDS[found[2]] if found else 0.0
    if rate <= 0:
        raise ValueError(f"{text!r} is not a rate of conversations above 0; write 500/s, 30000/min or 5000000/day")
    return rate


def forecast_capacity(  # noqa: PLR0913  (all that the report is made of)
    demands: Demands | None,
    allowed: Allowance,
    around: Surroundings,
    *,
    load_ratio: float | None = None,
    conversations: int | None = None,
    target: float | None = None,
) -> CapacityReport:
    """Make the report; ``conversations`` asks how long so many take, ``target`` what so many a second need."""
    resources = () if demands is None else find_resources(demands, allowed)
    accepts = analyses = None
    if demands is not None:
        slowed = demands.waits.slowed
        accepts = find_ceiling(
            resources, ("accepts",), demands.accepted_most, apart=demands.process.apart, slowed=slowed
        )
        analyses = find_ceiling(resources, ("analyses", "both"), demands.analysed_most, slowed=slowed)
    demand = _conversation(demands, around.stored)
    many = None if conversations is None else _many(conversations, accepts, analyses, max(1, around.processes))
    plan = None
    if target is not None and (accepts is not None or analyses is not None):
        plan = make_plan(target, resources, demand, around)
    return CapacityReport(
        measured=_span(demands),
        processes=around.processes,
        load_ratio=load_ratio,
        resources=resources,
        accepts=accepts,
        analyses=analyses,
        conversation=demand,
        many=many,
        plan=plan,
    )


def _span(demands: Demands | None) -> MeasuredSpan:
    if demands is None:
        note = "nothing is measured yet: wait for two readings, one each capacity.sample_seconds"
        return MeasuredSpan(seconds=0.0, readings=0, accepted=0, analysed=0, enough=False, note=note)
    accepted, analysed = int(demands.accepted), int(demands.analysed)
    enough = max(accepted, analysed) >= ENOUGH_CONVERSATIONS and demands.readings >= ENOUGH_READINGS
    most = max(accepted, analysed)
    note = f"measured over {most} {plural(most, 'conversation')} in {demands.seconds:.0f} s"
    if not enough:
        few = "too few"
        if demands.readings < ENOUGH_READINGS:
            few += f" readings ({demands.readings})"
        note += (
            f"; {few}: take it for a guess until there are {ENOUGH_CONVERSATIONS} conversations"
            f" and {ENOUGH_READINGS} readings"
        )
    if demands.waits.slowed >= _SLOWED_LEAST:
        note += (
            f"; others want the same processors: the loop's work takes {demands.waits.slowed:.1f} times as long, and"
            " alone it could do up to so many times as much"
        )
    if demands.machine is None and demands.others:
        note += f"; others use {demands.others:.1f} cores, so what conversations take of the machine cannot be seen"
    if enough and not accepted:
        note += "; this process took none in, so nothing is known of accepts"
    elif enough and not analysed:
        note += "; this process analysed none, so nothing is known of analyses"
    return MeasuredSpan(
        seconds=demands.seconds,
        readings=demands.readings,
        accepted=accepted,
        analysed=analysed,
        enough=enough,
        note=note,
    )


def _conversation(demands: Demands | None, stored: StoredBytes) -> ConversationDemand:
    per_row = stored.bytes / stored.conversations if stored.conversations else None
    if demands is None:
        return ConversationDemand(stored_bytes=per_row)
    analysed = bool(demands.analysed)
    process = demands.process
    return ConversationDemand(
        processor_seconds=process.accept + process.commit + process.analysis + UPKEEP_ALONE * process.upkeep,
        job_seconds=demands.job_seconds if analysed else None,
        calls={name: figure for name, figure in demands.calls.items() if figure},
        call_seconds={name: figure for name, figure in demands.call_seconds.items() if figure},
        tokens_in=demands.tokens_in if analysed else None,
        tokens_out=demands.tokens_out if analysed else None,
        price=demands.price if analysed else None,
        stored_bytes=per_row,
        object_bytes=demands.object_bytes or None,
    )


def _many(conversations: int, accepts: Ceiling | None, analyses: Ceiling | None, processes: int) -> ManyForecast:
    def seconds(of: Ceiling | None) -> float | None:
        return None if of is None or not of.per_second else conversations / (of.per_second * processes)

    words = [
        f"{conversations} / ({one.per_second:.1f}/s x {processes}) to {what}"
        for what, one in (("take in", accepts), ("analyse", analyses))
        if one is not None and one.per_second
    ]
    return ManyForecast(
        conversations=conversations,
        accept_seconds=seconds(accepts),
        analyse_seconds=seconds(analyses),
        formula="; ".join(words) or "nothing is measured yet",
    )
