from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import msgspec
import pytest
from msgspec import structs

from convo.commands import terminal
from convo.commands.terminal import AuditFilters, DeadLetters, Filters, ServerCall
from convo.web.description import messages, samples, service_views, views
from convo.web.queries import cursor_after
from tests.support.answers import a_row, a_view

# --- the commands, on answers without a server

Server = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], list[httpx.Request]]:
    """Return the function that puts a server of one function in the place of the network."""

    def put(server: Server) -> list[httpx.Request]:
        seen: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return server(request)

        client = httpx.Client
        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(httpx, "Client", lambda **settings: client(transport=transport, **settings))
        return seen

    return put


Answering = Callable[[Server], list[httpx.Request]]


def sent(value: object, status: int = 200) -> Server:
    return lambda _request: httpx.Response(status, content=msgspec.json.encode(value))


def test_show_asks_for_the_encoded_id_with_the_key_and_prints(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = answering(sent(a_view()))

    assert terminal.show(ServerCall(url="http://convo:1/below", key="k1"), "a?b %c") == 0

    assert str(seen[0].url) == "http://convo:1/below/v1/conversations/a%3Fb%20%25c"
    assert seen[0].headers["authorization"] == "Bearer k1"
    # The test's output is no terminal, so not even a long row is folded.
    assert "ADD pet: has a dog called Waffles" in capsys.readouterr().out


def test_a_list_follows_the_cursor_up_to_its_limit(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    def pages(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        rows = tuple(a_row(f"c-{number}") for number in (range(100) if first else range(100, 120)))
        page = views.ListView(conversations=rows, next_cursor="more" if first else "yet more")
        return httpx.Response(200, content=msgspec.json.encode(page))

    seen = answering(pages)

    assert (
        terminal.list_conversations(ServerCall(url="http://convo"), Filters(user_id="mia", state="done"), limit=120)
        == 0
    )

    asked = [dict(request.url.params) for request in seen]
    assert asked == [
        {"user_id": "mia", "state": "done", "limit": "100"},
        {"user_id": "mia", "state": "done", "limit": "20", "cursor": "more"},
    ]
    assert "authorization" not in seen[0].headers
    assert "There are more" in capsys.readouterr().out


def test_an_empty_page_with_a_cursor_does_not_end_a_list(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    def pages(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        page = views.ListView(conversations=() if first else (a_row("c-1"),), next_cursor="more" if first else None)
        return httpx.Response(200, content=msgspec.json.encode(page))

    seen = answering(pages)

    assert terminal.list_conversations(ServerCall(url="http://convo"), Filters()) == 0
    assert len(seen) == 2
    assert "c-1" in capsys.readouterr().out


def test_a_cursor_that_comes_again_ends_a_list(answering: Answering) -> None:
    seen = answering(sent(views.ListView(conversations=(), next_cursor="for ever")))

    assert terminal.list_conversations(ServerCall(url="http://convo"), Filters()) == 0
    assert len(seen) == 2


def test_dead_groups_dead_letters_by_their_reason_and_lists_the_newest(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (a_row(state="dead", last_error="llm: refused", score=None),)
    listed = sent(views.ListView(conversations=rows, next_cursor=None))
    seen = answering(
        lambda request: (listed if "conversations" in request.url.path else sent(samples.DEAD_REASONS))(request)
    )

    assert terminal.dead(ServerCall(url="http://convo"), Filters(bot_id="pika-v2")) == 0

    assert dict(seen[0].url.params) == {"bot_id": "pika-v2", "state": "dead", "limit": "50"}
    assert (seen[1].url.path, dict(seen[1].url.params)) == ("/v1/dead-letters", {"bot_id": "pika-v2"})
    out = capsys.readouterr().out
    assert "llm: refused" in out
    assert re.search(r"412 .*questions: llm: answered 401", out)


class Buried:
    """A server with dead letters, which come back in batches of at most so many."""

    def __init__(self, count: int, *, fails_after: int | None = None) -> None:
        self.left = count
        self.asked: list[dict[str, str]] = []
        self._fails_after = fails_after

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            reasons = msgspec.structs.replace(samples.DEAD_REASONS, total=self.left)
            return sent(reasons)(request)
        if self._fails_after == len(self.asked):
            return sent(a_problem(503, "unavailable"), 503)(request)
        asked = dict(request.url.params)
        assert asked.get("cursor") == (str(len(self.asked)) if self.asked else None)
        self.asked.append(asked)
        count = min(self.left, int(asked["limit"]))
        self.left -= count
        return sent(
            views.RetriedView(
                retried=count,
                dry_run=asked["dry_run"] == "true",
                next_cursor=str(len(self.asked)) if self.left else None,
            ),
            202,
        )(request)


def test_retry_of_many_goes_on_batch_after_batch_to_the_last(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Buried(250)
    answering(server)
    which = DeadLetters(reason="401", since="2026-03-02T08:00:00Z", bot_id="b")
    assert terminal.retry_many(ServerCall(url="http://convo"), which) == 0
    assert [asked["limit"] for asked in server.asked] == ["100"] * 3
    assert all(
        asked.items() >= {"reason": "401", "since": "2026-03-02T08:00:00Z", "bot_id": "b"}.items()
        for asked in server.asked
    )
    assert capsys.readouterr().out == "250 dead letters are ready again\n"


def test_a_rate_makes_batches_small_and_waits_between_them(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, slept = Buried(5), [0.0]
    answering(server)
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    assert terminal.retry_many(ServerCall(url="http://convo"), DeadLetters(), per_second=2.5) == 0
    assert [asked["limit"] for asked in server.asked] == ["2"] * 3
    assert slept[1:] == [0.8, 0.8]


def test_a_dry_run_changes_nothing_waits_for_nothing_and_shows_the_reasons(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Buried(250)
    answering(server)
    assert terminal.retry_many(ServerCall(url="http://convo"), DeadLetters(), per_second=0.01, dry_run=True) == 0
    assert {asked["dry_run"] for asked in server.asked} == {"true"}
    out = capsys.readouterr().out
    assert "250 dead letters would be ready again; nothing was changed" in out
    assert "answered 401" in out


def test_many_that_fail_half_way_say_how_many_are_ready_again(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(Buried(250, fails_after=2))
    assert terminal.retry_many(ServerCall(url="http://convo"), DeadLetters()) == 1
    assert "200 are ready again, then it failed: 503 unavailable" in capsys.readouterr().err


def test_retry_posts_and_says_the_new_state(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    view = views.RetryView(conversation_id="c-1", state="ready", attempts=0, links=views.links("c-1"))
    seen = answering(sent(view))

    assert terminal.retry(ServerCall(url="http://convo"), "c-1") == 0

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/conversations/c-1/retry")
    assert capsys.readouterr().out == "c-1 is ready again\n"


def unplugged(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no")


def a_problem(status: int, code: str) -> messages.Problem:
    return messages.Problem(type="", title="", status=status, code=code, detail="[b]what\x1b[2J")


@pytest.mark.parametrize(
    ("server", "exit_code", "words"),
    [
        (unplugged, 3, "no server answers at http://convo (ConnectError); `convo serve` starts one"),
        (sent(a_problem(404, "not_found"), 404), 4, r"404 not_found: [b]what\x1b[2J"),
        (sent(a_problem(409, "not_dead"), 409), 1, r"409 not_dead: [b]what\x1b[2J"),
        (sent(a_problem(401, "unauthorized"), 401), 1, r"401 unauthorized: [b]what\x1b[2J"),
        (lambda _: httpx.Response(502, text="<html>"), 1, "502 Bad Gateway, without a reason"),
        (lambda _: httpx.Response(301, headers={"location": "/"}), 1, "301 Moved Permanently, without a reason"),
        (sent({"hello": "world"}), 1, "the server at http://convo is not convo, or another version: "),
        (lambda _: httpx.Response(200, content=b"\xff"), 1, "the server at http://convo is not convo"),
    ],
)
def test_what_fails_is_one_line_on_the_error_stream_and_an_exit_code(
    answering: Answering, capsys: pytest.CaptureFixture[str], server: Server, exit_code: int, words: str
) -> None:
    answering(server)

    assert terminal.retry(ServerCall(url="http://convo"), "c-1") == exit_code

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(words)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("url", "key"), [("http://convo:x", ""), ("http://convo", "clé")])
def test_an_address_or_a_key_that_cannot_be_used_is_said(
    capsys: pytest.CaptureFixture[str], url: str, key: str
) -> None:
    assert terminal.show(ServerCall(url=url, key=key), "c-1") == 1
    assert "cannot be used" in capsys.readouterr().err


def test_an_address_of_another_scheme_is_refused_before_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.show(ServerCall(url="ftp://convo"), "c-1") == 1
    assert "ftp://convo is neither http:// nor https://; check --url and CONVO_URL" in capsys.readouterr().err


def test_a_missing_key_is_said_with_the_variable_that_holds_one(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = messages.Problem(type="/docs#unauthorized", title="t", status=401, code="unauthorized", detail="no key")
    answering(sent(problem, 401))
    assert terminal.alerts(ServerCall(url="http://convo")) == 1
    assert "no key; set CONVO_KEY to a key\n" in capsys.readouterr().err


def test_json_is_what_a_program_reads(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    answering(sent(a_view()))
    assert terminal.show(ServerCall(url="http://convo", as_json=True), "c-1") == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=views.ConversationView) == a_view()


def test_a_user_is_shown_with_all_pages_of_the_relationship_and_of_memories(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        if request.url.path.endswith("/relationship"):
            bots = RELATIONSHIP.bots * 100 if first else (structs.replace(RELATIONSHIP.bots[0], bot_id="bot-101"),)
            view = structs.replace(RELATIONSHIP, bots=bots, next_cursor="more" if first else None)
            return httpx.Response(200, content=msgspec.json.encode(view))
        memories = tuple(memory(number) for number in (range(100) if first else range(100, 130)))
        page = views.MemoriesView(user_id="a/b", memories=memories, next_cursor="more" if first else None)
        return httpx.Response(200, content=msgspec.json.encode(page))

    seen = answering(server)
    assert terminal.show_user(ServerCall(url="http://convo"), "a/b", 200) == 0
    assert [request.url.raw_path.decode() for request in seen] == [
        "/v1/users/a%2Fb/relationship?limit=100",
        "/v1/users/a%2Fb/relationship?limit=100&cursor=more",
        "/v1/users/a%2Fb/memories?limit=100",
        "/v1/users/a%2Fb/memories?limit=100&cursor=more",
    ]
    told = capsys.readouterr().out
    for text in ("acquaintance", "pika-v2", "bot-101", "fact 0 ", "fact 129"):
        assert text in told
    assert "There are more" not in told


RELATIONSHIP = views.RelationshipView(
    user_id="a/b",
    score=1001,
    level="acquaintance",
    conversations=3,
    last_emotion="happy",
    bots=(
        views.BotRelationship(
            bot_id="pika-v2", score=1001, level="acquaintance", conversations=3, last_emotion="happy"
        ),
    ),
    next_cursor=None,
)


def memory(number: int) -> views.MemoryView:
    at = datetime(2026, 3, 2, tzinfo=UTC)
    return views.MemoryView(text=f"fact {number} ", kind="pet", conversation_id="c-1", first_seen_at=at)


# --- the audit log


def test_the_audit_log_is_read_from_behind_a_row_up_to_its_limit(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = samples.AUDIT_LOG.entries

    def pages(request: httpx.Request) -> httpx.Response:
        first = request.url.params["cursor"] == cursor_after(9000)
        rows = tuple(structs.replace(one, number=number) for number in (range(8999, 8899, -1) if first else (7, 5)))
        page = service_views.AuditLogView(entries=rows, next_cursor="more")
        return httpx.Response(200, content=msgspec.json.encode(page))

    seen = answering(pages)
    wanted = AuditFilters(
        action="log_read", key_id="k", conversation_id="c 1", user_id="u", since="2026-03-02T08:00:00Z"
    )

    assert terminal.audit_log(ServerCall(url="http://convo"), wanted, limit=102, before=9000) == 0

    filters = {"action": "log_read", "key_id": "k", "conversation_id": "c 1", "user_id": "u", "since": wanted.since}
    assert [dict(request.url.params) for request in seen] == [
        {**filters, "limit": "100", "cursor": cursor_after(9000)},
        {**filters, "limit": "2", "cursor": "more"},
    ]
    assert {request.url.path for request in seen} == {"/v1/audit-log"}
    out = capsys.readouterr().out
    assert out.count("log_read") == 102
    assert "There are more: --before 5 shows the next." in out


# --- capacity


def test_capacity_asks_for_what_was_typed_and_prints_the_formulas(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = answering(sent(samples.CAPACITY))
    assert terminal.capacity(ServerCall(url="http://convo"), target="500/s", conversations=1000) == 0
    assert (seen[0].url.path, dict(seen[0].url.params)) == (
        "/v1/capacity",
        {"target": "500/s", "conversations": "1000"},
    )
    assert "jobs.workers 64 / 1.5 s" in capsys.readouterr().out
    assert terminal.capacity(ServerCall(url="http://convo"), target=None, conversations=None) == 0
    assert not seen[1].url.query


# --- alerts


def test_acknowledge_posts_and_says_that_it_stays_dead(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    view = views.AcknowledgedView(conversation_id="c-1", state="dead", attempts=5, links=views.links("c-1"))
    seen = answering(sent(view))

    assert terminal.acknowledge(ServerCall(url="http://convo"), "c-1") == 0

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/conversations/c-1/acknowledge")
    assert capsys.readouterr().out == "c-1 stays dead; it is reviewed\n"


def test_alerts_show_what_holds_since_when_with_what_to_do(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(sent(samples.ALERTS))

    assert terminal.alerts(ServerCall(url="http://convo")) == 0

    out = capsys.readouterr().out
    for word in (
        "CRITICAL",
        "DEAD_LETTER",
        "unreviewed 1",
        "c-by-character",
        "convo acknowledge",
        "Notified: log, webhook.",
    ):
        assert word in out


def test_no_alert_is_said_in_words(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    answering(sent(service_views.AlertsView(active=(), recent=(), leads=False, sinks=("log",))))

    assert terminal.alerts(ServerCall(url="http://convo")) == 0
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("ok", [True, False])
def test_a_test_of_the_sinks_fails_where_one_did(
    answering: Answering, capsys: pytest.CaptureFixture[str], *, ok: bool
) -> None:
    sink = service_views.SinkTestView(sink="slack", ok=ok, detail=None if ok else "slack: answered 401")
    seen = answering(sent(service_views.AlertsTestView(sinks=(sink,))))

    assert terminal.test_alerts(ServerCall(url="http://convo")) == (0 if ok else 1)

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/alerts/test")
    assert ("slack: answered 401" in capsys.readouterr().out) is not ok
