"""A table of keys in memory, in the place of the database, for tests on the virtual clock."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from msgspec import structs

from convo.errors import DatabaseUnavailable
from convo.store import keys
from convo.store.keys import ApiKey, GoodKeys

_AT = datetime(2026, 11, 29, tzinfo=UTC)


class KeyTable:
    """Answers ``keys.read_good`` and ``keys.find_good`` with what it held when it was asked, ``seconds`` later.

    While it is ``away``, it fails after ``seconds``.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.away = False
        self.readings = 0
        self.unchanged = 0
        self.lookups: list[set[str]] = []
        self.noted: list[set[str]] = []
        self._keys: dict[str, tuple[ApiKey, float | None]] = {}
        patch.setattr(keys, "read_good", self._read_good)
        patch.setattr(keys, "find_good", self._find)
        patch.setattr(keys, "note_used", self._note_used)

    def add(self, *, seconds: float | None = None) -> str:
        """Add a key, which expires after ``seconds``, and return it in full."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        key = ApiKey(
            key_id=key_id,
            digest=keys.digest_of(secret),
            name="robots",
            scopes=("write",),
            requests_per_second=0.0,
            created_at=_AT,
            last_used_at=None,
            expires_at=None if seconds is None else _AT + timedelta(seconds=seconds),
            expires_in=None,
            replaces=None,
        )
        self._keys[key_id] = (key, None if seconds is None else trio.current_time() + seconds)
        return f"convo_{key_id}_{secret}"

    def revoke(self, key: str) -> None:
        """Remove a key."""
        del self._keys[key.split("_")[1]]

    async def _read_good(self, _postgres: Any, known_mark: str = "") -> GoodKeys:
        self.readings += 1
        found = self._valid()
        mark = ",".join(sorted(key.key_id for key in found)) or "none"
        self.unchanged += mark == known_mark
        await self._work()
        return GoodKeys(mark=mark, keys=None if mark == known_mark else found)

    async def _find(self, _postgres: Any, key_ids: Collection[str]) -> list[ApiKey]:
        self.lookups.append(set(key_ids))
        found = [key for key in self._valid() if key.key_id in key_ids]
        await self._work()
        return found

    def _valid(self) -> list[ApiKey]:
        now = trio.current_time()
        return [
            structs.replace(key, expires_in=None if until is None else until - now)
            for key, until in self._keys.values()
            if until is None or until > now
        ]

    async def _note_used(self, _postgres: Any, key_ids: Collection[str]) -> None:
        await self._work()
        self.noted.append(set(key_ids))

    async def _work(self) -> None:
        away = self.away
        await trio.sleep(self.seconds)
        if away:
            raise DatabaseUnavailable("away")
