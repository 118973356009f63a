"""What the reading routes read: one conversation, lists of them, a user's relationship and memories.

Open it to change a list or a filter. Rows are mappings of the columns in each query; the web layer makes answers of
them. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct, structs

from convo.conversation.identity import revision_hash
from convo.conversation.model import CANARY_USER, PartName
from convo.conversation.owed import DEFAULT_OWED, Owed
from convo.conversation.tenant import Reach
from convo.errors import Expired, NotFound
from convo.store.costs import read_costs
from convo.store.listing import NO_CANARY, SUMMARY, USERS_MAX, ListFilter, list_statements, users_statement
from convo.store.logs import LogStore, sizes_of
from convo.store.lookup import SEQ, absent, absent_revision, revision_of
from convo.store.outcomes import PARTS_OF_JOB, OutcomeDetails, PartRecord, read_parts, unpack_details
from convo.store.owed_sets import OwedSets
from convo.store.postgres import SINGLE, Connection, Postgres
from convo.store.reaching import in_tenant, memory_reached, reached
from convo.store.relationship_history import FoundHistory, HistoryPlace, read_history_page

ConversationRow = Mapping[str, Any]
T = TypeVar("T")


class FoundConversation(Struct, frozen=True, kw_only=True):
    """One conversation with its job (``row``) and its stored parts by name; ``details`` of a done one.

    ``costs`` are the rows of ``costs.read_costs``, None where they were not asked for.
    """

    row: ConversationRow
    parts: dict[PartName, PartRecord]
    details: OutcomeDetails | None
    owed: Owed = DEFAULT_OWED
    costs: Sequence[Mapping[str, Any]] | None = None


_RowsOfOne = tuple[ConversationRow, OutcomeDetails | None, str | None, Sequence[ConversationRow] | None]


class FoundPage(Struct, frozen=True, kw_only=True):
    """A page of conversations, and the ``seq`` below which the next one goes on; None behind the last page."""

    rows: Sequence[ConversationRow]
    next_before: int | None


class FoundRelationship(Struct, frozen=True, kw_only=True):
    """A page of a user's ``bots``; of all of them ``total_score``, ``total_conversations`` and ``newest_emotion``."""

    sums: ConversationRow
    bots: Sequence[ConversationRow]


class FoundLog(Struct, frozen=True, kw_only=True):
    """Of one log: its length as it is stored and as it was sent; ``row`` has its id, its hash and its times."""

    row: ConversationRow
    packed_bytes: int
    unpacked_bytes: int


class Reader:
    """Reads for the web layer, a pooled connection and a deadline each.

    ``default_has_indexes`` says whether those of ``tenant_indexes`` can be used.
    """

    def __init__(
        self,
        postgres: Postgres,
        log_store: LogStore,
        default_has_indexes: Callable[[], bool] = lambda: False,
        owed_sets: OwedSets | None = None,
    ) -> None:
        self._postgres = postgres
        self._log_store = log_store
        self._owed_sets = owed_sets or OwedSets()
        self._default_has_indexes = default_has_indexes

    async def one(
        self, reach: Reach, conversation_id: str, revision: int | None = None, *, costs: bool = False
    ) -> FoundConversation:
        """Read one conversation: its newest revision, or another one; with ``costs`` also what it has cost.

        Raises:
            NotFound: there is none of this id, or no such revision.
            Expired: its content is no longer stored.
        """

        async def body(connection: Connection) -> _RowsOfOne:
            row = await _found(connection, _ONE, reach, conversation_id, revision)
            cost_rows = await read_costs(connection, row["seq"]) if costs else None
            details = None if row["details"] is None else unpack_details(row["details"])
            number = row["owed"] if details is None else details.owed
            if not number:
                return row, details, None, cost_rows
            await self._owed_sets.load(connection, [number])
            return row, details, await connection.fetchval(_PART_JOBS, row["seq"]), cost_rows

        row, details, part_jobs, cost_rows = await self._postgres.run("db.read", body, begin=SINGLE)
        records = read_parts(row["parts"]) if details is None else details.parts
        return FoundConversation(
            row=row,
            parts={part.name: part for part in (*records, *read_parts(part_jobs))},
            details=details,
            owed=self._owed_sets.get(row["owed"] if details is None else details.owed),
            costs=cost_rows,
        )

    async def log_sizes(self, reach: Reach, conversation_id: str, revision: int | None = None) -> FoundLog:
        """Read how long one conversation's log is, and what belongs to it; as ``one``.

        Raises:
            NotFound: there is none of this id, or no such revision.
            Expired: its content is no longer stored, or its log alone.
        """

        async def body(connection: Connection) -> ConversationRow:
            return await _found(connection, _TIMES, reach, conversation_id, revision)

        row = await self._postgres.run("db.read", body, begin=SINGLE)
        if row["log_retired"]:
            raise Expired(f"the log of conversation {conversation_id!r} has expired: it is no longer stored")
        packed_bytes, unpacked_bytes = _there(sizes_of(row["packed_bytes"], row["log_head"]), conversation_id)
        return FoundLog(row=row, packed_bytes=packed_bytes, unpacked_bytes=unpacked_bytes)

    async def packed_log(self, found: FoundLog) -> bytes:
        """Read that log, still packed; ``logs.unpack_checked`` opens it.

        Raises:
            NotFound: it was erased meanwhile.
            LogsUnavailable: it lies in object storage, which cannot be reached now.
            WrongLog: what lies there is another log, or nothing.
        """
        return _there(await self._log_store.read(found.row["seq"]), found.row["conversation_id"])

    async def many(self, reach: Reach, wanted: ListFilter, limit: int) -> FoundPage:
        """Read up to ``limit`` conversations, newest first, and where the next page begins; as ``listing``."""
        if wanted.bot_id is not None and not reach.has_bot(wanted.bot_id):
            return FoundPage(rows=(), next_before=None)
        has_indexes = self._default_has_indexes()

        async def body(connection: Connection) -> FoundPage:
            found = await _with_users(connection, reach, wanted, default_has_indexes=has_indexes)
            statements = list_statements(reach, found, limit + 1, default_has_indexes=has_indexes)
            rows = await connection.fetch(statements.page, *statements.page_values)
            if len(rows) > limit:
                return FoundPage(rows=rows[:limit], next_before=rows[limit - 1]["seq"])
            last = await connection.fetchval(statements.last, *statements.last_values)
            return FoundPage(rows=rows, next_before=last)

        return await self._postgres.run("db.list", body, begin=SINGLE)

    async def relationship(self, reach: Reach, user_id: str, *, before: int | None, limit: int) -> FoundRelationship:
        """Read a user's relationship: its sums, and up to ``limit`` bots, the one with the newest conversation first.

        Only bots with a smaller ``last_seq`` than ``before`` are among them.

        Raises:
            NotFound: nothing of this user is stored.
        """
        number, some = reach.values
        bots = [] if some is None else [some]

        async def body(connection: Connection) -> FoundRelationship:
            rows = await connection.fetch(_RELATIONSHIP[bool(bots)], user_id, before, limit, number, *bots)
            if not rows[0]["bots"]:
                await _unless_unknown(connection, reach, user_id, ())
            return FoundRelationship(sums=rows[0], bots=[row for row in rows if row["bot_id"] is not None])

        return await self._postgres.run("db.read", body, begin=SINGLE)

    async def history(
        self, reach: Reach, user_id: str, bot_id: str | None, *, place: HistoryPlace | None, limit: int
    ) -> FoundHistory:
        """Read a page of how a user's score came about; as ``read_history_page``.

        Raises:
            NotFound: nothing of this user is stored.
        """
        if bot_id is not None and not reach.has_bot(bot_id):
            return FoundHistory(points=(), next_place=None)

        async def body(connection: Connection) -> FoundHistory:
            found = await read_history_page(connection, reach, user_id, bot_id=bot_id, place=place, limit=limit)
            if not found.points and place is None:
                await _unless_unknown(connection, reach, user_id, ())
            return found

        return await self._postgres.run("db.read", body, begin=SINGLE)

    async def memories(
        self, reach: Reach, user_id: str, *, before: int | None, limit: int
    ) -> Sequence[ConversationRow]:
        """Read up to ``limit`` memories of a user, newest first, of those with a ``memory_seq`` below ``before``.

        A memory belongs to no bot: whoever reaches some bots only sees those that conversations of these told first.

        Raises:
            NotFound: nothing of this user is stored.
        """

        async def body(connection: Connection) -> Sequence[ConversationRow]:
            rows = await connection.fetch(_MEMORIES, user_id, before, limit, *reach.values)
            return await _unless_unknown(connection, reach, user_id, rows)

        return await self._postgres.run("db.read", body, begin=SINGLE)

    async def ping(self) -> None:
        """Run a query that reads nothing, to see that the database answers."""

        async def body(connection: Connection) -> None:
            await connection.fetchval("SELECT 1")

        await self._postgres.run("db.ping", body, begin=SINGLE)


async def _with_users(
    connection: Connection, reach: Reach, wanted: ListFilter, *, default_has_indexes: bool
) -> ListFilter:
    """Add the users whose ids begin so, where a list is of such and they are few."""
    if wanted.user_prefix is None or wanted.user_id is not None:
        return wanted
    statement, values = users_statement(reach, wanted.user_prefix, default_has_indexes=default_has_indexes)
    users = [row["user_id"] for row in await connection.fetch(statement, *values)]
    return wanted if len(users) > USERS_MAX else structs.replace(wanted, users=users)


async def _found(
    connection: Connection, statement: str, reach: Reach, conversation_id: str, revision: int | None
) -> ConversationRow:
    """Find a row with the notes of its receipt by the hash of the id, or by that of the revision."""
    hashed = reach.tenant.id_hash(conversation_id)
    row = None
    if revision is not None:
        row = await connection.fetchrow(statement, revision_hash(hashed, revision), *reach.values)
    if row is None:
        row = await connection.fetchrow(statement, hashed, *reach.values)
    if row is None:
        raise await absent(connection, reach, conversation_id)
    if revision not in (None, revision_of(row["notes"])):
        raise await absent_revision(connection, reach, conversation_id, revision)
    return row


def _there(found: T | None, conversation_id: str) -> T:
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id!r}")
    return found


async def _unless_unknown(
    connection: Connection, reach: Reach, user_id: str, rows: Sequence[ConversationRow]
) -> Sequence[ConversationRow]:
    """Return the rows; where there are none, look whether anything of the user is stored.

    Raises:
        NotFound: nothing is. A misspelt id must not read as a stranger.
    """
    if not rows and not await connection.fetch(_ANY_OF_USER, user_id, *reach.values):
        raise NotFound(f"nothing is stored of a user {user_id!r}")
    return rows


_ONE = f"""
SELECT {SUMMARY}, c.bot_name, c.bot_type, c.agent_tag, c.language, c.timezone, c.metadata, r.digest, c.exchanges,
       r.notes, {LogStore.RETIRED}, job.waits_for, job.parked_since, job.details, {PARTS_OF_JOB} AS parts,
       CASE WHEN job.state <> 'done' THEN (SELECT owed FROM job AS open WHERE open.seq = c.seq) END AS owed
FROM receipt r JOIN conversation c USING (seq) JOIN every_job AS job USING (seq)
WHERE r.id_hash = $1 AND {reached("c", 2)}
"""
_PART_JOBS = """
SELECT json_agg(json_build_object('name', name, 'state', state, 'made_by', coalesce(made_by, ''), 'result', result,
                                  'error', error, 'updated_at', updated_at))
FROM part_job WHERE seq = $1
"""
_TIMES = f"""
SELECT seq, conversation_id, user_id, log_hash, started_at, ended_at, {LogStore.RETIRED}, {LogStore.SIZES},
       (SELECT notes FROM receipt r WHERE r.seq = c.seq) AS notes
FROM conversation AS c WHERE seq = {SEQ} AND {reached("c", 2)}
"""
# One statement, so that sums and bots are of one moment; a row with the sums also where the page is empty. Each part
# reads the index relationship_newest_bots by itself: what they would share is all of the user's bots. The second form
# is for whoever reaches some bots only: it looks at each row for its bot, which the index does not have.
_OF_USER = f"FROM relationship c WHERE user_id = $1 AND {NO_CANARY} AND {in_tenant('c', 4)}"
_RELATIONSHIP = tuple(
    f"""
WITH sums AS (
    SELECT count(*) AS bots, coalesce(sum(score), 0)::bigint AS total_score,
           coalesce(sum(conversations), 0)::bigint AS total_conversations {rows}
), page AS (
    SELECT bot_id, score, conversations, last_emotion, last_seq {rows}
        AND last_seq < coalesce($2::bigint, {2**63 - 1}) ORDER BY last_seq DESC LIMIT $3
)
SELECT sums.*, (SELECT last_emotion {rows} ORDER BY last_seq DESC LIMIT 1) AS newest_emotion, page.*
FROM sums LEFT JOIN page ON true ORDER BY page.last_seq DESC
"""
    for rows in (_OF_USER, f"{_OF_USER} AND c.bot_id = ANY($5::text[])")
)
_MEMORIES = f"""
SELECT m.memory_seq, m.text, m.kind, m.first_seen_at, c.conversation_id
FROM memory m LEFT JOIN conversation c USING (seq)
WHERE m.user_id = $1 AND NOT m.deleted AND {NO_CANARY.replace("c.", "m.")} AND ($2::bigint IS NULL OR m.memory_seq < $2)
  AND {memory_reached(4)}
ORDER BY m.memory_seq DESC LIMIT $3
"""
# A relationship and a memory stay when retention has removed the conversations.
_ANY_OF_USER = f"""
(SELECT 1 AS stored FROM conversation c WHERE user_id = $1 AND {NO_CANARY} AND {reached("c", 2)} LIMIT 1)
UNION ALL (SELECT 1 FROM relationship c WHERE user_id = $1 AND {NO_CANARY} AND {reached("c", 2)} LIMIT 1)
UNION ALL (SELECT 1 FROM memory m LEFT JOIN conversation c USING (seq)
           WHERE m.user_id = $1 AND NOT deleted AND m.user_id <> '{CANARY_USER}' AND {memory_reached(2)} LIMIT 1)
"""
