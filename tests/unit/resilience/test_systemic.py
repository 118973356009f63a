from __future__ import annotations

import itertools

import pytest

from convo.resilience.systemic import JOBS_MAX, FailedWay, SpentAttempt, SystemicFaults

CALL, OTHER = "llm.questions", "llm.emotion"


def way(kind: str = "remote_refused 400", told: str = "") -> FailedWay:
    return FailedWay(kind=kind, told=told or kind)


def fail(faults: SystemicFaults, *jobs: int, call: str = CALL, kind: str = "remote_refused 400") -> bool:
    """Let these jobs fail and spend an attempt each; return whether a fault lasts at the end."""
    for job in jobs:
        if not faults.failed(call, job, way(kind, f"{kind} of {job}")):
            faults.spent(call, job, SpentAttempt())
    return faults.lasts(call)


def test_the_tenth_job_in_a_row_that_fails_in_the_same_way_shows_a_fault() -> None:
    faults = SystemicFaults(10)
    assert not fail(faults, *range(9))
    assert fail(faults, 9)
    assert faults.told.endswith("the first: remote_refused 400 of 0")
    assert faults.take_owed() == dict.fromkeys(range(9), 1)
    assert faults.take_owed() == {}


def test_one_job_that_fails_again_and_again_is_no_fault() -> None:
    assert not fail(SystemicFaults(10), *[1] * 100)


def test_nine_jobs_that_fail_in_turns_are_no_fault() -> None:
    assert not fail(SystemicFaults(10), *list(range(9)) * 100)


def test_a_success_in_between_starts_the_count_again() -> None:
    faults = SystemicFaults(10)
    fail(faults, *range(9))
    faults.succeeded(CALL)
    assert not fail(faults, *range(20, 29))
    assert fail(faults, 29)
    assert faults.take_owed() == dict.fromkeys(range(20, 29), 1)


def test_a_success_of_another_call_does_not_count() -> None:
    faults = SystemicFaults(10)
    for job in range(10):
        fail(faults, job)
        faults.succeeded(OTHER)
    assert faults.lasts(CALL)
    assert not faults.lasts(OTHER)
    faults.succeeded(OTHER)
    assert faults.lasts()


def test_jobs_that_fail_each_in_a_way_of_its_own_are_no_fault() -> None:
    faults = SystemicFaults(10)
    for job, kind in zip(range(100), itertools.cycle(["a", "b"]), strict=False):
        assert not fail(faults, job, kind=kind)


def test_a_server_that_changes_its_ways_owes_the_attempts_of_both() -> None:
    faults = SystemicFaults(10)
    fail(faults, *range(7), kind="a")
    assert fail(faults, *range(7, 17), kind="b")
    assert faults.take_owed() == dict.fromkeys(range(16), 1)


def test_all_attempts_that_a_job_spent_since_the_last_success_are_owed() -> None:
    faults = SystemicFaults(10)
    fail(faults, 1, 1, 1)
    fail(faults, *range(2, 11))
    assert faults.take_owed()[1] == 3


def test_an_attempt_that_is_stored_after_the_fault_began_is_owed_too() -> None:
    faults = SystemicFaults(10)
    faults.failed(CALL, 0, way())
    fail(faults, *range(1, 10))
    assert 0 not in faults.take_owed()
    faults.spent(CALL, 0, SpentAttempt())
    assert faults.take_owed() == {0: 1}


def test_an_attempt_that_two_calls_cost_is_given_back_once() -> None:
    faults = SystemicFaults(2)
    spent = SpentAttempt()
    for call in (CALL, OTHER):
        faults.failed(call, 0, way())
        faults.spent(call, 0, spent)
    faults.failed(CALL, 1, way())
    faults.failed(OTHER, 1, way())
    assert faults.take_owed() == {0: 1}


def test_while_it_lasts_every_failure_is_the_dependencys() -> None:
    faults = SystemicFaults(10)
    fail(faults, *range(10))
    assert faults.failed(CALL, 77, way("quite another"))


def test_after_a_success_the_jobs_that_made_it_up_begin_no_other() -> None:
    faults = SystemicFaults(10)
    fail(faults, *range(10))
    faults.failed(CALL, 10, way())
    faults.succeeded(CALL)
    assert not faults.lasts()
    assert not fail(faults, *list(range(11)) * 10)
    assert not fail(faults, *range(20, 29))
    assert fail(faults, 29)


def test_they_get_their_attempts_back_where_others_show_a_fault() -> None:
    faults = SystemicFaults(10)
    fail(faults, *range(10))
    faults.take_owed()
    faults.succeeded(CALL)
    fail(faults, *range(10), *range(20, 30))
    assert faults.take_owed() == dict.fromkeys((*range(10), *range(20, 29)), 1)


def test_what_could_not_be_given_back_is_owed_again() -> None:
    faults = SystemicFaults(2)
    fail(faults, 0, 1)
    faults.owe_again(faults.take_owed())
    assert faults.take_owed() == {0: 1}


def test_in_an_outage_the_second_job_that_fails_in_the_same_way_shows_a_fault() -> None:
    faults = SystemicFaults(10)
    assert not faults.failed(CALL, 0, way(), in_outage=True)
    faults.spent(CALL, 0, SpentAttempt())
    assert not faults.failed(CALL, 0, way(), in_outage=True)
    assert not faults.failed(CALL, 1, way("another"), in_outage=True)
    assert faults.failed(CALL, 2, way("another"), in_outage=True)
    assert faults.take_owed() == {0: 1}


def test_an_outage_owes_what_was_spent_since_the_last_success() -> None:
    faults = SystemicFaults(10)
    fail(faults, 0)
    faults.succeeded(CALL)
    fail(faults, 1, 2)
    faults.owe_all(CALL)
    faults.owe_all(CALL)
    faults.owe_all(OTHER)
    assert faults.take_owed() == {1: 1, 2: 1}
    assert not faults.lasts()


@pytest.mark.parametrize("call", [CALL, OTHER])
def test_a_bound_number_of_jobs_is_remembered(call: str) -> None:
    faults = SystemicFaults(JOBS_MAX * 2)
    fail(faults, *range(JOBS_MAX + 5), call=call)
    assert len(faults._failed[call]) == JOBS_MAX


def test_jobs_of_another_database_are_forgotten() -> None:
    faults = SystemicFaults(3)
    fail(faults, 0, 1)
    faults.forget()
    assert not fail(faults, 2)
    fail(faults, 3, 4)
    faults.forget()
    assert faults.take_owed() == {}
    assert faults.lasts()
