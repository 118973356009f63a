"""Makes of the stored costs of a conversation what a client is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convo.settings import NANO
from convo.web.description.cost_views import ConversationCostView, PartCostView

_TOKENS = ("tokens_in", "tokens_out", "tokens_cached")


def cost_view(rows: Sequence[Mapping[str, Any]]) -> ConversationCostView:
    """Show these rows of ``store.costs.read_costs``, and their sums; without a row nothing was asked."""
    return ConversationCostView(
        price=int(sum(row["nano"] for row in rows)) / NANO,
        complete=not any(row["unknown_calls"] or row["unpriced_calls"] for row in rows),
        parts=tuple(map(_part, rows)),
        **{name: _sum([row[name] for row in rows]) for name in _TOKENS},
    )


def _part(row: Mapping[str, Any]) -> PartCostView:
    plain = {name: row[name] for name in ("part", "calls", "unknown_calls", "unpriced_calls", *_TOKENS)}
    return PartCostView(**plain, by=row["made_by"], price=int(row["nano"]) / NANO)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known or not counts else None
