"""Finds one declared part with a service of its owner: it gets the conversation, signed, and answers the part's JSON.

Open it to change what such a service is sent. Each part has its own client, breaker, budget and bulkhead.
"""

from __future__ import annotations

import hashlib
import random as dice
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from convo.analysis.analyze import Analyst
from convo.analysis.prompt import without_nul
from convo.analysis.remote import PartFinder, RemoteAnalyst
from convo.conversation.json_schema import fits, pruned
from convo.conversation.model import Answered, Conversation, Finding, PartName
from convo.conversation.owed import DeclaredPart
from convo.dependencies import part_dependency
from convo.errors import RemoteGarbage
from convo.settings import PartSettings
from convo.standard_webhooks import signed, signing_key


class PartService(RemoteAnalyst):
    """The service of one declared part."""

    def __init__(
        self, part: DeclaredPart, settings: PartSettings, *, random: Callable[[], float] = dice.random
    ) -> None:
        super().__init__(
            part_dependency(part.name),
            settings,
            by=f"{part_dependency(part.name)}/{part.version}",
            base_url=settings.url,
            headers={},
            random=random,
        )
        self.part = part
        self._signing_key = signing_key(settings.secret.reveal())

    @property
    def needs(self) -> str:
        """What a conversation that is owed this part needs: this part, as it is declared here."""
        return self.part.needs

    @property
    def finders(self) -> Mapping[PartName, PartFinder]:
        """Its one part."""
        return {self.part.name: self.find}

    @property
    def analyst(self) -> Analyst:
        """Who finds the part."""
        return Analyst(by=self.by, find=self.find)

    async def find(self, conversation: Conversation) -> Finding:
        """Ask the service for the part.

        Raises:
            RemoteError: every attempt failed.
        """

        async def attempt() -> Finding:
            return await self._attempt(conversation)

        return await self.dependency.call("part.call", attempt)

    # no deadline: the dependency sets one around each attempt
    async def _attempt(self, conversation: Conversation) -> Finding:
        message_id = message_id_of(self.part, conversation)
        body = msgspec.json.encode(sent_to_service(self.part, conversation))
        signature = signed(message_id, int(time.time()), body, [self._signing_key])
        answer = await self.post_signed(self._base_url, body, {**signature, "idempotency-key": message_id})
        value = pruned(self._decode_answer(answer, Any), self.part.schema)
        if not isinstance(value, dict) or not fits(value, self.part.schema):
            raise RemoteGarbage(self.name, "the answer does not fit the schema of the part")
        # What no database takes, a service can send as well as a model.
        clean = without_nul(msgspec.json.encode(value).decode().replace("\\u0000", ""))
        return Answered(answer=msgspec.json.decode(clean, type=dict[str, Any]))


def message_id_of(part: DeclaredPart, conversation: Conversation) -> str:
    """Name what is asked in ASCII, the same at each attempt: a service that keeps it answers twice what it did once."""
    named = msgspec.json.encode([part.name, part.version, conversation.remote_id, conversation.digest])
    return "part_" + hashlib.sha256(named).hexdigest()[:40]


def sent_to_service(part: DeclaredPart, conversation: Conversation) -> dict[str, Any]:
    """Return what a service is sent of a conversation."""
    return {
        "part": part.name,
        "version": part.version,
        "conversation": {
            "conversation_id": conversation.remote_id,
            "user_id": conversation.remote_user,
            "bot_id": conversation.bot_id,
            "digest": conversation.digest,
            "turns": conversation.turns,
        },
    }
