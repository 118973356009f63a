"""What one client may send: token buckets by address, in requests and in bytes; it knows no route.

The headers are those of draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import trio
from msgspec import Struct

from convo.config import ClientsSettings
from convo.errors import TooManyRequests

Headers = Sequence[tuple[str, str]]


class _Bucket:
    """Tokens that come at a rate, up to a burst; a request may take more than there are and leave a debt."""

    __slots__ = ("at", "tokens")

    def __init__(self, burst: float, now: float) -> None:
        self.tokens = burst
        self.at = now

    def fill(self, rate: float, burst: float, now: float) -> None:
        self.tokens = min(burst, self.tokens + (now - self.at) * rate)
        self.at = now


class _Rule(Struct, frozen=True, kw_only=True):
    """One kind of token: its name and unit in the headers, how many come a second, how many are kept."""

    name: str
    unit: str
    rate: float
    burst: float

    @property
    def policy(self) -> str:
        """Write this rule as a client reads it: ``burst`` tokens in the seconds that fill the bucket."""
        return f'"{self.name}";q={math.floor(self.burst)};w={max(1, math.ceil(self.burst / self.rate))}{self.unit}'

    def limit(self, bucket: _Bucket) -> str:
        """Write what is left, and in how many seconds the bucket is full again."""
        full = math.ceil(max(0.0, self.burst - bucket.tokens) / self.rate)
        return f'"{self.name}";r={max(0, math.floor(bucket.tokens))};t={full}'


class Clients:
    """The buckets of the clients seen last; whoever is forgotten begins with full ones."""

    def __init__(self, settings: ClientsSettings) -> None:
        rules = (
            ("requests", "", settings.requests_per_second, settings.requests_burst),
            ("bytes", ';qu="content-bytes"', settings.bytes_per_second, settings.bytes_burst),
        )
        self._rules = tuple(
            _Rule(name=name, unit=unit, rate=rate, burst=burst) for name, unit, rate, burst in rules if rate
        )
        self._tracked_max = settings.tracked_max
        self._buckets: OrderedDict[str, tuple[_Bucket, ...]] = OrderedDict()

    def spend(self, client: str, bytes_: int, own_per_second: float = 0.0) -> Headers:
        """Take one request of so many bytes from the client's buckets; return the headers that tell it what is left.

        ``own_per_second`` is how many requests a second this client may send, in the place of what all may; 0 for none.

        Raises:
            TooManyRequests: a bucket is empty; nothing was taken.
        """
        rules = self._rules_of(own_per_second) if own_per_second else self._rules
        if not rules:
            return ()
        now = trio.current_time()
        buckets = self._of(client, rules, now)
        for rule, bucket in zip(rules, buckets, strict=True):
            bucket.fill(rule.rate, rule.burst, now)
        empty = [(rule, bucket) for rule, bucket in zip(rules, buckets, strict=True) if bucket.tokens < 1]
        if not empty:
            for rule, bucket in zip(rules, buckets, strict=True):
                bucket.tokens -= bytes_ if rule.name == "bytes" else 1
        headers = _headers(rules, buckets)
        if empty:
            seconds = max((1 - bucket.tokens) / rule.rate for rule, bucket in empty)
            rule = empty[0][0]
            raise TooManyRequests(
                f"{client} is over its {rule.rate:g} {rule.name} a second",
                retry_after_seconds=seconds,
                headers=headers,
            )
        return headers

    def _rules_of(self, own_per_second: float) -> tuple[_Rule, ...]:
        own = _Rule(name="requests", unit="", rate=own_per_second, burst=max(1.0, own_per_second))
        return (own, *(rule for rule in self._rules if rule.name != "requests"))

    def _of(self, client: str, rules: Sequence[_Rule], now: float) -> tuple[_Bucket, ...]:
        buckets = self._buckets.pop(client, ())
        if len(buckets) != len(rules):
            buckets = tuple(_Bucket(rule.burst, now) for rule in rules)
        self._buckets[client] = buckets
        if len(self._buckets) > self._tracked_max:
            self._buckets.popitem(last=False)
        return buckets


def _headers(rules: Sequence[_Rule], buckets: Sequence[_Bucket]) -> Headers:
    limits = (rule.limit(bucket) for rule, bucket in zip(rules, buckets, strict=True))
    return [("RateLimit-Policy", ", ".join(rule.policy for rule in rules)), ("RateLimit", ", ".join(limits))]
