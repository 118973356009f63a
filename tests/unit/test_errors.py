from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from convo import errors
from convo.errors import ConvoError, DeadlineExceeded, Unauthorized


def tree(root: type[ConvoError]) -> Iterator[type[ConvoError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


EVERY = [error for error in tree(ConvoError) if error.__module__ == errors.__name__]


def test_no_two_errors_share_a_code() -> None:
    codes = Counter(error.code for error in EVERY if "code" in vars(error))
    assert [code for code, count in codes.items() if count > 1] == []


@pytest.mark.parametrize("error", [error for error in EVERY if error.status == 503])
def test_what_is_answered_503_can_be_tried_again(error: type[ConvoError]) -> None:
    assert error.retryable


@pytest.mark.parametrize("error", [error for error in EVERY if error.__init__ is ConvoError.__init__])
def test_an_error_without_a_detail_says_its_title(error: type[ConvoError]) -> None:
    assert str(error()) == error().detail == error.title
    assert str(error("a detail")) == "a detail"


def test_a_deadline_names_the_wait_and_the_budget_that_it_used() -> None:
    assert str(DeadlineExceeded("db.read", 2.0)) == "db.read took longer than its 2 s"
    assert str(DeadlineExceeded("db.read", 8.0, "web.request")) == "the 8 s of web.request ran out in db.read"


def test_a_missing_key_is_answered_with_the_scheme_to_use() -> None:
    assert Unauthorized().headers == [("WWW-Authenticate", "Bearer")]
