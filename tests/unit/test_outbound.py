from __future__ import annotations

import pytest

from convo.errors import RemoteBusy, RemoteDenied, RemoteError, RemoteRefused, RemoteUnavailable
from convo.outbound import RemoteAnswer, failure


def answer(status: int, code: str = "") -> RemoteAnswer:
    return RemoteAnswer(status=status, code=code, retry_after_seconds=7.0, body=b"")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, RemoteBusy),
        *[(status, RemoteUnavailable) for status in (408, 409, 425, 498, 500, 503, 529)],
        *[(status, RemoteDenied) for status in (301, 302, 307, 308, 401, 402, 403, 404)],
        *[(status, RemoteRefused) for status in (400, 410, 413, 422)],
    ],
)
def test_a_status_stands_for_one_kind_of_failure(status: int, kind: type[RemoteError]) -> None:
    assert type(failure("slack", answer(status))) is kind


def test_a_failure_names_the_service_the_status_and_its_code() -> None:
    assert str(failure("slack", answer(401))) == "slack: answered 401"
    assert str(failure("slack", answer(503, "overloaded"))) == "slack: answered 503 (overloaded)"


def test_only_what_may_pass_carries_the_wait_that_was_asked_for() -> None:
    asked = {status: failure("slack", answer(status)).retry_after_seconds for status in (429, 503, 400, 401)}
    assert asked == {429: 7.0, 503: 7.0, 400: None, 401: None}
