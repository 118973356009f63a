"""Finds how the user felt about a conversation as a whole: the embedded analyst's part ``emotion``."""

from __future__ import annotations

import re

from convo.analysis.local import asked, lexicon, slices, tongues, words
from convo.conversation.model import Conversation, EmotionName, Mood

# Measured on the first half of the bench data only (scripts/bench/analyst.py).
TURN_AFFECT_MAX = 3.0
QUESTION_WEIGHT = 0.7
EXCLAMATION_WEIGHT = 0.3
LONG_TURN_WORDS = 20
LONG_TURN_WEIGHT = 0.3
LOW_MEAN = 0.6
NEGATIVE_MIN = 1.5
TERSE_WORDS = 2.0
TERSE_TURNS = 4
TURN_PARTS_MAX = 1_000

Affects = dict[lexicon.Affect, float]

_PICTURE = re.compile("|".join(re.escape(picture) for picture in sorted(lexicon.PICTURES, key=len, reverse=True)))
_PART_END = re.compile("[,.;:!?…()\n]+")
_NEGATION_REACH = 3
_TABLES = {
    "english": lexicon.ENGLISH_LEXICON,
    "vietnamese": lexicon.VIETNAMESE_LEXICON,
    "bare vietnamese": lexicon.BARE_VIETNAMESE,
}


def emotion(conversation: Conversation) -> Mood:
    """Find the emotion that the user's turns show together; in a language that is not known none is judged."""
    if not tongues.is_known(words.user_turns(conversation)):
        return Mood(emotion="neutral", judged=False)
    totals: Affects = _nothing()
    turns = spoken = terse = 0
    for said in slices.each(words.user_turns(conversation)):
        parts = _parts(said.text)
        length = sum(map(len, parts))
        _add(totals, affects(said, parts))
        turns += 1
        spoken += length
        terse += length <= TERSE_WORDS
    if turns >= TERSE_TURNS and terse * 2 > turns and spoken <= TERSE_WORDS * turns:
        totals["boring"] += terse * 0.5
    return Mood(emotion=_decide(totals, turns))


def affects(said: words.UserTurn, parts: list[list[str]]) -> Affects:
    """Weigh one turn, given also as the words of its parts; no affect weighs more than its bound."""
    weighed = _nothing()
    for part in parts:
        _weigh_words(weighed, part, _TABLES[said.language])
    for picture in _PICTURE.findall(said.text):
        affect, weight = lexicon.PICTURES[picture]
        weighed[affect] += weight
    weighed["interesting"] += _engagement(said, sum(map(len, parts)))
    return {affect: min(weight, TURN_AFFECT_MAX) for affect, weight in weighed.items()}


def _parts(text: str) -> list[list[str]]:
    # A denial reaches no further than its part: "no, I love it" loves it.
    return [found for part in _PART_END.split(text, TURN_PARTS_MAX) if (found := words.words(part))]


def _nothing() -> Affects:
    return {"interesting": 0.0, "boring": 0.0, "angry": 0.0, "happy": 0.0, "sad": 0.0}


def _add(totals: Affects, more: Affects) -> None:
    for affect, weight in more.items():
        totals[affect] += weight


def _engagement(said: words.UserTurn, length: int) -> float:
    questions = QUESTION_WEIGHT * min(2, len(asked.raised(said)))
    loud = EXCLAMATION_WEIGHT if "!" in said.text else 0.0
    long = LONG_TURN_WEIGHT if length >= LONG_TURN_WORDS else 0.0
    return questions + loud + long


def _weigh_words(weighed: Affects, found: list[str], table: lexicon.Lexicon) -> None:
    place = 0
    while place < len(found):
        length = _longest(table, found, place)
        if length:
            hit = table.phrases[" ".join(found[place : place + length])]
            affect, weight = _in_context(hit, found, place, place + length)
            weighed[affect] += weight
        place += length or 1


def _longest(table: lexicon.Lexicon, found: list[str], place: int) -> int:
    reach = table.reaches.get(found[place], 0)
    for length in range(min(reach, len(found) - place), 0, -1):
        if " ".join(found[place : place + length]) in table.phrases:
            return length
    return 0


def _in_context(hit: lexicon.Weighed, found: list[str], start: int, end: int) -> lexicon.Weighed:
    affect, weight = hit
    before = found[max(0, start - _NEGATION_REACH) : start]
    if lexicon.NEGATIONS.intersection(before):
        opposite, share = lexicon.DENIED[affect]
        return opposite, weight * share
    near = (*before[-1:], *found[end : end + 1])
    if lexicon.SOFTENERS.intersection(before):
        return affect, weight * 0.5
    return affect, weight * 1.5 if lexicon.INTENSIFIERS.intersection(near) else weight


def _decide(totals: Affects, turns: int) -> EmotionName:
    good = totals["interesting"] + totals["happy"]
    worst: lexicon.Affect = max(("angry", "sad", "boring"), key=totals.__getitem__)
    # A report on others ("they lost, so sad") does not outweigh a user who is taking part.
    if totals[worst] >= NEGATIVE_MIN and totals[worst] > good:
        return worst
    if not turns or good / turns < LOW_MEAN:
        return "neutral"
    return "happy" if totals["happy"] > totals["interesting"] else "interesting"
