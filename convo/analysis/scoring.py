"""What one conversation is worth: the points of its exchanges and of each part that was found, added up.

Open it to change what a score consists of. It is pure; the points of a part stand in ``analysis/part.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, defstruct

from convo.analysis.part import PARTS, StoredFinding
from convo.analysis.part_points import PartShare, declared_shares, points_of
from convo.conversation.model import PartName
from convo.conversation.owed import DEFAULT_OWED, Owed
from convo.conversation.score import CapShare, Share, Weights, cap_share, share, weights_version, within_bounds

# Answers have always shown what is counted first, then the emotion.
_SHOWN = sorted(PARTS, key=lambda part: part.share is not Share)

if TYPE_CHECKING:
    Breakdown = Any
else:
    Breakdown = defstruct(
        "Breakdown",
        # A breakdown that was stored before there was a cap has none: it is shown as it was.
        [
            ("exchanges", Share),
            *((part.name, part.share) for part in _SHOWN),
            ("cap", CapShare | None, None),
            ("parts", dict[str, PartShare], {}),
        ],
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        module=__name__,
        namespace={"__doc__": "Every input of a score, with what it gave."},
    )


class Score(Struct, frozen=True, kw_only=True):
    """What a conversation is worth; ``final`` once every required part of its analysis is in."""

    value: int
    final: bool
    breakdown: Breakdown
    weights_version: str


def score(
    exchanges: int, stored: Mapping[PartName, StoredFinding], weights: Weights, owed: Owed = DEFAULT_OWED
) -> Score:
    """Score one conversation; a part that is not ``stored`` gives no points.

    The score is not final without the parts that are required of those ``owed``.
    """
    shares = {part.name: part.points(stored.get(part.name), weights) for part in PARTS}
    exchanged = share(exchanges, weights.turn)
    declared = declared_shares(owed, stored)
    points = exchanged.points + sum(one.points for one in (*shares.values(), *declared.values()))
    cap = cap_share(points, weights)
    return Score(
        value=within_bounds(points + (cap.points if cap else 0)),
        final=owed.required <= stored.keys(),
        breakdown=Breakdown(exchanges=exchanged, **shares, cap=cap, parts=declared),
        weights_version=weights_version(weights, points_of(owed)),
    )
