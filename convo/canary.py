"""The canary: a conversation of our own that goes the whole real way at an interval, and is erased again.

It is taken by the accept route's own function, analysed and settled like any other, and read like any other. Its user
is nobody's: lists and relationships leave it out, and what is booked for it is taken back when it is erased.
"""

from __future__ import annotations

import uuid

import msgspec
import trio

from convo.config import CanarySettings
from convo.conversation.model import CANARY_USER
from convo.deadline import deadline
from convo.errors import ConvoError, Unavailable
from convo.observe import events, metrics
from convo.store import canaries
from convo.store.postgres import Postgres
from convo.web.conversations import Intake
from convo.web.reading import Reading

_SAID = (
    ("BOT", "Hello! What did you do today?"),
    ("USER", "I fed my canary. Why do canaries sing?"),
    ("BOT", "To tell that all is well."),
)
_WAIT = {"wait": "5"}
_AGAIN_SECONDS = 0.1
# Those that have not come through yet, of which there are few unless the way is broken.
_PENDING_MAX = 100


class Canary:
    """Sends one canary after the other."""

    def __init__(
        self, *, settings: CanarySettings, request_seconds: float, intake: Intake, reading: Reading, postgres: Postgres
    ) -> None:
        self._settings = settings
        self._request_seconds = request_seconds
        self._intake = intake
        self._reading = reading
        self._postgres = postgres
        self._pending: list[str] = []

    async def run(self) -> None:
        """Send a canary every ``canary.interval_seconds`` until cancelled."""
        while True:
            await self.fly()
            await self._erase()
            await trio.sleep(self._settings.interval_seconds)

    async def fly(self) -> None:
        """Send one canary and tell whether it came through in time."""
        conversation_id, started = f"canary-{uuid.uuid4().hex}", trio.current_time()
        self._pending = [*self._pending[-_PENDING_MAX:], conversation_id]
        try:
            with deadline("canary.accept", self._request_seconds):
                await self._accept(conversation_id, started)
            with deadline("canary.return", self._settings.within_seconds, since=started):
                await self._return(conversation_id)
        except ConvoError as error:
            seconds = trio.current_time() - started
            metrics.canaries_total.labels("missing").inc()
            events.canary_missing(conversation_id=conversation_id, seconds=seconds, reason=error.detail)
        else:
            seconds = trio.current_time() - started
            metrics.canaries_total.labels("returned").inc()
            metrics.canary_seconds.observe(seconds)
            events.canary_returned(conversation_id=conversation_id, seconds=seconds)

    async def _accept(self, conversation_id: str, started: float) -> None:
        log = [{"character": who, "content": what} for who, what in _SAID]
        body = {"conversation_id": conversation_id, "user_id": CANARY_USER, "bot_id": CANARY_USER}
        sent = msgspec.json.encode({**body, "conversation_log": log})
        answer = await self._intake.end(sent, "", started, started + self._request_seconds, canary=True)
        if answer.status != 202:
            raise Unavailable(f"the canary was answered {answer.status} {answer.code}")

    async def _return(self, conversation_id: str) -> None:
        while True:
            answer = await self._reading.one(conversation_id, _WAIT, "")
            state = msgspec.json.decode(answer.body)["state"]
            if state == "dead":
                raise Unavailable("the canary's job is a dead letter")
            if state == "done":
                return
            await trio.sleep(_AGAIN_SECONDS)

    async def _erase(self) -> None:
        try:
            await canaries.erase(self._postgres, self._pending)
        except ConvoError as error:
            events.canary_not_erased(reason=error.detail)
