"""Limits how many wrong keys one client may show, by its address, before any of them costs a look into the database.

It holds no key. A good key never gets here, so it passes from an address whose limit is used up.
"""

from __future__ import annotations

import trio

from convo.errors import TooManyRequests
from convo.http.addresses import client_network
from convo.observe import metrics
from convo.settings import AuthSettings
from convo.web.buckets import Buckets
from convo.web.clients import LimitRule

_TRACKED_MAX = 10_000


class WrongKeys:
    """How many wrong keys each client may still show."""

    def __init__(self, settings: AuthSettings) -> None:
        self._rule = LimitRule(name="wrong keys", rate=settings.wrong_keys_per_second, burst=settings.wrong_keys_burst)
        self._buckets = Buckets(1, _TRACKED_MAX)

    def take(self, address: str, *, even_in_debt: bool = False) -> None:
        """Count one wrong key.

        Raises:
            TooManyRequests: the client at this address has shown too many; never with ``even_in_debt``.
        """
        now = trio.current_time()
        client = client_network(address)
        full_at = self._buckets.of(client, now)
        seconds = self._rule.seconds_to_wait(full_at, now)
        if not seconds or even_in_debt:
            self._rule.take(full_at, now, 1)
            return
        metrics.keys_refused_total.labels("limited").inc()
        raise TooManyRequests(
            f"{client} has shown too many wrong keys: at most {self._rule.rate:g} a second are looked at, after"
            f" {self._rule.burst:g} at once",
            retry_after_seconds=seconds,
        )

    def give_back(self, address: str) -> None:
        """Take back what was counted: the key was good."""
        now = trio.current_time()
        self._rule.take(self._buckets.of(client_network(address), now), now, -1)
