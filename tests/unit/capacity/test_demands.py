from __future__ import annotations

import pytest

from convo.capacity.demands import find_demands
from convo.capacity.usage import Usage

# Each accept 0.2 ms, each transaction 0.5 ms, each analysis 4 ms, and 3 % of a core without any of them.
ACCEPT, COMMIT, ANALYSIS, IDLE = 0.0002, 0.0005, 0.004, 0.03


def readings(steps: list[tuple[float, float, float]], *, seconds: float = 5.0, queued: float = 0.1) -> list[Usage]:
    """Make readings of a process that has done these (accepted, commits, analysed) in steps of ``seconds``.

    While it has no work, it waits for a processor ``queued`` times as long as it works; else as long as it works.
    """
    found = [Usage(at=100.0)]
    for accepted, commits, analysed in steps:
        last = found[-1]
        used = IDLE * seconds + ACCEPT * accepted + COMMIT * commits + ANALYSIS * analysed
        found.append(
            Usage(
                at=last.at + seconds,
                process_seconds=last.process_seconds + used,
                machine_seconds=last.machine_seconds + 2 * used,
                loop_seconds=last.loop_seconds + used,
                queued_seconds=last.queued_seconds + (used if accepted or analysed else used * queued),
                accepted=last.accepted + accepted,
                commits=last.commits + commits,
                commit_seconds=last.commit_seconds + 0.002 * commits + 0.0001 * accepted,
                analysed=last.analysed + analysed,
                job_seconds=last.job_seconds + 1.5 * analysed,
                tokens_in=last.tokens_in + 900 * analysed,
                calls={"llm": last.calls.get("llm", 0.0) + 2 * analysed},
                call_seconds={"llm": last.call_seconds.get("llm", 0.0) + 1.2 * analysed},
            )
        )
    return found


QUIET = [(0.0, 0.0, 0.0)] * 4
BUSY = [(500.0, 500.0, 10.0), (1_000.0, 900.0, 90.0), (4_000.0, 2_000.0, 20.0), (9_000.0, 2_500.0, 300.0)]


def test_each_kind_of_work_is_charged_what_it_costs() -> None:
    found = find_demands(readings(QUIET + BUSY + BUSY))
    assert found is not None
    assert (found.process.accept, found.process.commit) == pytest.approx((ACCEPT, COMMIT))
    assert (found.process.analysis, found.process.idle) == pytest.approx((ANALYSIS, IDLE))
    assert found.process.apart
    assert found.machine is not None
    assert found.machine.accept == pytest.approx(2 * ACCEPT)
    assert (found.commit.each, found.commit.row) == pytest.approx((0.002, 0.0001))
    assert (found.accepted, found.analysed, found.seconds) == (29_000.0, 840.0, 60.0)
    assert (found.job_seconds, found.tokens_in) == pytest.approx((1.5, 900.0))
    assert (found.calls["llm"], found.call_seconds["llm"]) == pytest.approx((2.0, 1.2))


def test_at_one_rate_all_is_charged_to_the_accept_and_nothing_is_lost() -> None:
    found = find_demands(readings([(500.0, 500.0, 500.0)] * 12))
    assert found is not None
    assert not found.process.apart
    assert (found.process.commit, found.process.analysis, found.process.idle) == (0.0, 0.0, 0.0)
    # Without a quiet moment what is idle is charged, too.
    assert found.process.accept == pytest.approx(ACCEPT + COMMIT + ANALYSIS + IDLE * 5 / 500)
    assert found.commit.row == 0.0


def test_a_process_that_only_analyses_is_charged_by_analysis() -> None:
    found = find_demands(readings([*QUIET, *[(0.0, 0.0, 100.0), (0.0, 0.0, 300.0)] * 3]))
    assert found is not None
    assert found.process.analysis == pytest.approx(ANALYSIS)
    assert found.process.accept == 0.0


def test_noise_that_hides_what_a_row_costs_does_not_make_rows_free() -> None:
    # What was used follows the transactions alone: no number of rows would ever fill the processor.
    noisy = [Usage(at=0.0)]
    for accepted, commits in ((100.0, 100.0), (300.0, 100.0), (200.0, 200.0), (900.0, 300.0)) * 2:
        last = noisy[-1]
        noisy.append(
            Usage(
                at=last.at + 1,
                process_seconds=last.process_seconds + 0.002 * commits,
                accepted=last.accepted + accepted,
                commits=last.commits + commits,
            )
        )
    found = find_demands(noisy)
    assert found is not None
    assert found.process.accept > 0
    assert found.process.commit == pytest.approx(4 * found.process.accept)


def test_others_slow_a_process_by_how_long_it_waits_with_work_and_without() -> None:
    found = [find_demands(readings([*QUIET, *BUSY], queued=queued)) for queued in (0.1, 0.6, 4.0)]
    # With work it waits as long as it works.
    assert [one.slowed for one in found if one is not None] == pytest.approx([1.0, 1.6, 2.0])


def test_rows_of_transactions_are_told_apart_only_where_much_larger_ones_were_seen() -> None:
    found = find_demands(readings([(100.0, 100.0, 0.0), (200.0, 100.0, 0.0)] * 4))
    assert found is not None
    assert (found.commit.each, found.commit.row) == pytest.approx((0.00215, 0.0))


def test_one_reading_says_nothing_and_a_system_that_counts_nothing_is_no_machine() -> None:
    assert find_demands([]) is None
    assert find_demands([Usage(at=1.0)]) is None
    found = find_demands([Usage(at=1.0), Usage(at=6.0, process_seconds=0.1, accepted=3, commits=3)])
    assert found is not None
    assert found.machine is None
    assert (found.process.accept, found.job_seconds) == pytest.approx((0.1 / 3, 0.0))
