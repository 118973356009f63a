"""A table of browsers' sessions in memory, in the place of the database, for tests on the virtual clock."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from msgspec import structs

from convo.errors import DatabaseUnavailable
from convo.store import keys, page_sessions
from convo.store.keys import ApiKey
from convo.store.page_sessions import PageSession
from convo.web.session_cookie import COOKIE_NAME

_AT = datetime(2026, 11, 29, tzinfo=UTC)
KEY = ApiKey(
    key_id="0123456789ab",
    digest=b"",
    name="operator",
    scopes=("read", "write"),
    requests_per_second=0.0,
    created_at=_AT,
    last_used_at=None,
    expires_at=None,
    expires_in=None,
    replaces=None,
)


class SessionTable:
    """Answers ``page_sessions.find_page_sessions``; while it is ``away``, it fails. ``asked`` is what it was asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.away = False
        self.asked: list[set[str]] = []
        self._sessions: dict[str, tuple[PageSession, float]] = {}
        patch.setattr(page_sessions, "find_page_sessions", self._find)

    def add(self, seconds: float = 3600.0) -> str:
        """Add a session, and return the cookie of its browser."""
        session_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        session = PageSession(
            session_id=session_id,
            digest=keys.digest_of(secret),
            key=KEY,
            made_at=_AT,
            expires_at=_AT + timedelta(seconds=seconds),
            expires_in=seconds,
        )
        self._sessions[session_id] = session, trio.current_time() + seconds
        return f"{COOKIE_NAME}={session_id}_{secret}"

    def end(self, cookie: str) -> None:
        """Remove the session of a cookie."""
        del self._sessions[session_id_in(cookie)]

    async def _find(self, _postgres: Any, session_ids: Collection[str]) -> Mapping[str, PageSession]:
        self.asked.append(set(session_ids))
        await trio.lowlevel.checkpoint()
        if self.away:
            raise DatabaseUnavailable("away")
        now = trio.current_time()
        return {
            session_id: structs.replace(session, expires_in=until - now)
            for session_id, (session, until) in self._sessions.items()
            if session_id in session_ids and until > now
        }


def session_id_in(cookie: str) -> str:
    """Return the id of the session that a cookie is of."""
    return cookie.partition("=")[2].partition("_")[0]
