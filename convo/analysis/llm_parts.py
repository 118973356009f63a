"""The parts that one call of a model finds: what is asked for each, and how its answer is read.

Open it to change how an answer with several parts is taken apart. What does not fit in one part spoils no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from convo.analysis.llm_answers import answer_in, emotion_in, questions_in
from convo.analysis.prompt import EMOTION, PROMPT_VERSION, QUESTIONS, Task
from convo.analysis.remote import key_prefix
from convo.conversation.json_schema import fits, pruned
from convo.conversation.model import Answered, Conversation, Finding, Mood, PartName, Questions
from convo.conversation.owed import DeclaredPart, result_version


def part_task(part: DeclaredPart) -> Task:
    """Return what a model is asked for a part."""
    default = {"questions": QUESTIONS, "emotion": EMOTION}.get(part.name)
    return default or Task(part=part.name, text=part.prompt, schema=part.schema)


def made_by(part: DeclaredPart, model: str) -> str:
    """Name who makes a part: the model, with the version of what it is asked."""
    return f"{model}/{part.version or PROMPT_VERSION}"


def read_part(part: DeclaredPart, texts: Sequence[str], *, alone: bool) -> Finding | None:
    """Find a part's answer in a model's texts; None where nothing fits. ``alone`` as in ``answer_in``."""
    if part.name == "questions":
        asked = questions_in(texts if alone else _under(part.name, texts))
        return None if asked is None else Questions(questions=asked)
    if part.name == "emotion":
        emotion = emotion_in(texts if alone else _under(part.name, texts))
        return None if emotion is None else Mood(emotion=emotion)

    def fit(value: Any) -> Answered | None:
        answer = pruned(value, part.schema)
        return Answered(answer=answer) if isinstance(answer, dict) and fits(answer, part.schema) else None

    return answer_in(texts, part.name, fit, alone=alone)


def _under(name: PartName, texts: Sequence[str]) -> list[str]:
    """Return what stands under this name alone: another part's answer may hold a field that is called like it."""
    found = answer_in(texts, name, lambda value: json.dumps({name: value}), alone=False)
    return [] if found is None else [found]


def refused_part(part: DeclaredPart, reason: str) -> Finding:
    """Return what is stored of a part that the model refuses to find."""
    match part.name:
        case "questions":
            return Questions(questions=(), refused=reason)
        case "emotion":
            return Mood(emotion="neutral", judged=False, refused=reason)
        case _:
            return Answered(refused=reason)


def found_without_asking(part: DeclaredPart, conversation: Conversation, *, user_spoke: bool) -> Finding | None:
    """Return what is found without a call: of a silent user no question and no emotion, of no turns nothing at all."""
    if not user_spoke and part.name in ("questions", "emotion"):
        return Questions(questions=()) if part.name == "questions" else Mood(emotion="neutral")
    return None if conversation.turns else refused_part(part, "the conversation has no turns")


def call_key(conversation: Conversation, parts: Sequence[DeclaredPart], model: str, base_url: str) -> str:
    """Name one call in ASCII, the same at each attempt: a hash of what is asked of whom, and of which content.

    The id stands before it: whoever looks into a provider's log finds the conversation by it.
    """
    asked = sorted((part.name, result_version(part.name, made_by(part, model), part.version)) for part in parts)
    named = json.dumps([asked, model, base_url, conversation.digest]).encode()
    return f"{key_prefix(conversation)}:{hashlib.sha256(named).hexdigest()[:40]}"
