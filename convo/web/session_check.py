"""Checks the session of a request that a browser sends, in the place of a key, and its CSRF token.

Open it to change when a session is good. ``authority`` comes here for a request without an ``Authorization`` header
that has our cookie, and for no other. Sessions that were shown lately are held in memory and are read again together
with the keys. So one that was ended, or whose key was revoked, is refused within ``auth.refresh_seconds``.

A browser sends its cookies by itself, also where a page of another site asks it to. So what changes something needs
the CSRF token besides, which only a page of ours can read. It follows from the secret, and is stored nowhere.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Collection, Mapping

import trio
from msgspec import Struct

from convo.errors import Forbidden, Unauthorized
from convo.observe import metrics
from convo.settings import AuthSettings
from convo.store import page_sessions
from convo.store.keys import digest_of
from convo.store.page_sessions import MadeSession, PageSession
from convo.store.postgres import Postgres
from convo.web.key_lookup import Lookup
from convo.web.session_cookie import SessionCookie
from convo.web.wrong_keys import WrongKeys

_CSRF = b"convo csrf"
_HELD_MAX = 1_000
_ENDED = "this session is over, or was ended: sign in again (POST /v1/session)"


class SentSession(Struct, frozen=True, kw_only=True, gc=False):
    """What a browser sends: its cookies, the CSRF token, and whether the request may change something."""

    cookie: str
    csrf: str
    changes: bool


class _HeldSession(Struct, frozen=True):
    """A session, when the database was asked for it, and when it ends, both by ``trio.current_time()``."""

    session: PageSession
    asked_at: float
    until: float


class SessionLookup(Lookup[PageSession]):
    """Asks the database for sessions that are not held in memory."""

    async def read(self, ids: Collection[str]) -> Mapping[str, PageSession]:
        """Read those that are valid."""
        return await page_sessions.find_page_sessions(self.postgres, ids)


class SessionCheck:
    """The sessions that were shown to this process lately."""

    def __init__(self, settings: AuthSettings, postgres: Postgres, wrong: WrongKeys) -> None:
        self._settings = settings
        self._postgres = postgres
        self._wrong = wrong
        self.cookie = SessionCookie()
        self._held: OrderedDict[str, _HeldSession] = OrderedDict()
        self._lookup = SessionLookup(postgres, settings.refresh_seconds)
        self._history = 0  # counts how often the database went back

    async def check(self, sent: SentSession, address: str) -> PageSession:
        """Return the session that a request has.

        Raises:
            Unauthorized: it has none, or one that is over.
            Forbidden: it may change something and does not have the CSRF token of its session.
            TooManyRequests, KeysUnavailable: as ``Authority.check``.
        """
        session_id, secret = self.cookie.find(sent.cookie) if self._settings.session_seconds else ("", "")
        if not session_id:
            raise Unauthorized("send a valid key, or sign in for a session: POST /v1/session")
        session = await self._find(session_id, secret, address)
        if session is None:
            metrics.keys_refused_total.labels("wrong").inc()
            raise Unauthorized(_ENDED, headers=[self.cookie.forgotten])
        if sent.changes and not hmac.compare_digest(sent.csrf.encode(), csrf_token(secret).encode()):
            raise Forbidden(
                "a request that a browser's session stands for, and that may change something, needs the header"
                " X-CSRF-Token; GET /v1/session shows its value"
            )
        return session

    async def _find(self, session_id: str, secret: str, address: str) -> PageSession | None:
        now = trio.current_time()
        held = self._held.get(session_id)
        if held is None and not self._lookup.knows_none(session_id, now):
            held = await self._ask(session_id, secret, address)
            if held is None:
                return None
        if held is None or not _fits(held.session, secret) or trio.current_time() >= held.until:
            self._wrong.take(address)
            return None
        return held.session

    async def _ask(self, session_id: str, secret: str, address: str) -> _HeldSession | None:
        history = self._history
        found = await self._lookup.ask_for(session_id, lambda session: _fits(session, secret), self._wrong, address)
        if found is None:
            return None
        held = _HeldSession(found.key, found.asked_at, found.asked_at + found.key.expires_in)
        if history == self._history:
            self._hold(held)
        return held

    def hold_made(self, made: MadeSession, asked_at: float) -> None:
        """Hold a session that was just made; ``asked_at`` is when that was begun, by ``trio.current_time()``."""
        self._hold(_HeldSession(made.session, asked_at, asked_at + made.session.expires_in))

    def _hold(self, held: _HeldSession) -> None:
        self._held[held.session.session_id] = held
        if len(self._held) > _HELD_MAX:
            self._held.popitem(last=False)

    def name_cookie(self, installation: str) -> None:
        """Take the id of this installation for the name of its cookie."""
        if installation != self.cookie.installation:
            self.cookie = SessionCookie(installation)

    def holds(self, session_id: str, now: float) -> bool:
        """Return whether a session that was shown before is still good, as far as this process knows."""
        held = self._held.get(session_id)
        return held is not None and now < held.until

    def drop(self, session_id: str) -> None:
        """Hold a session no longer: it was ended."""
        self._held.pop(session_id, None)

    def forget(self) -> None:
        """Drop all sessions: the database went back."""
        self._history += 1
        self._held.clear()
        self._lookup.forget()

    async def refresh(self) -> None:
        """Read the sessions that are held again, if there are any.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: what was held before stays.
        """
        asked_at, asked, history = trio.current_time(), list(self._held), self._history
        if not asked:
            return
        found = await page_sessions.find_page_sessions(self._postgres, asked)
        if history != self._history:
            return
        for session_id in asked:
            held = self._held.get(session_id)
            if held is None or held.asked_at > asked_at:
                continue
            if (session := found.get(session_id)) is None:
                del self._held[session_id]
            else:
                # Its place stays: the oldest one goes first, where there are too many.
                self._held[session_id] = _HeldSession(session, asked_at, asked_at + session.expires_in)


def csrf_token(secret: str) -> str:
    """Return the CSRF token of the session with this secret."""
    return hmac.digest(secret.encode(), _CSRF, "sha256").hex()


def _fits(session: PageSession, secret: str) -> bool:
    return hmac.compare_digest(digest_of(secret), session.digest)
