"""Joins what speech recognition cut: one sentence that stands in several turns of one speaker, one after the other.

People who type also send several messages in a row, and those are sentences of their own. So turns are joined only
where the first one breaks off. It ends with no mark, and on a word that hardly any sentence ends on; or it is the bare
beginning of a question, and the next turn goes on with it ("how late", "do you", "deliver on sundays").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from convo.conversation.model import Turn

# So much of the end of a turn, and of the beginning of the next one, is looked at, however long it is.
_CHARACTERS = 80
_QUESTION_WORDS_MAX = 3
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# A comma or a dash leaves a sentence open; any other mark closes it.
_CLOSED = re.compile(r"[^\w\s,'’–—-]\s*\Z")


def _several(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_HANGING = _several(
    "a an the my your his her our their every of to at from with for in on"
    " by into about than and or but because if when while very của là và với cho ở"
    " để thì mà các những một tại vì nếu khi đang sẽ đã rất"
)
_BE = _several("is are was were am have has")
_NEEDS_VERB = _several("do does did can could will would should shall may don't doesn't didn't can't won't")
_PERSONS = _several("i you he she it we they u ya")
_QUESTION_WORDS = _several("how what which when where who whose why")
# "So do you" is whole.
_SAME_AGAIN = _several("so neither nor than as")


def texts_of_user(turns: Iterable[Turn]) -> Iterator[str]:
    """Yield what the user said, turn by turn; where one breaks off and nobody else speaks next, two turns are one."""
    parts: list[str] = []
    for turn in turns:
        if turn.speaker == "user" and parts and _goes_on(parts, turn.text):
            parts.append(turn.text)
            continue
        if parts:
            yield " ".join(parts)
        parts = [turn.text] if turn.speaker == "user" else []
    if parts:
        yield " ".join(parts)


def _goes_on(parts: list[str], following: str) -> bool:
    end = parts[-1][-_CHARACTERS:]
    before = _words(end)
    after = _words(following[:_CHARACTERS])
    if not before or not after or _CLOSED.search(end):
        return False
    if len(before) > 1 and (before[-1] in _HANGING or _lacks_its_verb(before)):
        return True
    if len(before) == 1 and len(parts) > 1 and before[-1] in _HANGING:
        return True
    begins = len(parts[-1]) <= _CHARACTERS and 1 < len(before) <= _QUESTION_WORDS_MAX and before[0] in _QUESTION_WORDS
    return begins and _BE.isdisjoint(before) and _NEEDS_VERB.isdisjoint(before) and after[0] in _BE | _NEEDS_VERB


def _lacks_its_verb(found: list[str]) -> bool:
    """Return whether it ends as "do you" does, and not as "where are you" or "so do you"."""
    if found[-1] not in _PERSONS:
        return False
    if found[-2] in _BE:
        return len(found) == 2
    return found[-2] in _NEEDS_VERB and (len(found) == 2 or found[-3] not in _SAME_AGAIN)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))
