from __future__ import annotations

from datetime import UTC, datetime

import pytest

from convo.errors import Invalid
from convo.web import queries

ROWS = [{"seq": seq} for seq in (9, 7, 5)]


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("5", 5), ("+2.5", 2.5), ("1e2", 100)])
def test_a_wait_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert queries.wait_of({"wait": text}) == seconds
    assert queries.wait_of({}) == 0


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e999", " 1", "1_0", "٣"])
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        queries.wait_of({"wait": text})
    assert caught.value.path == "wait"


def test_a_limit_is_cut_to_what_the_server_allows() -> None:
    assert [queries.limit_of({"limit": text}, 100) for text in ("1", "100", "999999999")] == [1, 100, 100]
    assert queries.limit_of({}, 100) == 50
    assert queries.limit_of({}, 20) == 20


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "x", "1" * 10, "²"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        queries.limit_of({"limit": text}, 100)


def test_a_page_with_a_row_more_has_a_next_one_that_begins_after_its_last_row() -> None:
    cursor = queries.next_cursor(ROWS, 2, "seq")
    assert cursor is not None
    assert queries.cursor_of({"cursor": cursor}) == 7


def test_the_last_page_has_no_next_one() -> None:
    assert queries.next_cursor(ROWS, 3, "seq") is None
    assert queries.cursor_of({}) is None


@pytest.mark.parametrize("text", ["", "x", "!!", "LTE", "OTIyMzM3MjAzNjg1NDc3NTgwOA"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="next_cursor"):
        queries.cursor_of({"cursor": text})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("&&", {}),
        ("state=done&user_id=a%2Fb+c", {"state": "done", "user_id": "a/b c"}),
        ("state", {"state": ""}),
        ("%73tate=%C3%A9", {"state": "é"}),
    ],
)
def test_a_query_is_read_by_the_names_that_a_route_takes(text: str, found: dict[str, str]) -> None:
    assert queries.read_query(text, ("user_id", "state")) == found


@pytest.mark.parametrize(
    ("text", "path", "detail"),
    [
        (
            "stat=done",
            "stat",
            "there is no query parameter 'stat' here; did you mean state? this route takes user_id, state",
        ),
        ("x=1", "x", "there is no query parameter 'x' here; this route takes user_id, state"),
        ("state=done&state=done", "state", "the query parameter state is sent twice; send it once"),
        ("state=done&=1", "", "there is no query parameter '' here; this route takes user_id, state"),
        ("state=%ff", "query", "a query parameter is not UTF-8"),
        ("a" * 5000, "a" * 64, f"there is no query parameter {'a' * 64!r} here; this route takes user_id, state"),
    ],
)
def test_a_query_that_could_mean_something_else_is_refused(text: str, path: str, detail: str) -> None:
    with pytest.raises(Invalid) as caught:
        queries.read_query(text, ("user_id", "state"))
    assert (caught.value.path or "", caught.value.detail) == (path, detail)


def test_where_a_route_takes_no_parameters_it_says_so() -> None:
    with pytest.raises(Invalid, match="'x' here; this route takes none"):
        queries.read_query("x=1", ())


def test_filters_are_ids_without_nul_and_states_that_a_job_can_have() -> None:
    assert queries.id_of({"user_id": "user-1"}, "user_id") == "user-1"
    assert queries.id_of({}, "user_id") is None
    with pytest.raises(Invalid, match="user_id contains a NUL"):
        queries.id_of({"user_id": "a\x00"}, "user_id")
    assert queries.state_of({}) is None
    assert [queries.state_of({"state": state}) for state in ("dead", "parked")] == ["dead", "parked"]
    with pytest.raises(Invalid, match="not one of ready, leased, done, dead, parked"):
        queries.state_of({"state": "asleep"})
    assert queries.action_of({}) is None
    assert queries.action_of({"action": "log_read"}) == "log_read"
    with pytest.raises(Invalid, match="not one of log_read, retry,"):
        queries.action_of({"action": "fly"})


def test_a_time_to_filter_by_is_rfc_3339_and_utc_without_an_offset() -> None:
    assert queries.since_of({}) is None
    assert queries.since_of({"since": "2026-03-02T09:00:00+01:00"}) == datetime(2026, 3, 2, 8, tzinfo=UTC)
    assert queries.since_of({"since": "2026-03-02T08:00:00"}) == datetime(2026, 3, 2, 8, tzinfo=UTC)
    for text in ("", "yesterday", "2026-03-02", "0001-01-01T00:00:00+23:00"):
        with pytest.raises(Invalid, match="RFC 3339"):
            queries.since_of({"since": text})


def test_a_flag_is_true_or_false() -> None:
    assert [queries.flag_of(query, "dry_run") for query in ({}, {"dry_run": "false"}, {"dry_run": "true"})] == [
        *(False, False, True)
    ]
    with pytest.raises(Invalid, match="one of true, false"):
        queries.flag_of({"dry_run": "1"}, "dry_run")


def test_the_cursor_of_a_history_goes_there_and_back() -> None:
    cursor = queries.history_cursor(4711, 30)
    assert queries.history_place_of({"cursor": cursor}) == (4711, 30)
    assert queries.history_place_of({}) is None


@pytest.mark.parametrize("cursor", ["", "x", "NDcxMQ", "NDcxMS4", "LTEuMw", queries.history_cursor(10**18, 1), "ü"])
def test_another_cursor_is_no_place_of_a_history(cursor: str) -> None:
    with pytest.raises(Invalid, match="next_cursor of the page before"):
        queries.history_place_of({"cursor": cursor})


@pytest.mark.parametrize("since", ["-1", "x", "", "1.5", "9" * 16, "٣"])
def test_a_number_of_a_sample_is_whole(since: str) -> None:
    assert queries.since_seq_of({"since": "17"}) == 17
    with pytest.raises(Invalid, match="is not a number from 0"):
        queries.since_seq_of({"since": since})
