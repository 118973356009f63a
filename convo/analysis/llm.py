"""The language model as an analyst of questions and emotion, by any OpenAI-compatible chat completions endpoint.

It knows nothing of jobs or of the other analysts.
"""

from __future__ import annotations

import math
import random as dice
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import httpx
import msgspec
import trio
from msgspec import Struct

from convo.analysis.prompt import EMOTION, EMOTIONS, PROMPT_VERSION, QUESTIONS, Ask, clean, record, user_spoke
from convo.analysis.remote import Answer, Remote, check_welcome, idempotency_key, key_text
from convo.config import LlmSettings
from convo.conversation.model import Conversation, Mood, Questions
from convo.errors import RemoteGarbage
from convo.observe import events
from convo.resilience.dependency import Dependency

T = TypeVar("T")

QUESTIONS_MAX = 500
_PLAIN_SECONDS = 600.0
QUESTION_CHARS_MAX = 2_000

# Groq's word for "the model wrote no valid JSON": a 400 that is no refusal of the request.
_MODEL_WROTE_GARBAGE = "json_validate_failed"


class _Message(Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    choices: list[_Choice]


class _QuestionsFound(Struct, frozen=True):
    questions: list[str]


class _EmotionFound(Struct, frozen=True):
    emotion: str


class _Listed(Struct, frozen=True):
    id: str


class _List(Struct, frozen=True):
    data: list[_Listed]


def _listed(body: bytes) -> frozenset[str]:
    try:
        return frozenset(model.id for model in msgspec.json.decode(body, type=_List).data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()


class Model:
    """A language model behind one shared client; remembers for a while when its server does not take JSON schemas."""

    def __init__(
        self, client: httpx.AsyncClient, settings: LlmSettings, *, random: Callable[[], float] = dice.random
    ) -> None:
        key = key_text("llm", settings.api_key)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.by = f"{settings.model}/{PROMPT_VERSION}"
        self._settings = settings
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._remote = Remote("llm", client, settings, headers=headers, random=random)
        self._plain_until = -math.inf

    async def questions(self, conversation: Conversation) -> Questions:
        """Find the questions that the user put; none, without a call, where the user said nothing.

        Raises:
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Questions(questions=())
        return await self._remote.dependency.call(
            "llm.questions", partial(self._find, QUESTIONS, conversation, self._questions)
        )

    async def emotion(self, conversation: Conversation) -> Mood:
        """Find how the user felt; neutral, without a call, where the user said nothing.

        Raises:
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Mood(emotion="neutral")
        return await self._remote.dependency.call("llm.emotion", partial(self._find, EMOTION, conversation, self._mood))

    @property
    def dependency(self) -> Dependency:
        """How all callers together see it."""
        return self._remote.dependency

    async def ping(self) -> None:
        """See whether the server answers.

        Raises:
            RemoteUnavailable: it does not.
        """
        await self._remote.ping(self._models_url)

    async def check(self) -> str:
        """Ask the server for its models, once and with the key; return what is to be said of a server that answers.

        Raises:
            RemoteError: it cannot be reached, it refuses the key, or it is in trouble.
        """
        try:
            answer = await self._remote.fetch(self._models_url)
        except RemoteGarbage:
            return "reachable; its list of models is too long to read"
        check_welcome("llm", answer)
        listed = _listed(answer.body) if answer.good else frozenset()
        if not listed:
            return f"reachable; it lists no models (GET /models answered {answer.status})"
        if self._settings.model in listed:
            return f"reachable; {self._settings.model} is among the {len(listed)} models it lists"
        return f"reachable, but {self._settings.model} is NOT among the {len(listed)} models it lists"

    @property
    def _models_url(self) -> str:
        return self._url.removesuffix("/chat/completions") + "/models"

    async def _find(self, ask: Ask, conversation: Conversation, read: Callable[[str], T]) -> T:
        answer = await self._complete(ask, conversation)
        return read(self._content(self._remote.body_of(answer)))

    async def _complete(self, ask: Ask, conversation: Conversation) -> Answer:
        text = record(conversation, self._settings.text_chars_max)
        key = idempotency_key(conversation, ask.part)
        if trio.current_time() >= self._plain_until:
            answer = await self._remote.post(self._url, self._request(ask, text, _schema_format(ask)), key=key)
            if answer.code == _MODEL_WROTE_GARBAGE:
                raise RemoteGarbage("llm", f"the model wrote no valid JSON ({_MODEL_WROTE_GARBAGE})")
            if answer.status not in {400, 422}:
                return answer
        # Another body needs another key: a server that keeps keys refuses one that comes back with other content.
        plain = self._request(ask, text, {"type": "json_object"})
        answer = await self._remote.post(self._url, plain, key=f"{key}:json_object")
        if answer.good:
            # One answer is no proof: the schema is tried again after a while.
            self._plain_until = trio.current_time() + _PLAIN_SECONDS
            events.llm_without_schema(seconds=_PLAIN_SECONDS)
        return answer

    def _request(self, ask: Ask, text: str, response_format: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "temperature": 0,
            "messages": [{"role": "system", "content": ask.system}, {"role": "user", "content": text}],
            "response_format": response_format,
        }

    def _content(self, body: bytes) -> str:
        """Take the JSON object out of a completion, also out of a code fence or of words around it."""
        choices = self._remote.decode(body, _Completion).choices
        if not choices:
            raise RemoteGarbage("llm", "the answer holds no choice")
        message, reason = choices[0].message, choices[0].finish_reason
        if reason in {"length", "content_filter"}:
            raise RemoteGarbage("llm", f"the answer is cut off ({reason})")
        if message.refusal:
            raise RemoteGarbage("llm", "the model declined")
        if not message.content:
            raise RemoteGarbage("llm", "the answer is empty")
        return message.content[message.content.find("{") : message.content.rfind("}") + 1]

    def _questions(self, content: str) -> Questions:
        found = self._remote.decode(content, _QuestionsFound).questions
        texts = (clean(text).strip()[:QUESTION_CHARS_MAX] for text in found[:QUESTIONS_MAX])
        return Questions(questions=tuple(text for text in texts if text))

    def _mood(self, content: str) -> Mood:
        found = self._remote.decode(content, _EmotionFound).emotion.strip().lower()
        for emotion in EMOTIONS:
            if found == emotion:
                return Mood(emotion=emotion)
        raise RemoteGarbage("llm", "the answer names no emotion that is known")


def _schema_format(ask: Ask) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": ask.part, "strict": True, "schema": ask.schema}}
