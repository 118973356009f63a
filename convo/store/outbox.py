"""The outbox: appends events in the transaction that makes them true.

Open it to change what a row of an event holds. Which types are appended is chosen by ``events.types``: of the others
nothing is written and nothing read. Rows have their order only after the commit (``store/event_numbers.py``).

An event of a conversation or a user that is erased stays as an empty stub of the same id. Those that report the erasure
itself keep their ids until they expire: a receiver has to learn what it is to erase.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from convo.analysis.part import PARTS, StoredFinding, shown_answer
from convo.analysis.scoring import Score
from convo.conversation.model import CANARY_USER, PartName
from convo.conversation.score import Weights, level
from convo.conversation.tenant import Tenant
from convo.event_data import ScoreData
from convo.event_types import EventType
from convo.store.postgres import Connection


class NewEvent(Struct, frozen=True, kw_only=True):
    """An event of a stored conversation; ``data`` is what it holds besides the ids."""

    type: EventType
    seq: int
    data: Mapping[str, Any] = {}


class NewPart(Struct, frozen=True, kw_only=True):
    """A part that was stored just now."""

    seq: int
    name: PartName
    by: str
    stored: StoredFinding


UserKey = tuple[int, str]
"""A user: the number of the tenant, and the id."""

_WEIGHTS = Weights()


class Outbox:
    """Appends events of the chosen ``types``; ``appended`` is called when some were, before they are committed.

    ``weights`` say where the levels begin.
    """

    def __init__(
        self,
        types: Collection[EventType] = (),
        weights: Weights = _WEIGHTS,
        appended: Callable[[], None] = lambda: None,
    ) -> None:
        self._types = frozenset(types)
        self._weights = weights
        self._appended = appended

    def wants(self, kind: EventType) -> bool:
        """Return whether events of this type are appended."""
        return kind in self._types

    async def append(self, connection: Connection, events: Sequence[NewEvent]) -> None:
        """Append those of the chosen types, in their order; canaries have none."""
        chosen = [one for one in events if one.type in self._types]
        if chosen:
            datas = [msgspec.json.encode(one.data).decode() for one in chosen]
            await connection.execute(_APPEND, [one.type for one in chosen], [one.seq for one in chosen], datas)
            self._appended()

    async def append_dead(self, connection: Connection, reasons: Mapping[int, str]) -> None:
        """Append that these jobs were buried, by ``seq``, each with its reason."""
        await self.append(
            connection,
            [NewEvent(type="conversation.dead", seq=seq, data={"reason": reason}) for seq, reason in reasons.items()],
        )

    async def append_parts(self, connection: Connection, found: Sequence[NewPart]) -> None:
        """Append that these parts were found."""
        if self.wants("part.done"):
            await self.append(connection, [NewEvent(type="part.done", seq=one.seq, data=_part(one)) for one in found])

    async def append_analysed(
        self,
        connection: Connection,
        scores: Mapping[int, Score],
        stored: Mapping[int, Mapping[PartName, StoredFinding]],
    ) -> None:
        """Append that these conversations are analysed, by ``seq``."""
        if self.wants("conversation.analysed"):
            await self.append(
                connection,
                [
                    NewEvent(
                        type="conversation.analysed",
                        seq=seq,
                        data={"score": _score(found), "parts": _parts(stored[seq])},
                    )
                    for seq, found in scores.items()
                ],
            )

    async def append_levels(self, connection: Connection, added: Mapping[UserKey, int]) -> None:
        """Append which of these users have another level, now that so much was added to their scores.

        Of two transactions that add to different bots of one user, neither sees the other one's score. So the second
        waits here until the first is committed, and then sees it. All that this transaction writes to relationships is
        written before: who waits here holds up nobody who could be waited for.
        """
        if not added or not self.wants("relationship.level_changed"):
            return
        users = [user for user in added if user[1] != CANARY_USER]
        columns = [number for number, _ in users], [user_id for _, user_id in users]
        await connection.execute(_LOCK_LEVELS, *columns)
        rows = []
        totals = {(row["tenant"], row["user_id"]): row["score"] for row in await connection.fetch(_TOTALS, *columns)}
        for user in users:
            # A user whose last conversation was erased has no relationship any more.
            now = totals.get(user, 0)
            reached, before = level(now, self._weights), level(now - added[user], self._weights)
            if reached != before:
                rows.append((user, {"level": reached, "before": before, "score": now}))
        await self._append_of_users(connection, "relationship.level_changed", rows)

    async def append_erased(self, connection: Connection, tenant: Tenant, gone: Mapping[int, str]) -> None:
        """Append that these conversations of a tenant, ids by ``seq``, are erased; their rows must still be there."""
        if gone and self.wants("conversation.erased"):
            await connection.execute(_APPEND_ERASED, list(gone), list(gone.values()), tenant.number)
            self._appended()

    async def append_user_erased(self, connection: Connection, tenant: Tenant, user_id: str) -> None:
        """Append that this user of a tenant is erased."""
        if self.wants("user.erased"):
            await self._append_of_users(connection, "user.erased", [((tenant.number, user_id), {})])

    async def _append_of_users(
        self, connection: Connection, kind: EventType, rows: Sequence[tuple[UserKey, Mapping[str, Any]]]
    ) -> None:
        if rows:
            datas = [msgspec.json.encode(data).decode() for _, data in rows]
            numbers, ids = [number for (number, _), _ in rows], [user_id for (_, user_id), _ in rows]
            await connection.execute(_APPEND_OF_USERS, kind, ids, datas, numbers)
            self._appended()


NO_EVENTS = Outbox()
"""Where no type is chosen."""


def _score(found: Score) -> ScoreData:
    return ScoreData(value=found.value, breakdown=found.breakdown, weights_version=found.weights_version)


def _parts(stored: Mapping[PartName, StoredFinding]) -> dict[PartName, Mapping[str, object]]:
    default = {part.name: part.shown(stored[part.name]) for part in PARTS if part.name in stored}
    return default | {name: shown_answer(one.finding) for name, one in stored.items() if name not in default}


def _part(one: NewPart) -> dict[str, object]:
    default = next((part for part in PARTS if part.name == one.name), None)
    result = shown_answer(one.stored.finding) if default is None else default.shown(one.stored)
    new = {"new_memories": one.stored.new_memories} if one.name == "memories" else {}
    return {"part": one.name, "by": one.by, "result": result, **new}


_APPEND = f"""
INSERT INTO event (type, seq, conversation_id, user_id, bot_id, data, trace, tenant)
SELECT new.type, c.seq, c.conversation_id, c.user_id, c.bot_id, new.data, c.trace, c.tenant
FROM unnest($1::text[], $2::bigint[], $3::jsonb[]) WITH ORDINALITY AS new (type, seq, data, place)
JOIN conversation c ON c.seq = new.seq
WHERE c.user_id <> '{CANARY_USER}' ORDER BY place
"""
APPEND_ACCEPTED = f"""), events AS (
    INSERT INTO event (type, seq, conversation_id, user_id, bot_id, data$column$trace)
    SELECT 'conversation.accepted', seq, conversation_id, user_id, bot_id,
           jsonb_build_object('turns', sent.turns)$column$trace
    FROM fresh JOIN sent USING (seq) WHERE user_id <> '{CANARY_USER}'
"""
"""For accept, whose own statement appends the event of each new conversation, and has columns of the tenant and of the
trace, or not."""
_APPEND_OF_USERS = """
INSERT INTO event (type, user_id, data, tenant)
SELECT $1, user_id, data, tenant FROM unnest($2::text[], $3::jsonb[], $4::smallint[]) AS new (user_id, data, tenant)
"""
# Without its seq: what is erased by it leaves this one. Of one that has expired only the id is known.
_APPEND_ERASED = """
INSERT INTO event (type, conversation_id, user_id, bot_id, data, tenant)
SELECT 'conversation.erased', gone.conversation_id, c.user_id, c.bot_id, '{}'::jsonb, $3
FROM unnest($1::bigint[], $2::text[]) AS gone (seq, conversation_id) LEFT JOIN conversation c ON c.seq = gone.seq
ORDER BY gone.seq
"""
_LOCK_LEVELS = """
SELECT pg_advisory_xact_lock(key)
FROM (SELECT DISTINCT hashtextextended(user_id, 1 + tenant) AS key
      FROM unnest($1::smallint[], $2::text[]) AS users (tenant, user_id) ORDER BY key) AS sorted
"""
_TOTALS = """
SELECT tenant, user_id, sum(score)::bigint AS score
FROM relationship JOIN unnest($1::smallint[], $2::text[]) AS users (tenant, user_id) USING (tenant, user_id)
GROUP BY tenant, user_id ORDER BY tenant, user_id
"""
_EMPTY = "conversation_id = NULL, user_id = NULL, bot_id = NULL, data = NULL, trace = NULL"
ERASE_EVENTS = f"UPDATE event SET {_EMPTY} WHERE seq = ANY($1::bigint[])"
# In batches, as memories: a busy user of a week has thousands.
ERASED_EVENTS_AT_ONCE = 1000
"""So many events of a user become stubs in one transaction; where there were so many, there may be more."""
ERASE_USER_EVENTS = f"""
UPDATE event SET {_EMPTY} WHERE number = ANY(ARRAY(
    SELECT number FROM event WHERE user_id = $1 AND tenant = $2 AND at <= $3
        AND type NOT IN ('conversation.erased', 'user.erased')
    LIMIT {ERASED_EVENTS_AT_ONCE}))
"""
