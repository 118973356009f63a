"""Finds in the texts of a model the JSON that answers the question: among thoughts, fences, prose and other JSON.

What does not fit in any reading is a failed attempt: nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from convo.analysis.prompt import EMOTIONS, without_nul
from convo.conversation.model import EmotionName

T = TypeVar("T")
Fitting = TypeVar("Fitting")
T_co = TypeVar("T_co", covariant=True)


class _Fit(Protocol[T_co]):
    def __call__(self, value: Any, *, whole: bool) -> T_co | None: ...


QUESTIONS_MAX = 500
QUESTION_CHARS_MAX = 2_000
# So much of a text's end is searched for JSON in it, for so many braces that begin none: it bounds the time.
_TEXT_CHARS_MAX = 200_000
_FALSE_STARTS_MAX = 1_000
_VALUES_MAX = 1_000
_WRAPPERS_MAX = 3
# What models put around an answer; under any other name may stand the answer of another part.
_WRAPPERS = frozenset({"report", "result", "results", "answer", "response", "output", "data", "json"})


# --- the JSON in a text

_TAGS = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think)"
_OPENING = rf"(?:<{_TAGS}(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>|<\|begin_of_thought\|>)"
_CLOSING = rf"(?:</{_TAGS}>|\[/THINK\]|◁/think▷|<\|end\|>|<\|end_of_thought\|>)"
_TAG = re.compile(rf"(?P<opening>{_OPENING})|{_CLOSING}", re.IGNORECASE)
# What may begin a JSON object or array: braces of code and of prose seldom do.
_START = re.compile(r"""\{\s*["}]|\[\s*(?:["\[\]{]|null\b)""")
_DECODER = json.JSONDecoder(strict=False)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_FENCE = re.compile(r"\A\s*```[\w-]*\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)


def questions_in(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Find the questions in a model's texts: the last object that fits, else a bare array; None where there is none."""
    found = _fitting(texts, _questions_of)
    return None if found is None else tuple(found)


def emotion_in(texts: Sequence[str]) -> EmotionName | None:
    """Find the emotion in a model's texts: the last object that fits, else the bare word; None where there is none."""
    return _fitting(texts, _emotion_of)


def answer_in(texts: Sequence[str], name: str, fit: Callable[[Any], Fitting | None], *, alone: bool) -> Fitting | None:
    """Find what stands under the name of a part in a model's texts: the last object in which it fits.

    ``alone`` is where no other part was asked for: then an object without the name is the answer itself.
    """

    def read(value: Any, *, whole: bool) -> Fitting | None:  # noqa: ARG001  (as every fit)
        if not isinstance(value, dict):
            return None
        for depth in range(_WRAPPERS_MAX):
            named = next((one for key, one in value.items() if _loose(key) == _loose(name)), _MISSING)
            if named is not _MISSING:
                return fit(_plain_texts(named))
            wrapped = [one for key, one in value.items() if _loose(key) in _WRAPPERS and isinstance(one, dict)]
            if len(value) != 1 or not wrapped or depth == _WRAPPERS_MAX - 1:
                break
            value = wrapped[0]
        return fit(_plain_texts(value)) if alone else None

    return _fitting(texts, read)


def _loose(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _plain_texts(value: Any) -> Any:
    """Clean every text of a value of what no database takes."""
    match value:
        case str():
            return without_nul(value).encode("utf-8", "replace").decode()
        case list():
            return [_plain_texts(one) for one in value]
        case dict():
            return {_plain_texts(key): _plain_texts(one) for key, one in value.items()}
        case _:
            return value


def _fitting(texts: Sequence[str], fit: _Fit[T]) -> T | None:
    for text in texts:
        for cleaned in _readings(text):
            found = _fit(cleaned, fit)
            if found is not None:
                return found
    return None


def _readings(text: str) -> Iterator[str]:
    """Yield a text in the ways to read it: without its thoughts; whole, where a tag stood in the answer; repaired."""
    # A text that is JSON as a whole has no thoughts around it: a tag in it is somebody's word.
    if not text.lstrip().startswith(("{", "[", '"')) or _whole(text) is None:
        yield _without_thoughts(text)
    yield text
    yield _TRAILING_COMMA.sub(r"\1", text)


def _without_thoughts(text: str) -> str:
    """Take out what stands between tags of thinking.

    Two cases of a tag without its partner: all before a closing one is a thought, and all after an opening one is.
    """
    kept: list[str] = []
    position = depth = 0
    for tag in _TAG.finditer(text):
        if tag["opening"]:
            if not depth:
                kept.append(text[position : tag.start()])
            depth += 1
        else:
            if not depth:
                kept.clear()
            depth = max(0, depth - 1)
            position = tag.end()
    return "\n".join(kept) if depth else "\n".join([*kept, text[position:]])


def _fit(text: str, fit: _Fit[T]) -> T | None:
    fence = _FENCE.match(text)
    bare = (fence[1] if fence else text).strip()
    whole = _whole(bare)
    if isinstance(whole, str) and "{" in whole:
        # JSON that was written as a JSON string.
        text = bare = whole
        whole = _whole(bare)
    found = fit(bare if whole is None else whole, whole=True)
    if found is not None:
        return found
    values = deque(_values(text[-_TEXT_CHARS_MAX:]), maxlen=_VALUES_MAX)
    fitting = [found for value in values if isinstance(value, dict) and (found := fit(value, whole=False)) is not None]
    if not fitting:
        fitting = [
            found for value in values if isinstance(value, list) and (found := fit(value, whole=False)) is not None
        ]
    return fitting[-1] if fitting else None


def _whole(text: str) -> Any:
    try:
        return _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def _values(text: str) -> Iterator[Any]:
    """Yield every JSON object and array that stands in a text, none that is inside another."""
    position = false_starts = 0
    while false_starts < _FALSE_STARTS_MAX and (start := _START.search(text, position)):
        try:
            value, position = _DECODER.raw_decode(text, start.start())
        except RecursionError:
            return  # no answer is that deep, and each further brace would cost as much again
        except ValueError:
            position = start.start() + 1
            false_starts += 1
        else:
            yield value


# --- what fits

_NO_QUESTION = ("", "none", "null", "n/a", "no questions")


def _questions_of(value: Any, *, whole: bool) -> list[str] | None:
    """Read questions out of one value; ``whole`` where it is all that the text holds."""
    if isinstance(value, dict):
        listed = _of_field(value, ("questions", "question", "userquestions"))
        if listed is None:
            return []
        if isinstance(listed, str):
            listed = [] if listed.strip().lower() in _NO_QUESTION else [listed]
        return _texts_of(listed)
    # An empty array in prose is no answer, but one that stands alone is.
    return _texts_of(value) if isinstance(value, list) and (whole or value) else None


def _texts_of(listed: Any) -> list[str] | None:
    if not isinstance(listed, list):
        return None
    if len(listed) == 1 and isinstance(listed[0], dict) and isinstance(listed[0].get("questions"), list):
        return _texts_of(listed[0]["questions"])
    texts = [_text_of(one) for one in listed[:QUESTIONS_MAX]]
    if listed and None in texts and not any(texts):
        return [] if all(one is None for one in listed) else None
    return [cleaned for text in texts if text and (cleaned := _cleaned(text))]


def _cleaned(text: str) -> str:
    # JSON can hold half a surrogate pair, which no database takes.
    return without_nul(text).encode("utf-8", "replace").decode().strip()[:QUESTION_CHARS_MAX]


def _text_of(one: Any) -> str | None:
    match one:
        case str():
            return one
        case dict():
            keys = ("question", "text", "content", "value", "q", "original")
            named = next((one[key] for key in keys if isinstance(one.get(key), str)), None)
            only = [value for value in one.values() if isinstance(value, str)]
            return named if named is not None else only[0] if len(only) == 1 else None
        case _:
            return None


_MISSING = object()


def _of_field(value: Any, names: tuple[str, ...], depth: int = 0) -> Any:
    """Find a field by its name in any spelling, also inside a wrapper."""
    if not isinstance(value, dict) or depth > _WRAPPERS_MAX or value.get("properties"):
        return _MISSING
    for key, one in value.items():
        if re.sub(r"[^a-z]", "", str(key).lower()) in names:
            return one
    inner = (_of_field(one, names, depth + 1) for one in value.values())
    return next((found for found in inner if found is not _MISSING), _MISSING)


def _emotion_of(value: Any, *, whole: bool) -> EmotionName | None:
    """Read an emotion out of one value; ``whole`` where it is all that the text holds."""
    match value:
        case str() if whole and not re.search(r"[{}\[\]]", value):
            return _named_emotion(re.sub(r"\A\W*emotion\W+", "", value, flags=re.IGNORECASE), _ALONE_WORDS_MAX)
        case [one]:
            return _emotion_of(one, whole=whole)
        case dict():
            found = _of_field(value, ("emotion", "emotions", "mood", "feeling", "sentiment"))
            return None if found is _MISSING else _emotion_value(found)
        case _:
            return None


def _emotion_value(value: Any) -> EmotionName | None:
    match value:
        case None:
            # The prompt's word for "none of these stands out".
            return "neutral"
        case str():
            return _named_emotion(value)
        case [one]:
            return _emotion_value(one)
        case dict():
            keys = ("emotion", "name", "label", "value", "type", "primary", "category", "text")
            return next((_named_emotion(value[key]) for key in keys if isinstance(value.get(key), str)), None)
        case _:
            return None


_SYNONYMS: dict[EmotionName, str] = {
    "interesting": "interested interest curious curiosity engaged intrigued fascinated inquisitive"
    " thích_thú tò_mò hứng_thú quan_tâm",
    "boring": "bored boredom indifferent indifference disinterested uninterested apathetic apathy weary chán buồn_chán",
    "happy": "happiness joy joyful pleased glad delighted cheerful amused grateful gratitude thankful satisfied content"
    " affectionate excited vui vui_vẻ hạnh_phúc hài_lòng",
    "sad": "sadness unhappy hurt lonely disappointed disappointment depressed down sorrowful buồn buồn_bã thất_vọng",
    "angry": "anger annoyed annoyance frustrated frustration furious irritated irritation mad insulted outraged"
    " tức_giận giận bực_bội bực_mình khó_chịu",
    "neutral": "neutrality calm none neither normal unemotional trung_tính trung_lập bình_thường",
}
_KNOWN: dict[str, EmotionName] = {
    word.replace("_", " "): emotion for emotion in EMOTIONS for word in (emotion, *_SYNONYMS[emotion].split())
}
_NEGATIONS = frozenset({"not", "no", "isn", "less", "không", "or"})


# In a field a phrase is meant as the answer; without one, a sentence that names a feeling may be about anything.
_FIELD_WORDS_MAX, _ALONE_WORDS_MAX = 6, 2


def _named_emotion(text: str, words_max: int = _FIELD_WORDS_MAX) -> EmotionName | None:
    """Read one of the six out of a word or a short phrase; None where it names none, or more than one."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if " ".join(words) in _KNOWN:
        return _KNOWN[" ".join(words)]
    found = {_KNOWN[word] for word in words if word in _KNOWN}
    if len(words) > words_max or len(found) != 1 or _NEGATIONS & set(words):
        return None
    return found.pop()
