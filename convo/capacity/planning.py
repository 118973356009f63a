"""What a rate of conversations needs: processes, workers, connections, and what a month of it takes.

Open it to change what is planned. It is arithmetic alone, on what ``resources`` allow and one conversation costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from convo.capacity.ceilings import RANGE_CLOSE
from convo.capacity.resources import PLANNED_SHARE, Resource

PLACES_MAX = 1_000
"""The most workers, or calls at a time, that one process may have."""

MONTH_SECONDS = 30 * 86_400

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


def make_plan(target: float, resources: Sequence[Resource], demand: ConversationDemand, around: Surroundings) -> Plan:
    """Plan for ``target`` conversations a second."""
    held = {"workers": demand.job_seconds or 0.0, **demand.call_seconds}
    processes, why = _processes(target, resources, held)
    each = target / processes
    places = {name: _ceil(each * one / PLANNED_SHARE) for name, one in held.items() if one}
    connections = processes * around.connections
    month = target * MONTH_SECONDS
    monthly = {
        "tokens in": demand.tokens_in,
        "tokens out": demand.tokens_out,
        "price": demand.price,
        "bytes": demand.stored_bytes,
    }
    formulas = [
        f"processes{why} = {processes}",
        *_machines(target, resources),
        *(
            f"{name} of a process: {each:.3g}/s x {held[name]:.3g} s / {PLANNED_SHARE} = {count}"
            for name, count in places.items()
        ),
        f"connections: {processes} x {around.connections} = {connections}",
        *(
            f"a month's {name}: {target:.3g}/s x {MONTH_SECONDS} s x {one:.6g} = {one * month:.3g}"
            for name, one in monthly.items()
            if one
        ),
    ]
    months = {name: None if one is None else one * month for name, one in monthly.items()}
    bytes_ = months["bytes"]
    return Plan(
        per_second=target,
        processes=processes,
        workers=places.pop("workers", None),
        concurrency=places,
        connections=connections,
        tokens_in_month=months["tokens in"],
        tokens_out_month=months["tokens out"],
        price_month=months["price"],
        gigabytes_month=None if bytes_ is None else bytes_ / 1e9,
        formulas=tuple(formulas),
        problems=tuple(_problems(target, processes, resources, held, around)),
    )


def _least(resources: Sequence[Resource], held: Mapping[str, float]) -> Resource | None:
    """Return what ends first of what no setting gives more of."""
    fixed = [one for one in resources if not one.shared and one.name not in held and one.per_second]
    return min(fixed, key=lambda one: one.per_second, default=None)


def _processes(target: float, resources: Sequence[Resource], held: Mapping[str, float]) -> tuple[int, str]:
    """Return how many processes there must be, and why."""
    least = _least(resources, held)
    needed: list[tuple[int, str]] = []
    if least is not None:
        count = max(1, _ceil(target / (PLANNED_SHARE * least.per_second)))
        needed.append((count, f": {target:.3g}/s / ({PLANNED_SHARE} x {least.per_second:.1f}/s of {least.name})"))
    for name, seconds in held.items():
        # A setting gives more places, up to the most that it gives.
        count = _ceil(target * seconds / (PLANNED_SHARE * PLACES_MAX))
        why = f": {target:.3g}/s x {seconds:.3g} s / ({PLANNED_SHARE} x {PLACES_MAX} {name}, the most of one process)"
        needed.append((count, why))
    needed.append((1, ""))
    # Of those that need as many, the first is named: what no setting changes.
    return max(needed, key=lambda one: one[0])


def _machines(target: float, resources: Sequence[Resource]) -> Iterator[str]:
    least = min((one.per_second for one in resources if one.name == "machine"), default=0.0)
    if least:
        count = _ceil(target / (PLANNED_SHARE * least))
        yield f"machines like this one: {target:.3g}/s / ({PLANNED_SHARE} x {least:.1f}/s of machine) = {count}"


def _problems(
    target: float, processes: int, resources: Sequence[Resource], held: Mapping[str, float], around: Surroundings
) -> Iterator[str]:
    least = _least(resources, held)
    if least is not None and least.high > RANGE_CLOSE * least.low:
        most = max(processes, _ceil(target / (PLANNED_SHARE * least.low)))
        yield (
            f"what one process can do is known only as {least.low:.1f} to {least.high:.1f}/s of {least.name}:"
            f" it may take up to {most} {'process' if most == 1 else 'processes'}"
        )
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
