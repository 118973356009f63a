"""Revisions: a longer log of a conversation that is stored becomes a new ``seq`` of the same id.

Open it to change what a revision is, or what becomes of the one before it. It is what the committer asks when an id is
taken by other content (``store/intake.py``).

**What it is.** The log of the newest revision has to begin the new one, item by item; user and bot stay the same. That
is decided by what was stored in ``log_prefix`` at its accept, and no stored log is read. The other fields may differ.

**Receipts.** Each revision has one of its own. The newest has the hash of the id, so every statement that looks for an
id finds the newest. An older one has a hash made of that and of its number. The number stands in the receipt's notes.

**Jobs.** Each revision has one of its own. One that was not done when the next revision came is ``superseded``: whoever
works on it has lost the lease. Settling a revision takes the score that counted until then out of the relationship
(``conversation.replaces``). So both move by the difference, once, and a revision that dies changes nothing.

**Memories** that the earlier ones were the first to bring count for the new one: they are the same conversation's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct, structs

from convo.conversation import digest as digests
from convo.conversation.identity import revision_hash
from convo.conversation.log_prefix import begins_with
from convo.errors import Conflict, ConvoError, TransactionLost, Unavailable
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import FairKey, IntakeSettings
from convo.store import ledger, outcomes
from convo.store.erasures import meet_list
from convo.store.intake import (
    ERASE_PREFIXES,
    Accept,
    Owe,
    Stored,
    known_receipt,
    make_inserts,
    new_receipt,
    refused,
)
from convo.store.job_sql import NOT_PARKED, UNLEASED
from convo.store.jobs.memories import carry_over
from convo.store.jobs.tickets import ERASE_TICKETS
from convo.store.logs import CommittedLog, unpack
from convo.store.lookup import OF_HASHES, notes_of, older_hashes, revision_of
from convo.store.migrations import number_of
from convo.store.outbox import NO_EVENTS, NewEvent, Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, DedicatedConnection
from convo.store.process_programs import older_processes

_Row = Mapping[str, Any]
_Outcome = Stored | ConvoError
# By ``Accept.own_id``: what was sent, and the error that the committer has for it.
_Conflicts = Mapping[str, tuple[Accept, Conflict]]

# Another process may store a revision of the same id between the look and the transaction.
_LOOKS_MAX = 4
# So many packed bytes are unpacked and compared in the loop; a thread does more.
_OFFLOAD_BYTES = 24 << 10
# The last migration before which a program takes ids of conversations for unique.
_IDS_UNIQUE_UNTIL = 23


class _Newest(Struct, frozen=True, kw_only=True):
    """What is stored of an id: the newest revision, and receipts of those before it, newest first, if they matter."""

    row: _Row
    older: Sequence[_Row] = ()

    @property
    def number(self) -> int:
        return revision_of(self.row["notes"])


class _Next(Struct, frozen=True, kw_only=True):
    """A revision that is to be stored behind ``newest``."""

    accept: Accept
    hashed: bytes
    newest: _Newest

    @property
    def seq_before(self) -> int:
        seq: int = self.newest.row["seq"]
        return seq


class Revisions:
    """Decides conflicts: replays of older revisions, and new revisions where ``intake.revisions`` says so.

    ``superseded`` is called with the jobs that nobody is to work on any more, ``committed`` with the new logs.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (how it writes, and whom it reports to)
        self,
        settings: IntakeSettings,
        fair_key: FairKey,
        unit_seconds: float,
        committed: Callable[[list[CommittedLog]], None],
        superseded: Callable[[Sequence[int]], None] = lambda _: None,
        outbox: Outbox = NO_EVENTS,
        owe: Owe | None = None,
        owed_sets: OwedSets | None = None,
    ) -> None:
        self.stores = settings.revisions
        self._inserts = make_inserts(fair_key, owe, owed_sets or OwedSets(), revisions=True)
        self._unit_seconds = unit_seconds
        self._committed = committed
        self._superseded = superseded
        self._outbox = outbox

    def concerns(self, notes: bytes | None) -> bool:
        """Return whether a conflict with the receipt of these notes can be anything else."""
        return self.stores or revision_of(notes) > 1

    async def resolve(self, dedicated: DedicatedConnection, conflicts: _Conflicts) -> dict[str, _Outcome]:
        """Return what becomes of each of these.

        Raises:
            DatabaseUnavailable, DeadlineExceeded, TransactionLost: nothing is known to be stored.
        """
        found: dict[str, _Outcome] = {}
        for _ in range(_LOOKS_MAX):
            waiting = {own_id: one for own_id, one in conflicts.items() if own_id not in found}
            if not waiting:
                return found
            nexts = await self._look(dedicated, waiting, found)
            if nexts:
                found |= await self._store(dedicated, nexts)
        raise TransactionLost("other revisions of a conversation were stored at the same moment")

    async def _look(
        self, dedicated: DedicatedConnection, waiting: _Conflicts, outcomes_: dict[str, _Outcome]
    ) -> list[_Next]:
        """Return those that are revisions; of all others the outcome is known now."""
        accepts = [accept for accept, _ in waiting.values()]
        found = await dedicated.run("db.newest", partial(_read, accepts=accepts), begin=RELAXED)
        nexts: list[_Next] = []
        for own_id, (accept, conflict) in waiting.items():
            hashed = accept.tenant.id_hash(accept.ended.conversation_id)
            judged = self._judged(accept, conflict, found.get(hashed))
            if judged is None:
                nexts.append(_Next(accept=accept, hashed=hashed, newest=found[hashed]))
            else:
                outcomes_[own_id] = judged
        compared = await self._compared(nexts) if nexts else []
        for one, begins in zip(nexts, compared, strict=True):
            if begins is not True:
                outcomes_[one.accept.own_id] = begins or _conflict(one.accept, _NO_CONTINUATION)
        return [one for one, begins in zip(nexts, compared, strict=True) if begins is True]

    def _judged(self, accept: Accept, conflict: Conflict, newest: _Newest | None) -> _Outcome | None:
        """Return what is known before the logs are compared, None where only they can say it."""
        if newest is None:
            return TransactionLost("a conversation was deleted while it was sent again")
        try:
            replayed = _replayed(accept, newest)
        except Unavailable as error:
            return error
        if replayed is not None or not self.stores:
            return replayed or conflict
        reason = _refusal(accept, newest)
        return _conflict(accept, reason) if reason else None

    async def _compared(self, nexts: Sequence[_Next]) -> list[bool | Unavailable]:
        if sum(len(one.accept.body) for one in nexts) <= _OFFLOAD_BYTES:
            return _compare(nexts)
        with deadline("intake.compare", self._unit_seconds):
            return await threads.run_in_thread(_compare, nexts, limiter=threads.REQUESTS)

    async def _store(self, dedicated: DedicatedConnection, nexts: Sequence[_Next]) -> dict[str, _Outcome]:
        """Store revisions, sorted by their ids as accepts are; those of which another one came first are left out."""
        fenced: list[int] = []
        # The first ids of two processes are the same ones, whatever batches they are in.
        ordered = sorted(nexts, key=lambda one: one.accept.own_id)

        async def body(connection: Connection) -> dict[str, _Outcome]:
            fenced.clear()
            return await self._revise(connection, ordered, fenced)

        stored = await dedicated.run("db.revise", body)
        self._committed(
            [
                CommittedLog(seq=found.seq, digest=found.digest, body=one.accept.body)
                for one in ordered
                if isinstance(found := stored.get(one.accept.own_id), Stored)
            ]
        )
        self._superseded(fenced)
        return stored

    async def _revise(self, connection: Connection, nexts: Sequence[_Next], fenced: list[int]) -> dict[str, _Outcome]:
        # Before any view of the database is taken, as an accept does: an erasure waits for those under way.
        await connection.execute("LOCK TABLE receipt IN ROW EXCLUSIVE MODE")
        await _check_programs(connection)
        key = await meet_list(connection)
        outcomes_: dict[str, _Outcome] = {}
        if key is not None:
            hmacs = [key.hmac_of("conversation", one.accept.own_id) for one in nexts]
            users = [key.hmac_of("user", one.accept.tenant.own(one.accept.ended.user_id)) for one in nexts]
            seqs = [one.seq_before for one in nexts]
            gone = {row["seq"] for row in await connection.fetch(_ERASED, seqs, hmacs, users)}
            outcomes_ = {one.accept.own_id: refused(one.accept) for one in nexts if one.seq_before in gone}
        await outcomes.lock_jobs(connection, [one.seq_before for one in nexts])
        left = [one for one in nexts if one.accept.own_id not in outcomes_]
        hashes = [one.hashed for one in left]
        older = [revision_hash(one.hashed, one.newest.number) for one in left]
        renamed = await connection.fetch(_RENAME, [one.seq_before for one in left], hashes, older)
        moved = {row["seq"] for row in renamed}
        left = [one for one in left if one.seq_before in moved]
        return outcomes_ | (await self._insert_behind(connection, left, fenced) if left else {})

    async def _insert_behind(
        self, connection: Connection, nexts: Sequence[_Next], fenced: list[int]
    ) -> dict[str, _Outcome]:
        """Insert revisions whose ids have no receipt now, and mark those before them."""
        open_jobs = await _fence(connection, [one.seq_before for one in nexts])
        fenced += open_jobs
        accepts = [structs.replace(one.accept, notes=_notes_of(one)) for one in nexts]
        key = await meet_list(connection)
        # The sets that they are owed were stored when they met their ids taken.
        rows = await self._inserts.run(connection, key, accepts, [one.hashed for one in nexts])
        if len(rows) < len(nexts):
            raise TransactionLost("a conversation was erased while a revision of it was stored")
        by_hash = {row["id_hash"]: row for row in rows}
        fresh = [new_receipt(one, by_hash[next_.hashed]) for one, next_ in zip(accepts, nexts, strict=True)]
        await _mark(connection, nexts, fresh, open_jobs)
        await carry_over(
            connection,
            [(one.accept.tenant, one.accept.ended.user_id, one.seq_before) for one in nexts],
            [one.seq for one in fresh],
        )
        await self._outbox.append(
            connection,
            [
                NewEvent(
                    type="conversation.revised",
                    seq=one.seq,
                    data={"turns": one.turns, "revision": next_.newest.number + 1},
                )
                for one, next_ in zip(fresh, nexts, strict=True)
            ],
        )
        return {one.accept.own_id: found for one, found in zip(nexts, fresh, strict=True)}


_NO_CONTINUATION = "its log does not begin with the stored one"


def _conflict(accept: Accept, reason: str) -> Conflict:
    return Conflict(
        f"conversation_id {accept.ended.conversation_id!r} is taken, and this is no revision of it: {reason}; send it"
        " under an id of its own"
    )


def _replayed(accept: Accept, newest: _Newest) -> Stored | None:
    for row in (newest.row, *newest.older):
        stored = known_receipt(accept, row)
        if stored.digest == accept.digest or digests.same(stored.digest, accept.digest, accept.ended):
            return stored
    return None


def _refusal(accept: Accept, newest: _Newest) -> str:
    """Return why a body cannot be a revision, whatever its log is; empty where it can."""
    row = newest.row
    if row["state"] != "":
        return "what is stored has expired"
    if row["items"] is None:
        return "it was stored while intake.revisions was false"
    if (row["user_id"], row["bot_id"]) != (accept.ended.user_id, accept.ended.bot_id):
        return "it is of another user or bot"
    return "" if accept.items >= row["items"] else _NO_CONTINUATION


def _compare(nexts: Sequence[_Next]) -> list[bool | Unavailable]:
    return [_begins(one) for one in nexts]


def _begins(one: _Next) -> bool | Unavailable:
    row = one.newest.row
    try:
        return begins_with(unpack(one.accept.body), row["items"], row["log_digest"])
    except Unavailable as error:
        return error


def _notes_of(one: _Next) -> bytes:
    return msgspec.json.encode(structs.replace(notes_of(one.accept.notes), revision=one.newest.number + 1))


async def _read(connection: Connection, accepts: Sequence[Accept]) -> dict[bytes, _Newest]:
    """Read what is stored of the ids of these, by their hashes."""
    items = {one.tenant.id_hash(one.ended.conversation_id): one.items for one in accepts}
    found = {row["id_hash"]: _Newest(row=row) for row in await connection.fetch(_NEWEST, list(items))}
    of_older: dict[bytes, bytes] = {}
    for hashed, newest in found.items():
        # What has more items than the newest is none of those before it. Most revisions have.
        if newest.row["items"] is None or items[hashed] <= newest.row["items"]:
            of_older |= dict.fromkeys(older_hashes(hashed, newest.number), hashed)
    older: dict[bytes, list[_Row]] = {hashed: [] for hashed in found}
    for row in await connection.fetch(OF_HASHES, list(of_older)) if of_older else ():
        older[of_older[row["id_hash"]]].append(row)
    return {hashed: structs.replace(newest, older=older[hashed]) for hashed, newest in found.items()}


async def _check_programs(connection: Connection) -> None:
    """Pass unless a program is at work that knows no revisions.

    Raises:
        Unavailable: one is, or may be.
    """
    alone = await connection.fetchval(_KNOWN_LEAST) >= _IDS_UNIQUE_UNTIL
    if not alone or await older_processes(connection, number_of("revisions")):
        raise Unavailable(
            "a program is at work that knows no revisions, and would erase the newest one alone: an older version of"
            " convo; stop it. The warnings of /readyz (MIGRATION_WAITS) name it"
        )


async def _fence(connection: Connection, seqs: Sequence[int]) -> list[int]:
    """End the jobs of these that are not done, which are locked; return which those are."""
    jobs = {row["seq"]: row["state"] for row in await connection.fetch(_JOBS, seqs)}
    if jobs:
        await connection.execute(_SUPERSEDE, list(jobs))
        await connection.execute(ERASE_TICKETS, list(jobs))
        await ledger.book(connection, "dead", [seq for seq, state in jobs.items() if state == "dead"], -1)
        await ledger.book(connection, "superseded", list(jobs))
    return list(jobs)


async def _mark(
    connection: Connection, nexts: Sequence[_Next], fresh: Sequence[Stored], open_jobs: Sequence[int]
) -> None:
    """Note which score each revision takes the place of, and at those before it that it is the newest."""
    marks: list[tuple[int, int | None, int | None]] = []
    for one, new in zip(nexts, fresh, strict=True):
        before = one.seq_before
        counts = one.newest.row["replaces"] or 0 if before in open_jobs else before
        marks.append((new.seq, counts, None))
        marks += [(seq, None, new.seq) for seq in {before, counts} if seq]
    await connection.execute(_MARK, *([mark[at] for mark in marks] for at in range(3)))
    await connection.execute(ERASE_PREFIXES, [one.seq_before for one in nexts])
    await connection.execute(_END_PART_JOBS, [one.seq_before for one in nexts])


_NEWEST = """
SELECT r.seq, r.id_hash, r.digest, r.turns, r.received_at, r.notes, r.state::text AS state, p.items, p.log_digest,
       c.user_id, c.bot_id, c.replaces
FROM receipt r LEFT JOIN log_prefix p USING (seq) LEFT JOIN conversation c USING (seq)
WHERE r.id_hash = ANY($1::bytea[])
"""
_KNOWN_LEAST = "SELECT max(version) FROM schema_version"
# What a user erases besides: all that had been received or had ended by then. A longer log has those words, too.
_ERASED = """
SELECT c.seq FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS sent (seq, id_hmac, user_hmac)
JOIN conversation c ON c.seq = sent.seq
WHERE (SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.id_hmac) IS NOT NULL
   OR (SELECT begun_at FROM erasure WHERE erasure.id_hmac = sent.user_hmac) >= least(c.ended_at, c.received_at)
"""
_RENAME = """
UPDATE receipt SET id_hash = moved.older
FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS moved (seq, id_hash, older)
WHERE receipt.seq = moved.seq AND receipt.id_hash = moved.id_hash AND receipt.state = ''
RETURNING receipt.seq
"""
_JOBS = "SELECT seq, state FROM job WHERE seq = ANY($1::bigint[])"
_SUPERSEDE = f"""
UPDATE job SET state = 'superseded', {UNLEASED}, delayed = false, {NOT_PARKED}, ended_at = NULL, reviewed_at = NULL
WHERE seq = ANY($1::bigint[])
"""
_END_PART_JOBS = "DELETE FROM part_job WHERE seq = ANY($1::bigint[]) AND state = 'waiting'"
_MARK = """
UPDATE conversation SET replaces = coalesce(mark.replaces, conversation.replaces),
                        revised_by = coalesce(mark.revised_by, conversation.revised_by)
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS mark (seq, replaces, revised_by)
WHERE conversation.seq = mark.seq
"""
