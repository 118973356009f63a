"""Finds questions, emotion and declared parts with a language model, at any OpenAI-compatible chat completions route.

``prompt`` and ``llm_parts`` hold what the model is asked, ``llm_form`` what its server takes, ``llm_faults`` what a
refusal means, and ``llm_completion`` and ``llm_answers`` how an answer is read. This file makes the calls.
"""

from __future__ import annotations

import ipaddress
import random as dice
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from secrets import token_hex
from typing import cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import trio
from msgspec import Struct, structs

from convo.analysis import llm_form
from convo.analysis.analyze import NoteFinding
from convo.analysis.job_calls import PaidCall, note_call
from convo.analysis.llm_answers import emotion_in
from convo.analysis.llm_completion import Completion, completion_in
from convo.analysis.llm_faults import FILTERED, ModelRefusal, refusal_of
from convo.analysis.llm_form import FormUse, LearntForm, RequestForm, request_fields
from convo.analysis.llm_parts import call_key, found_without_asking, made_by, part_task, read_part, refused_part
from convo.analysis.llm_spans import describe_call, describe_completion
from convo.analysis.llm_usage import price_nano
from convo.analysis.prompt import PROMPT_VERSION, TRIAL, Ask, asking, record, user_spoke
from convo.analysis.remote import PartFinder, RemoteAnalyst, key_text
from convo.conversation.model import Conversation, Finding, Mood, PartName, Questions
from convo.conversation.owed import DeclaredPart
from convo.errors import RemoteDeclined, RemoteDenied, RemoteError, RemoteGarbage, RemoteRefused, RemoteUnavailable
from convo.observe import log_records, tracing
from convo.outbound import RemoteAnswer
from convo.plural import plural
from convo.remote_faults import fault_in
from convo.settings import LlmSettings

_QUESTIONS = DeclaredPart(name="questions", who="llm")
_EMOTION = DeclaredPart(name="emotion", who="llm")
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
    def model(self) -> str:
        """The model that is asked where a part names no other."""
        return self._settings.model

    @property
    def finders(self) -> Mapping[PartName, PartFinder]:
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

    async def questions(self, conversation: Conversation) -> Questions:
        """Find the questions that the user put, and nothing else; as ``find``."""
        return cast("Questions", await self._one(_QUESTIONS, conversation))

    async def emotion(self, conversation: Conversation) -> Mood:
        """Find how the user felt, and nothing else; as ``find``."""
        return cast("Mood", await self._one(_EMOTION, conversation))

    async def _one(self, part: DeclaredPart, conversation: Conversation) -> Finding:
        found: list[Finding] = []
        await self.find([part], conversation, lambda _name, _by, finding: found.append(finding))
        return found[0]

    async def find(
        self, parts: Sequence[DeclaredPart], conversation: Conversation, note: NoteFinding, *, elsewhere: bool = False
    ) -> None:
        """Ask for these parts, which are of one model, in one call; ``note`` takes each as soon as it is found.

        Of an answer in which some do not fit the others are kept, and the next attempt asks for the rest.
        ``elsewhere``: another model can be asked instead; as ``Dependency.call``.

        Raises:
            RemoteError: every attempt failed; it is about the parts that were not noted.
        """
        left = {part.name: part for part in parts}
        spoke = user_spoke(conversation)

        def noted(part: DeclaredPart, finding: Finding) -> None:
            del left[part.name]
            note(part.name, made_by(part, self._model_of(part)), finding)

        for part in parts:
            known = found_without_asking(part, conversation, user_spoke=spoke)
            if known is not None:
                noted(part, known)
        if not left:
            return

        async def attempt() -> None:
            await self._attempt(left, conversation, noted)

        try:
            await self.dependency.call("llm.parts", attempt, elsewhere=elsewhere)
        except RemoteDeclined as error:
            for part in list(left.values()):
                noted(part, refused_part(part, _noted(conversation, part.name, error, elsewhere=elsewhere)))

    async def _attempt(
        self,
        left: Mapping[PartName, DeclaredPart],
        conversation: Conversation,
        noted: Callable[[DeclaredPart, Finding], None],
    ) -> None:
        asked = tuple(left.values())
        model = self._model_of(asked[0])
        settings = self._settings if model == self._settings.model else structs.replace(self._settings, model=model)
        key = call_key(conversation, asked, model, settings.base_url) + (f":{self.fallback}" if self.fallback else "")
        try:
            completion = await self._complete(
                asking([part_task(part) for part in asked]), partial(record, conversation), key, settings
            )
            if not completion.texts:
                raise RemoteGarbage("llm", "the answer is empty")
            # Where nobody's own part is asked for, a field that is called a little otherwise can only be the one meant.
            alone = len(asked) == 1 or not any(part.version for part in asked)
            for part in asked:
                finding = read_part(part, completion.texts, alone=alone)
                if finding is not None:
                    noted(part, finding)
            if left:
                missing = f" of {', '.join(left)}" if len(asked) > 1 else ""
                raise RemoteGarbage(
                    "llm", f"the answer{missing} does not fit: it holds no JSON of the form that was asked for"
                )
        except RemoteError as error:
            raise self._in_own_words(error) from error.__cause__

    def _model_of(self, part: DeclaredPart) -> str:
        # The model that a part names is one of the first server; a fallback stands in with its own.
        return (not self.fallback and part.analyst) or self._settings.model

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
    async def _complete(
        self, ask: Ask, write: Callable[[int], str], key: str, settings: LlmSettings | None = None
    ) -> Completion:
        """Ask once; where the server refuses the form of the request, in the next form, until it takes one.

        Raises:
            RemoteError: it refuses for another reason, or takes no form.
        """
        use = self._learnt.use(trio.current_time())
        form, span = use.form, tracing.current_span()
        if span is not None:
            describe_call(span, settings or self._settings, ask.parts)
        for _ in range(_FORMS_MAX):
            text = write(form.record_chars or self._settings.text_chars_max)
            fields = request_fields(form, settings or self._settings, ask, text)
            # Another body needs another key: a server that keeps keys refuses one that comes back with other content.
            answer = await self.post(self._url, fields, key=key + form.label)
            found = completion_in(answer.body) if answer.good else None
            if span is not None and found is not None:
                describe_completion(span, found)
            if answer.good:
                self._note_paid(ask, answer, found, settings or self._settings)
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

    def _note_paid(self, ask: Ask, answer: RemoteAnswer, found: Completion | None, settings: LlmSettings) -> None:
        """Note what a call took that was answered, also where its answer cannot be used; an error took nothing."""
        tokens = found.tokens if found else None
        is_none = _is_page(answer) if found is None else found.fault is not None or not found.choices
        if tokens is None and is_none:
            return
        # The prices are those of the section's own model: another one, which a part names, is not priced.
        priced = settings.model == self._settings.model
        nano = price_nano(tokens, settings) if tokens is not None and priced else None
        by = f"{settings.model}/{PROMPT_VERSION}"
        note_call(PaidCall(server=self.name, by=by, parts=ask.parts, tokens=tokens, nano=nano))

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
            completion = await self._complete(TRIAL, lambda _: "Thank you!", _TRIAL_KEY + token_hex(8))
            if emotion_in(completion.texts) is None:
                raise RemoteGarbage("llm", "the answer does not fit: it holds no JSON of the form that was asked for")
        except RemoteError as error:
            raise self._in_own_words(error) from error.__cause__
        self.dependency.note_configured()
        return f"{listed}; it answers, and takes {self.learnt}"

    def _described(self, answer: RemoteAnswer) -> str:
        listed = _listed(answer.body) if answer.good else frozenset()
        if not listed:
            return f"reachable; it lists no models (GET /models answered {answer.status})"
        among = f"the {len(listed)} {plural(len(listed), 'model')} it lists"
        if self._settings.model in listed:
            return f"reachable; {self._settings.model} is among {among}"
        return f"reachable, but {self._settings.model} is NOT among {among}"


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
