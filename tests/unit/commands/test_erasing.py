from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import structs

from convo.commands import cli, erasing
from convo.commands.terminal import ServerCall
from convo.web.description import samples
from convo.web.description.erasure_views import ErasureView

CALL = ServerCall(url="http://convo:1", key="k1")
COUNTED = structs.replace(samples.ERASURE, dry_run=True, begun_at=None, ended_at=None, remains=())
Serve = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return the function that lets these answers come, one after the other; it returns what was asked."""

    def put(*answers: ErasureView) -> list[tuple[str, str]]:
        left, asked, client = list(answers), list[tuple[str, str]](), httpx.Client

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append((request.method, request.url.raw_path.decode()))
            return httpx.Response(200, content=msgspec.json.encode(left.pop(0)))

        monkeypatch.setattr(httpx, "Client", lambda **given: client(transport=httpx.MockTransport(answer), **given))
        return asked

    return put


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dry_run_asks_for_the_count_alone(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    asked = serve(COUNTED)
    assert erasing.erase(CALL, "conversation", "a/b", dry_run=True, ask=True) == 0
    assert asked == [("DELETE", "/v1/conversations/a%2Fb?dry_run=true")]
    printed = capsys.readouterr().out
    assert "nothing was erased, this would go" in printed
    assert "conversation_log" in printed


def test_with_yes_it_is_erased_without_a_question_and_the_receipt_is_printed(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve(samples.ERASURE)
    assert erasing.erase(CALL, "user", "mia", dry_run=False, ask=False) == 0
    assert asked == [("DELETE", "/v1/users/mia")]
    printed = capsys.readouterr().out
    assert samples.ERASURE.hmac in printed
    assert "a restore erases it again" in printed


def test_a_user_who_takes_several_requests_is_asked_for_until_all_is_erased(serve: Serve) -> None:
    asked = serve(samples.ERASURE_BEGUN, samples.ERASURE_BEGUN, samples.ERASURE)
    assert erasing.erase(CALL, "user", "mia", dry_run=False, ask=False) == 0
    assert len(asked) == 3


@pytest.mark.parametrize(("typed", "end"), [("y\n", (0, 2)), ("\n", (1, 1)), ("no\n", (1, 1))])
def test_it_asks_with_the_count_before_it_erases(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    end: tuple[int, int],
) -> None:
    asked = serve(COUNTED, samples.ERASURE)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    exit_code = erasing.erase(CALL, "conversation", "talk-1", dry_run=False, ask=True)
    assert (exit_code, len(asked)) == end
    assert "conversation_log 1" in capsys.readouterr().err


def test_without_a_terminal_and_without_yes_nothing_is_erased(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve(COUNTED)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert erasing.erase(CALL, "conversation", "talk-1", dry_run=False, ask=True) == 1
    assert len(asked) == 1
    assert "give --yes" in capsys.readouterr().err


def test_what_was_erased_before_is_shown_without_a_question(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(structs.replace(samples.ERASURE, repeated=True))
    assert erasing.erase(CALL, "conversation", "talk-1", dry_run=False, ask=True) == 0
    assert "by an earlier request" in capsys.readouterr().out


def test_the_receipt_as_json_is_the_servers(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(samples.ERASURE)
    call = structs.replace(CALL, as_json=True)
    assert erasing.erase(call, "conversation", "talk-1", dry_run=False, ask=False) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(samples.ERASURE))


def test_the_command_line_says_what_is_erased_and_whether_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def erase(_call: ServerCall, *what: str, **how: bool) -> int:
        called.append((what, how))
        return 0

    monkeypatch.setattr(erasing, "erase", erase)
    monkeypatch.setenv("CONVO_URL", "http://there:1")
    assert cli.main(["erase", "conversation", "talk-1", "--dry-run"]) == 0
    assert cli.main(["erase", "user", "mia", "--yes"]) == 0
    assert called == [
        (("conversation", "talk-1"), {"dry_run": True, "ask": True}),
        (("user", "mia"), {"dry_run": False, "ask": False}),
    ]
    with pytest.raises(SystemExit):
        cli.main(["erase", "bot", "b"])
