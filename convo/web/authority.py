"""Who may do what: a request's key against the keys held in memory; it knows no route's meaning.

The keys are read anew every few seconds, never in a request: a flood of wrong ones costs the database nothing, and
while it is away the keys known last stay good. A revoked key is refused after ``auth.refresh_seconds`` at the latest.
"""

from __future__ import annotations

import hmac

import trio

from convo.config import AuthSettings
from convo.errors import ConvoError, Forbidden, Unauthorized
from convo.observe import events
from convo.store import keys
from convo.store.keys import PREFIX, Key, Scope
from convo.store.postgres import Postgres

Needs = Scope | None
"""What a route asks for; None: nothing at all."""

_NOBODY = b"\0" * 32


class Authority:
    """The keys that are good, and which of them were used since the last look."""

    def __init__(self, settings: AuthSettings, postgres: Postgres) -> None:
        self._settings = settings
        self._postgres = postgres
        self._keys: dict[str, Key] = {}
        self._used: set[str] = set()

    def check(self, authorization: str, needs: Needs) -> Key | None:
        """Pass a request whose key may do what the route asks for; return the key, where one was needed.

        Raises:
            Unauthorized: there is no key, or none that is good.
            Forbidden: the key is good for other things.
        """
        if needs is None or not self._settings.keys:
            return None
        key = self._find(authorization)
        if key is None:
            raise Unauthorized("send a key that is good: Authorization: Bearer convo_…; `convo key new` makes one")
        if needs not in key.scopes:
            raise Forbidden(f"the key {key.key_id} ({key.name}) has the scopes {', '.join(key.scopes)}, not {needs}")
        self._used.add(key.key_id)
        return key

    def _find(self, authorization: str) -> Key | None:
        scheme, _, text = authorization.strip().partition(" ")
        key_id, _, secret = text.strip().removeprefix(PREFIX).partition("_")
        known = self._keys.get(key_id)
        # The same work for an id that is not known: how long it takes says nothing.
        same = hmac.compare_digest(keys.digest_of(secret), _NOBODY if known is None else known.digest)
        return known if same and known is not None and scheme.lower() == "bearer" else None

    async def refresh(self) -> None:
        """Read the keys anew, and note which were used.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ones known before stay good.
        """
        used, self._used = self._used, set()
        try:
            if used:
                await keys.note_used(self._postgres, used)
            self._keys = {key.key_id: key for key in await keys.good(self._postgres)}
        except ConvoError:
            self._used |= used
            raise

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the keys anew every few seconds until cancelled."""
        task_status.started()
        while True:
            try:
                await self.refresh()
            except ConvoError as error:
                events.keys_failed(reason=error.detail)
            await trio.sleep(self._settings.refresh_seconds)
