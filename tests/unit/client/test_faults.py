from __future__ import annotations

from convo import client, errors
from convo.client.answers import Problem
from convo.client.faults import fault_of
from convo.client.retrying import RETRYABLE
from convo.web.description.routes import ROUTES

# What a program does about each: those that are not named here are told apart by their code alone.
EXPECTED: dict[type[errors.ConvoError], type[client.ProblemError]] = {
    errors.BadRequest: client.Invalid,
    errors.BadRow: client.Invalid,
    errors.Conflict: client.Conflict,
    errors.DeadlineExceeded: client.Unavailable,
    errors.Draining: client.Unavailable,
    errors.Erased: client.Erased,
    errors.Expired: client.Expired,
    errors.Forbidden: client.Forbidden,
    errors.Invalid: client.Invalid,
    errors.NotFound: client.NotFound,
    errors.Overloaded: client.Unavailable,
    errors.TooLarge: client.TooLarge,
    errors.TooManyRequests: client.TooManyRequests,
    errors.Unauthorized: client.Unauthorized,
    errors.UnsupportedMedia: client.UnsupportedMedia,
}


def test_each_problem_of_the_server_is_the_error_that_a_program_can_act_on() -> None:
    for error, kind in EXPECTED.items():
        found = fault_of(Problem(status=error.status, code=error.code, detail="why"))
        assert type(found) is kind, error
        assert str(found) == f"{error.status} {error.code}: why"


def test_what_the_server_says_can_succeed_later_is_what_is_tried_again() -> None:
    named = {error for route in ROUTES for error in route.problems} | EXPECTED.keys() | {errors.RequestTimeout}
    for error in named:
        found = fault_of(Problem(status=error.status, code=error.code))
        assert found.retryable == error.retryable, error
        assert (error.status in RETRYABLE) == error.retryable, error


def test_a_code_that_is_new_is_judged_by_its_status() -> None:
    assert type(fault_of(Problem(status=503, code="new"))) is client.Unavailable
    assert type(fault_of(Problem(status=418, code="new"))) is client.ProblemError
    assert type(fault_of(Problem(status=409, code="not_dead"))) is client.ProblemError
