"""What the answers of declared parts are worth: their points by value, by number or by count.

Open it to change what a declaration may count. The points of the default parts stand in ``analysis/part.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from convo.analysis.part import StoredFinding
from convo.conversation.model import Answered, PartName
from convo.conversation.owed import Owed, Points

# What one part gives at most, either way: the sum of all has to stay an integer of the database.
_POINTS_MAX = 1_000_000
CountedValue = bool | float | str | None


class PartShare(Struct, frozen=True, kw_only=True):
    """The points of one declared part, and the value that gave them; null while it is not known."""

    counted: CountedValue
    points: int


def points_of(owed: Owed) -> Mapping[PartName, Points]:
    """Return what the declared parts of a conversation are worth, by their names."""
    if not owed.number:
        return {}
    return {name: part.points for name, part in owed.asked.items() if part.points is not None}


def declared_shares(owed: Owed, stored: Mapping[PartName, StoredFinding]) -> dict[str, PartShare]:
    """Return the share of each declared part that has points."""
    return {name: _share(rule, stored.get(name)) for name, rule in points_of(owed).items()}


def _share(rule: Points, stored: StoredFinding | None) -> PartShare:
    finding = stored.finding if stored is not None else None
    if not isinstance(finding, Answered) or finding.refused:
        return PartShare(counted=None, points=0)
    counted = _counted(rule, finding.answer)
    return PartShare(counted=counted, points=_points(rule, counted))


def _counted(rule: Points, answer: Mapping[str, Any]) -> CountedValue:
    if rule.count:
        items = answer.get(rule.count)
        return len(items) if isinstance(items, list) else None
    value = answer.get(rule.field)
    if isinstance(value, dict):
        # A criterion of a rubric stands with its reason.
        value = value.get("grade")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def _points(rule: Points, counted: CountedValue) -> int:
    if rule.values:
        text = str(counted).lower() if isinstance(counted, bool) else str(counted)
        return rule.values.get(text, 0)
    if counted is None or isinstance(counted, str):
        return 0
    return round(max(-_POINTS_MAX, min(_POINTS_MAX, counted * rule.each)))
