"""Refuses what a browser sends for a page that is not ours, and says what pages of other sites may read (CORS).

convo is called by servers. Where it asks for no key, whoever reaches it may read and write; and a page of any site
reaches a convo on loopback, through the browser that shows it. Two headers that a page cannot change tell it apart: a
foreign ``Origin`` or ``Sec-Fetch-Site``, and, where its name was made to point here (DNS rebinding), a foreign
``Host``. With keys on, a page has no key, and a browser adds none by itself. But it adds the cookie of a session
(``session_check``): where one stands for a key, the page is looked at as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from convo.errors import CrossSite, UnknownHost
from convo.host_names import host_name, is_loopback, listed_name, origin_host, plain_name
from convo.observe import log_records
from convo.settings import Settings, host_settings, shared_origins
from convo.web.description.messages import Answer, Head, with_headers

_VARY = ("Vary", "Origin")
_EXPOSED = (
    "Allow, ETag, Idempotent-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing,"
    " WWW-Authenticate"
)
_ALLOWED = "Authorization, Content-Encoding, Content-Type, If-None-Match, Request-Timeout"
_PREFLIGHT_SECONDS = 600
# Hosts that were found to be ours are looked up as they were sent. This bounds how many: a port may be any number.
_KNOWN_MAX = 256
_SHOWN_MAX = 100


class Browsers:
    """The names of this server, and the origins whose pages may call it."""

    __slots__ = ("_any_host", "_any_origin", "_asks_no_key", "_known", "_names", "_origins", "checks", "shares")

    def __init__(self, settings: Settings) -> None:
        server = settings.server
        hosts, origins = host_settings(server), shared_origins(server)
        self._names = {listed_name(name) for name in (*hosts, server.host, server.operations_host)}
        self._any_host = "*" in hosts
        # A browser always sends a Host. A client without one is none.
        self._known = {""}
        self._origins = {one.lower() for one in origins}
        self._any_origin = "*" in origins
        self._asks_no_key = not settings.auth.keys
        self.checks = self._asks_no_key or bool(hosts)
        self.shares = bool(origins)

    def check(self, head: Head, *, on_operations: bool = False) -> None:
        """Check by which name, and for which page, the request comes.

        Raises:
            UnknownHost: the name is not ours.
            CrossSite: it comes for a page of another site.
        """
        try:
            if head.host not in self._known:
                self._check_host(head)
            if (head.origin or head.sec_fetch_site) and (self._asks_no_key or on_operations):
                self._check_page(head, on_operations=on_operations)
        except (UnknownHost, CrossSite) as error:
            # The client may be nobody who would report it: after an upgrade, a name that is not set must be seen here.
            log_records.caller_refused(code=error.code, reason=error.detail)
            raise

    def check_page(self, head: Head) -> None:
        """Check for which page the request comes, where a cookie stands for its key.

        Raises:
            CrossSite: it comes for a page of another site.
        """
        try:
            self._check_page(head, on_operations=False)
        except CrossSite as error:
            log_records.caller_refused(code=error.code, reason=error.detail)
            raise

    def _check_host(self, head: Head) -> None:
        if not (self._any_host or self._is_ours(host_name(head.host), head.served_at)):
            otherwise = ", or turn keys on (auth.keys)" if self._asks_no_key else ""
            raise UnknownHost(
                f"Host {head.host[:_SHOWN_MAX]!r} is no name of this server. Call it by its address, or add the name to"
                f" server.hosts (CONVO_SERVER__HOSTS){otherwise}"
            )
        if len(self._known) >= _KNOWN_MAX:
            self._known = {""}
        self._known.add(head.host)

    def _is_ours(self, name: str, served_at: str) -> bool:
        # Where it listens on every address, each address of the machine is one of ours.
        return bool(name) and (name in self._names or is_loopback(name) or name == plain_name(served_at))

    def _check_page(self, head: Head, *, on_operations: bool) -> None:
        if head.origin and self._is_shared(head) and not on_operations:
            return
        foreign = bool(head.origin) and origin_host(head.origin) != head.host.lower()
        if not foreign and head.sec_fetch_site.lower() != "cross-site":
            return
        page = f"a page of {head.origin[:_SHOWN_MAX]!r}" if head.origin else "a page of another site"
        if on_operations:
            raise CrossSite(f"{page} made a browser send this, and no page may read the operations")
        raise CrossSite(
            f"{page} made a browser send this. convo is called by servers. To allow the page, add its origin to"
            " server.cors_origins (CONVO_SERVER__CORS_ORIGINS). To open an address yourself, enter it in the browser"
        )

    def _is_shared(self, head: Head) -> bool:
        return self._any_origin or head.origin.lower() in self._origins

    def shared(self, head: Head, answer: Answer) -> Answer:
        """Return the answer with the headers that let a page of an allowed origin read it."""
        if not self._is_shared(head):
            return with_headers(answer, _VARY)
        return with_headers(answer, *self._allowing(head), ("Access-Control-Expose-Headers", _EXPOSED))

    def preflight(self, head: Head, methods: Iterable[str]) -> Answer | None:
        """Answer what a browser asks before it sends a page's request; ``None`` where the page is not allowed to."""
        if not (self.shares and head.origin and self._is_shared(head)):
            return None
        headers = (
            ("Access-Control-Allow-Methods", ", ".join(sorted(methods))),
            ("Access-Control-Allow-Headers", _ALLOWED),
            ("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS)),
        )
        return Answer(status=204, body=b"", headers=headers)

    def _allowing(self, head: Head) -> tuple[tuple[str, str], ...]:
        if self._any_origin:
            return (("Access-Control-Allow-Origin", "*"),)
        return (("Access-Control-Allow-Origin", head.origin), _VARY)
