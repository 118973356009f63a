"""Re-runs of one conversation, which somebody has asked for: how they are begun beside those of many, and how they end.

Open it to change when one conversation may be analysed again. Such a re-run has the sample 0 and a candidate from the
start, so it looks at nothing else. It gives way to a re-run of many (``store/jobs/reruns.py``): one re-run of a part is
open at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from convo.conversation.model import PartName
from convo.conversation.owed import Owed
from convo.conversation.tenant import Reach
from convo.errors import Expired, NotAnalysed, RerunOpen
from convo.store import audit_log
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.jobs.reruns import ADD_CANDIDATES, RERUN_FIELDS, Rerun
from convo.store.logs import LogStore
from convo.store.lookup import SEQ, absent
from convo.store.outcomes import unpack_details
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import reached


class AnalysedConversation(Struct, frozen=True, kw_only=True):
    """A conversation that can be analysed again, and what it is owed."""

    seq: int
    conversation_id: str
    user_id: str
    owed: Owed


class PartAgain(Struct, frozen=True, kw_only=True):
    """One part that is found again: ``owed`` is the set with its declaration, ``version`` that of what is asked."""

    part: PartName
    version: str
    owed: Owed


class SingleReruns:
    """The tables of re-runs, for one conversation at a time.

    ``stale_seconds``: one that was begun longer ago is nobody's any more, as its process ended meanwhile.
    """

    def __init__(self, postgres: Postgres, owed_sets: OwedSets, stale_seconds: float) -> None:
        self._postgres = postgres
        self._owed_sets = owed_sets
        self._stale_seconds = stale_seconds

    async def find(self, reach: Reach, conversation_id: str) -> AnalysedConversation:
        """Find a conversation that can be analysed again.

        Raises:
            NotFound, Erased: there is none of this id.
            Expired: its content is no longer stored, or its log alone.
            NotAnalysed: its analysis has not ended well.
        """

        async def body(connection: Connection) -> AnalysedConversation:
            row = await connection.fetchrow(_FIND, reach.tenant.id_hash(conversation_id), *reach.values)
            if row is None:
                raise await absent(connection, reach, conversation_id)
            if row["state"] != "done":
                raise NotAnalysed(
                    f"conversation {conversation_id!r} is {row['state']}; only what is done can be analysed again (a"
                    " dead letter can be retried)"
                )
            if row["log_retired"]:
                raise Expired(f"the log of conversation {conversation_id!r} has expired: it is no longer stored")
            number = unpack_details(row["details"]).owed
            await self._owed_sets.load(connection, [number])
            return AnalysedConversation(
                seq=row["seq"],
                conversation_id=conversation_id,
                user_id=row["user_id"],
                owed=self._owed_sets.get(number),
            )

        return await self._postgres.run("db.read", body, begin=RELAXED)

    async def begin(
        self, found: AnalysedConversation, parts: Sequence[PartAgain], reach: Reach, caller: Caller
    ) -> list[Rerun]:
        """Begin a re-run of each part for one conversation, or of none; note who did it.

        Raises:
            RerunOpen: one of a part is open already.
        """

        async def body(connection: Connection) -> list[Rerun]:
            await self._owed_sets.store(connection, [one.owed for one in parts])
            begun = [await self._begin(connection, found.seq, one) for one in parts]
            target = AuditTarget(kind="conversation", id=found.conversation_id, user_id=found.user_id)
            detail = {"parts": [one.part for one in parts]}
            entry = AuditEntry(action="reanalyse", tenant=reach.tenant, caller=caller, target=target, detail=detail)
            await audit_log.append(connection, entry)
            return begun

        return await self._postgres.run("db.reruns", body)

    async def _begin(self, connection: Connection, seq: int, one: PartAgain) -> Rerun:
        await connection.execute(_END_STALE, one.part, self._stale_seconds)
        row = await connection.fetchrow(_BEGIN, one.part, one.version, one.owed.number, seq)
        if row is None:
            raise RerunOpen(
                f"a re-run of the part {one.part} is under way; wait for its end, or pause it and let it end"
            )
        await connection.execute(ADD_CANDIDATES, [seq], one.part, row["number"])
        return Rerun(**dict(row))

    async def end(self, rerun: Rerun) -> str | None:
        """End a re-run, and forget it; return why nothing was found, None where something was."""

        async def body(connection: Connection) -> str | None:
            reason: str | None = await connection.fetchval(_FAILURE, rerun.number)
            await connection.execute(_FORGET, [rerun.number])
            return reason

        return await self._postgres.run("db.reruns", body)


_FIND = f"""
SELECT c.seq, c.user_id, job.state, job.details, {LogStore.RETIRED}
FROM conversation c JOIN every_job AS job USING (seq) WHERE seq = {SEQ} AND {reached("c", 2)}
"""
# rerun_open: one row at most.
_END_STALE = """
UPDATE rerun SET state = 'ended'
WHERE part = $1 AND state <> 'ended' AND sample = 0 AND made_at < convo_now() - make_interval(secs => $2)
"""
_BEGIN = f"""
INSERT INTO rerun (part, version, owed, sample, rate, after_seq, until_seq, total, looked_at)
VALUES ($1, $2, $3, 0, 0, $4, $4, 1, 1) ON CONFLICT DO NOTHING RETURNING {RERUN_FIELDS}
"""
# candidate_of: its one row.
_FAILURE = """
SELECT coalesce(error, 'it was not begun in time') FROM candidate
WHERE rerun = $1 AND state IN ('waiting', 'failed') LIMIT 1
"""
_FORGET = "DELETE FROM rerun WHERE number = ANY($1::bigint[]) AND sample = 0"
