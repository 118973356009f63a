"""The report of ``convo capacity``: the bottleneck, how long many conversations take, and what a target rate needs.

Open it to change what is planned, or when there is too little to plan with. It is arithmetic alone; ``resources`` holds
the laws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from convo.capacity.demands import Demands
from convo.capacity.resources import PLANNED_SHARE, Allowance, Resource, find_resources

ENOUGH_CONVERSATIONS, ENOUGH_READINGS = 200, 10
"""With fewer conversations or readings, the report calls itself a guess."""

PLACES_MAX = 1_000
"""The most workers, or calls at a time, that one process may have."""

MONTH_SECONDS = 30 * 86_400
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)/(s|min|h|day)")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3_600, "day": 86_400}

_Figure = Annotated[float, Meta(ge=0)]
_Number = Annotated[int, Meta(ge=0)]


class StoredBytes(Struct, frozen=True, kw_only=True):
    """What the tables of the database hold: their conversations, and all bytes with their indexes."""

    conversations: int
    bytes: int


class Surroundings(Struct, frozen=True, kw_only=True):
    """What is known of the installation besides this process.

    ``connections`` is what one process may open, ``connections_spare`` what the server has for all of them.
    """

    processes: int
    connections: int
    connections_spare: int
    stored: StoredBytes


class MeasuredSpan(Struct, frozen=True, kw_only=True):
    """What the figures were measured over, and whether that is enough."""

    seconds: _Figure
    readings: _Number
    accepted: _Number
    analysed: _Number
    enough: bool
    note: str


class Ceiling(Struct, frozen=True, kw_only=True):
    """The most conversations a second of one process, and the resource that decides it."""

    per_second: _Figure
    bottleneck: str


class ConversationDemand(Struct, frozen=True, kw_only=True):
    """What one conversation costs, as measured; null where nothing was measured."""

    processor_seconds: float | None = None
    job_seconds: float | None = None
    calls: dict[str, float] = {}
    call_seconds: dict[str, float] = {}
    tokens_in: float | None = None
    tokens_out: float | None = None
    price: float | None = None
    stored_bytes: float | None = None
    object_bytes: float | None = None


class ManyForecast(Struct, frozen=True, kw_only=True):
    """How long it takes all processes together to take in, and to analyse, so many conversations, in seconds."""

    conversations: _Number
    accept_seconds: float | None
    analyse_seconds: float | None
    formula: str


class Plan(Struct, frozen=True, kw_only=True):
    """What a rate needs: ``workers`` and ``concurrency`` are of each process, months have 30 days at this rate.

    ``problems`` is what does not fit, one sentence each.
    """

    per_second: _Figure
    processes: _Number
    workers: int | None
    concurrency: dict[str, int]
    connections: _Number
    tokens_in_month: float | None
    tokens_out_month: float | None
    price_month: float | None
    gigabytes_month: float | None
    formulas: tuple[str, ...]
    problems: tuple[str, ...]


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
    accepts, analyses = _ceiling(resources, ("accepts",)), _ceiling(resources, ("analyses", "both"))
    demand = _conversation(demands, around.stored)
    many = None if conversations is None else _many(conversations, accepts, analyses, max(1, around.processes))
    plan = None
    if target is not None and (accepts is not None or analyses is not None):
        plan = _plan(target, resources, demand, around)
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
    note = f"measured over {max(accepted, analysed)} conversations in {demands.seconds:.0f} s"
    if not enough:
        few = "too few"
        if demands.readings < ENOUGH_READINGS:
            few += f" readings ({demands.readings})"
        note += (
            f"; {few}: take it for a guess until there are {ENOUGH_CONVERSATIONS} conversations"
            f" and {ENOUGH_READINGS} readings"
        )
    if demands.slowed > 1:
        note += (
            f"; others want the same processors (work takes {demands.slowed:.1f} times as long), so this is what could"
            " be done without them"
        )
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


def _ceiling(resources: Sequence[Resource], of: Sequence[str]) -> Ceiling | None:
    # What is analysed was taken in before: the resources of accepts end it, too.
    chosen = [one for one in resources if one.limits in of]
    if not chosen:
        return None
    if "both" in of:
        chosen += [one for one in resources if one.limits == "accepts"]
    least = min(chosen, key=lambda one: one.per_second)
    return Ceiling(per_second=least.per_second, bottleneck=least.name)


def _conversation(demands: Demands | None, stored: StoredBytes) -> ConversationDemand:
    per_row = stored.bytes / stored.conversations if stored.conversations else None
    if demands is None:
        return ConversationDemand(stored_bytes=per_row)
    analysed = bool(demands.analysed)
    process = demands.process
    return ConversationDemand(
        processor_seconds=process.accept + process.commit + process.analysis,
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


# --- a plan


def _plan(target: float, resources: Sequence[Resource], demand: ConversationDemand, around: Surroundings) -> Plan:
    held = {"workers": demand.job_seconds or 0.0, **demand.call_seconds}
    # What a setting gives more of does not decide how many processes there must be, up to the most that it gives.
    fixed = [one for one in resources if not one.shared and one.name not in held and one.per_second]
    least = min(fixed, key=lambda one: one.per_second, default=None)
    needed = [_ceil(target * one / (PLANNED_SHARE * PLACES_MAX)) for one in held.values()]
    needed += [] if least is None else [_ceil(target / (PLANNED_SHARE * least.per_second))]
    processes = max(1, *needed)
    each = target / processes
    places = {name: _ceil(each * one / PLANNED_SHARE) for name, one in held.items() if one}
    why = "" if least is None else f": {target:.3g}/s / ({PLANNED_SHARE} x {least.per_second:.1f}/s of {least.name})"
    formulas = [
        f"processes{why} = {processes}",
        *(
            f"{name} of a process: {each:.3g}/s x {held[name]:.3g} s / {PLANNED_SHARE} = {count}"
            for name, count in places.items()
        ),
        f"connections: {processes} x {around.connections} = {processes * around.connections}",
    ]
    month = target * MONTH_SECONDS
    if demand.stored_bytes is not None:
        formulas.append(f"a month: {target:.3g}/s x {MONTH_SECONDS} s x {demand.stored_bytes:.0f} bytes")

    def monthly(one: float | None) -> float | None:
        return None if one is None else one * month

    return Plan(
        per_second=target,
        processes=processes,
        workers=places.pop("workers", None),
        concurrency=places,
        connections=processes * around.connections,
        tokens_in_month=monthly(demand.tokens_in),
        tokens_out_month=monthly(demand.tokens_out),
        price_month=monthly(demand.price),
        gigabytes_month=None if demand.stored_bytes is None else demand.stored_bytes * month / 1e9,
        formulas=tuple(formulas),
        problems=tuple(_problems(target, processes, resources, around)),
    )


def _problems(target: float, processes: int, resources: Sequence[Resource], around: Surroundings) -> Iterator[str]:
    wanted = processes * around.connections
    if wanted > around.connections_spare:
        yield (
            f"{wanted} connections are more than the {around.connections_spare} that PostgreSQL takes:"
            " raise max_connections, or lower database.pool_max"
        )
    for one in resources:
        if one.shared and one.per_second < target:
            yield f"{one.name}: it allows {one.per_second:.3g}/s for all processes together; raise it"
    if not any(one.limits != "accepts" for one in resources):
        yield "nothing was analysed by this process, so workers, calls and tokens are not planned"


def _ceil(figure: float) -> int:
    # What is a whole number but for the last bits of a float is that number.
    return math.ceil(figure - 1e-9)
