from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convo.web.description.routes import ROUTES
from convo.web.raw_path import path_values, routing_path, sent_host, sent_path
from tests.support.targets import spellings


def routed(raw: str) -> str:
    return routing_path({"path": "not this one", "raw_path": raw.encode("latin-1")})


def decoded(segment: str) -> str:
    return path_values({"user_id": segment})["user_id"]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/v1/conversations/end", "/v1/conversations/end"),
        ("/v1/conversations/%65n%64", "/v1/conversations/%65n%64"),
        ("/a%2Fb/c%2fd", "/a%2Fb/c%2fd"),
        ("/a/../b/./c", "/a/../b/./c"),
        ("/a//b", "/a//b"),
        ("/", "/"),
        ("http://convo/livez", "/livez"),
        ("HTTPS://convo:1", "/"),
    ],
)
def test_a_path_is_matched_as_it_was_sent(raw: str, path: str) -> None:
    assert routed(raw) == path


@pytest.mark.parametrize(
    "raw",
    ["//livez", "///livez", "livez", "*", "http:///livez", "http://convo//livez", "ftp://convo/livez", "ftp://[x/livez",
     "mailto:livez", "convo:80"],
)  # fmt: skip
def test_what_the_framework_would_take_for_a_path_leads_nowhere(raw: str) -> None:
    assert routed(raw).startswith("/%2F")


def test_a_problem_names_the_path_that_was_sent() -> None:
    assert [sent_path({"raw_path": raw}) for raw in (b"//livez", b"http://convo//livez", b"*")] == [
        "//livez", "//livez", "*",
    ]  # fmt: skip


def test_only_an_absolute_target_names_a_host() -> None:
    raws = (b"HTTP://a.example:1/livez", b"https://[::1]", b"//a.example/livez", b"/http://a/", b"ftp://a/", b"*")
    assert [sent_host({"raw_path": raw}) for raw in raws] == ["a.example:1", "[::1]", "", "", "", ""]
    assert sent_host({"path": "/"}) == ""


def test_no_route_has_a_second_spelling() -> None:
    paths = [route.path for route in ROUTES]
    for path in paths:
        others = spellings(path)
        assert len(others) > 20
        assert {routed(one) for one in others}.isdisjoint(paths)


def test_without_a_raw_path_the_decoded_one_is_encoded_again() -> None:
    assert routing_path({"path": "/v1/conversations/a b"}) == "/v1/conversations/a%20b"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_id_is_one_segment_and_is_decoded_once(one: str) -> None:
    path = routed(f"/v1/conversations/{quote(one, safe='')}/log")
    *_, segment, last = path.split("/")
    assert (path.count("/"), decoded(segment), last) == (4, one, "log")


@pytest.mark.parametrize("raw", ["%2561", "%%36%31", "%25%36%31"])
def test_no_escape_is_decoded_twice(raw: str) -> None:
    assert decoded(raw) == "%61"


def test_only_ids_are_decoded() -> None:
    assert path_values({"conversation_id": "a%2Fb", "user_id": "%2e", "topic": "%6Cadder"}) == {
        "conversation_id": "a/b", "user_id": ".", "topic": "%6Cadder",
    }  # fmt: skip
