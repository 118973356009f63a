from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from convo.errors import CrossSite, UnknownHost
from convo.observe import log_records
from convo.settings import AuthSettings, ServerSettings, Settings
from convo.web.browsers import _KNOWN_MAX, Browsers
from convo.web.description.messages import Answer, Head

PAGE = "https://admin.example.com"
OURS = "http://127.0.0.1:30020"


def browsers(*, keys: bool = False, **server: Any) -> Browsers:
    return Browsers(Settings(server=ServerSettings(**server), auth=AuthSettings(keys=keys)))


def head(**fields: str) -> Head:
    return Head(**{"method": "POST", "path": "/", "peer": "", "started": 0.0, "host": "127.0.0.1:30020", **fields})  # type: ignore[arg-type]


# --- the name


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST:30020", "localhost.", "127.0.0.1", "127.0.0.2:1", "[::1]:30020", "[::ffff:127.0.0.1]"],
)
def test_loopback_names_are_ours_and_a_client_without_a_host_is_no_browser(host: str) -> None:
    browsers().check(head(host=host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:30020", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil.example",
        "127.0.0.1@evil.example", "evil.example#localhost", "localhost:evil", "10.0.0.1", "0.0.0.0", "127.1", "_", " ",
        "localhost localhost", "[::1", "[::2]", "convo",
    ],
)  # fmt: skip
def test_another_name_is_refused_and_the_problem_says_what_to_do(host: str) -> None:
    with pytest.raises(UnknownHost, match=r"server\.hosts \(CONVO_SERVER__HOSTS\), or turn keys on"):
        browsers().check(head(host=host))


def test_names_of_the_settings_and_the_listening_addresses_are_ours() -> None:
    named = browsers(host="convo.internal", operations_host="10.0.0.9", hosts="A.example, [2001:DB8::1] 10.0.0.1")
    for host in ("convo.internal:30020", "10.0.0.9", "a.example:443", "[2001:db8::1]", "10.0.0.1:80", "localhost"):
        named.check(head(host=host))
    with pytest.raises(UnknownHost):
        named.check(head(host="b.a.example"))


def test_where_every_address_is_listened_on_the_one_that_was_called_is_ours() -> None:
    for wildcard in ("0.0.0.0", "::"):
        everywhere = browsers(host=wildcard)
        everywhere.check(head(host="10.0.0.5:30020", served_at="::ffff:10.0.0.5"))
        everywhere.check(head(host="10.0.0.6", served_at="10.0.0.6"))
        with pytest.raises(UnknownHost):
            everywhere.check(head(host="10.0.0.7", served_at="10.0.0.6"))
        with pytest.raises(UnknownHost):
            everywhere.check(head(host="evil.example", served_at=""))


def test_any_name_is_ours_where_the_settings_say_so() -> None:
    browsers(hosts="*").check(head(host="evil.example"))


def test_names_that_were_found_to_be_ours_do_not_fill_the_memory() -> None:
    named = browsers()
    for port in range(3 * _KNOWN_MAX):
        named.check(head(host=f"localhost:{port}"))
        assert len(named._known) <= _KNOWN_MAX
    named.check(head(host=""))


def test_with_keys_names_are_checked_where_they_are_set_and_at_the_operations() -> None:
    assert browsers().checks
    assert not browsers(keys=True).checks
    assert browsers(keys=True, hosts="a.example").checks
    with pytest.raises(UnknownHost) as caught:
        browsers(keys=True).check(head(host="evil.example"), on_operations=True)
    assert "keys" not in caught.value.detail


def test_whoever_runs_it_sees_that_callers_are_refused_and_not_once_for_each_name() -> None:
    with capture_logs() as lines:
        log_records._seldom.forget()
        for host in ("one.example", "two.example"):
            with pytest.raises(UnknownHost):
                browsers().check(head(host=host))
        with pytest.raises(CrossSite):
            browsers().check(head(origin="null"))
    assert [(line["event"], line["code"]) for line in lines] == [
        ("caller_refused", "unknown_host"),
        ("caller_refused", "cross_site"),
    ]
    assert "one.example" in lines[0]["reason"]
    assert "CONVO_SERVER__HOSTS" in lines[0]["reason"]


# --- the page


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"origin": OURS},
        {"origin": "HTTP://LOCALHOST:30020", "host": "localhost:30020"},
        {"origin": "https://127.0.0.1:30020"},
        {"origin": OURS, "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_person_and_a_page_of_our_own_may_call(fields: dict[str, str]) -> None:
    browsers().check(head(**fields))
    browsers().check(head(**fields), on_operations=True)


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": " "},
    {"origin": "http://127.0.0.1"},
    {"origin": "http://127.0.0.1:3000", "sec_fetch_site": "same-site"},
    {"origin": "http://localhost:30020"},
    {"origin": "http://127.0.0.1:30020.evil.example"},
    {"origin": "http://127.0.0.1:30020@evil.example"},
    {"origin": OURS, "sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "Cross-Site"},
]


@pytest.mark.parametrize("fields", FOREIGN)
def test_a_page_of_another_site_is_refused_and_the_problem_says_what_to_do(fields: dict[str, str]) -> None:
    with pytest.raises(CrossSite, match=r"server\.cors_origins \(CONVO_SERVER__CORS_ORIGINS\)"):
        browsers().check(head(**fields))


@pytest.mark.parametrize("fields", FOREIGN)
def test_with_keys_a_page_needs_a_key_and_none_reads_the_operations(fields: dict[str, str]) -> None:
    locked = browsers(keys=True, hosts="a.example", cors_origins=PAGE)
    locked.check(head(**fields))
    for page in (fields, {"origin": PAGE}):
        with pytest.raises(CrossSite, match="no page may read the operations"):
            locked.check(head(**page), on_operations=True)


def test_a_page_of_an_allowed_origin_may_call() -> None:
    shared = browsers(cors_origins=f"{PAGE}, http://localhost:3000")
    for origin in (PAGE, PAGE.upper(), "http://localhost:3000"):
        shared.check(head(origin=origin, sec_fetch_site="cross-site"))
    for origin in ("http://admin.example.com", f"{PAGE}:444", f"{PAGE}.evil.example", "null"):
        with pytest.raises(CrossSite):
            shared.check(head(origin=origin))
    # An image or a link has no origin: it would be any page's.
    with pytest.raises(CrossSite):
        shared.check(head(sec_fetch_site="cross-site"))


# --- what a page may read


ANSWER = Answer(status=202, body=b"{}", headers=[("Location", "/a")])


def names(answer: Answer | None) -> dict[str, str]:
    assert answer is not None
    return dict(answer.headers)


def test_nothing_is_shared_without_origins() -> None:
    assert not browsers().shares
    assert browsers().preflight(head(origin=PAGE), ["POST"]) is None


def test_an_allowed_page_reads_the_answer_and_its_headers() -> None:
    shared = browsers(cors_origins=PAGE)
    found = names(shared.shared(head(origin=PAGE), ANSWER))
    assert (found["Location"], found["Access-Control-Allow-Origin"], found["Vary"]) == ("/a", PAGE, "Origin")
    assert {"Location", "ETag", "Retry-After"} <= set(found["Access-Control-Expose-Headers"].split(", "))
    assert "Access-Control-Allow-Credentials" not in found


@pytest.mark.parametrize("origin", ["", "https://evil.example", "null"])
def test_what_others_get_says_that_it_depends_on_the_origin(origin: str) -> None:
    shared = browsers(cors_origins=PAGE, keys=True)
    assert names(shared.shared(head(origin=origin), ANSWER)) == {"Location": "/a", "Vary": "Origin"}
    assert shared.preflight(head(origin=origin), ["POST"]) is None


def test_a_preflight_says_what_may_be_sent() -> None:
    shared = browsers(cors_origins=PAGE)
    answer = shared.preflight(head(origin=PAGE), {"POST", "GET"})
    assert answer is not None
    assert (answer.status, answer.body) == (204, b"")
    found = names(answer)
    assert found["Access-Control-Allow-Methods"] == "GET, POST"
    assert {"Authorization", "Content-Type"} <= set(found["Access-Control-Allow-Headers"].split(", "))


def test_the_pages_of_all_sites_are_allowed_where_the_settings_say_so() -> None:
    everybody = browsers(cors_origins="*")
    everybody.check(head(origin="https://any.example", sec_fetch_site="cross-site"))
    assert names(everybody.shared(head(origin="https://any.example"), ANSWER))["Access-Control-Allow-Origin"] == "*"
    with pytest.raises(UnknownHost):
        everybody.check(head(host="evil.example", origin="https://any.example"))
