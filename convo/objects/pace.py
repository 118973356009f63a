"""How fast logs are packed: how much of the time the database works for it, and how much each step takes.

Open it to change what accepts notice of packing. While conversations come in, it works little and in small steps; when
it falls behind in that, it works more. Where PostgreSQL has no room left for logs, it hurries.
"""

from __future__ import annotations

import math

import trio

from convo.observe import metrics

# The share of the time in which the database is at work for it: while conversations come in, and otherwise.
_SHARE_BESIDE, _SHARE = 0.03, 0.5
# The transaction that refers to an object takes longer the more logs are in it. So many are in the next one as fit into
# this time; an accept that waits for it should not be noticed.
_REFER_SECONDS_BESIDE, _REFER_SECONDS = 0.01, 0.05
_LOGS_FIRST, _LOGS_MIN, _LOGS_MAX = 200, 100, 4_000
_PIECE_BYTES_BESIDE, _PIECE_BYTES = 128 << 10, 1 << 20
# Conversations come in where one was stored so lately.
_LATELY_SECONDS = 1.0
# A step may be long because something else was in the way.
_REST_SECONDS_MIN, _REST_SECONDS_MAX = 0.01, 1.0


class PackingPace:
    """The pace of one packer; ``hurries`` is set by it where room comes first."""

    def __init__(self) -> None:
        self.hurries = False
        self.logs_max = _LOGS_FIRST
        """How many logs the next object may have."""
        self._stored = metrics.intake_batch_rows.total
        self._stored_at = -math.inf
        self._share_beside = _SHARE_BESIDE
        self._front_seconds: float | None = None

    def note_turn(self, front_seconds: float | None) -> None:
        """Note that a turn has ended: the last log moved had waited so long, or None where none waits any more.

        Work that moves faster than time meets younger and younger logs. Where they are older than at the end of the
        last turn, more came in than was moved, and the share doubles; where they are not, it halves.
        """
        behind = front_seconds is not None and self._front_seconds is not None and front_seconds > self._front_seconds
        factor = 2.0 if behind else 0.5
        self._share_beside = min(_SHARE, max(_SHARE_BESIDE, self._share_beside * factor))
        self._front_seconds = front_seconds

    def note_refer(self, logs: int, seconds: float) -> None:
        """Note how long the transaction took that refers to an object of so many logs."""
        wanted = _REFER_SECONDS_BESIDE if self._gives_way() else _REFER_SECONDS
        fit = int(logs * wanted / max(seconds, 1e-6))
        self.logs_max = max(_LOGS_MIN, min(_LOGS_MAX, 2 * self.logs_max, fit))

    @property
    def piece_bytes(self) -> int:
        """How many bytes of logs are read at once."""
        return _PIECE_BYTES_BESIDE if self._gives_way() else _PIECE_BYTES

    def rest_seconds(self, worked_seconds: float) -> float:
        """Return how long it rests after a step for which the database was at work so long."""
        share = self._share_beside if self._gives_way() else _SHARE
        return min(max(worked_seconds * (1 / share - 1), _REST_SECONDS_MIN), _REST_SECONDS_MAX)

    def _gives_way(self) -> bool:
        # Whichever way they come into this process.
        stored, now = metrics.intake_batch_rows.total, trio.current_time()
        if stored != self._stored:
            self._stored, self._stored_at = stored, now
        return not self.hurries and now - self._stored_at <= _LATELY_SECONDS
