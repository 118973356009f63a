"""Finds questions and emotion with a language model, at any OpenAI-compatible chat completions endpoint.

``prompt`` holds what the model is asked, ``llm_form`` what its server takes, ``llm_faults`` what a refusal means, and
``llm_completion`` and ``llm_answers`` how an answer is read. This file makes the calls.
"""

from __future__ import annotations

import ipaddress
import random as dice
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from secrets import token_hex
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import trio
from msgspec import Struct

from convo.analysis import llm_form
from convo.analysis.job_calls import PaidCall, note_call
from convo.analysis.llm_answers import emotion_in, questions_in
from convo.analysis.llm_completion import Completion, completion_in
from convo.analysis.llm_faults import FILTERED, ModelRefusal, refusal_of
from convo.analysis.llm_form import FormUse, LearntForm, RequestForm, request_fields
from convo.analysis.llm_usage import price_nano
from convo.analysis.prompt import EMOTION, PROMPT_VERSION, QUESTIONS, TRIAL, Ask, record, user_spoke
from convo.analysis.remote import RemoteAnalyst, idempotency_key, key_text
from convo.conversation.model import Conversation, EmotionName, Mood, PartName, Questions
from convo.errors import RemoteDeclined, RemoteDenied, RemoteError, RemoteGarbage, RemoteRefused, RemoteUnavailable
from convo.observe import log_records
from convo.outbound import RemoteAnswer
from convo.remote_faults import fault_in
from convo.settings import LlmSettings

T = TypeVar("T")

# More forms of a request than there are to learn of.
_FORMS_MAX = 10
_TRIAL_KEY = "convo:check:"
_SETTING = re.compile(rf"\bllm\.(?=(?:{'|'.join(LlmSettings.__struct_fields__)})\b)")


class _Listed(Struct, frozen=True):
    id: str


class _List(Struct, frozen=True):
    data: list[_Listed]


def _listed(body: bytes) -> frozenset[str]:
    try:
        return frozenset(model.id for model in msgspec.json.decode(body, type=_List).data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()


class ModelFinder(Protocol):
    """Finds one part; ``elsewhere``: another model can be asked instead."""

    async def __call__(self, conversation: Conversation, *, elsewhere: bool = False) -> Questions | Mood: ...  # noqa: D102


class Model(RemoteAnalyst):
    """A language model; it learns what its server takes, and remembers it for a while."""

    def __init__(self, settings: LlmSettings, *, name: str = "llm", random: Callable[[], float] = dice.random) -> None:
        key = key_text(name, settings.api_key)
        carried = f"Bearer {key}" if settings.api_key_header.lower() == "authorization" else key
        super().__init__(
            name,
            settings,
            by=f"{settings.model}/{PROMPT_VERSION}",
            base_url=_address(settings, "/models"),
            headers={**settings.headers, **({settings.api_key_header.lower(): carried} if key else {})},
            random=random,
        )
        self._settings = settings
        self._url = _address(settings, "/chat/completions")
        self._learnt = LearntForm()

    @property
    def finders(self) -> Mapping[PartName, ModelFinder]:
        """Questions and emotion."""
        return {"questions": self.questions, "emotion": self.emotion}

    @property
    def learnt(self) -> str:
        """What its server takes, as far as is known; empty before the first call."""
        return _described_form(self._learnt.form, self._settings) if self._learnt.tried else ""

    def settings_fault(self) -> str:
        """Return what is wrong in the settings, also a key that is missing where every public server needs one."""
        fault = super().settings_fault()
        if fault or self._settings.api_key or any(map(_carries_key, (*self._settings.headers, *self._settings.query))):
            return fault
        host = urlsplit(self._settings.base_url).hostname or ""
        if not _is_public(host):
            return ""
        model = "base_url" if self.fallback else "model"
        return f"{self.section}.{model} is set and {self._key_variable} is not: {host} needs a key"

    # --- the parts

    async def questions(self, conversation: Conversation, *, elsewhere: bool = False) -> Questions:
        """Find the questions that the user put; none, without a call, where the user said nothing.

        ``elsewhere``: another model can be asked instead; as ``Dependency.call``.

        Raises:
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Questions(questions=())
        try:
            found = await self.dependency.call(
                "llm.questions", partial(self._find, QUESTIONS, conversation, questions_in), elsewhere=elsewhere
            )
        except RemoteDeclined as error:
            return Questions(questions=(), refused=_noted(conversation, "questions", error, elsewhere=elsewhere))
        return Questions(questions=found)

    async def emotion(self, conversation: Conversation, *, elsewhere: bool = False) -> Mood:
        """Find how the user felt; neutral, without a call, where the user said nothing.

        ``elsewhere``: as for ``questions``.

        Raises:
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Mood(emotion="neutral")

        async def attempt() -> EmotionName:
            return await self._find(EMOTION, conversation, emotion_in)

        try:
            found = await self.dependency.call("llm.emotion", attempt, elsewhere=elsewhere)
        except RemoteDeclined as error:
            return Mood(
                emotion="neutral", judged=False, refused=_noted(conversation, "emotion", error, elsewhere=elsewhere)
            )
        return Mood(emotion=found)

    async def _find(self, ask: Ask, conversation: Conversation, read: Callable[[Sequence[str]], T | None]) -> T:
        write = partial(record, conversation)
        try:
            completion = await self._complete(ask, write, self._key_of(conversation, ask.part))
            return _read(completion, read)
        except RemoteError as error:
            raise self._in_own_words(error) from error.__cause__

    def _key_of(self, conversation: Conversation, part: PartName) -> str:
        # A fallback may be another model at the same server: what it is asked is no repetition.
        return idempotency_key(conversation, part) + (f":{self.fallback}" if self.fallback else "")

    def _in_own_words(self, error: RemoteError) -> RemoteError:
        """Return an error that names this server and its settings: all others are written for ``[llm]``."""
        if self.fallback and error.dependency == "llm":
            told = _SETTING.sub(f"{self.section}.", error.detail.removeprefix("llm: "))
            error.detail = f"{self.name}: {told.replace('CONVO_LLM__API_KEY', self._key_variable)}"
            error.dependency = self.name
            error.args = (error.detail,)
        return error

    # --- a call, in the form that the server takes

    # no deadline: the dependency sets one around each attempt, and ``check`` one of its own
    async def _complete(self, ask: Ask, write: Callable[[int], str], key: str) -> Completion:
        """Ask once; where the server refuses the form of the request, in the next form, until it takes one.

        Raises:
            RemoteError: it refuses for another reason, or takes no form.
        """
        use = self._learnt.use(trio.current_time())
        form = use.form
        for _ in range(_FORMS_MAX):
            text = write(form.record_chars or self._settings.text_chars_max)
            fields = request_fields(form, self._settings, ask, text)
            # Another body needs another key: a server that keeps keys refuses one that comes back with other content.
            answer = await self.post(self._url, fields, key=key + form.label)
            found = completion_in(answer.body) if answer.good else None
            if answer.good:
                self._note_paid(ask, answer, found)
            if answer.good and found is None:
                raise _unreadable(answer)
            if found is not None and found.fault is None and found.choices:
                self._note_taken(use, form)
                return _usable(found)
            refusal = _refusal(answer, found, fields)
            changed = _changed(form, refusal, fields, len(text))
            if changed is None:
                raise refusal.error
            form = changed
        raise RemoteRefused("llm", "it takes no form of the request")

    def _note_paid(self, ask: Ask, answer: RemoteAnswer, found: Completion | None) -> None:
        """Note what a call took that was answered, also where its answer cannot be used; an error took nothing."""
        tokens = found.tokens if found else None
        is_none = _is_page(answer) if found is None else found.fault is not None or not found.choices
        if tokens is None and is_none:
            return
        nano = None if tokens is None else price_nano(tokens, self._settings)
        note_call(PaidCall(server=self.name, by=self.by, parts=(ask.part,), tokens=tokens, nano=nano))

    def _note_taken(self, use: FormUse, form: RequestForm) -> None:
        if self._learnt.note_taken(use, form, trio.current_time()):
            log_records.llm_form_learnt(form=self.learnt, again_in_seconds=llm_form.RELEARN_SECONDS)

    # --- the check

    # no deadline: the caller sets one
    async def _checked(self) -> str:
        """List the models, and make one small call: only a call shows whether the key, the model and the form do."""
        try:
            listed = self._described(await self.get(self._base_url))
        except RemoteGarbage:
            listed = "reachable; its list of models is too long to read"
        # Each check has a key of its own: a server that keeps keys would else answer what it answered to the last one.
        try:
            _read(await self._complete(TRIAL, lambda _: "Thank you!", _TRIAL_KEY + token_hex(8)), emotion_in)
        except RemoteError as error:
            raise self._in_own_words(error) from error.__cause__
        self.dependency.note_configured()
        return f"{listed}; it answers, and takes {self.learnt}"

    def _described(self, answer: RemoteAnswer) -> str:
        listed = _listed(answer.body) if answer.good else frozenset()
        if not listed:
            return f"reachable; it lists no models (GET /models answered {answer.status})"
        if self._settings.model in listed:
            return f"reachable; {self._settings.model} is among the {len(listed)} models it lists"
        return f"reachable, but {self._settings.model} is NOT among the {len(listed)} models it lists"


# --- reading an answer


def _refusal(answer: RemoteAnswer, found: Completion | None, fields: Mapping[str, object]) -> ModelRefusal:
    if found is None:
        return refusal_of(answer, fault_in(answer.body), fields)
    if found.fault is None:
        # What servers answer whose own upstream is exhausted.
        return ModelRefusal(error=RemoteUnavailable("llm", f"answered {answer.status} without a choice"))
    return refusal_of(answer, found.fault, fields)


def _changed(
    form: RequestForm, refusal: ModelRefusal, fields: Mapping[str, object], record_chars: int
) -> RequestForm | None:
    match refusal.remedy:
        case "trait" if refusal.trait is not None:
            return llm_form.without(form, refusal.trait, fields) or llm_form.next_down(form, fields)
        case "next":
            return llm_form.next_down(form, fields)
        case "shorter":
            return llm_form.shorter(form, record_chars, refusal.share)
        case _:
            return None


def _unreadable(answer: RemoteAnswer) -> RemoteError:
    if _is_page(answer):
        return RemoteDenied("llm", f"answered {answer.status} with a web page: llm.base_url is wrong")
    return RemoteGarbage("llm", "the answer does not fit (no completion)")


def _is_page(answer: RemoteAnswer) -> bool:
    return answer.body.lstrip()[:100].lower().startswith(b"<!doctype html")


def _usable(completion: Completion) -> Completion:
    """Return a completion whose texts can be read.

    Raises:
        RemoteError: it says itself that it is not whole.
    """
    reason = completion.finish_reason
    if reason == "error":
        raise RemoteUnavailable("llm", "the model stopped with an error (finish_reason error)")
    if reason in FILTERED:
        raise RemoteDeclined("llm", f"a content filter cut the answer off (finish_reason {reason})")
    if completion.refusal:
        raise RemoteDeclined("llm", "the model declined")
    if reason in ("length", "max_tokens"):
        raise RemoteGarbage("llm", f"the answer is cut off ({reason}); see llm.answer_tokens_max")
    return completion


def _read(completion: Completion, read: Callable[[Sequence[str]], T | None]) -> T:
    if not completion.texts:
        raise RemoteGarbage("llm", "the answer is empty")
    found = read(completion.texts)
    if found is None:
        raise RemoteGarbage("llm", "the answer does not fit: it holds no JSON of the form that was asked for")
    return found


def _noted(conversation: Conversation, part: PartName, error: RemoteError, *, elsewhere: bool) -> str:
    # Another model may yet find it.
    if not elsewhere:
        log_records.part_refused(conversation_id=conversation.conversation_id, part=part, reason=error.detail)
    return error.detail


# --- what is shown


def _described_form(form: RequestForm, settings: LlmSettings) -> str:
    parts: list[str] = ["no response_format" if form.response_format == "none" else form.response_format]
    parts.append(f"temperature {settings.temperature:g}" if form.temperature else "no temperature")
    if settings.answer_tokens_max:
        parts.append("no limit of tokens" if form.tokens == "none" else form.tokens)
    parts.append("the instructions as a user's message" if form.role == "user" else f"the role {form.role}")
    if not form.reasoning:
        parts.append("no reasoning parameters")
    if form.record_chars is not None:
        parts.append(f"records of {form.record_chars} characters (llm.text_chars_max)")
    return ", ".join(parts)


# --- the address


def _address(settings: LlmSettings, path: str) -> str:
    """Return the address of one route; ``llm.base_url`` may have a query of its own, or name a route already."""
    try:
        parts = urlsplit(settings.base_url)
    except ValueError:
        return settings.base_url + path  # no address: the start reports it, and so does each call
    base = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *settings.query.items()])
    return urlunsplit((parts.scheme, parts.netloc, base + path, query, ""))


def _carries_key(name: str) -> bool:
    return any(word in name.lower() for word in ("authorization", "key", "token"))


def _is_public(host: str) -> bool:
    """Return whether a host is one of the internet, as far as its name shows: at home, models need no key."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".localhost", ".internal", ".lan", ".home", ".svc"))
