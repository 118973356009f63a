"""Reads from an answer how many tokens a call took, and says what they cost; pure.

Servers name them in different ways. What is missing or makes no sense is unknown, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from convo.settings import NANO, Priced

_TOKENS_MAX = 1_000_000_000

_IN = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_eval_count")
_OUT = ("completion_tokens", "output_tokens", "candidatesTokenCount", "eval_count")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "cachedContentTokenCount")
USAGE_KEYS = ("usage", "x_groq", "usageMetadata", "prompt_eval_count", "eval_count")
"""Where tokens stand in an answer, or in one of the pieces of it."""
_DETAILS = ("prompt_tokens_details", "input_tokens_details")


class Tokens(Struct, frozen=True, kw_only=True):
    """The tokens of one call: those sent, those answered, and how many of those sent the server had in its cache."""

    sent: int
    answered: int
    cached: int = 0


def usage_in(value: Mapping[str, Any]) -> Tokens | None:
    """Return the tokens that a decoded answer names; None where it does not, or names none that were sent."""
    usage = next((found for found in _usages(value) if _first(found, _IN)), None)
    if usage is None:
        return None
    sent, answered = _first(usage, _IN), _first(usage, _OUT)
    if not sent or answered is None:
        return None
    details = [one for name in _DETAILS if isinstance(one := usage.get(name), dict)]
    cached = next((found for one in (*details, usage) if (found := _first(one, _CACHED))), 0)
    if "input_tokens" in usage and "cache_read_input_tokens" in usage:
        # Anthropic's own form counts what it had in its cache, or has put there, besides.
        sent += cached + (_count(usage.get("cache_creation_input_tokens")) or 0)
    answered += _count(usage.get("thoughtsTokenCount")) or 0
    return Tokens(sent=sent, answered=answered, cached=min(cached, sent))


def _usages(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groq = value.get("x_groq")
    found = (value.get("usage"), groq.get("usage") if isinstance(groq, dict) else None, value.get("usageMetadata"))
    # Ollama's own form has them beside the message.
    return [one for one in (*found, value) if isinstance(one, dict)]


def _first(usage: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((count for name in names if (count := _count(usage.get(name))) is not None), None)


def _count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TOKENS_MAX else None


def price_nano(tokens: Tokens, prices: Priced) -> int | None:
    """Return what a call costs in billionths of the currency; None where it has no price."""
    if not prices.priced:
        return None
    cached = prices.price_cached if prices.price_cached >= 0 else prices.price_in
    millionths = (
        (tokens.sent - tokens.cached) * prices.price_in + tokens.cached * cached + tokens.answered * prices.price_out
    )
    return round(millionths * (NANO // 1_000_000))


def shared_out(number: int | None, among: int) -> list[int | None]:
    """Share a number out in equal parts, the first of which take one more each until nothing is left."""
    if number is None:
        return [None] * among
    each, left = divmod(number, among)
    return [each + (place < left) for place in range(among)]
