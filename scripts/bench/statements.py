#!/usr/bin/env python3
"""Measures what the embedded analyst remembers: precision and recall over the statements of ``statements.txt``.

A fact that is found is right where the statement has a gold fact of its kind whose words all stand in it. Half of each
language was looked at while the rules were made; the other half is the figure to quote.

Usage: scripts/bench/statements.py [--wrong]     (--wrong lists what is missed and what is found wrongly)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from convo.analysis import local  # noqa: E402  the project need not be installed to be measured
from convo.analysis.local import words  # noqa: E402
from convo.conversation.model import Conversation, MemoryFact, Turn  # noqa: E402

FILE = Path(__file__).with_suffix(".txt")
_AT = datetime(2026, 3, 2, tzinfo=UTC)


class Statement(Struct, frozen=True):
    """What a user says, and the facts in it: the kind of each, and the words that must stand in it."""

    group: str
    said: str
    facts: tuple[tuple[str, frozenset[str]], ...]


class Outcome(Struct):
    """How many facts of a group were found rightly and wrongly, and how many were missed; and which."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    notes: list[str] = []

    @property
    def precision(self) -> float:
        """The part of what is found that is right."""
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """The part of what is stated that is found."""
        return self.right / max(1, self.right + self.missed)


def statements() -> Iterator[Statement]:
    """Read the file."""
    group = ""
    for line in FILE.read_text("utf-8").splitlines():
        if line.startswith("["):
            group = line.strip("[]")
        elif line and not line.startswith("#"):
            said, _, gold = line.rpartition("|")
            facts = [one.partition(":") for one in gold.split(";") if one.strip()]
            yield Statement(group, said.strip(), tuple((kind.strip(), _words(content)) for kind, _, content in facts))


def measured() -> dict[str, Outcome]:
    """Let the embedded analyst read each statement as a conversation of its own; sum up by group."""
    outcomes: dict[str, Outcome] = {}
    for one in statements():
        outcome = outcomes.setdefault(one.group, Outcome())
        left = list(one.facts)
        for fact in _found(one.said):
            match = next((gold for gold in left if gold[0] == fact.kind and gold[1] <= _words(fact.text)), None)
            if match is None:
                outcome.wrong += 1
                outcome.notes.append(f"wrong:  {one.said}  ->  {fact.kind}: {fact.text}")
            else:
                outcome.right += 1
                left.remove(match)
        outcome.missed += len(left)
        outcome.notes += [f"missed: {one.said}  ({kind})" for kind, _ in left]
    return outcomes


def _found(said: str) -> tuple[MemoryFact, ...]:
    turns = (Turn(speaker="user", text=said, at=_AT),)
    conversation = Conversation(conversation_id="c", user_id="u", bot_id="b", digest="d", turns=turns)
    return local.memories(conversation).facts


def _words(text: str) -> frozenset[str]:
    return frozenset(words.key(text).split())


def main() -> int:
    """Print the figures; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wrong", action="store_true", help="list what is missed, and what is found wrongly")
    asked = parser.parse_args()
    table = Table("statements", "stated", "found", "precision", "recall")
    outcomes = measured()
    for group, one in outcomes.items():
        found = one.right + one.wrong
        table.add_row(group, str(one.right + one.missed), str(found), f"{one.precision:.2f}", f"{one.recall:.2f}")
    console = Console(width=120)
    console.print(table)
    if asked.wrong:
        for group, one in outcomes.items():
            console.print(group, *one.notes, sep="\n  ", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
