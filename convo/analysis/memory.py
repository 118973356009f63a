"""Finds what to remember of a conversation with a memory service, in one of the known dialects.

Which of the facts are new is found later, when they are stored. How answers are read stands in ``memory_answers``.

**Lost answers.** The process can die before an answer is stored, and an attempt can time out. The service then knows
the facts, and to the next attempt it answers NONE or nothing. So after such an attempt the service's list of the user's
memories is read, where the dialect has one.

**Answers that come later.** A service can take a conversation and say that it is at work on it. Then it is asked later
what became of that, and is not given the conversation again: what to ask with is a ``Ticket``, stored at once.
"""

from __future__ import annotations

import random as dice
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import trio
from msgspec import Struct
from msgspec.structs import replace

from convo.analysis.memory_answers import (
    FACTS_MAX,
    ErrorInAnswer,
    NotAsExpected,
    ServiceAnswer,
    ServiceFact,
    key_of,
    memories_of,
    read_mem0,
    read_mem0_list,
)
from convo.analysis.memory_dialects import MEMORY_DIALECTS, api_paths
from convo.analysis.prompt import excerpt, user_spoke
from convo.analysis.remote import PartFinder, RemoteAnalyst, idempotency_key, key_text
from convo.conversation.model import Conversation, Memories, PartName
from convo.errors import (
    RemoteBusy,
    RemoteError,
    RemoteFailedLater,
    RemoteGarbage,
    RemotePending,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.observe import log_records
from convo.outbound import RemoteAnswer, failure
from convo.runtime.deadline import ends_at
from convo.settings import MemorySettings

T = TypeVar("T")

TEXT_CHARS_MAX = 200_000

_ROLES = {"user": "user", "bot": "assistant"}
_VERSION = re.compile(r"/v\d+\Z")
_HOSTED = "api.mem0.ai"
# What is at work is asked for after 2, 4, 8 … s, then once a minute.
_LATER_SECONDS, _LATER_SECONDS_MAX = 2.0, 60.0
# Without an event to ask for, only the list can show what became of it, and a list that stays empty shows nothing:
# after some 10 minutes the part is uncertain.
_LISTS_MAX = 14
_PAGES_MAX = 5
_PAGE_ROWS = 100
# What is not there is deleted.
_GONE = (404, 410)


class Ticket(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to ask the service with later: its events, or its list where it named none.

    ``facts`` are those that it told already. ``unsure``: there was an earlier attempt whose answer may be lost.
    ``asked`` is how often it was asked.
    """

    events: tuple[str, ...] = ()
    facts: tuple[ServiceFact, ...] = ()
    unsure: bool = False
    asked: int = 0

    @property
    def later_seconds(self) -> float:
        """How long to wait before it is asked for."""
        return min(_LATER_SECONDS * 2.0 ** min(self.asked, 10), _LATER_SECONDS_MAX)


class MemoryService(RemoteAnalyst):
    """A memory service, in the dialect that the settings name."""

    def __init__(self, settings: MemorySettings, *, random: Callable[[], float] = dice.random) -> None:
        self._dialect = MEMORY_DIALECTS[settings.dialect]
        base_url = settings.url.rstrip("/")
        key = key_text("memory", settings.api_key)
        super().__init__(
            "memory",
            settings,
            by=f"{settings.dialect}/1",
            base_url=base_url,
            headers={name: form.format(key) for name, form in self._dialect.key_headers.items()} if key else {},
            random=random,
        )
        self._settings = settings
        self._paths = api_paths(settings)
        self._attempt_seconds = settings.attempt_seconds

    @property
    def finders(self) -> Mapping[PartName, PartFinder]:
        """Memories."""
        return {"memories": self.memories}

    def settings_fault(self) -> str:
        """Return what is wrong in the settings, as far as that shows without a call; empty for nothing."""
        fault = super().settings_fault()
        if fault:
            return fault
        url, settings = urlsplit(self._base_url), self._settings
        if url.hostname == _HOSTED and not settings.api_key:
            return f"{_HOSTED} takes no call without a key: set CONVO_MEMORY__API_KEY"
        if settings.api_version and not settings.add_path and _VERSION.search(url.path):
            return "memory.url holds a version, and memory.api_version adds another one: take it out of one of them"
        return ""

    async def memories(self, conversation: Conversation) -> Memories:
        """Have the service remember a conversation; nothing, without a call, where the user said nothing.

        Raises:
            RemotePending: it is still at work on the conversation.
            RemoteError: every attempt failed.
        """
        if not user_spoke(conversation):
            return Memories(facts=())
        ticket = self._ticket(conversation)
        if ticket is None:
            answer, unsure = await self._added(conversation)
            ticket = Ticket(events=answer.events, facts=answer.facts, unsure=unsure)
            if answer.pending:
                raise self._pending(ticket)
            told = answer.told
        elif not ticket.events:
            return await self._seen_in_list(conversation, ticket)
        else:
            ticket, told = await self._ended(ticket)
        found = memories_of(ticket.facts)
        if not told:
            return await self._listed_ones(conversation, found)
        return await self._reconciled(conversation, found) if ticket.unsure else found

    def _ticket(self, conversation: Conversation) -> Ticket | None:
        text = conversation.tickets.get("memories", "")
        return self._decode(text, Ticket) if text else None

    def _pending(self, ticket: Ticket) -> RemotePending:
        what = f"event {ticket.events[0]}" if ticket.events else "no event to ask for"
        return RemotePending(
            "memory",
            f"it has the conversation and is still at work on it ({what})",
            ticket=msgspec.json.encode(ticket).decode(),
            later_seconds=ticket.later_seconds,
        )

    # --- a conversation that it does not have yet

    async def _added(self, conversation: Conversation) -> tuple[ServiceAnswer, bool]:
        """Give it a conversation; return its answer, and whether an earlier answer may be lost."""
        may_be_lost = conversation.asked_before

        async def attempt() -> tuple[ServiceAnswer, bool]:
            nonlocal may_be_lost
            before, may_be_lost = may_be_lost, True
            try:
                return await self._add(conversation), before
            except RemoteBusy:
                # It did nothing.
                may_be_lost = before
                raise

        return await self.dependency.call("memory.extract", attempt)

    # no deadline: the dependency sets one around each attempt
    async def _add(self, conversation: Conversation) -> ServiceAnswer:
        body = self._request(conversation)
        key = idempotency_key(conversation, "memories")
        answer = self._read(await self.post(self._url(self._paths.add), body, key=key), self._dialect.read)
        if answer.pending and not self._paths.event:
            raise RemoteGarbage("memory", f"it is still at work, and {self._settings.dialect} cannot ask for the rest")
        if answer.failed:
            raise RemoteGarbage("memory", "it says that it failed")
        return answer

    def _request(self, conversation: Conversation) -> dict[str, Any]:
        shown = excerpt(conversation.turns, TEXT_CHARS_MAX)
        turns = [{"role": _ROLES[turn.speaker], "content": turn.text} for turn in shown.head + shown.tail]
        request: dict[str, Any] = {"user_id": conversation.remote_user, self._dialect.turns_field: turns}
        if self._dialect.names_conversation:
            request["conversation_id"] = conversation.remote_id
        if self._paths.list:
            # It comes back in the list. mem0 leaves out of its answer what is no news, so nothing else tells whose a
            # memory is whose answer was lost.
            request["metadata"] = {"conversation_id": conversation.remote_id}
        if self._settings.api_version == "v2":
            request["version"] = "v2"
        return request

    # --- a conversation that it is at work on

    async def _ended(self, ticket: Ticket) -> tuple[Ticket, bool]:
        """Ask what became of a ticket; return it with all facts, and whether they were told.

        Raises:
            RemotePending: it is still at work.
            RemoteFailedLater: it failed.
        """
        told = True
        for event in ticket.events:
            try:
                answer = await self.dependency.call("memory.event", partial(self._ask, event, ticket))
            except RemotePending:
                # What has ended is not asked for again.
                raise self._pending(replace(ticket, asked=ticket.asked + 1)) from None
            rest = tuple(other for other in ticket.events if other != event)
            ticket = replace(ticket, events=rest, facts=(ticket.facts + answer.facts)[:FACTS_MAX])
            told = told and answer.told
        return ticket, told

    # no deadline: as above
    async def _ask(self, event: str, ticket: Ticket) -> ServiceAnswer:
        path = self._paths.event.replace("{event_id}", quote(event, safe=""))
        answer = self._read(await self.get(self._url(path)), read_mem0)
        if answer.pending:
            raise self._pending(ticket)
        if answer.failed:
            raise RemoteFailedLater("memory", "it took the conversation, and failed at it later")
        return answer

    async def _seen_in_list(self, conversation: Conversation, ticket: Ticket) -> Memories:
        """Look for what it added in its list, as it named no event.

        Raises:
            RemotePending: the list does not show it yet.
        """
        held = await self._list(conversation.remote_user)
        own = _of(conversation, held or [])
        if own:
            return memories_of((ticket.facts + own)[:FACTS_MAX])
        if ticket.asked + 1 < _LISTS_MAX:
            raise self._pending(replace(ticket, asked=ticket.asked + 1))
        return replace(memories_of(ticket.facts), uncertain=True)

    # --- an answer that was lost, or told nothing

    async def _listed_ones(self, conversation: Conversation, found: Memories) -> Memories:
        """Find in its list what it added, where its answer tells only that it has ended."""
        held = await self._list(conversation.remote_user)
        if held is None:
            return replace(found, uncertain=True)
        return _joined(found, memories_of(_of(conversation, held)))

    async def _reconciled(self, conversation: Conversation, found: Memories) -> Memories:
        """Add what an earlier attempt added without our knowing, as far as the service's list shows it.

        The list names the conversation that each memory is of; a NONE in this answer that is in the list may be such an
        addition as well. A list that cannot be had makes the part uncertain and does not fail it: the answer is good.
        """
        unsure = [fact.key for fact in found.facts if fact.operation == "NONE"]
        if not self._paths.list:
            return replace(found, uncertain=bool(unsure))
        held = await self._list(conversation.remote_user)
        if held is None:
            return replace(found, uncertain=True)
        keys = {key_of(ServiceFact(id=fact.id), "") for fact in held}
        return replace(
            _joined(found, memories_of(_of(conversation, held))),
            listed=tuple(key for key in unsure if key in keys),
            uncertain=any(key not in keys for key in unsure),
        )

    async def _list(self, user_id: str) -> list[ServiceFact] | None:
        """List what the service has of a user; None where it cannot be asked, or not in time."""
        if not self._paths.list or trio.current_time() + self._attempt_seconds > ends_at():
            return None
        found: list[ServiceFact] = []
        try:
            for page in range(1, _PAGES_MAX + 1):
                read = await self.dependency.call("memory.list", partial(self._listed, user_id, page))
                if read is None:
                    return None
                found += read[0]
                if not (read[1] and self._paths.filters):
                    break
        except RemoteError as error:
            log_records.memory_list_failed(reason=error.detail)
            return None
        return found

    # no deadline: as above
    async def _listed(self, user_id: str, page: int) -> tuple[list[ServiceFact], bool] | None:
        url = self._url(self._paths.list)
        if self._paths.filters:
            pages = f"{url}?page={page}&page_size={_PAGE_ROWS}"
            answer = await self.post(pages, {"filters": {"user_id": user_id}}, key=f"{quote(user_id, safe='')}:list")
        else:
            answer = await self.get(f"{url}?user_id={quote(user_id, safe='')}")
        if 400 <= answer.status < 500 and not failure(self.name, answer).retryable:
            # It has no list, or not for this key: that is no outage, for it answered the same key before.
            return None
        return self._read(answer, read_mem0_list)

    # --- what was erased

    @property
    def deletes(self) -> bool:
        """Whether it can be told of an erasure."""
        return bool(self._paths.delete and self._paths.delete_user)

    @property
    def lists(self) -> bool:
        """Whether it shows what it has of a user."""
        return bool(self._paths.list)

    async def forget(self, memory_id: str) -> None:
        """Have it delete one memory; well, too, where it has none of this id.

        Raises:
            RemoteError: it did not confirm it.
        """
        await self._forget(self._paths.delete.replace("{memory_id}", quote(memory_id, safe="")))

    async def forget_user(self, user_id: str) -> None:
        """Have it delete all that it has of a user.

        Raises:
            RemoteError: it did not confirm it.
        """
        await self._forget(self._paths.delete_user.replace("{user_id}", quote(user_id, safe="")))

    async def _forget(self, path: str) -> None:
        # no deadline: the dependency sets one around each attempt
        async def attempt() -> None:
            answer = await self.delete(self._url(path))
            if not answer.good and answer.status not in _GONE:
                raise failure(self.name, answer)

        await self.dependency.call("memory.forget", attempt)

    async def held_of(self, user_id: str) -> list[tuple[str, str]]:
        """List the first ids of memories that it has of a user, each with the id of its conversation, '' for none.

        Raises:
            RemoteError: it did not show them.
        """
        held: list[tuple[str, str]] = []
        for page in range(1, _PAGES_MAX + 1):
            read = await self.dependency.call("memory.list", partial(self._listed, user_id, page))
            if read is None:
                raise RemoteRefused(self.name, "it shows no list of a user's memories")
            held += [(str(fact.id), fact.conversation_id or "") for fact in read[0] if fact.id is not None]
            if not (read[1] and self._paths.filters):
                break
        return held

    # ---

    def _url(self, path: str) -> str:
        return self._base_url + path

    def _read(self, answer: RemoteAnswer, read: Callable[[bytes], T]) -> T:
        """Read the body of a good answer.

        Raises:
            RemoteError: the status says otherwise, or the body does not fit.
        """
        if not answer.good:
            raise failure(self.name, answer)
        try:
            return read(answer.body)
        except ErrorInAnswer as error:
            raise RemoteUnavailable(self.name, f"answered {answer.status} with an error inside") from error
        except NotAsExpected as error:
            raise RemoteGarbage(self.name, "the answer does not fit") from error


def _of(conversation: Conversation, held: list[ServiceFact]) -> tuple[ServiceFact, ...]:
    """Return what a list has of this conversation, as added by it."""
    own = (fact for fact in held if fact.conversation_id == conversation.remote_id)
    return tuple(replace(fact, operation="ADD", conversation_id=None) for fact in own)[:FACTS_MAX]


def _joined(found: Memories, more: Memories) -> Memories:
    answered = {fact.key for fact in found.facts}
    return replace(found, facts=found.facts + tuple(fact for fact in more.facts if fact.key not in answered))
