"""The shape of a pattern of facts (``english``, ``vietnamese``), and how what it captures is shortened or refused.

Precision goes before recall: what points elsewhere ("I like that") or runs on is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from convo.analysis.local import words

Trim = Literal["as is", "name", "proper", "greeted", "age", "liking", "fear", "place"]

LIKING_WORDS_MAX = 5
PLACE_WORDS_MAX = 4
NAME_WORDS_MAX = 4
AGE_MIN, AGE_MAX = 3, 120


class Form(Struct, frozen=True, kw_only=True):
    """One form of statement: the kind of fact, its pattern, and the text to make of it.

    ``pattern`` is matched at the front of a clause in lower case; it captures ``it`` and the other names in ``text``.
    A form that is trimmed as "greeted" counts only in a turn that opens with a greeting: "hi, I'm Lan".
    """

    kind: str
    pattern: re.Pattern[str]
    text: str
    trim: Trim = "as is"


class Tongue(Struct, frozen=True, kw_only=True):
    """The forms of one language and the words that its captures are cut at or refused for.

    A sentence without ``mentions`` is about another person; an ``unreal`` one states no present fact. ``any_form`` is
    ``any_of`` all ``forms``: most clauses match none, and are tried once and not fifty times.
    """

    forms: tuple[Form, ...]
    any_form: re.Pattern[str]
    unreal: re.Pattern[str]
    leads: re.Pattern[str]
    openings: re.Pattern[str]
    greetings: re.Pattern[str]
    mentions: re.Pattern[str]
    cuts: frozenset[str]
    pointers: frozenset[str]
    articles: frozenset[str]
    no_names: frozenset[str]
    no_places: frozenset[str]
    known_places: frozenset[str]


def form(kind: str, pattern: str, text: str, trim: Trim = "as is") -> Form:
    """Make a form, its pattern compiled."""
    return Form(kind=kind, pattern=re.compile(pattern), text=text, trim=trim)


def any_of(several: Sequence[Form]) -> re.Pattern[str]:
    """Make a pattern that matches where one of the forms does; its group is the number of the first, from 1."""
    unnamed = (re.sub(r"\(\?P<\w+>", "(?:", one.pattern.pattern) for one in several)
    return re.compile("|".join(f"({pattern})" for pattern in unnamed))


def alternatives(listed: str) -> str:
    """Give a group that matches any of the listed phrases: parted by commas, or else by spaces."""
    phrases = listed.split("," if "," in listed else None)
    return f"(?:{'|'.join(sorted(phrases, key=len, reverse=True))})"


def cut(captured: str, trim: Trim, tongue: Tongue) -> str:
    """Cut a capture to what is stated, or give an empty text where nothing sure is left."""
    match trim:
        case "age":
            return captured if AGE_MIN <= int(captured) <= AGE_MAX else ""
        case "name":
            return _name(captured.split(), tongue)
        case "proper" | "greeted":
            return _proper(captured.split(), tongue)
        case "liking" | "fear":
            # "The dark" is a fear as it stands, while "I like the dark" points at one that was spoken of.
            return _liking((captured.removeprefix("the ") if trim == "fear" else captured).split(), tongue)
        case "place":
            return _place(captured.split(), tongue)
        case _:
            return captured.lower()


def _name(found: list[str], tongue: Tongue) -> str:
    if _is_no_name(found, tongue):
        return ""
    capital = all(word[0].isupper() for word in found)
    return " ".join(found) if capital or len(found) <= 2 else ""


def _proper(found: list[str], tongue: Tongue) -> str:
    kept = _leading_capitals(found)
    runs_on = len(kept) < len(found) and found[len(kept)].lower() not in tongue.cuts
    if not kept or len(kept) > NAME_WORDS_MAX or runs_on:
        return ""
    return "" if _is_no_name(kept, tongue) else " ".join(kept)


def _is_no_name(found: list[str], tongue: Tongue) -> bool:
    # "Nguyen Van An" holds "an", and is a name: after the first word only words in lower case speak against a name.
    return found[0].lower() in tongue.no_names or not tongue.no_names.isdisjoint(found[1:])


def _leading_capitals(found: list[str]) -> list[str]:
    length = 0
    while length < len(found) and found[length][0].isupper() and found[length].lower() not in _NEVER_PROPER:
        length += 1
    return found[:length]


_EDGES = ".!~*_-'"
_NEVER_PROPER = frozenset(("i", "i'm", "im", "it", "the", "a"))


def _liking(found: list[str], tongue: Tongue) -> str:
    kept = _until(found, tongue.cuts)
    # "pizza a lot" is cut before "lot".
    if kept and kept[-1].lower() in tongue.articles:
        kept.pop()
    article = ""
    if kept and kept[0].lower() in tongue.articles:
        article, kept = kept[0].lower(), kept[1:]
    if article == "the" and not (kept and (kept[0][0].isupper() or kept[0][0].isdigit())):
        return ""
    too_long = len(kept) > LIKING_WORDS_MAX
    if not kept or too_long or tongue.pointers.intersection(word.lower() for word in kept):
        return ""
    return " ".join(("the", *kept) if article == "the" else kept)


def _place(found: list[str], tongue: Tongue) -> str:
    kept = _until(found, tongue.cuts)
    article = kept[:1] if kept and kept[0].lower() == "the" else []
    capitals = _leading_capitals(kept[len(article) :])[:PLACE_WORDS_MAX]
    if capitals:
        refused = capitals[0].lower() in tongue.no_places
        return "" if refused else " ".join((*map(str.lower, article), *capitals))
    for length in range(min(PLACE_WORDS_MAX, len(kept)), 0, -1):
        if words.key(" ".join(kept[:length])) in tongue.known_places:
            return " ".join(kept[:length])
    return ""


def _until(found: list[str], cuts: frozenset[str]) -> list[str]:
    kept: list[str] = []
    for word in found:
        bare = word.strip(_EDGES)
        # A word without a letter or a digit is a picture, or a mark that stands alone.
        if bare.lower() in cuts or not words.key(bare):
            break
        kept.append(bare)
    return kept
