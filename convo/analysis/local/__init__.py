"""The embedded analyst: finds questions, emotion and memories by rules.

It needs no key and no network, does no I/O and reads no clock.
"""

from __future__ import annotations

from convo.analysis.local.asked import questions
from convo.analysis.local.mood import emotion
from convo.analysis.local.slices import between_turns
from convo.analysis.local.stated import memories

BY = "local/2"
"""Who made a result of this package; the number changes with the rules."""

__all__ = ["BY", "between_turns", "emotion", "memories", "questions"]
