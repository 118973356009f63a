from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console, RenderableType

from convo import terminal
from convo.conversation.score import Weights, score
from convo.terminal import Filters, Newest
from convo.web import answers, samples

AT = datetime(2026, 3, 2, 8, 4, 23, tzinfo=UTC)
EVIL = "[bold red]boo[/] \x1b]0;owned\x07\x1b[2J\r\n\u202eevil :smile:"
SHOWN = r"[bold red]boo[/] \x1b]0;owned\x07\x1b[2J\r\n\u202eevil :smile:"

NOTHING_YET = answers.PartsView(
    questions=answers.QuestionsView(state="waiting"),
    emotion=answers.EmotionView(state="waiting"),
    memories=answers.FoundMemoriesView(state="waiting"),
)
ALL_FOUND = answers.PartsView(
    questions=answers.QuestionsView(state="done", by="local/1", questions=("Why?", "How far?"), updated_at=AT),
    emotion=answers.EmotionView(state="done", by="local/1", emotion="interesting", updated_at=AT),
    memories=answers.FoundMemoriesView(
        state="done",
        by="mem0/1",
        memories=(answers.FoundMemory(text="has a dog called Waffles", kind="pet", operation="ADD"),),
        new=1,
        updated_at=AT,
    ),
)


def a_view(**changes: Any) -> answers.ConversationView:
    view = answers.ConversationView(
        conversation_id="c-1",
        user_id="mia",
        bot_id="pika-v2",
        bot_name="Pika",
        bot_type=None,
        agent_tag="bedtime",
        started_at=AT,
        ended_at=AT,
        received_at=AT,
        digest="1:abc",
        turns=4,
        state="done",
        attempts=1,
        parts=ALL_FOUND,
        score=score(exchanges=2, questions=2, new_memories=1, emotion="interesting", weights=Weights()),
        waits_for=None,
        parked_since=None,
        last_error=None,
        links=answers.links("c-1"),
    )
    return msgspec.structs.replace(view, **changes)


def a_row(name: str = "c-1", **changes: Any) -> answers.ConversationSummary:
    row = answers.ConversationSummary(
        conversation_id=name,
        user_id="mia",
        bot_id="pika-v2",
        started_at=AT,
        ended_at=AT,
        received_at=AT,
        turns=4,
        state="done",
        attempts=1,
        score=28,
        last_error=None,
        links=answers.links(name),
    )
    return msgspec.structs.replace(row, **changes)


def drawn(picture: RenderableType, width: int = 160) -> str:
    screen = StringIO()
    Console(file=screen, width=width).print(picture)
    return screen.getvalue()


def rows_of(text: str) -> list[list[str]]:
    """Read the cells of every row back from what was drawn."""
    return [
        [cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines() if line.startswith("│")
    ]


def test_a_conversation_is_shown_with_what_was_sent_found_and_scored() -> None:
    text = drawn(terminal.draw_conversation(a_view()))
    rows = rows_of(text)

    assert "pika-v2 · Pika · bedtime" in text
    assert "last error" not in text
    assert ["questions", "done", "local/1", "Why?", "2026-03-02 08:04:23Z"] in rows
    assert ["", "", "", "How far?", ""] in rows
    assert ["emotion", "done", "local/1", "interesting", "2026-03-02 08:04:23Z"] in rows
    assert ["memories", "done", "mem0/1", "1 new", "2026-03-02 08:04:23Z"] in rows
    assert ["", "", "", "ADD pet: has a dog called Waffles", ""] in rows
    assert rows[-5:-1] == [
        ["exchanges", "2", "× 1", "2"],
        ["questions", "2", "× 3", "6"],
        ["new memories", "1", "× 5", "5"],
        ["emotion", "interesting", "", "15"],
    ]
    assert rows[-1][0] == "final"
    assert rows[-1][3] == "28"


def test_what_is_not_found_yet_is_told_from_nothing_found() -> None:
    unknown = score(exchanges=2, questions=None, new_memories=None, emotion=None, weights=Weights())
    waiting = rows_of(drawn(terminal.draw_conversation(a_view(parts=NOTHING_YET, score=unknown, state="leased"))))
    empty = answers.PartsView(
        questions=answers.QuestionsView(state="done", by="local/1", questions=()),
        emotion=ALL_FOUND.emotion,
        memories=answers.FoundMemoriesView(state="done", by="local/1", memories=(), new=0),
    )
    done = rows_of(drawn(terminal.draw_conversation(a_view(parts=empty))))

    assert ["questions", "waiting", "–", "–", "–"] in waiting
    assert ["questions", "–", "× 3", "0"] in waiting
    assert waiting[-1][0] == "provisional"
    assert ["questions", "done", "local/1", "none", "–"] in done
    assert ["", "", "", "none", ""] in done


def test_a_parked_conversation_shows_what_it_waits_for_and_since_when() -> None:
    text = drawn(terminal.draw_conversation(a_view(state="ready", waits_for="llm", parked_since=AT)))
    assert re.search(r"waits for\s+llm, since ", text)


def test_a_part_that_failed_shows_why_and_the_conversation_its_last_error() -> None:
    failed = msgspec.structs.replace(
        NOTHING_YET, emotion=answers.EmotionView(state="failed", by="llama/1", error="llm: no emotion [maybe]")
    )
    text = drawn(terminal.draw_conversation(a_view(parts=failed, state="dead", last_error="gave up")))

    assert ["emotion", "failed", "llama/1", "llm: no emotion [maybe]", "–"] in rows_of(text)
    assert "last error    gave up" in text


def everywhere_evil() -> answers.ConversationView:
    parts = answers.PartsView(
        questions=answers.QuestionsView(state="done", by=EVIL, questions=(EVIL,)),
        emotion=answers.EmotionView(state="failed", error=EVIL),
        memories=answers.FoundMemoriesView(
            state="done", by=EVIL, memories=(answers.FoundMemory(text=EVIL, kind=EVIL, operation="ADD"),), new=1
        ),
    )
    names = dict.fromkeys(("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag"), EVIL)
    return a_view(parts=parts, last_error=EVIL, digest=EVIL, **names)


@pytest.mark.parametrize(
    ("picture", "times"),
    [
        (terminal.draw_conversation(everywhere_evil()), 14),
        (terminal.draw_list(Newest(rows=(a_row(EVIL, user_id=EVIL, bot_id=EVIL),), more=False)), 3),
        (terminal.draw_dead(Newest(rows=(a_row(EVIL, user_id=EVIL, last_error=EVIL),), more=False)), 3),
    ],
    ids=["show", "list", "dead"],
)
def test_no_text_of_a_conversation_is_obeyed_by_the_terminal_or_read_as_markup(
    picture: RenderableType, times: int
) -> None:
    screen = StringIO()
    Console(file=screen, width=1000, force_terminal=True, color_system=None).print(picture)
    text = screen.getvalue()

    assert text.count(SHOWN) == times
    assert {letter for letter in text if not letter.isprintable()} <= {"\n"}


def test_letters_of_any_language_and_joined_emoji_stay_as_they_are() -> None:
    assert terminal.plain("Tớ thích khủng long lắm! 👩‍🚀").plain == "Tớ thích khủng long lắm! 👩‍🚀"


def test_a_narrow_terminal_cuts_no_id() -> None:
    name = "conversation-" + "x" * 60

    text = drawn(terminal.draw_list(Newest(rows=(a_row(name),), more=False)), width=80)

    assert "".join(cells[0] for cells in rows_of(text)) == name


def test_a_list_shows_a_score_only_where_there_is_one_and_says_when_there_are_more() -> None:
    rows = (a_row("c-1"), a_row("c-2", state="ready", score=None))

    text = drawn(terminal.draw_list(Newest(rows=rows, more=True)))

    assert rows_of(text) == [
        ["c-1", "mia", "pika-v2", "2026-03-02 08:04:23Z", "4", "done", "28"],
        ["c-2", "mia", "pika-v2", "2026-03-02 08:04:23Z", "4", "ready", "–"],
    ]
    assert "There are more" in text
    assert "There are more" not in drawn(terminal.draw_list(Newest(rows=rows, more=False)))
    assert drawn(terminal.draw_list(Newest(rows=(), more=False))) == "none\n"


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

    assert terminal.show("http://convo:1/below", "k1", "a?b %c") == 0

    assert str(seen[0].url) == "http://convo:1/below/v1/conversations/a%3Fb%20%25c"
    assert seen[0].headers["authorization"] == "Bearer k1"
    # The test's output is no terminal, so not even a long row is folded.
    assert "ADD pet: has a dog called Waffles" in capsys.readouterr().out


def test_a_list_follows_the_cursor_up_to_its_limit(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    def pages(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        rows = tuple(a_row(f"c-{number}") for number in (range(100) if first else range(100, 120)))
        page = answers.ListView(conversations=rows, next_cursor="more" if first else "yet more")
        return httpx.Response(200, content=msgspec.json.encode(page))

    seen = answering(pages)

    assert terminal.list_conversations("http://convo", "", Filters(user_id="mia", state="done"), limit=120) == 0

    asked = [dict(request.url.params) for request in seen]
    assert asked == [
        {"user_id": "mia", "state": "done", "limit": "100"},
        {"user_id": "mia", "state": "done", "limit": "20", "cursor": "more"},
    ]
    assert "authorization" not in seen[0].headers
    assert "There are more" in capsys.readouterr().out


def test_an_empty_page_ends_a_list_whatever_its_cursor_says(answering: Answering) -> None:
    seen = answering(sent(answers.ListView(conversations=(), next_cursor="for ever")))

    assert terminal.list_conversations("http://convo", "", Filters()) == 0
    assert len(seen) == 1


def test_dead_lists_only_dead_letters_with_their_reason(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (a_row(state="dead", last_error="llm: refused", score=None),)
    seen = answering(sent(answers.ListView(conversations=rows, next_cursor=None)))

    assert terminal.dead("http://convo", "", Filters(bot_id="pika-v2")) == 0

    assert dict(seen[0].url.params) == {"bot_id": "pika-v2", "state": "dead", "limit": "50"}
    assert "llm: refused" in capsys.readouterr().out


def test_retry_posts_and_says_the_new_state(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    view = answers.RetryView(conversation_id="c-1", state="ready", attempts=0, links=answers.links("c-1"))
    seen = answering(sent(view))

    assert terminal.retry("http://convo", "", "c-1") == 0

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/conversations/c-1/retry")
    assert capsys.readouterr().out == "c-1 is ready again\n"


def unplugged(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no")


def a_problem(status: int, code: str) -> answers.Problem:
    return answers.Problem(type="", title="", status=status, code=code, detail="[b]what\x1b[2J")


@pytest.mark.parametrize(
    ("server", "exit_code", "words"),
    [
        (unplugged, 3, "no server answers at http://convo (ConnectError); scripts/serve starts one"),
        (sent(a_problem(404, "not_found"), 404), 4, r"404 not_found: [b]what\x1b[2J"),
        (sent(a_problem(409, "not_dead"), 409), 1, r"409 not_dead: [b]what\x1b[2J"),
        (sent(a_problem(401, "unauthorized"), 401), 1, r"401 unauthorized: [b]what\x1b[2J"),
        (lambda _: httpx.Response(502, text="<html>"), 1, "502 Bad Gateway, and no word why"),
        (lambda _: httpx.Response(301, headers={"location": "/"}), 1, "301 Moved Permanently, and no word why"),
        (sent({"hello": "world"}), 1, "what answers at http://convo is not convo, or not this version: "),
        (lambda _: httpx.Response(200, content=b"\xff"), 1, "what answers at http://convo is not convo"),
    ],
)
def test_what_fails_is_one_line_on_the_error_stream_and_an_exit_code(
    answering: Answering, capsys: pytest.CaptureFixture[str], server: Server, exit_code: int, words: str
) -> None:
    answering(server)

    assert terminal.retry("http://convo", "", "c-1") == exit_code

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(words)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("url", "key"), [("http://convo:x", ""), ("http://convo", "clé")])
def test_an_address_or_a_key_that_cannot_be_used_is_said(
    capsys: pytest.CaptureFixture[str], url: str, key: str
) -> None:
    assert terminal.show(url, key, "c-1") == 1
    assert "cannot be used" in capsys.readouterr().err


# --- why


def test_an_explanation_shows_the_cause_the_place_and_every_run() -> None:
    view = msgspec.structs.replace(samples.EXPLAINED, ahead=7, done_per_second=2.0, seconds_left=4.0)
    text = drawn(terminal.draw_explained(view))
    for shown in (
        "parked: llm is out",
        "its breaker is open",
        "7 before it, done in about 4 s",
        "llm.questions 0.031 s",
    ):
        assert shown in text


# --- alerts


def test_acknowledge_posts_and_says_that_it_stays_dead(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    view = answers.AcknowledgedView(conversation_id="c-1", state="dead", attempts=5, links=answers.links("c-1"))
    seen = answering(sent(view))

    assert terminal.acknowledge("http://convo", "", "c-1") == 0

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/conversations/c-1/acknowledge")
    assert capsys.readouterr().out == "c-1 stays dead; it is reviewed\n"


def test_alerts_show_what_holds_since_when_with_what_to_do(
    answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(sent(samples.ALERTS))

    assert terminal.alerts("http://convo", "") == 0

    out = capsys.readouterr().out
    for word in (
        "CRITICAL",
        "DEAD_LETTER",
        "unreviewed 1",
        "c-by-character",
        "convo acknowledge",
        "Told: log, webhook.",
    ):
        assert word in out


def test_no_alert_is_said_in_words(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    answering(sent(answers.AlertsView(active=(), recent=(), leads=False, sinks=("log",))))

    assert terminal.alerts("http://convo", "") == 0
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("ok", [True, False])
def test_a_test_of_the_sinks_fails_where_one_did(
    answering: Answering, capsys: pytest.CaptureFixture[str], *, ok: bool
) -> None:
    sink = answers.SinkTestView(sink="slack", ok=ok, detail=None if ok else "slack: it answered 401")
    seen = answering(sent(answers.AlertsTestView(sinks=(sink,))))

    assert terminal.test_alerts("http://convo", "") == (0 if ok else 1)

    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/alerts/test")
    assert ("it answered 401" in capsys.readouterr().out) is not ok
