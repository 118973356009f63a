"""The route ``GET /v1/capacity``: what this installation can do, from its own figures."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from convo.capacity.finding import find_demands
from convo.capacity.forecast import forecast_capacity, rate_of
from convo.capacity.meter import Meter
from convo.capacity.resources import Allowance
from convo.errors import Invalid, NotFound
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import IntakeSettings, Settings, dependency_sections, http_parts, used_dependencies
from convo.store.postgres import Postgres
from convo.store.table_sizes import read_surroundings
from convo.web.description.messages import Answer, encode
from convo.web.reads import Reads

_SECONDS = 5.0
_CONVERSATIONS_DIGITS = 12


class CapacityRoute(Struct, frozen=True, kw_only=True):
    """The route, with what it needs; ``meter`` is None where nothing is measured."""

    settings: Settings
    postgres: Postgres
    reads: Reads
    meter: Meter | None

    async def show(self, query: Mapping[str, str]) -> Answer:
        """Answer with the bottleneck and its formula, and what the asked number or rate of conversations needs.

        Raises:
            NotFound: nothing is measured, because ``capacity.sample_seconds`` is 0.
            Invalid: ``target`` is no rate, or ``conversations`` no number.
        """
        target, conversations = _target(query), _conversations(query)
        meter = self.meter
        if meter is None:
            raise NotFound(
                "nothing is measured: capacity.sample_seconds is 0. Set it, for example to 5, and start convo again"
            )
        with self.reads.begin():
            around = await read_surroundings(self.postgres, self.settings.database.pool_max)
        readings, ratio, allowed = meter.readings(), meter.ratio.value, allowance(self.settings, meter.machine.cores)

        def make() -> bytes:
            report = forecast_capacity(
                find_demands(readings, allowed.cores),
                allowed,
                around,
                load_ratio=ratio,
                conversations=conversations,
                target=target,
            )
            return encode(report)

        with deadline("web.capacity", _SECONDS):
            # Some milliseconds of arithmetic: too long for the loop, which all requests share.
            body = await threads.OPERATIONS.call_behind(make)
        return Answer(status=200, body=body)


def allowance(settings: Settings, cores: float) -> Allowance:
    """Return what the settings of a process allow at most, on a machine with so many cores."""
    sections = dependency_sections(settings)
    concurrency = {name: sections[name].concurrency for name in used_dependencies(settings)}
    concurrency |= {name: part.concurrency for name, part in http_parts(settings).items()}
    return Allowance(
        cores=cores,
        batch_rows=batch_rows(settings.intake),
        workers=settings.jobs.workers,
        concurrency=concurrency,
        daily_budget=settings.llm.daily_budget,
    )


def batch_rows(intake: IntakeSettings) -> int:
    """Return how many conversations one transaction stores at most."""
    # While one transaction is under way, the next one gathers: together they hold all that may be in flight.
    return min(intake.batch_rows, max(1, intake.in_flight_max // 2))


def _target(query: Mapping[str, str]) -> float | None:
    text = query.get("target")
    if text is None:
        return None
    try:
        return rate_of(text)
    except ValueError as error:
        raise Invalid(f"target={error}", path="target") from None


def _conversations(query: Mapping[str, str]) -> int | None:
    text = query.get("conversations")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _CONVERSATIONS_DIGITS and int(text) > 0):
        raise Invalid(f"conversations={text!r} is not a whole number from 1", path="conversations")
    return int(text)
