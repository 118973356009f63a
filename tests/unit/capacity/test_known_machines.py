"""The forecast beside machines whose end is known, with noise: within 20 % as far as it can tell, and without leaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from convo.capacity.ceilings import Ceiling, find_ceiling
from convo.capacity.finding import find_demands
from convo.capacity.resources import Allowance, find_resources
from tests.support.machines import KNOWN_MACHINES, SyntheticMachine

SEEDS = range(1, 6)

every_machine = pytest.mark.parametrize("name", KNOWN_MACHINES)


def forecast(machine: SyntheticMachine, shares: Sequence[float], *, seed: int, quiet: int = 6) -> Ceiling:
    """Return what is forecast after loads of these shares of the end."""
    end = machine.end()
    demands = find_demands(machine.readings([share * end for share in shares], seed=seed, quiet=quiet), machine.cores)
    assert demands is not None
    concurrency = {"llm": machine.places} if machine.places else {}
    allowed = Allowance(cores=machine.cores, batch_rows=machine.rows_max, workers=0, concurrency=concurrency)
    resources = find_resources(demands, allowed)
    if machine.analysis:
        found = find_ceiling(resources, ("analyses", "both"), demands.analysed_most)
    else:
        found = find_ceiling(resources, ("accepts",), demands.accepted_most, apart=demands.process.apart)
    assert found is not None
    return found


@every_machine
@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_of_a_third_of_the_end_says_where_the_end_is(name: str, seed: int) -> None:
    machine, bottleneck = KNOWN_MACHINES[name]
    found = forecast(machine, (0.05, 0.1, 0.2, 0.34), seed=seed)
    assert found.per_second == pytest.approx(machine.end(), rel=0.2)
    assert found.bottleneck == bottleneck


@every_machine
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shares", [(0.02,), (0.03, 0.06), (0.2,)])
def test_less_load_makes_a_range_that_holds_the_end(name: str, seed: int, shares: Sequence[float]) -> None:
    machine, _ = KNOWN_MACHINES[name]
    found = forecast(machine, shares, seed=seed)
    assert found.low <= machine.end() <= found.high


@every_machine
@pytest.mark.parametrize("seed", SEEDS)
def test_from_step_to_step_of_a_ramp_the_forecast_never_leaps(name: str, seed: int) -> None:
    machine, _ = KNOWN_MACHINES[name]
    ramp = (0.03, 0.05, 0.09, 0.15, 0.25, 0.4, 0.65, 0.95)
    found = [forecast(machine, ramp[: steps + 1], seed=seed).per_second for steps in range(len(ramp))]
    assert max(max(one / other, other / one) for one, other in pairwise(found)) < 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_quiet_moment_loads_tell_what_an_idle_process_takes(seed: int) -> None:
    machine = SyntheticMachine()
    found = forecast(machine, (0.05, 0.1, 0.2, 0.34), seed=seed, quiet=0)
    assert found.per_second == pytest.approx(machine.end(), rel=0.2)
