"""The JSON body of ``GET /v1/figures``: how an installation stands, and the samples of the last minutes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from convo.alerts.formats import AlertView
from convo.resilience.breaker import State
from convo.web.description.views import WholeNumber

Rate = Annotated[float, Meta(ge=0)]


class ProcessView(Struct, frozen=True, kw_only=True):
    """One process of the installation; `version` and `workers` are null of a program that does not state them."""

    name: str
    host: str
    version: str | None
    seen_seconds: Annotated[float, Meta(description="How long ago it has last signed that it lives.")]
    leads: Annotated[bool, Meta(description="Whether it raises the alerts that all share.")]
    workers: WholeNumber | None
    working: Annotated[int, Meta(ge=0, description="Jobs that it works on.")]


class DependencyFigures(Struct, frozen=True, kw_only=True):
    """One service that this process calls: its breaker, its calls, and why it is not called as usual."""

    name: str
    state: State
    reason: Annotated[str, Meta(description="Empty while it is called as usual.")]
    concurrency: WholeNumber
    in_flight: WholeNumber
    waiting: Annotated[int, Meta(ge=0, description="Calls that wait for a place among those in flight.")]


class WaitFigures(Struct, frozen=True, kw_only=True):
    """One named wait: how often it ended in the last minute in this process, and how long it took."""

    name: str
    count: WholeNumber
    p50_ms: Rate
    p99_ms: Rate


class ForecastView(Struct, frozen=True, kw_only=True):
    """When nothing waits any more, at the rates of the last minute; null where that is never, or not known."""

    drained_in_seconds: Rate | None


class QueueFigures(Struct, frozen=True, kw_only=True):
    """The jobs of all processes by state; each is in one. From 2,000 on `delayed` and `parked` are estimates."""

    ready: Annotated[int, Meta(ge=0, description="They wait for a worker alone.")]
    delayed: Annotated[int, Meta(ge=0, description="They failed, and are tried again later.")]
    parked: Annotated[int, Meta(ge=0, description="They wait for a service that is out.")]
    leased: WholeNumber
    dead: WholeNumber


class FigureSample(Struct, frozen=True, kw_only=True):
    """One sample. Accepts, refusals, calls and the loop are this process's; the rest is of all processes.

    Null is what nothing was measured of: the first sample after a pause has no rates.
    """

    seq: Annotated[int, Meta(ge=1, description="Counts the samples of this process.")]
    at: Annotated[float, Meta(description="Seconds since 1970.")]
    accepts_per_s: Rate | None
    accept_p50_ms: Rate | None
    accept_p99_ms: Rate | None
    refused_per_s: Annotated[Rate | None, Meta(description="Accepts answered 429 or 503.")]
    accepted_per_s: Annotated[Rate | None, Meta(description="By all processes.")]
    done_per_s: Annotated[Rate | None, Meta(description="Analyses that ended, in all processes.")]
    queue: Annotated[WholeNumber | None, Meta(description="What is ready, delayed or parked.")]
    oldest_s: Rate | None
    loop_lag_ms: Annotated[
        Rate | None, Meta(description="99 of 100 passes of the loop were shorter; null without a loop watch.")
    ]
    in_flight_calls: WholeNumber


class FiguresView(Struct, frozen=True, kw_only=True):
    """How the installation stands, and the samples of the last ten minutes in which somebody looked."""

    seconds: Annotated[float, Meta(description="`page.sample_seconds`: how often there is a new sample.")]
    whole: Annotated[
        bool,
        Meta(
            description="False for a key that does not reach the whole installation: then there is nothing else here."
        ),
    ]
    process: Annotated[str, Meta(description="Which process answered: `seq` counts its samples.")]
    processes: tuple[ProcessView, ...]
    dependencies: tuple[DependencyFigures, ...]
    alerts: Annotated[tuple[AlertView, ...], Meta(description="The `active` ones of `GET /v1/alerts`.")]
    waits: tuple[WaitFigures, ...]
    forecast: ForecastView
    queue: QueueFigures | None
    oldest_seconds: Annotated[Rate | None, Meta(description="Since when the oldest ready job is due.")]
    shared_age_seconds: Annotated[
        Rate | None,
        Meta(
            description="How old is what all processes share (`queue`, `processes`, `oldest_seconds`); more than a few"
            " seconds while the database does not answer, null where it has not answered yet.",
        ),
    ]
    samples: tuple[FigureSample, ...]
