"""Decides whether a sentence without a question mark asks something, in English or Vietnamese."""

from __future__ import annotations

import re

from convo.analysis.local import words

# --- English: matched against words joined by one space, apostrophes left out ("whats", "dont")

_OPENERS = words.several(
    "hi hey hello hiya yes yeah yea yep yup ya no nope nah ok okay k so and but or well wow whoa haha hahaha lol oh"
    " ah aw um hmm also then cool nice great good awesome interesting true sure thanks thank right exactly agreed"
    " anyway anyways please sorry btw actually maybe like just fine morning too same definitely absolutely totally"
    " indeed man dude honestly seriously now"
)
_PERSON = r"(?:you|u|ya|he|she|it|we|they|i)"
_SUBJECT = (
    rf"(?:{_PERSON[3:-1]}|this|that|these|those|there|anyone|anybody|someone|everyone|everybody|people|your|ur|his|her"
    r"|its|our|their|my|the|any|all)"
)
_BE = r"(?:is|isnt|are|arent|was|wasnt|were|werent|does|doesnt|did|didnt|has|hasnt)"
_MODAL = r"(?:can|cant|could|couldnt|will|wont|would|wouldnt)"
_AUXILIARY = rf"(?:{_BE[3:-1]}|{_MODAL[3:-1]}|do|dont|have|havent|had|should|shouldnt)"
_NO_SUBJECT = (
    r"(?!(?:not|a|an|so|very|good|great|nice|what|why|how|really|too|also|just|like|know|have|well|and|but)\b)"
)
_INNER = re.compile(
    rf"(?:dont|didnt|do|did|does|have|havent|is|are|was|were|isnt|arent|wasnt|{_MODAL[3:-1]}) {_PERSON}\b(?! dare)"
    rf"|(?:did|does|is|are) (?:the|your|his|her|their|there|any|anyone)\b"
    rf"|(?:what|why|how) (?:else )?{_AUXILIARY}\b(?!(?: \w+){{1,4}} is (?:that|how|the|to)\b)(?! \w+ is\b)"
    rf"|(?:what|how) about\b|what if\b|how come\b"
    rf"|whats (?!\w+ is\b)|hows\b|any (?:idea|thoughts|chance)\b"
    rf"|(?:what|which|how) (?!{_PERSON} )(?:\w+ ){{1,3}}{_AUXILIARY} {_SUBJECT}\b|did u\b"
)
_FIRST = re.compile(
    rf"(?:do|dont) (?:you|u|ya|they|we|i|people|any|your|their|those|these)\b(?! (?:dare|worry)\b)"
    rf"|{_BE} {_SUBJECT}\b|{_BE} {_NO_SUBJECT}\w+ \w+ \w+|{_MODAL} {_SUBJECT}\b"
    rf"|have(?:nt)? (?:you|u|they|we|i|people)\b|should(?:nt)? (?:i|we|they|he|she)\b|(?:may|shall) (?:i|we)\b|am i\b"
    rf"|(?:where|when) (?:{_AUXILIARY}|s)\b|wheres\b|(?:who|whom|whose) (?!knows|cares|knew)\w+ \w+|whos\b"
    rf"|why$|why (?:{_AUXILIARY}|not|you|they|he|she|it|the)\b|how (?:many|much|old|long|far|often|big)\b"
    rf"|which (?:of|one|ones|do|did|would)\b|what (?:happened|happens|kind|type|sort|time|makes|made|else)\b"
    rf"|ever (?:been|heard|seen|tried|played|watched|wonder|wondered)\b|any (?:ideas|plans|tips|favou?rites?|advice)\b"
    rf"|anything else\b|can someone\b"
)
# No form above or below is without one of these: a quick no for most sentences.
_SIGNS = words.several(
    "do does did is are was were has have had am can could will would should may shall dont doesnt didnt isnt arent"
    " wasnt werent hasnt havent cant couldnt wont wouldnt shouldnt what why how who whom whose which where when"
    " whats hows wheres whos any anything ever can right huh eh yes you yourself hbu wbu"
)
# "do you" stands in the middle of a run-on sentence too; not after "so", "as", "than" ("so do you").
_ANYWHERE = re.compile(r"\b(?:do|did|have) (?:you|u) (?!all the\b)\w|\b(?:how are|how about|what about) (?:you|u)\b")
_NO_INVERSION = words.several("so as than nor neither who if only never that")
# The longest of them, the character before it and the space after it.
_NO_INVERSION_REACH = max(map(len, _NO_INVERSION)) + 2
_TAG = re.compile(
    rf"(?:\w+ ){{2}}.*\b(?:isnt|arent|wasnt|werent|dont|doesnt|didnt|cant|couldnt|wont|wouldnt|havent|hasnt) {_PERSON}$"
)
_SO_TOO = re.compile(rf"so (?:{_AUXILIARY[3:-1]}|am) \w+\Z")
_BARE_TAGS = frozenset(("right", "huh", "eh", "yes or no", "and you", "you", "yourself", "and yourself", "hbu", "wbu"))
_WHOLE_TAGS = (["and you"], ["and yourself"], ["hbu"], ["wbu"])
_NOT_BEFORE_RIGHT = re.compile(r"i know$|(?:youre|thats|all|yeah)$")


def in_english(sentence: str) -> bool:
    """Tell whether an English sentence asks by its form: inversion, question word or tag."""
    if _SIGNS.isdisjoint(_plain(sentence).split()):
        return False
    parts = [_plain(clause) for clause in words.clauses(sentence)]
    found = [part for part in parts if part and not _SO_TOO.match(part)]
    if not found:
        return False
    first = _without_openers(found[0]) or (_without_openers(found[1]) if len(found) > 1 else "")
    if _FIRST.match(first) and not first.startswith(("what a ", "what an ")):
        return True
    return any(_asks_inside(part) for part in found) or _ends_with_a_tag(found)


def _asks_inside(part: str) -> bool:
    body = _without_openers(part)
    if body.startswith(("what a ", "what an ")):
        return False
    return bool(_INNER.match(body) or _TAG.match(body)) or any(map(_inverts, _ANYWHERE.finditer(body)))


def _inverts(found: re.Match[str]) -> bool:
    # Only what could be one of the words is looked at, not all that stands before.
    before = found.string[max(0, found.start() - _NO_INVERSION_REACH) : found.start()]
    return before.rstrip().rpartition(" ")[2] not in _NO_INVERSION


def _ends_with_a_tag(parts: list[str]) -> bool:
    if parts[-1] not in _BARE_TAGS or len(parts) < 2 or " " not in parts[-2]:
        return parts in _WHOLE_TAGS
    return not _NOT_BEFORE_RIGHT.search(parts[-2])


def _plain(clause: str) -> str:
    return " ".join(word.replace("'", "") for word in words.words(clause))


def _without_openers(part: str) -> str:
    found = part.split()
    skipped = 0
    while skipped < len(found) and found[skipped] in _OPENERS:
        skipped += 1
    return " ".join(found[skipped:])


# --- Vietnamese: matched against words; a set is folded for text without diacritics, less what would be unsafe there

_CLOSERS = words.several("ạ vậy thế bạn em anh chị nha nhé nè ta cậu mày ha hen ơi rồi zậy ad pika đó đấy")
_YES_NO = words.several("không chưa ko hông hok hem")
_PARTICLES = words.several("à hả nhỉ ư hở hử chăng")
# Before a closing "không" or "chưa" these make it an answer: "tôi cũng không", "chắc là chưa".
_ANSWERS = words.several("tôi mình em tớ con thì cũng nhưng vẫn là nói chắc toàn hẳn còn và chả hay không chưa ừ dạ")
_PHRASES = words.several(
    "tại sao,vì sao,làm sao,thì sao,ra sao,sao lại,sao vậy,sao thế,sao bạn,bao giờ,bao nhiêu,bao lâu,bao xa,khi nào"
    ",lúc nào,thế nào,như nào,cái nào,con nào,người nào,ngày nào,loại nào,môn nào,màu nào,bài nào,phim nào,nước nào"
    ",đội nào,nơi nào,chỗ nào,ở đâu,đi đâu,từ đâu,đâu rồi,về đâu,mấy giờ,mấy tuổi,mấy người,mấy cái,mấy con,lớp mấy"
    ",thứ mấy,ngày mấy,là ai,ai là,với ai,của ai,ai đã,ai vậy,ai thế,phải không,đúng không,được không,có phải"
)
_WHOLE = words.several("còn bạn,thế còn bạn,vậy còn bạn,còn cậu,thế còn cậu,bạn khỏe chứ,bạn ổn chứ,bạn thì sao")
_SINGLE = frozenset(("gì", "chi"))
_DENIALS = words.several("không chưa chẳng chả đừng ko bất dù")
_OPEN_ENDS = words.several("cũng đó đấy đi")
_KNOWERS = words.several("tôi mình em tớ con cháu tui")
_KNOWING = words.several("biết hiểu nhớ thấy")
_UNSAFE_BARE = words.several("a ha u ho hu chi con da")


def in_vietnamese(sentence: str, *, bare: bool) -> bool:
    """Tell whether a Vietnamese sentence asks by its form; ``bare`` is for text without diacritics."""
    found = words.words(sentence)
    end = len(found)
    while end > 1 and found[end - 1] in _set(_CLOSERS, bare=bare):
        end -= 1
    if len(found) < 2 or not end:
        return False
    if " ".join(found) in _set(_WHOLE, bare=bare):
        return True
    return _closes_with_a_question(found[:end], bare=bare) or _has_a_question_word(found, bare=bare)


def _closes_with_a_question(found: list[str], *, bare: bool) -> bool:
    if len(found) < 2:
        return False
    last, before = found[-1], found[-2]
    if last in _set(_PARTICLES, bare=bare):
        return True
    return last in _set(_YES_NO, bare=bare) and before not in _set(_ANSWERS, bare=bare)


def _has_a_question_word(found: list[str], *, bare: bool) -> bool:
    if found[0] in _set(_KNOWERS, bare=bare) and found[1] in _set(_KNOWING, bare=bare):
        return False
    phrases, single, denials = _set(_PHRASES, bare=bare), _set(_SINGLE, bare=bare), _set(_DENIALS, bare=bare)
    for place, word in enumerate(found):
        if word in denials:
            # "phải không" and its kind hold the denial themselves, and have been looked at as closings.
            return False
        pair = f"{word} {found[place + 1]}" if place + 1 < len(found) else ""
        length = 2 if pair in phrases else 1 if word in single or (place == 0 and word == "sao") else 0
        if length:
            after = found[place + length] if place + length < len(found) else ""
            return after not in _set(_OPEN_ENDS, bare=bare)
    return False


_FOLDED: dict[frozenset[str], frozenset[str]] = {
    marked: frozenset(map(words.fold, marked)) - _UNSAFE_BARE
    for marked in (
        _CLOSERS, _YES_NO, _PARTICLES, _ANSWERS, _WHOLE, _PHRASES, _SINGLE, _DENIALS, _OPEN_ENDS, _KNOWERS,
        _KNOWING,
    )
}  # fmt: skip


def _set(marked: frozenset[str], *, bare: bool) -> frozenset[str]:
    return _FOLDED[marked] if bare else marked
