from __future__ import annotations

import pytest
from msgspec import structs

from convo.capacity.demands import CpuDemands
from convo.capacity.forecast import forecast_capacity
from tests.support.capacity_report import ALLOWED, AROUND, DEMANDS, report


def test_a_plan_says_what_a_rate_needs_with_its_formulas() -> None:
    plan = report(target=500.0).plan
    assert plan is not None
    # What a setting raises does not decide the number: analyses end at 383/s by the pace, and 0.7 of that is planned.
    assert plan.processes == 2
    assert plan.workers == 715, "250/s x 2 s / 0.7"
    assert plan.concurrency == {"llm": 500}
    assert plan.connections == 40
    assert plan.tokens_in_month == pytest.approx(500 * 2_592_000 * 1_000)
    assert plan.gigabytes_month == pytest.approx(500 * 2_592_000 * 5_000 / 1e9)
    assert plan.problems == ()
    assert "connections: 2 x 20 = 40" in plan.formulas


def test_more_places_than_one_process_may_have_need_more_processes() -> None:
    slow = structs.replace(DEMANDS, job_seconds=60.0)
    plan = report(slow, target=100.0).plan
    assert plan is not None
    assert plan.processes == 9, "100/s x 60 s / 0.7 are 8,572 workers, and one process has 1,000 at most"


def test_a_plan_names_what_does_not_fit() -> None:
    plan = report(around=structs.replace(AROUND, connections_spare=30), target=500.0).plan
    assert plan is not None
    assert plan.problems == (
        "40 connections are more than the 30 that PostgreSQL takes: raise max_connections, or lower database.pool_max",
    )
    budget = structs.replace(ALLOWED, daily_budget=86.4)
    found = forecast_capacity(DEMANDS, budget, AROUND, target=500.0).plan
    assert found is not None
    assert found.problems == ("daily budget: it allows 10/s for all processes together; raise it",)


def test_every_figure_of_a_plan_has_its_formula() -> None:
    plan = report(target=500.0).plan
    assert plan is not None
    assert plan.formulas == (
        "processes: 500/s / (0.7 x 465.0/s of interpreter) = 2",
        "workers of a process: 250/s x 2 s / 0.7 = 715",
        "llm of a process: 250/s x 1.4 s / 0.7 = 500",
        "connections: 2 x 20 = 40",
        "a month's tokens in: 500/s x 2592000 s x 1000 = 1.3e+12",
        "a month's tokens out: 500/s x 2592000 s x 50 = 6.48e+10",
        "a month's price: 500/s x 2592000 s x 0.0001 = 1.3e+05",
        "a month's bytes: 500/s x 2592000 s x 5000 = 6.48e+12",
    )


def test_where_places_decide_how_many_processes_there_are_the_formula_says_so() -> None:
    plan = report(structs.replace(DEMANDS, job_seconds=60.0), target=100.0).plan
    assert plan is not None
    assert plan.formulas[0] == "processes: 100/s x 60 s / (0.7 x 1000 workers, the most of one process) = 9"


def test_processes_need_so_many_machines() -> None:
    demands = structs.replace(DEMANDS, machine=CpuDemands(idle=0.1, accept=0.001, analysis=0.003))
    plan = report(demands, target=500.0).plan
    assert plan is not None
    assert "machines like this one: 500/s / (0.7 x 425.0/s of machine) = 2" in plan.formulas


def test_a_plan_by_a_range_says_how_many_processes_it_may_take() -> None:
    covariance = ((0.0,) * 5, (0.0, 0.0005**2, 0.0, 0.0, 0.0), *[(0.0,) * 5] * 3)
    cpu = structs.replace(DEMANDS.process, covariance=covariance)
    plan = report(structs.replace(DEMANDS, process=cpu), target=500.0).plan
    assert plan is not None
    (problem,) = plan.problems
    assert problem.startswith("what one process can do is known only as 305.7 to 707.3/s")
    assert problem.endswith("of interpreter: it may take up to 3 processes")
