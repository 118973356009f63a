from __future__ import annotations

import math

import pytest
from msgspec import structs

from convo.capacity.demands import CommitDemands, CpuDemands, Demands, PaceDemands, WaitDemands
from convo.capacity.processors import FULL, LOOP_FULL
from convo.capacity.resources import Allowance, Resource, find_resources
from convo.runtime.pace import FLOOR, accept_share_seconds

ALONE, BESIDE = LOOP_FULL["accepts"], LOOP_FULL["both"]
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
    pace=PaceDemands(analysis=0.006, lost=0.04, accept=0.004),
    job_seconds=0.5,
    price=0.001,
    calls={"llm": 2.0},
    call_seconds={"llm": 0.4},
)


def of(demands: Demands, name: str, limits: str, allowed: Allowance = ALLOWED) -> Resource:
    return next(one for one in find_resources(demands, allowed) if (one.name, one.limits) == (name, limits))


def test_a_processor_ends_where_rate_times_demand_is_nearly_all_its_cores() -> None:
    alone = structs.replace(DEMANDS, machine=None)
    assert of(alone, "interpreter", "accepts").per_second == pytest.approx((ALONE - 0.02) / 0.0002)
    assert of(DEMANDS, "machine", "accepts").per_second == pytest.approx((2 * FULL - 0.5) / 0.0005)
    assert of(DEMANDS, "machine", "accepts").formula == "(0.9 x 2 cores - 0.500 idle) / (0.500 ms an accept)"


def test_where_work_waits_for_a_processor_so_many_times_less_can_be_done() -> None:
    waits = WaitDemands(lost=0.1, slowed=2.0)
    found = of(structs.replace(DEMANDS, machine=None, waits=waits), "interpreter", "accepts")
    assert found.per_second == pytest.approx(((ALONE - 0.1) / 2 - 0.02) / 0.0002)
    assert found.formula == "((0.8 - 0.100 lost) x 1 core / 2.00 slowed - 0.020 idle) / (0.200 ms an accept)"


def test_the_loop_waits_for_those_who_share_its_cores_though_it_has_not_yet() -> None:
    # The others take 0.48 cores, and 0.3 ms with each accept: of the time, so much of it squared takes both cores.
    found = of(DEMANDS, "interpreter", "accepts")
    assert found.formula.startswith("((0.8 - 0.000 lost) x 1 core / 1.")
    taken = (0.48 + found.per_second * 0.0003) / 2
    assert found.per_second == pytest.approx((ALONE * (1 - taken**2) - 0.02) / 0.0002, rel=0.01)


def test_an_analysis_beside_each_accept_costs_as_well() -> None:
    found = of(structs.replace(ANALYSING, machine=None), "interpreter", "both")
    assert found.per_second == pytest.approx((BESIDE - 0.02) / 0.002)


def test_accepts_share_transactions_at_high_rates() -> None:
    # Alone, an accept with its transaction would cost 0.8 ms, and 975/s would be the end.
    cpu, commit = CpuDemands(idle=0.02, accept=0.0002, commit=0.0006), CommitDemands(each=0.0019)
    demands = structs.replace(DEMANDS, process=cpu, machine=None, commit=commit)
    found = of(demands, "interpreter", "accepts")
    # A transaction takes five times as long at the end, 9.5 ms: at 3,584/s, 34.05 rows gather in that time.
    rows = 35
    assert found.per_second == pytest.approx((ALONE - 0.02) / (0.0002 + 0.0006 / rows))
    assert found.formula.endswith(f"(0.200 ms an accept + {0.6 / rows:.3f} ms a transaction / {rows} rows)")
    single = of(demands, "interpreter", "accepts", structs.replace(ALLOWED, batch_rows=1))
    assert single.per_second == pytest.approx((ALONE - 0.02) / 0.0008)


def test_beside_analyses_accepts_come_too_seldom_to_share_transactions() -> None:
    cpu = CpuDemands(accept=0.0002, commit=0.0006, analysis=0.004)
    demands = structs.replace(ANALYSING, process=cpu, machine=None, commit=CommitDemands(each=0.002))
    assert of(demands, "interpreter", "both").per_second == pytest.approx(BESIDE / 0.0048)


def test_how_unsure_a_demand_is_makes_a_range() -> None:
    alone = structs.replace(DEMANDS, machine=None)
    sure = of(alone, "interpreter", "accepts")
    assert sure.low < sure.per_second < sure.high < 1.1 * sure.per_second
    # An accept costs 0.2 ms, give or take a fifth: nine times in ten it is within a third of that.
    covariance = ((0.0,) * 5, (0.0, 0.00004**2, 0.0, 0.0, 0.0), *[(0.0,) * 5] * 3)
    unsure = structs.replace(alone, process=structs.replace(alone.process, covariance=covariance))
    found = of(unsure, "interpreter", "accepts")
    assert found.per_second == sure.per_second
    assert found.high / found.per_second == pytest.approx(math.exp(1.645 * math.hypot(0.2, 0.05)))
    assert found.low * found.high == pytest.approx(found.per_second**2)


def test_a_machine_of_which_too_little_is_seen_is_no_resource() -> None:
    covariance = ((0.0,) * 5, (0.0, 0.0004**2, 0.0, 0.0, 0.0), *[(0.0,) * 5] * 3)
    unsure = structs.replace(DEMANDS, machine=CpuDemands(idle=0.5, accept=0.0005, covariance=covariance))
    assert {one.name for one in find_resources(unsure, ALLOWED)} == {"interpreter", "committer"}


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
    assert of(taken, "machine", "accepts").per_second == pytest.approx((2 * FULL - 1.0) / 0.0005)


def test_analyses_keep_up_to_where_accepts_leave_enough_of_the_interpreter() -> None:
    found = of(ANALYSING, "pace", "both")
    # So many accepts leave just what so many analyses need.
    assert found.per_second * 0.006 == pytest.approx(1 - 0.04 - found.per_second * 0.004)
    starved = structs.replace(ANALYSING, pace=PaceDemands(analysis=0.001, lost=0.95, accept=0.004))
    assert of(starved, "pace", "both").per_second == pytest.approx(FLOOR / 0.001), "the floor is theirs in any case"


def test_an_accept_takes_from_analyses_what_the_pace_reckons_with() -> None:
    assert accept_share_seconds(0.0012, 1.0) == pytest.approx(0.002)
    # On a slow disk it waits, and needs no interpreter; where others take the processor it needs it for longer.
    assert accept_share_seconds(0.1, 1.0) == pytest.approx(0.0025 / 0.6)
    assert accept_share_seconds(0.1, 2.0) == pytest.approx(0.005 / 0.6)
    assert accept_share_seconds(0.1, 9.0) == pytest.approx(0.0075 / 0.6)
