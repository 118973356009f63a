"""Checks the key of a request and its scope, against the keys that this process holds in memory.

Open it to change when a key is good. All keys are read again twice in ``auth.refresh_seconds``, so that a revoked key
is refused within that time, even where a reading takes half of it. Keys that were not read for three times as long are
refused all: they may be revoked. For a key that is not held in memory the database is asked (``key_lookup``), so a new
one is good at once.

The session of a browser stands for its key (``session_check``).

A good key is found before a wrong one costs its address anything: others at the same address, behind a proxy that is
not trusted, do not keep it out.
"""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Callable

import trio
from msgspec import Struct

from convo.conversation.tenant import DEFAULT, Reach
from convo.errors import ConvoError, Forbidden, KeysUnavailable, Unauthorized
from convo.observe import log_records, metrics
from convo.settings import AuthSettings
from convo.store import keys
from convo.store.keys import PREFIX, ApiKey, Scope
from convo.store.page_sessions import PageSession
from convo.store.postgres import Postgres
from convo.web.description.messages import Head
from convo.web.key_lookup import KeyLookup
from convo.web.session_check import SentSession, SessionCheck
from convo.web.wrong_keys import WrongKeys

KEYS_AGE_FACTOR = 3
"""Keys read longer ago than so many times ``auth.refresh_seconds`` are refused."""

_READS = 2  # in auth.refresh_seconds
_AGAIN_SECONDS_MAX = 1.0
_ALONE = rf"{PREFIX}([0-9a-f]{{12}})_([0-9A-Za-z_-]{{43}})"
_KEY_ALONE = re.compile(_ALONE, re.ASCII)
_KEY = re.compile(rf"(?i:bearer) +{_ALONE}", re.ASCII)


class _Held(Struct, frozen=True, gc=False):
    """A key, and when it expires by ``trio.current_time()``."""

    key: ApiKey
    until: float


class ShownKey(Struct, frozen=True, kw_only=True, gc=False):
    """What let a request in: the id of a key, or of the session that stood for one."""

    key_id: str = ""
    session_id: str = ""


class Authority:
    """The valid keys, when they were read, and which of them were used since.

    ``read_again`` is called after each reading of the keys, also after one that has failed.
    """

    def __init__(
        self, settings: AuthSettings, postgres: Postgres, read_again: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self.asks_no_key = not settings.keys
        """Whether everybody is let in."""
        self._read_again = read_again
        self._postgres = postgres
        self._held: dict[str, _Held] = {}
        self._mark = ""  # of the keys that were read last; empty where others are held besides
        self._read_at = -math.inf  # when the reading began whose keys are held
        self._next_at = -math.inf
        self._history = 0  # counts how often the database went back
        self._used: set[str] = set()
        self._several = False  # whether there is another tenant than the default one
        self._age_max = KEYS_AGE_FACTOR * settings.refresh_seconds
        self._again_seconds = min(_AGAIN_SECONDS_MAX, settings.refresh_seconds / 10)
        self._wrong = WrongKeys(settings)
        self._lookup = KeyLookup(postgres, settings.refresh_seconds)
        self.sessions = SessionCheck(settings, postgres, self._wrong)

    async def check(
        self,
        authorization: str,
        scope: Scope | None,
        address: str,
        *,
        of_all: bool = False,
        session: SentSession | None = None,
    ) -> ApiKey | None:
        """Return the key of a request that has the scope; None where no key is required.

        A ``session`` stands for its key where there is no ``authorization``.

        ``of_all``: what it asks for concerns the whole installation. That takes a key of the default tenant, bound to
        no bots; where there are other tenants, one with the scope ``admin``.

        Raises:
            Unauthorized: there is no key, or it is not valid.
            Forbidden: the key does not have the scope, or does not reach so far; or a session lacks its CSRF token.
            TooManyRequests: too many wrong keys came from this client's address, or too many unknown ones from all.
            KeysUnavailable: the database was not asked for too long, or cannot be asked for a key that is not known.
        """
        if scope is None or not self._settings.keys:
            return None
        if authorization:
            key = await self._good(_KEY.fullmatch(authorization.strip()), address)
        elif session is not None:
            key = (await self.session_of(session, address)).key
        else:
            raise Unauthorized("send a valid key: Authorization: Bearer convo_…; `convo key new` makes one")
        if scope not in key.scopes:
            raise _lacks(key, scope)
        if of_all and not key.reach.is_default:
            raise Forbidden(
                f"the key {key.key_id} ({key.name}) is of one tenant or of some bots, and this concerns the whole"
                f" installation: it takes a key of the tenant {DEFAULT.name!r} that is bound to no bots"
            )
        if of_all and self._several and "admin" not in key.scopes:
            raise _lacks(key, "admin")
        self._used.add(key.key_id)
        return key

    async def identify(self, text: str, address: str) -> ApiKey:
        """Return the key that somebody signs in with.

        Raises:
            Unauthorized, TooManyRequests, KeysUnavailable: as ``check``.
        """
        return await self._good(_KEY_ALONE.fullmatch(text.strip()), address)

    async def session_of(self, session: SentSession, address: str) -> PageSession:
        """Return the session of a request.

        Raises:
            Unauthorized, Forbidden, TooManyRequests, KeysUnavailable: as ``check``.
        """
        self._check_age(trio.current_time())
        return await self.sessions.check(session, address)

    async def _good(self, shown: re.Match[str] | None, address: str) -> ApiKey:
        key = await self._find(shown[1], shown[2], address) if shown else None
        if key is None:
            if shown is None:
                self._wrong.take(address)
            metrics.keys_refused_total.labels("wrong").inc()
            raise Unauthorized("this key is not valid: it is misspelt, revoked or expired; `convo key list` shows more")
        return key

    def reaches_all(self, key_id: str | None, reach: Reach) -> bool:
        """Return whether a caller that was just let in may see the whole installation; as ``check`` with ``of_all``."""
        if not self._settings.keys:
            return True
        held = self._held.get(key_id or "")
        return held is not None and reach.is_default and ("admin" in held.key.scopes or not self._several)

    def shown_by(self, head: Head) -> ShownKey | None:
        """Return what has let a request in that has passed ``check``; None where no key is asked for."""
        if not self._settings.keys:
            return None
        if head.authorization:
            shown = _KEY.fullmatch(head.authorization.strip())
            return ShownKey(key_id=shown[1] if shown else "")
        return ShownKey(session_id=self.sessions.cookie.find(head.cookie)[0])

    def still_good(self, shown: ShownKey) -> bool:
        """Return whether a request that was let in before would be let in now, as far as this process knows."""
        now = trio.current_time()
        if now - self._read_at > self._age_max:
            return False
        if shown.session_id:
            return self.sessions.holds(shown.session_id, now)
        held = self._held.get(shown.key_id)
        return held is not None and now < held.until

    def requests_per_second(self, key_id: str) -> float:
        """Return the own limit of a key that was just checked; 0 for none."""
        held = self._held.get(key_id)
        return 0.0 if held is None else held.key.requests_per_second

    async def _find(self, key_id: str, secret: str, address: str) -> ApiKey | None:
        now = trio.current_time()
        self._check_age(now)
        held = self._held.get(key_id)
        if held is not None and _fits(held.key, secret):
            if now < held.until:
                return held.key
            self._wrong.take(address)
            return None
        if held is not None or self._lookup.knows_none(key_id, now):
            self._wrong.take(address)
            return None
        return await self._ask(key_id, secret, address)

    async def _ask(self, key_id: str, secret: str, address: str) -> ApiKey | None:
        history = self._history
        found = await self._lookup.ask_for(key_id, lambda key: _fits(key, secret), self._wrong, address)
        if found is None:
            return None
        if history == self._history and found.asked_at >= self._read_at:
            # Without a mark: were it revoked before the next reading, the keys would have the same mark as before it.
            self._mark = ""
            self._several = self._several or found.key.reach.tenant is not DEFAULT
            self._held[key_id] = _Held(found.key, _expiry(found.key, found.asked_at))
        return found.key

    def _check_age(self, now: float) -> None:
        age = now - self._read_at
        if age <= self._age_max:
            return
        metrics.keys_refused_total.labels("not_read").inc()
        since = "yet" if age == math.inf else f"for {age:.0f} s, more than {KEYS_AGE_FACTOR} × auth.refresh_seconds"
        raise KeysUnavailable(
            f"the keys could not be read from the database {since}: no key is accepted until they are",
            retry_after_seconds=self._again_seconds,
        )

    def forget(self) -> None:
        """Drop all keys: the database went back, and one that was revoked may be good there, or one not made yet."""
        self._history += 1
        self._held, self._mark, self._used, self._read_at = {}, "", set(), -math.inf
        self._lookup.forget()
        self.sessions.forget()

    async def refresh_now(self) -> None:
        """Read the keys again at once, and record which were used.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the keys known before stay valid until they are too old.
        """
        if not self._settings.keys:
            return
        asked_at, history = trio.current_time(), self._history
        mark = self._mark
        good = await keys.read_good(self._postgres, mark)
        if good.keys is None and mark != self._mark:
            # They are unchanged since the mark, but what is held has changed meanwhile.
            good = await keys.read_good(self._postgres)
        await self.sessions.refresh()
        # Of two readings the one that began later counts, whichever ends first.
        if history == self._history and asked_at >= self._read_at:
            if good.keys is not None:
                self._held = {key.key_id: _Held(key, _expiry(key, asked_at)) for key in good.keys}
                self._mark = good.mark
            self._read_at, self._several = asked_at, good.several
            self.sessions.name_cookie(good.installation)
            self._next_at = asked_at + self._settings.refresh_seconds / _READS
        self._read_again()
        await self._note_used()

    async def _note_used(self) -> None:
        # After the reading, and no part of it: what is only for people to read must not keep a revoked key alive.
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await keys.note_used(self._postgres, used)
        except ConvoError as error:
            self._used |= used
            log_records.key_use_not_noted(reason=error.detail)

    async def refresh(self) -> None:
        """Read the keys again, or log why that was not possible, and try again soon."""
        try:
            await self.refresh_now()
        except ConvoError as error:
            now = trio.current_time()
            self._next_at = now + self._again_seconds
            self._read_again()
            log_records.keys_failed(reason=error.detail)
            if now - self._read_at > self._age_max:
                log_records.keys_too_old(reason=error.detail)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the keys again and again until cancelled."""
        task_status.started()
        while self._settings.keys:
            await trio.sleep_until(self._next_at)
            await self.refresh()


def _lacks(key: ApiKey, scope: Scope) -> Forbidden:
    return Forbidden(f"the key {key.key_id} ({key.name}) has the scopes {', '.join(key.scopes)}, not {scope}")


def _fits(key: ApiKey, secret: str) -> bool:
    return hmac.compare_digest(keys.digest_of(secret), key.digest)


def _expiry(key: ApiKey, asked_at: float) -> float:
    return math.inf if key.expires_in is None else asked_at + key.expires_in
