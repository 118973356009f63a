from __future__ import annotations

import json

import msgspec
import pytest

from convo import errors
from convo.web.description.messages import Answer, problem, problem_view, with_headers


def test_a_problem_leaves_out_what_it_does_not_know() -> None:
    encoded = msgspec.to_builtins(problem_view(errors.NotFound("no such conversation")))
    assert encoded == {
        "type": "/docs#not_found",
        "title": "Not found",
        "status": 404,
        "code": "not_found",
        "detail": "no such conversation",
    }


def test_a_problem_names_the_field_and_the_conversation_where_known() -> None:
    made = problem_view(errors.Invalid("must be text", path="$.bot_id"), "c-1")
    assert (made.path, made.conversation_id) == ("$.bot_id", "c-1")


def test_a_problem_names_the_error_the_field_and_the_conversation() -> None:
    answer = problem(errors.Invalid("must be text", path="$.user_id"), "c-1")
    assert (answer.status, answer.content_type) == (422, "application/problem+json")
    assert json.loads(answer.body) == {
        "type": "/docs#invalid",
        "title": "The request is not valid",
        "status": 422,
        "code": "invalid",
        "detail": "must be text",
        "path": "$.user_id",
        "conversation_id": "c-1",
    }
    assert list(answer.headers) == []


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.DatabaseUnavailable(), "1"),
        (errors.Unavailable(retry_after_seconds=2.1), "3"),
        (errors.DeadlineExceeded("db.accept", 3.0), "1"),
        (errors.Invalid(retry_after_seconds=9), "9"),
    ],
)
def test_what_may_succeed_later_says_when(error: errors.ConvoError, seconds: str) -> None:
    assert ("Retry-After", seconds) in problem(error).headers


def test_more_headers_come_after_those_of_the_answer() -> None:
    answer = Answer(status=200, body=b"", headers=[("ETag", "1")])
    assert list(with_headers(answer, ("RateLimit", "2")).headers) == [("ETag", "1"), ("RateLimit", "2")]
    assert with_headers(answer) is answer
