from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from msgspec import structs

from convo.commands import cli, database
from convo.commands.session_drawing import draw_sessions
from convo.conversation.tenant import Reach, Tenant
from convo.store.page_sessions import PageSession
from tests.support.answers import AT
from tests.support.session_table import KEY
from tests.unit.commands.test_drawing import drawn, rows_of

BOUND = structs.replace(KEY, reach=Reach(tenant=Tenant(number=1, name="acme"), bots=("pika", "tom")))
SESSIONS = [
    PageSession(session_id=f"{number}" * 12, digest=b"secret-hash", key=key, made_at=AT, expires_at=AT, expires_in=60.0)
    for number, key in enumerate((KEY, BOUND))
]


def test_sessions_are_drawn_with_the_keys_that_they_stand_for() -> None:
    at = f"{AT:%Y-%m-%d %H:%M:%S}Z"
    assert rows_of(drawn(draw_sessions(SESSIONS), 200)) == [
        ["0" * 12, KEY.key_id, "operator", "default", "all", at, at],
        ["1" * 12, KEY.key_id, "operator", "acme", "pika, tom", at, at],
    ]


def test_sessions_are_listed_without_what_is_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def listed(_settings: Any) -> list[PageSession]:
        await trio.lowlevel.checkpoint()
        return SESSIONS

    monkeypatch.setattr(database, "list_sessions", listed)
    assert cli.main(["session", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["session_id"], one["tenant"], one["bots"]) for one in shown] == [
        ("0" * 12, "default", None),
        ("1" * 12, "acme", ["pika", "tom"]),
    ]
    assert "digest" not in str(shown)
    assert cli.main(["session", "list"]) == 0
    assert "operator" in capsys.readouterr().out


def test_a_session_is_ended_by_its_id(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[str] = []

    async def revoke(_settings: Any, session_id: str) -> None:
        await trio.lowlevel.checkpoint()
        ended.append(session_id)

    monkeypatch.setattr(database, "revoke_session", revoke)
    assert cli.main(["session", "revoke", "0" * 12]) == 0
    assert "servers refuse it within 10 s" in capsys.readouterr().out
    assert cli.main(["session", "revoke", "1" * 12, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"session_id": "1" * 12, "refused_within_seconds": 10.0}
    assert ended == ["0" * 12, "1" * 12]
