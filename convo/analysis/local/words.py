"""Prepares text for the embedded analyst: bounds and cleans it, splits it into sentences and words, guesses languages.

The time of everything here is linear in the text, and the text is bounded, so that no text can hold a worker up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from msgspec import Struct

from convo.analysis.local import slices, utterances
from convo.conversation.composing import compose
from convo.conversation.model import Conversation

Language = Literal["english", "vietnamese", "bare vietnamese"]
"""What a turn is written in; "bare" is Vietnamese typed without its diacritics."""

TURN_CHARACTERS_MAX = 8_000
CONVERSATION_CHARACTERS_MAX = 64_000
TURNS_MAX = 2_000
SENTENCES_MAX = 200
SENTENCE_CHARACTERS_MAX = 600


def several(listed: str) -> frozenset[str]:
    """Give the listed words or phrases: parted by commas where there are any, or else by spaces."""
    return frozenset(listed.split("," if "," in listed else None))


_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
# The question marks of all scripts; Armenian's stands inside the sentence. Greek's is a semicolon once it is composed.
_ASKING = "?？؟⁇⁈⁉‽﹖︖⸮፧꘏⳺⳻𞥟"
_INSIDE = "՞"
# Full stops after which no space is due.
_STOPS = "。！｡۔।॥։።"
_ASKING_MARKS = frozenset(f"{_ASKING};")
_CLOSING_MARKS = _ASKING_MARKS | frozenset(f"{_STOPS}\n")
_GREEK_ASKS = "(?<=[\u0370-\u03ff\u1f00-\u1fff]);"
_ENDING = re.compile(f"(?:[.!…{_ASKING}{_STOPS}]|{_GREEK_ASKS})+[\"'”’)\\]]*|\n+")
# The same for ASCII, where it is found three times as fast: a search for one set of characters, and no alternatives.
_ASCII_ENDING = re.compile("[.!?\n](?:(?<=\n)\n*|(?<!\n)[.!?]*[\"')\\]]*)")
_BREAK = re.compile("\\.{2,}|[,;:()\\[\\]—–|]| - ")
_WORD = re.compile("[^\\W_]+(?:'[^\\W_]+)*")
_QUOTED = re.compile('"[^"]*(?:"|$)|“[^”]*(?:”|$)|«[^»]*(?:»|$)')
_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "st", "vs", "tp", "ths", "ts"))
_VIETNAMESE_LETTER = re.compile("[ăđĩũơưạ-ỹ]")
_VIETNAMESE_WORDS = several(
    "là gì có tên mình và thì tôi tớ bé thích nhà lắm quá hà à hả không chưa làm bao giờ sao cháu tê bố mẹ thế"
)
_BARE_WORDS = several(
    "khong ko hok hong toi tui minh ban thich duoc dc nhieu biet cung nhung roi vui buon ghet ten tuoi hoc lam choi"
    " gi nha nao dau tai sao the bao gio nhieu phai chua mot con meo cho song la co va thi qua lam rat yeu ghe voi"
    " nguoi truong lop que sinh em anh chi bo me vo chong trai gai bong da chan cam on xin chao nhe nhi oi tuyet thu"
    " vi"
)
_ENGLISH_WORDS = several(
    "the a an is are was were am be i you he she it we they my your his her its our their me him them us and or but"
    " if to of in on at for from with by about that this these those there what who where when why how which do does"
    " did have has had not no yes so as than then can could will would should just like know think really too also"
    " im dont its thats ok okay hi hello yeah"
)


class UserTurn(Struct, frozen=True, kw_only=True):
    """What the user said in one turn, cleaned, and the language it seems to be in."""

    text: str
    language: Language


class Sentence(Struct, frozen=True, kw_only=True):
    """One sentence without its closing marks; ``asked`` is whether they held a question mark."""

    text: str
    asked: bool


def user_turns(conversation: Conversation) -> tuple[UserTurn, ...]:
    """Give what the user said, turn by turn, up to the bounds of this module; empty turns are left out.

    It is prepared once for a conversation and kept with it, for all parts ask for the same.
    """
    prepared: tuple[UserTurn, ...] | None = conversation.__dict__.get("user_turns")
    if prepared is None:
        prepared = conversation.__dict__["user_turns"] = tuple(_prepared_turns(conversation))
    return prepared


# Each turn is cleaned by itself: a call into C holds the interpreter until it returns, so it is given little at a time.
def _prepared_turns(conversation: Conversation) -> Iterator[UserTurn]:
    left = CONVERSATION_CHARACTERS_MAX
    texts = utterances.texts_of_user(conversation.turns)
    for _, raw in zip(range(TURNS_MAX), slices.each(texts), strict=False):
        text = clean(raw[: min(left, TURN_CHARACTERS_MAX)])
        left -= len(text)
        if text:
            yield UserTurn(text=text, language=language(text))
        if left <= 0:
            return


def clean(text: str) -> str:
    """Give the text composed (NFC), without addresses and without anything that a row or a terminal cannot hold."""
    return _UNPRINTABLE.sub(" ", _ADDRESS.sub(" ", compose(text))).strip()


def sentences(text: str) -> Iterator[Sentence]:
    """Split one turn's clean text at closing marks and line ends; a sentence over the bound is cut at its front."""
    return islice(_sentences(text), SENTENCES_MAX)


def _sentences(text: str) -> Iterator[Sentence]:
    start = 0
    endings = _ASCII_ENDING.finditer(text) if text.isascii() else _ENDING.finditer(text)
    for ending in endings:
        if _closes(text, start, ending):
            if sentence := _sentence(text[start : ending.start()], ending[0]):
                yield sentence
            start = ending.end()
    if sentence := _sentence(text[start:], ""):
        yield sentence


def _closes(text: str, start: int, ending: re.Match[str]) -> bool:
    # A point inside "3.5" or "e.g" closes nothing, nor does the one of "Mr."; a question mark always does.
    if not _CLOSING_MARKS.isdisjoint(ending[0]):
        return True
    begin, end = ending.span()
    if end < len(text) and not text[end].isspace():
        return False
    last_word = text[max(start, begin - 5) : begin].rpartition(" ")[2]
    return last_word.lower() not in _ABBREVIATIONS


def _sentence(body: str, marks: str) -> Sentence | None:
    # The end is kept: there stands the question of a sentence that never stops.
    text = " ".join(body[-SENTENCE_CHARACTERS_MAX:].split())
    return Sentence(text=text.replace(_INSIDE, ""), asked=_asks(marks) or _INSIDE in text) if text else None


def _asks(marks: str) -> bool:
    return not _ASKING_MARKS.isdisjoint(marks)


def clauses(sentence: str) -> list[str]:
    """Split a sentence at commas, colons, brackets and dashes."""
    return [clause for part in _BREAK.split(sentence) if (clause := part.strip())]


def words(text: str) -> list[str]:
    """Give the words of a text in lower case, typographic apostrophes made plain."""
    return _WORD.findall(text.lower().replace("’", "'"))


def unquoted(sentence: str) -> str:
    """Give the sentence without what stands between double quotation marks."""
    return _QUOTED.sub(" ", sentence)


def language(text: str) -> Language:
    """Guess the language of one turn from its letters and its commonest words."""
    found = words(text[:400])
    english = sum(map(_ENGLISH_WORDS.__contains__, found))
    marked = 0 if text.isascii() else sum(map(_is_marked_vietnamese, found))
    bare = sum(map(_BARE_WORDS.__contains__, found))
    if marked and marked + bare > english:
        return "vietnamese"
    if bare > english and (bare > 1 or len(found) <= 2):
        return "bare vietnamese"
    return "english"


def is_of_known_language(word: str) -> bool:
    """Return whether a word in lower case is a common one of English or Vietnamese, or has Vietnamese letters."""
    return word in _ENGLISH_WORDS or word in _BARE_WORDS or (not word.isascii() and _is_marked_vietnamese(word))


def _is_marked_vietnamese(word: str) -> bool:
    return word in _VIETNAMESE_WORDS or _VIETNAMESE_LETTER.search(word) is not None


def _base_letter(code: int) -> str:
    lower = chr(code).lower()
    base = unicodedata.normalize("NFD", lower)[0]
    return "d" if base == "đ" else base


_FOLDS = {code: _base_letter(code) for code in (*range(0x41, 0x5B), *range(0xC0, 0x250), *range(0x1E00, 0x1F00))}


def fold(text: str) -> str:
    """Give the text in lower case without Latin diacritics, as many characters long as it was."""
    return text.lower() if text.isascii() else text.translate(_FOLDS)


def lower(text: str) -> str:
    """Give the text in lower case, as many characters long as it was."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


def key(text: str) -> str:
    """Give the form in which two spellings of the same thing are equal: folded words, one space between them."""
    return " ".join(_WORD.findall(fold(compose(text.lower()).replace("’", "'"))))
