"""The routes of a browser's session: sign in with a key, ask who one is, sign out."""

from __future__ import annotations

import trio
from msgspec import Struct

from convo.errors import Forbidden, NotFound, Unauthorized
from convo.http.addresses import client_network
from convo.settings import Settings
from convo.store.audit_log import Caller
from convo.store.page_sessions import PageSession, end_page_session, make_page_session
from convo.store.postgres import Postgres
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.description import session_views
from convo.web.description.messages import Answer, Head, encode
from convo.web.door import RouteRequest
from convo.web.json_body import read_json_body
from convo.web.session_check import SentSession, csrf_token

_KEPT_BY_NOBODY = ("Cache-Control", "no-store")


class SessionRoutes(Struct, frozen=True, kw_only=True):
    """The routes, with what they need."""

    settings: Settings
    postgres: Postgres
    authority: Authority
    browsers: Browsers

    async def begin(self, request: RouteRequest) -> Answer:
        """Take a key and answer with a session that stands for it, in a cookie.

        Raises:
            NotFound: no keys are asked for here, or no sessions are made.
            CrossSite: a page of another site made the browser send it.
            Unauthorized, TooManyRequests, KeysUnavailable: as for any request with this key.
            Invalid, BadRequest, UnsupportedMedia, TooLarge: what was sent is not valid.
        """
        head = request.head
        self._check_on()
        self.browsers.check_page(head)
        sent = await read_json_body(request, session_views.NewSession, self.settings.web)
        key = await self.authority.identify(sent.key, head.peer)
        asked_at = trio.current_time()
        made = await make_page_session(
            self.postgres, key, self.settings.auth.session_seconds, _caller(head, key.key_id)
        )
        if made is None:
            raise Unauthorized("this key was revoked or has expired a moment ago")
        self.authority.sessions.hold_made(made, asked_at)
        secure = bool(self.settings.server.certfile) or head.origin.lower().startswith("https://")
        cookie = self.authority.sessions.cookie.given(made.token, made.session.expires_in, secure=secure)
        view = _view(made.session, made.token.partition("_")[2])
        return Answer(status=201, body=encode(view), headers=[cookie, _KEPT_BY_NOBODY])

    async def show(self, request: RouteRequest) -> Answer:
        """Answer with the session of the request, or that no keys are asked for here.

        Raises:
            Unauthorized: it has none, or one that is over.
        """
        if not self.settings.auth.keys:
            return Answer(status=200, body=encode(session_views.NoKeysView()), headers=[_KEPT_BY_NOBODY])
        self._check_on()
        session = await self._current(request.head)
        view = _view(session, self.authority.sessions.cookie.find(request.head.cookie)[1])
        return Answer(status=200, body=encode(view), headers=[_KEPT_BY_NOBODY])

    async def end(self, request: RouteRequest) -> Answer:
        """End the session of the request.

        Raises:
            NotFound: no keys are asked for here, or no sessions are made.
            CrossSite: a page of another site made the browser send it.
            Unauthorized: it has none, or one that is over.
            Forbidden: it does not have the CSRF token.
        """
        head = request.head
        self._check_on()
        session = await self._current(head)
        await end_page_session(self.postgres, session.session_id, _caller(head, session.key.key_id))
        sessions = self.authority.sessions
        sessions.drop(session.session_id)
        return Answer(status=200, body=encode(session_views.SessionEndedView()), headers=[sessions.cookie.forgotten])

    async def _current(self, head: Head) -> PageSession:
        if head.authorization:
            # Its key is sent with each request, so there is nothing to sign out of.
            raise Forbidden("a session is a browser's: send its cookie, and no Authorization")
        self.browsers.check_page(head)
        sent = SentSession(cookie=head.cookie, csrf=head.csrf_token, changes=head.method not in ("GET", "HEAD"))
        return await self.authority.session_of(sent, head.peer)

    def _check_on(self) -> None:
        auth = self.settings.auth
        if not auth.keys:
            raise NotFound("this server asks for no keys (auth.keys), so there is nothing to sign in to")
        if not auth.session_seconds:
            raise NotFound("this server makes no sessions: auth.session_seconds is 0")


def _caller(head: Head, key_id: str) -> Caller:
    return Caller(key_id=key_id, address=client_network(head.peer) or None)


def _view(session: PageSession, secret: str) -> session_views.SessionView:
    key = session.key
    return session_views.SessionView(
        expires_at=session.expires_at,
        csrf=csrf_token(secret),
        name=key.name,
        key_id=key.key_id,
        tenant=key.reach.tenant.name,
        bots=key.reach.bots,
        scopes=key.scopes,
    )
