"""A forecast of one known machine, which tests of the forecast and of its plan change a figure of."""

from __future__ import annotations

from convo.capacity.demands import CommitDemands, CpuDemands, Demands
from convo.capacity.forecast import CapacityReport, forecast_capacity
from convo.capacity.planning import StoredBytes, Surroundings
from convo.capacity.resources import Allowance

DEMANDS = Demands(
    seconds=600.0,
    readings=120,
    accepted=6_000.0,
    analysed=6_000.0,
    # 0.98 / 2 ms = 490/s.
    process=CpuDemands(idle=0.02, accept=0.0005, analysis=0.0015),
    machine=None,
    commit=CommitDemands(each=0.001),
    job_seconds=2.0,
    tokens_in=1_000.0,
    tokens_out=50.0,
    price=0.0001,
    calls={"llm": 1.0},
    call_seconds={"llm": 1.4},
)
ALLOWED = Allowance(cores=2.0, batch_rows=256, workers=64, concurrency={"llm": 70})
AROUND = Surroundings(
    processes=2, connections=20, connections_spare=97, stored=StoredBytes(conversations=1_000, bytes=5_000_000)
)


def report(demands: Demands | None = DEMANDS, around: Surroundings = AROUND, **asked: float | None) -> CapacityReport:
    """Forecast for that machine; ``asked`` are ``conversations`` and ``target``."""
    conversations = asked.get("conversations")
    return forecast_capacity(
        demands,
        ALLOWED,
        around,
        conversations=None if conversations is None else int(conversations),
        target=asked.get("target"),
    )
