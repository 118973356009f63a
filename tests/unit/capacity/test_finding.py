from __future__ import annotations

import math
import random

import pytest

from convo.capacity.demands import Demands
from convo.capacity.finding import PRIOR_CALL, PRIOR_COMMIT, find_demands
from convo.capacity.resources import Allowance, find_resources
from convo.capacity.usage import Usage
from convo.runtime.pace import BOOKKEEPING_SECONDS

# Each accept 0.2 ms, each transaction 0.6 ms, each analysis 8 ms, and 3 % of a core without any of them.
ACCEPT, COMMIT, ANALYSIS, IDLE = 0.0002, 0.0006, 0.008, 0.03


def readings(
    steps: list[tuple[float, float, float]], *, seconds: float = 5.0, queued: float = 0.1, lost: float = 0.0
) -> list[Usage]:
    """Make readings of a process that has done these (accepted, commits, analysed) in steps of ``seconds``.

    While it has work, it waits for a processor ``queued`` times as long as it works, and ``lost`` of the time besides.
    """
    found = [Usage(at=100.0)]
    for accepted, commits, analysed in steps:
        last = found[-1]
        waits = (queued, lost) if accepted or analysed else (9.0, 0.0)
        used = IDLE * seconds + ACCEPT * accepted + COMMIT * commits + ANALYSIS * analysed
        found.append(
            Usage(
                at=last.at + seconds,
                process_seconds=last.process_seconds + used,
                machine_seconds=last.machine_seconds + 2 * used,
                loop_seconds=last.loop_seconds + used,
                queued_seconds=last.queued_seconds + used * waits[0] + seconds * waits[1],
                accepted=last.accepted + accepted,
                commits=last.commits + commits,
                commit_seconds=last.commit_seconds + 0.002 * commits + 0.0001 * accepted,
                accept_busy_seconds=last.accept_busy_seconds + 0.0002 * accepted,
                analysed=last.analysed + analysed,
                analyst_seconds=last.analyst_seconds + (ANALYSIS - BOOKKEEPING_SECONDS - 2 * PRIOR_CALL) * analysed,
                pace_seconds=last.pace_seconds + seconds * (1 - 0.02) - 0.0003 * accepted,
                job_seconds=last.job_seconds + 1.5 * analysed,
                tokens_in=last.tokens_in + 900 * analysed,
                calls={"llm": last.calls.get("llm", 0.0) + 2 * analysed},
                call_seconds={"llm": last.call_seconds.get("llm", 0.0) + 1.2 * analysed},
            )
        )
    return found


def demands(steps: list[tuple[float, float, float]], **how: float) -> Demands:
    found = find_demands(readings(steps, **how), 4.0)
    assert found is not None
    return found


QUIET = [(0.0, 0.0, 0.0)] * 4
BUSY = [(500.0, 500.0, 10.0), (1_000.0, 900.0, 90.0), (4_000.0, 2_000.0, 20.0), (9_000.0, 2_500.0, 300.0)]


def test_each_kind_of_work_is_charged_what_it_costs() -> None:
    found = demands(QUIET + BUSY + BUSY)
    assert (found.process.accept, found.process.commit) == pytest.approx((ACCEPT, COMMIT), rel=0.1)
    assert (found.process.analysis, found.process.idle) == pytest.approx((ANALYSIS, IDLE), rel=0.1)
    assert found.process.apart
    assert found.machine is not None
    assert found.machine.accept == pytest.approx(2 * ACCEPT, rel=0.35)
    assert (found.commit.each, found.commit.row) == pytest.approx((0.002, 0.0001), rel=0.1)
    assert (found.accepted, found.analysed, found.seconds) == (29_000.0, 840.0, 60.0)
    assert (found.accepted_most, found.analysed_most) == (1_800.0, 60.0)
    assert (found.job_seconds, found.tokens_in) == pytest.approx((1.5, 900.0))
    assert (found.calls["llm"], found.call_seconds["llm"]) == pytest.approx((2.0, 1.2))


def test_what_one_load_cannot_tell_apart_is_split_by_what_is_known_of_the_program() -> None:
    found = demands([*QUIET, *[(500.0, 500.0, 0.0)] * 12]).process
    assert found.commit / found.accept == pytest.approx(PRIOR_COMMIT)
    assert found.accept + found.commit == pytest.approx(ACCEPT + COMMIT)


def test_an_analysis_with_each_accept_is_charged_by_what_the_analyst_was_measured_to_take() -> None:
    found = demands([*QUIET, *[(100.0, 100.0, 100.0)] * 12]).process
    assert not found.apart
    assert found.analysis == pytest.approx(ANALYSIS, rel=0.1)
    assert found.accept + found.commit + found.analysis == pytest.approx(ACCEPT + COMMIT + ANALYSIS, rel=0.01)


def test_a_minute_at_a_high_load_counts_as_much_as_hours_at_a_low_one() -> None:
    # A tenth of what the costs say, as if it had been measured wrong, thousand times over.
    low, high = [(50.0, 50.0, 0.0)] * 1_000, [(4_000.0, 1_000.0, 0.0), (9_000.0, 900.0, 0.0)] * 3
    found = demands([*QUIET, *low, *high])
    assert found.process.accept == pytest.approx(ACCEPT, rel=0.1)
    assert found.accepted_most == pytest.approx(1_800.0)


def test_without_a_quiet_moment_loads_tell_what_is_idle_and_one_load_charges_it_to_accepts() -> None:
    ramp = [(float(rate), float(rate), 0.0) for rate in (20, 50, 150, 500, 1_500) for _ in range(6)]
    assert demands(ramp).process.idle == pytest.approx(IDLE, rel=0.3)
    one = demands([(500.0, 500.0, 0.0)] * 12).process
    each = one.accept + one.commit + one.idle * 5 / 500
    assert each == pytest.approx(ACCEPT + COMMIT + IDLE * 5 / 500)


def test_a_process_that_only_analyses_is_charged_by_analysis() -> None:
    found = demands([*QUIET, *[(0.0, 0.0, 100.0), (0.0, 0.0, 300.0)] * 3]).process
    assert found.analysis == pytest.approx(ANALYSIS, rel=0.05)
    assert (found.accept, found.commit) == pytest.approx((0.0, 0.0))
    assert found.apart


def test_a_process_is_slowed_by_how_long_it_waits_with_its_work_and_not_without_any() -> None:
    found = [demands([*QUIET, *BUSY], queued=queued).waits for queued in (0.1, 0.6, 4.0)]
    assert [one.slowed for one in found] == pytest.approx([1.1, 1.6, 5.0], rel=0.02)
    assert [one.lost for one in found] == pytest.approx([0.0] * 3, abs=0.02)


def test_what_a_seldom_woken_thread_waits_does_not_grow_with_its_work() -> None:
    # It waits for a fifth of the time whatever it does, and half of its work besides.
    ramp = [(1_000.0, 1_000.0, 0.0), (2_000.0, 1_800.0, 0.0), (4_000.0, 2_500.0, 0.0), (9_000.0, 2_500.0, 0.0)]
    found = demands([*QUIET, *ramp, *ramp], queued=0.5, lost=0.2).waits
    assert found.lost > 0.04
    # By the two highest loads alone, at which it works for 0.69 and 0.49 of the time, its work would take so long.
    assert 1.5 <= found.slowed < 1.5 + 0.2 * 2 / (0.69 + 0.49)


def test_accepts_take_from_analyses_what_the_pace_was_seen_to_take() -> None:
    found = demands([*QUIET, *BUSY]).pace
    assert found is not None
    assert (found.lost, found.accept) == pytest.approx((0.02, 0.0003), rel=0.2)
    assert found.analysis == pytest.approx(ANALYSIS - 2 * PRIOR_CALL), "the pace knows of no calls"


def test_of_a_machine_that_others_keep_busy_nothing_is_said() -> None:
    accepted = [10.0 * max(0, at - 5) for at in range(12)]
    hogged = [
        Usage(at=float(at), process_seconds=0.1 * at, machine_seconds=3.0 * at, accepted=count, commits=count)
        for at, count in enumerate(accepted)
    ]
    found = find_demands(hogged, 4.0)
    assert found is not None
    assert found.machine is None
    assert found.others == pytest.approx(3.0)
    assert find_demands(hogged, 8.0).machine is not None  # type: ignore[union-attr]


def test_one_reading_says_nothing_and_a_system_that_counts_nothing_is_no_machine() -> None:
    assert find_demands([], 4.0) is None
    assert find_demands([Usage(at=1.0)], 4.0) is None
    found = find_demands([Usage(at=1.0), Usage(at=6.0, process_seconds=0.1, accepted=3, commits=3)], 4.0)
    assert found is not None
    assert found.machine is None
    assert found.process.accept + found.process.commit == pytest.approx(0.1 / 3, rel=0.6)
    assert found.job_seconds == 0.0


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_readings_there_is_an_answer_and_no_cost_is_below_nothing(seed: int) -> None:
    chance = random.Random(seed)

    def figure(most: float) -> float:
        return chance.choice([0.0, 0.0, most, chance.uniform(0, most), most * 10 ** chance.uniform(-6, 0)])

    readings = [Usage(at=1.0)]
    for _ in range(chance.randrange(1, 40)):
        accepted, seconds = round(figure(30_000.0)), chance.choice([0.1, 5.0, 300.0])
        step = Usage(
            at=seconds,
            process_seconds=figure(seconds),
            machine_seconds=figure(4 * seconds),
            loop_seconds=figure(seconds),
            queued_seconds=figure(seconds),
            accepted=accepted,
            commits=math.ceil(accepted / chance.uniform(1, 256)),
            commit_seconds=figure(seconds),
            accept_busy_seconds=figure(seconds),
            analysed=round(figure(1_000.0)),
            analyst_seconds=figure(seconds),
            pace_seconds=figure(seconds),
            calls={"llm": round(figure(1_000.0))},
        )
        readings.append(readings[-1].plus(step))
    found = find_demands(readings, 4.0)
    assert found is not None
    for cpu in (found.process, found.machine):
        assert cpu is None or min(cpu.idle, cpu.accept, cpu.commit, cpu.analysis) >= 0
    resources = find_resources(found, Allowance(cores=4.0, batch_rows=256, workers=8))
    assert all(0 <= one.low <= one.per_second <= one.high for one in resources)
