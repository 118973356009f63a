"""Limits what one client may send in a second, in requests and in bytes, by token buckets.

The headers are those of draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio
from msgspec import Struct

from convo.errors import TooManyRequests
from convo.http.addresses import client_network
from convo.settings import ClientsSettings
from convo.web.buckets import Buckets

AnswerHeaders = Sequence[tuple[str, str]]

_REQUESTS, _BYTES = range(2)
# Times are sums of fractions of a second: 9.999999999 tokens are 10.
_INEXACT = 1e-6


class LimitRule(Struct, frozen=True, kw_only=True):
    """One limit of a client, by its place: its name and unit, the tokens added in a second, and those kept at most."""

    place: int = _REQUESTS
    name: str = "requests"
    unit: str = ""
    rate: float
    burst: float

    @property
    def unit_name(self) -> str:
        """Return what its tokens stand for."""
        return "bytes" if self.place == _BYTES else "requests"

    @property
    def policy(self) -> str:
        """Return the rule as a header shows it: ``burst`` tokens in the seconds that fill the bucket."""
        return f'"{self.name}";q={math.floor(self.burst)};w={max(1, math.ceil(self.burst / self.rate))}{self.unit}'

    def limit(self, full_at: list[float], now: float) -> str:
        """Return what is left, and in how many seconds the bucket is full again, as a header shows it."""
        full = math.ceil(max(0.0, full_at[self.place] - now) - _INEXACT)
        return f'"{self.name}";r={max(0, math.floor(self.tokens(full_at, now) + _INEXACT))};t={full}'

    def tokens(self, full_at: list[float], now: float) -> float:
        """Return how many tokens are left; below 0 is a debt."""
        return self.burst - max(0.0, full_at[self.place] - now) * self.rate

    def seconds_to_wait(self, full_at: list[float], now: float) -> float:
        """Return in how many seconds there is a token; 0 where there is one."""
        missing = 1 - self.tokens(full_at, now)
        return missing / self.rate if missing > _INEXACT else 0.0

    def take(self, full_at: list[float], now: float, tokens: float) -> None:
        """Take tokens, which may leave a debt; a number below 0 gives them back."""
        full_at[self.place] = max(now, full_at[self.place]) + tokens / self.rate


class Clients:
    """The limits of all clients: by key where clients have keys, by address otherwise; and by tenant."""

    def __init__(self, settings: ClientsSettings) -> None:
        rules = (
            LimitRule(rate=settings.requests_per_second, burst=settings.requests_burst),
            LimitRule(
                place=_BYTES,
                name="bytes",
                unit=';qu="content-bytes"',
                rate=settings.bytes_per_second,
                burst=settings.bytes_burst,
            ),
        )
        self._rules = tuple(rule for rule in rules if rule.rate)
        self._of_tenants = {
            name: LimitRule(name="tenant", rate=own.requests_per_second, burst=max(1.0, own.requests_per_second))
            for name, own in settings.tenants.items()
            if own.requests_per_second
        }
        self._buckets = Buckets(len(rules), settings.tracked_max)
        self.limits_addresses = bool(self._rules)
        """Whether a client without a key has a limit."""

    def spend_at(self, address: str, bytes_: int) -> AnswerHeaders:
        """Take one request of ``bytes_`` from what the client at an address may send; as ``spend``."""
        return self.spend(client_network(address), bytes_) if self.limits_addresses else ()

    def spend(self, client: str, bytes_: int, own_per_second: float = 0.0, tenant: str = "") -> AnswerHeaders:
        """Take one request of ``bytes_`` from the client's buckets; return the headers that report what is left.

        ``own_per_second`` is this client's own limit of requests in a second, instead of the common one; 0 for none.
        ``tenant`` is whose the client is: all clients of one share its limit, if it has one.

        Raises:
            TooManyRequests: a bucket is empty; nothing was taken.
        """
        rules = self._rules_of(own_per_second) if own_per_second else self._rules
        shared = self._of_tenants.get(tenant)
        if not rules and shared is None:
            return ()
        now = trio.current_time()
        # A tenant's name holds no space, and neither does a key's id or an address.
        limits = [(rule, self._buckets.of(client, now), client) for rule in rules] if rules else []
        if shared is not None:
            limits.append((shared, self._buckets.of(f"tenant {tenant}", now), f"the tenant {tenant}"))
        waits = [rule.seconds_to_wait(full_at, now) for rule, full_at, _ in limits]
        if not any(waits):
            for rule, full_at, _ in limits:
                rule.take(full_at, now, bytes_ if rule.place == _BYTES else 1)
            return _headers(limits, now)
        rule, _, whose = next(limit for limit, wait in zip(limits, waits, strict=True) if wait)
        raise TooManyRequests(
            f"{whose} is over its limit of {rule.rate:g} {rule.unit_name} a second",
            retry_after_seconds=max(waits),
            headers=_headers(limits, now),
        )

    def _rules_of(self, own_per_second: float) -> tuple[LimitRule, ...]:
        own = LimitRule(rate=own_per_second, burst=max(1.0, own_per_second))
        return (own, *(rule for rule in self._rules if rule.place != _REQUESTS))


def _headers(limits: Sequence[tuple[LimitRule, list[float], str]], now: float) -> AnswerHeaders:
    left = (rule.limit(full_at, now) for rule, full_at, _ in limits)
    return [("RateLimit-Policy", ", ".join(rule.policy for rule, _, _ in limits)), ("RateLimit", ", ".join(left))]
