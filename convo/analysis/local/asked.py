"""Finds the questions that the user asked, with a question mark or without: the embedded analyst's part ``questions``.

Not counted are back-channels, which ask for nothing: "really?", "you know?", "they do?", "thật à?". Who says "why?" or
"what about you?" does ask. A sentence is given as it was written, less its opening interjections and closing marks.
"""

from __future__ import annotations

import re

from convo.analysis.local import interrogative, slices, words
from convo.conversation.model import Conversation, Questions

LOCAL_QUESTIONS_MAX = 100
QUESTION_CHARACTERS_MAX = 400

_FILLERS = frozenset(
    map(
        words.key,
        words.several(
            "really,oh really,seriously,for real,you know,ya know,know what i mean"
            ",you know what i mean,right,i know right,am i right,ok,okay,huh,eh,hm,hmm,yeah"
            ",oh yeah,yes,no,oh no,wow,is it,is that so,is that right,what,wait what,say what"
            ",who knew,who knows,who cares,you know what,guess what,pardon,sorry,hello,hey,hi"
            ",oh,ah,cool huh,lol,thật à,thật hả,thật không,thật sao,thiệt hả,thiệt không"
            ",thế à,vậy à,vậy hả,thế hả,vậy sao,thế sao,ủa,hả,à,ừ,ờ,dạ,nhỉ,đúng không"
            ",phải không,đúng vậy,biết không,bạn biết không,cái gì,gì cơ,gì,sao,ok không,alo"
            ",ơ,ồ",
        ),
    ),
)
_ECHO = re.compile(
    r"(?:oh )?(?:they|he|she|it|you|we|there|that)"
    r" (?:do|does|did|is|are|was|were|can|could|have|has|will|would)(?:nt)?\Z"
)
_OPENING = re.compile(
    r"(?:(?:hi|hey|hello|yes|yeah|yea|yep|yup|no|ok|okay|oh|wow|haha|hahaha|lol|well|so|and|but|also|dạ|vâng|ừ|ờ|à|ồ|ơ)\b"
    r"(?:\s*[,;:]\s*|\s+(?=\w)))",
    re.IGNORECASE,
)
_OPENINGS_MAX = 4


def questions(conversation: Conversation) -> Questions:
    """Find the questions that the user raised, in order, each once."""
    found: dict[str, str] = {}
    for said in slices.each(words.user_turns(conversation)):
        for text in raised(said):
            found.setdefault(words.key(text), text)
        if len(found) >= LOCAL_QUESTIONS_MAX:
            break
    return Questions(questions=tuple(found.values())[:LOCAL_QUESTIONS_MAX])


def raised(said: words.UserTurn) -> list[str]:
    """Give the questions of one turn as clean sentences; repeats are left in."""
    return [
        _clean(sentence)
        for sentence in words.sentences(said.text)
        if (sentence.asked or asks(sentence.text, said.language)) and not _is_filler(sentence.text)
    ]


def asks(text: str, language: words.Language) -> bool:
    """Return whether a sentence without a question mark asks something."""
    if language == "english":
        return interrogative.in_english(text)
    return interrogative.in_vietnamese(text, bare=language == "bare vietnamese") or interrogative.in_english(text)


def _is_filler(text: str) -> bool:
    plain = words.key(text)
    if not any(character.isalpha() for character in plain):
        return True
    return plain in _FILLERS or _ECHO.match(plain.replace("'", "")) is not None


def _clean(sentence: words.Sentence) -> str:
    text = sentence.text.strip("\"'“”«»*_-–—,;:¿¡ ")
    for _ in range(_OPENINGS_MAX):
        opening = _OPENING.match(text)
        if opening is None or opening.end() >= len(text):
            break
        text = text[opening.end() :]
    text = text[-QUESTION_CHARACTERS_MAX:].strip()
    return f"{text}?" if sentence.asked else text
