"""The routes that erase a conversation or a user, and the receipt that they answer with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio
from msgspec import Struct

from convo import erasure, user_erasure
from convo.conversation.tenant import Reach
from convo.dependencies import OLD_LOGS
from convo.erasure import Erasure
from convo.errors import Forbidden
from convo.observe import log_records
from convo.store.audit_log import Caller
from convo.store.outbox import NO_EVENTS, Outbox
from convo.store.postgres import Postgres
from convo.store.untold import Telling
from convo.web import queries
from convo.web.description.erasure_views import ErasureView, RemainsView
from convo.web.description.messages import Answer, encode

# Of a request's time for the batch under way and its answer.
_MARGIN_SECONDS = 3.0


EraseObjects = Callable[[bytes, float], Awaitable[None]]
"""Erases in object storage what the erasure of this HMAC waits for, until a time of Trio's clock."""


class EraseRoutes(Struct, frozen=True, kw_only=True):
    """The routes, with what they need; ``erased`` is called with the ``seq`` of what has gone.

    ``services`` are the remote services that got texts of conversations, and ``telling`` the one of them that is told
    of an erasure. ``erase_objects`` erases in object storage, where logs lie there.
    """

    postgres: Postgres
    erased: Callable[[Sequence[int]], None]
    services: tuple[str, ...]
    telling: Telling | None = None
    outbox: Outbox = NO_EVENTS
    erase_objects: EraseObjects | None = None

    async def conversation(
        self, conversation_id: str, query: Mapping[str, str], caller: Caller, reach: Reach
    ) -> Answer:
        """Erase one conversation, or count its rows.

        Raises:
            NotFound: no conversation has this id.
            Invalid: ``dry_run`` is not valid.
            Unavailable: an older program is at work.
        """
        done = await erasure.erase_conversation(
            self.postgres,
            reach,
            conversation_id,
            caller,
            erased=self.erased,
            telling=self.telling,
            dry_run=queries.flag_of(query, "dry_run"),
            outbox=self.outbox,
            in_objects=self.erase_objects is not None,
        )
        return self._answer(await self._in_objects(done))

    async def _in_objects(self, done: Erasure) -> Erasure:
        """Erase in object storage at once what this erasure waits for there, as far as there is time."""
        if self.erase_objects is None or not done.waiting.get(OLD_LOGS):
            return done
        await self.erase_objects(done.hmac, trio.current_effective_deadline() - _MARGIN_SECONDS)
        return await erasure.read_receipt(self.postgres, done.kind, done.hmac, repeated=done.repeated)

    async def user(self, user_id: str, query: Mapping[str, str], caller: Caller, reach: Reach) -> Answer:
        """Erase all of a user, or count it; 202 where the request's time was not enough for all of it.

        Raises:
            Forbidden: the caller reaches some bots alone, and a user's memories are of all of them.
            NotFound: nothing of this user is stored.
            Invalid: ``dry_run`` is not valid.
            Unavailable: an older program is at work.
        """
        if reach.bots is not None:
            raise Forbidden(
                f"this key is bound to the bots {', '.join(reach.bots)}, and a user is erased with what all bots know:"
                " use a key that is bound to none, or erase the conversations one by one"
            )
        done = await user_erasure.erase_user(
            self.postgres,
            reach.tenant,
            user_id,
            caller,
            erased=self.erased,
            until=trio.current_effective_deadline() - _MARGIN_SECONDS,
            telling=self.telling,
            dry_run=queries.flag_of(query, "dry_run"),
            outbox=self.outbox,
            in_objects=self.erase_objects is not None,
        )
        return self._answer(await self._in_objects(done))

    def _answer(self, done: Erasure) -> Answer:
        if done.ended_at is not None and not done.repeated:
            log_records.erased(kind=done.kind, hmac=done.hmac.hex(), rows=sum(done.counts.removed.values()))
        view = ErasureView(
            kind=done.kind,
            hmac=done.hmac.hex(),
            begun_at=done.begun_at,
            ended_at=done.ended_at,
            dry_run=done.dry_run,
            repeated=done.repeated,
            removed=done.counts.removed,
            changed=done.counts.changed,
            told=done.counts.told,
            waiting=done.waiting,
            remains=() if done.dry_run else (*REMAINS, *map(self._of_service, self.services), *self._of_objects()),
        )
        return Answer(status=200 if done.ended_at or done.dry_run else 202, body=encode(view))

    def _of_objects(self) -> Sequence[RemainsView]:
        return () if self.erase_objects is None else (IN_OBJECTS,)

    def _of_service(self, name: str) -> RemainsView:
        what = "what convo has sent to it, and what it keeps of that"
        if self.telling is not None and name == self.telling.service:
            until = "it has confirmed each deletion (told, waiting), and as it keeps its own logs and backups"
            return RemainsView(
                where=name, what=f"{what}; until then the ids of what it is to delete stand here", until=until
            )
        return RemainsView(where=name, what=what, until="you erase it there: it has no way to be told")


REMAINS = (
    RemainsView(
        where="tables and indexes of the database",
        what="dead rows, and after a VACUUM what they left in the free room of their pages",
        until="VACUUM makes the room free, and new rows overwrite it; `convo erase --scrub` writes all of it anew",
    ),
    RemainsView(
        where="the planner's statistics",
        what="ids of users and bots out of a sample of rows; no words and no ids of conversations",
        until="the next ANALYZE of a table that has other rows",
    ),
    RemainsView(
        where="the write-ahead log",
        what="the rows as they were written",
        until="its files are recycled; archived ones until you delete them",
    ),
    RemainsView(
        where="standbys",
        what="the same as here",
        until="they have replayed the erasure, and then as here",
    ),
    RemainsView(
        where="backups",
        what="all of it; a restore erases it again by the list that each process keeps in its data folder",
        until="you delete those that were made before",
    ),
    RemainsView(
        where="the table event",
        what="events conversation.erased and user.erased, where they are chosen: the ids of what was erased, so that"
        " receivers learn what to erase",
        until="events.keep_days are over",
    ),
    RemainsView(
        where="logs of convo",
        what="the ids of conversations; no words",
        until="you delete them",
    ),
    RemainsView(
        where="other processes of convo",
        what="the log, in memory, where it was accepted there a moment ago; nobody is given it",
        until="ten minutes after it was accepted, or until room is needed",
    ),
)
"""What an erasure does not reach at once, by place."""

IN_OBJECTS = RemainsView(
    where=OLD_LOGS,
    what="the log, in an object with other logs, and in older versions of it that the bucket keeps",
    until="the object was written anew without it and deleted with all its versions (told, waiting); what the bucket"
    " copies elsewhere until you delete it there",
)
"""The same for logs in object storage."""
