"""Composes text (Unicode's form NFC) in a time that is linear in its length, whatever it holds."""

from __future__ import annotations

import re
import unicodedata

MARKS_MAX = 30
"""The longest run of combining marks, as in Unicode's Stream-Safe Text Format (UAX #15, section 13)."""

# It is no mark, is not shown, and combines with nothing: a run of marks ends at it.
_JOINER = "\N{COMBINING GRAPHEME JOINER}"
# No mark is a letter, a digit or white space, nor below U+0300. Decomposed, a mark is at most two of them, and the
# character before the first one brings at most three of its own: no shorter run can be over the bound.
_RUN = re.compile(r"[^\x00-\u02ff\w\s]{14,}")


def compose(text: str) -> str:
    """Return the text in NFC, with a combining grapheme joiner after each ``MARKS_MAX`` marks without a letter.

    Python sorts the marks of a run by insertion, in one call that no other thread can interrupt: 8,000 marks take it
    0.13 s, and twice as many four times as long. No language has runs near the bound.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", _RUN.sub(_capped, text))


def _capped(run: re.Match[str]) -> str:
    pieces: list[str] = []
    count = _marks_at_the_end(run.string[max(0, run.start() - 1) : run.start()])
    for character in run[0]:
        # U+0F73 is no mark by its own class, and decomposes into two.
        decomposed = unicodedata.normalize("NFD", character)
        if not unicodedata.combining(decomposed[0]):
            count = _marks_at_the_end(character)
        elif count + len(decomposed) > MARKS_MAX:
            pieces.append(_JOINER)
            count = len(decomposed)
        else:
            count += len(decomposed)
        pieces.append(character)
    return "".join(pieces)


def _marks_at_the_end(character: str) -> int:
    decomposed = unicodedata.normalize("NFD", character)
    return len(decomposed) - 1 if decomposed and unicodedata.combining(decomposed[-1]) else 0
