"""The canary: a test conversation that convo sends to itself at an interval, to see that all of convo works.

The accept route's own function accepts it. It is analysed, settled and read like any other conversation, and then
erased. It has a user of its own, which lists and relationships leave out. Its erasure also corrects the ledger.
"""

from __future__ import annotations

import uuid

import msgspec
import trio

from convo import erase
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import ConvoError, Unavailable
from convo.observe import log_records, metrics
from convo.runtime.deadline import deadline
from convo.settings import CanarySettings
from convo.store.postgres import Postgres
from convo.web.accept import AcceptRoute
from convo.web.conversations import ReadRoutes

_LOG = (
    ("BOT", "Hello! What did you do today?"),
    ("USER", "I fed my canary. Why do canaries sing?"),
    ("BOT", "To tell that all is well."),
)
_WAIT = {"wait": "5"}
_POLL_SECONDS = 0.1
# Canaries that are not erased yet. There are few, unless something on their way fails.
_PENDING_MAX = 100


class Canary:
    """Sends canaries, one after another."""

    def __init__(
        self,
        *,
        settings: CanarySettings,
        request_seconds: float,
        intake: AcceptRoute,
        reading: ReadRoutes,
        postgres: Postgres,
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
            await self.send_one()
            await self._erase()
            await trio.sleep(self._settings.interval_seconds)

    async def send_one(self) -> None:
        """Send one canary, and log and count whether its result was there in time."""
        conversation_id, started = f"canary-{uuid.uuid4().hex}", trio.current_time()
        self._pending = [*self._pending[-_PENDING_MAX:], conversation_id]
        try:
            with deadline("canary.accept", self._request_seconds):
                await self._accept(conversation_id, started)
            with deadline("canary.return", self._settings.within_seconds, since=started):
                await self._await_result(conversation_id)
        except ConvoError as error:
            seconds = trio.current_time() - started
            metrics.canaries_total.labels("missing").inc()
            log_records.canary_missing(conversation_id=conversation_id, seconds=seconds, reason=error.detail)
        else:
            seconds = trio.current_time() - started
            metrics.canaries_total.labels("returned").inc()
            metrics.canary_seconds.observe(seconds)
            log_records.canary_returned(conversation_id=conversation_id, seconds=seconds)

    async def _accept(self, conversation_id: str, started: float) -> None:
        items = [{"character": who, "content": what} for who, what in _LOG]
        body = {"conversation_id": conversation_id, "user_id": CANARY_USER, "bot_id": CANARY_USER}
        sent = msgspec.json.encode({**body, "conversation_log": items})
        answer = await self._intake.end(sent, started, started + self._request_seconds)
        if answer.status != 202:
            raise Unavailable(f"the canary was answered {answer.status} {answer.code}")

    async def _await_result(self, conversation_id: str) -> None:
        while True:
            answer = await self._reading.one(conversation_id, _WAIT, "", WHOLE_DEFAULT)
            state = msgspec.json.decode(answer.body)["state"]
            if state == "dead":
                raise Unavailable("the canary's job is a dead letter")
            if state == "done":
                return
            await trio.sleep(_POLL_SECONDS)

    async def _erase(self) -> None:
        try:
            await erase.erase_canaries(self._postgres, self._pending)
        except ConvoError as error:
            log_records.canary_not_erased(reason=error.detail)
