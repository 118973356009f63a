from __future__ import annotations

import pytest
from msgspec import structs

from convo.capacity.demands import CommitDemands, CpuDemands, Demands
from convo.capacity.resources import Allowance, Resource, find_resources
from convo.runtime.pace import BOOKKEEPING_SECONDS, FLOOR, balanced_rate

ALLOWED = Allowance(cores=2.0, batch_rows=256, workers=8, concurrency={"llm": 4})
DEMANDS = Demands(
    seconds=600.0,
    readings=120,
    accepted=6_000.0,
    analysed=0.0,
    process=CpuDemands(idle=0.02, accept=0.0002),
    machine=CpuDemands(idle=0.5, accept=0.0005),
    commit=CommitDemands(each=0.002, row=0.0001),
)
ANALYSING = structs.replace(
    DEMANDS,
    analysed=6_000.0,
    process=CpuDemands(idle=0.02, accept=0.0002, analysis=0.0018),
    accept_busy_seconds=0.003,
    job_seconds=0.5,
    price=0.001,
    calls={"llm": 2.0},
    call_seconds={"llm": 0.4},
)


def of(demands: Demands, name: str, limits: str, allowed: Allowance = ALLOWED) -> Resource:
    return next(one for one in find_resources(demands, allowed) if (one.name, one.limits) == (name, limits))


def test_a_processor_ends_where_rate_times_demand_is_all_its_cores() -> None:
    assert of(DEMANDS, "interpreter", "accepts").per_second == pytest.approx((1 - 0.02) / 0.0002)
    assert of(DEMANDS, "machine", "accepts").per_second == pytest.approx((2 - 0.5) / 0.0005)
    assert of(DEMANDS, "interpreter", "accepts").formula == "(1 core - 0.020 idle) / (0.200 ms an accept)"


def test_an_analysis_beside_each_accept_costs_as_well() -> None:
    assert of(ANALYSING, "interpreter", "both").per_second == pytest.approx(0.98 / 0.002)


def test_accepts_share_transactions_at_high_rates() -> None:
    # Alone, an accept with its transaction would cost 0.6 ms, and 1,633/s would be the end.
    demands = structs.replace(DEMANDS, process=CpuDemands(idle=0.02, accept=0.0002, commit=0.0004))
    found = of(demands, "interpreter", "accepts")
    assert found.per_second == pytest.approx(0.98 / (0.0002 + 0.0004 / 256))
    assert found.formula.endswith("(0.200 ms an accept + 0.002 ms a transaction / 256 rows)")
    single = of(demands, "interpreter", "accepts", structs.replace(ALLOWED, batch_rows=1))
    assert single.per_second == pytest.approx(0.98 / 0.0006)


def test_the_committer_ends_with_full_transactions_one_after_the_other() -> None:
    assert of(DEMANDS, "committer", "accepts").per_second == pytest.approx(256 / (0.002 + 256 * 0.0001))


def test_places_end_where_the_rate_times_the_time_is_all_of_them() -> None:
    assert of(ANALYSING, "workers", "analyses").per_second == pytest.approx(8 / 0.5)
    assert of(ANALYSING, "llm", "analyses").per_second == pytest.approx(4 / 0.4)
    assert of(ANALYSING, "llm", "analyses").formula == "concurrency of llm 4 / 0.4 s (2.00 calls of 0.2 s each)"


def test_a_budget_of_the_day_is_one_for_all_processes() -> None:
    found = of(ANALYSING, "daily budget", "analyses", structs.replace(ALLOWED, daily_budget=864.0))
    assert found.per_second == pytest.approx(10.0)
    assert found.shared


def test_what_was_not_in_use_is_no_resource() -> None:
    assert {one.name for one in find_resources(DEMANDS, ALLOWED)} == {"interpreter", "machine", "committer"}
    idle = structs.replace(DEMANDS, accepted=0.0)
    assert find_resources(idle, ALLOWED) == ()
    free = structs.replace(DEMANDS, process=CpuDemands(), machine=None, commit=CommitDemands())
    assert find_resources(free, ALLOWED) == (), "what costs nothing has no end"


def test_of_a_machine_that_others_have_taken_half_can_be_had() -> None:
    taken = structs.replace(DEMANDS, machine=CpuDemands(idle=1.99, accept=0.0005))
    assert of(taken, "machine", "accepts").per_second == pytest.approx(1.0 / 0.0005)


def test_analyses_keep_up_to_where_accepts_leave_enough_of_the_interpreter() -> None:
    rate = balanced_rate(0.006, 0.0012)
    # So many accepts leave 1 - X * 0.0012 / 0.6, which is just what so many analyses need.
    assert rate * 0.006 == pytest.approx(1 - rate * 0.0012 / 0.6)
    assert of(ANALYSING, "pace", "both").per_second == pytest.approx(balanced_rate(BOOKKEEPING_SECONDS, 0.003))
    assert balanced_rate(0.0001, 0.0025) == pytest.approx(FLOOR / 0.0001), "the floor is theirs whatever is accepted"
