"""The committer: it stores accepted conversations, many of them in one transaction.

Open it to change what an accept writes. It knows rows and digests, and no requests. Whether an id is taken is said by
its receipt alone, which stays when the conversation has gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol, cast

import trio
from msgspec import UNSET, Struct, structs

from convo.analysis.declared import Declarations, Facts
from convo.conversation import digest as digests
from convo.conversation.model import CANARY_USER, ConversationEnded
from convo.conversation.owed import Owed
from convo.conversation.tenant import DEFAULT, Tenant
from convo.errors import Conflict, ConvoError, DatabaseUnavailable, Erased, TransactionLost, Unavailable
from convo.observe import log_records, metrics
from convo.settings import FairKey, IntakeSettings
from convo.store.erasures import NOT_REFUSED, erased_among, meet_list, met_list
from convo.store.group import Group, Submitted
from convo.store.installation_key import InstallationKey
from convo.store.ledger import DAY
from convo.store.logs import CommittedLog, LogStore
from convo.store.lookup import STATES
from convo.store.outbox import APPEND_ACCEPTED, NO_EVENTS, Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import SINGLE, Connection, DedicatedConnection
from convo.store.reaching import FAIR_PREFIX
from convo.store.receipts import GivenReceipts
from convo.store.sessions import CONFIRM

SESSION_SETTINGS = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # A batch of large bodies is sorted and joined in memory.
    "work_mem": "32MB",
}
"""The session of the committer's connection, whatever the server's defaults: its statements commit themselves."""

# SQLSTATEs of a server that answers but stores nothing: read-only, disk full, its files cannot be read or written.
_STORES_NOTHING = ("25006", "53100", "58")
# After such a failure this process is not ready for so long, or until a batch is committed. Then the next one tries.
_FAILING_SECONDS = 10.0
# A lost connection or a restart of the server takes less, and is no alert.
_FAILING_ALERT_SECONDS = 2.0
_SLACK_SECONDS = 0.5


class Accept(Struct, frozen=True, kw_only=True, gc=False):
    """One conversation that is to be stored: as sent, with what the accept path found out about it.

    ``body`` is the log as it was sent, compressed (zstd); ``log_hash`` is its ``logs.hash_of``. Times the client left
    open are None: the database's clock sets them. ``notes`` is the JSON of ``ReceiptNotes``, None where there are none.
    ``items`` and ``log_digest`` are what a revision is known by (``store/log_prefix.py``), where there can be one.
    ``trace`` is the stored context of the trace that it was sent in, None where nothing is recorded of it.
    """

    ended: ConversationEnded
    digest: str
    turns: int
    exchanges: int
    started_at: datetime | None
    ended_at: datetime | None
    body: bytes
    log_hash: bytes
    notes: bytes | None
    tenant: Tenant = DEFAULT
    items: int = 0
    log_digest: bytes = b""
    user_turns: int = 0
    trace: str | None = None

    @property
    def own_id(self) -> str:
        """Its id, apart from the same id of another tenant."""
        return self.tenant.own(self.ended.conversation_id)


class Stored(Struct, frozen=True, kw_only=True, gc=False):
    """The receipt of an accepted conversation; ``replayed`` when it was there before this request.

    ``state`` is empty while the conversation is stored, ``expired`` when its content has been retired.
    """

    seq: int
    conversation_id: str
    digest: str
    turns: int
    received_at: datetime
    notes: bytes | None
    replayed: bool
    state: str = ""


class Committer:
    """Commits conversations in groups on a connection of its own.

    ``committed`` is called after each commit with the packed log of every new conversation; ``receipts`` notes what is
    acknowledged. ``wait_seconds`` is the longest wait for an outcome, as long as no row of the batch has to be refused.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (where it writes, how, and whom it reports to)
        self,
        dedicated: DedicatedConnection,
        settings: IntakeSettings,
        fair_key: FairKey,
        unit_seconds: float,
        committed: Callable[[list[CommittedLog]], None],
        receipts: GivenReceipts,
        outbox: Outbox = NO_EVENTS,
        owe: Owe | None = None,
        owed_sets: OwedSets | None = None,
        revisions: DecidesConflicts | None = None,
    ) -> None:
        """Commit on ``dedicated``; ``owe`` says what a conversation is owed, or is None for the default parts.

        Without ``revisions`` each conflict is one.
        """
        self._dedicated = dedicated
        events, stores = outbox.wants("conversation.accepted"), settings.revisions
        self._inserts = make_inserts(fair_key, owe, owed_sets or OwedSets(), events=events, revisions=stores)
        self._revisions = revisions
        self._committed = committed
        self._receipts = receipts
        self._failed: tuple[float, type[DatabaseUnavailable], str] | None = None
        self._failing_since: float | None = None
        # The batch under way, and then the one of this conversation; each may have revisions besides.
        self.wait_seconds = (4 if stores else 2) * unit_seconds + _SLACK_SECONDS
        self._group: Group[Accept, Stored] = Group(
            self._commit,
            rows_max=settings.batch_rows,
            bytes_max=settings.batch_bytes,
            unit_seconds=unit_seconds,
            item_bytes=lambda accept: len(accept.body),
        )

    def accept(self, accept: Accept, until: float | None = None) -> Awaitable[Stored]:
        """Store one conversation, its log and its job durably, or find that it is stored already.

        ``until`` is when the request's time is over, by ``trio.current_time()``, where the caller knows it.

        Raises:
            Conflict: the id is taken by other content.
            Erased: the conversation was erased, or its user since it ended.
            BadRow: the database refuses this very content.
            DatabaseUnavailable, DeadlineExceeded, Draining: nothing is known to be stored; send it again.
        """
        return self._group.submit(accept, until)

    def enqueue(self, accept: Accept, until: float, then: Callable[[], None]) -> Submitted[Accept, Stored]:
        """Have one conversation stored; ``outcome`` of what is returned waits for it, and raises as ``accept``.

        ``then`` is called when there is an outcome.

        Raises:
            Draining: the process stops.
        """
        return self._group.enqueue(accept, until, then)

    def check(self) -> None:
        """Pass unless the last batch failed a moment ago because the database, although it answers, stores nothing.

        Raises:
            DatabaseUnavailable: what that batch failed with.
        """
        if self._failed is not None:
            at, kind, detail = self._failed
            if trio.current_time() < at + _FAILING_SECONDS:
                raise kind(detail)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batch after batch until cancelled."""
        try:
            await self._group.run(task_status=task_status)
        finally:
            await self._dedicated.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _commit(self, batch: Sequence[Accept]) -> list[Stored | ConvoError]:
        # The first item of an id makes the receipt. Its digest tells what the others are: replays or conflicts.
        own_ids = [accept.own_id for accept in batch]
        first: dict[str, Accept] = {}
        for own_id, accept in zip(own_ids, batch, strict=True):
            first.setdefault(own_id, accept)
        rows = {own_id: first[own_id] for own_id in sorted(first)}
        started = trio.current_time()
        try:
            fresh, known = await self._dedicated.run(
                "db.accept", lambda connection: _insert(connection, self._inserts, rows), begin=SINGLE
            )
        except ConvoError as error:
            if not isinstance(error, DatabaseUnavailable):
                raise
            self._note_failure(error)
            if (getattr(error.__cause__, "sqlstate", None) or "").startswith(_STORES_NOTHING):
                # Not the error itself: its traceback holds the batch.
                self._failed = (trio.current_time(), type(error), error.detail)
            raise
        self._failed = None
        self._note_success()
        self._report(rows, fresh, trio.current_time() - started)
        outcomes: list[Stored | ConvoError] = []
        for own_id, accept in zip(own_ids, batch, strict=True):
            stored = fresh.get(own_id) or known.get(own_id)
            new = own_id in fresh and first[own_id] is accept
            outcomes.append(refused(accept) if stored is None else _outcome(accept, stored, new=new))
        if self._revisions is not None:
            await self._decide_conflicts(batch, fresh | known, outcomes, self._revisions)
        # Canaries are erased when they came through: no sign of anything.
        given = [
            own_id
            for own_id, accept in rows.items()
            if accept.ended.user_id != CANARY_USER and (own_id in fresh or own_id in known)
        ]
        self._receipts.note(given, [stored.seq for stored in fresh.values()])
        return outcomes

    async def _decide_conflicts(
        self,
        batch: Sequence[Accept],
        stored: Receipts,
        outcomes: list[Stored | ConvoError],
        revisions: DecidesConflicts,
    ) -> None:
        """Find out which conflicts are revisions, or replays of earlier ones: of each id one after the other."""
        waiting = [
            at
            for at, outcome in enumerate(outcomes)
            if isinstance(outcome, Conflict) and revisions.concerns(stored[batch[at].own_id].notes)
        ]
        while waiting:
            first = {batch[at].own_id: at for at in reversed(waiting)}
            conflicts = {own_id: (batch[at], cast("Conflict", outcomes[at])) for own_id, at in first.items()}
            try:
                found = await revisions.resolve(self._dedicated, conflicts)
            except ConvoError as error:
                # The others of the batch are stored.
                found = dict.fromkeys(first, error)
            for own_id, at in first.items():
                outcomes[at] = found[own_id]
            waiting = [at for at in waiting if first[batch[at].own_id] != at]

    def _note_failure(self, error: DatabaseUnavailable) -> None:
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= _FAILING_ALERT_SECONDS:
            log_records.accepts_failing(seconds=now - self._failing_since, error=error.detail)

    def _note_success(self) -> None:
        if self._failing_since is not None:
            log_records.accepts_returned(seconds=trio.current_time() - self._failing_since)
            self._failing_since = None

    def _report(self, rows: Mapping[str, Accept], fresh: Receipts, seconds: float) -> None:
        bytes_ = sum(len(row.body) for row in rows.values())
        metrics.intake_batch_rows.observe(len(rows))
        metrics.intake_commit_seconds.observe(seconds)
        log_records.batch_committed(rows=len(rows), bytes_=bytes_, seconds=seconds)
        self._committed(
            [
                CommittedLog(seq=stored.seq, digest=rows[own_id].digest, body=rows[own_id].body)
                for own_id, stored in fresh.items()
            ]
        )


def owed_of_accept(declared: Declarations, accept: Accept) -> Owed:
    """Return what an accepted conversation is owed."""
    ended = accept.ended
    return declared.owed(
        Facts(
            conversation_id=ended.conversation_id,
            bot_id=ended.bot_id,
            bot_type=ended.bot_type or None,
            language=ended.language or None,
            turns=accept.turns,
            user_turns=accept.user_turns,
        )
    )


def refused(accept: Accept) -> Erased:
    """Return the error for what is on the list of erasures."""
    return Erased(
        f"conversation {accept.ended.conversation_id!r} was erased, or its user since it ended; it is not stored again"
    )


def _outcome(accept: Accept, stored: Stored, *, new: bool) -> Stored | Conflict | Unavailable:
    try:
        same = stored.digest == accept.digest or digests.same(stored.digest, accept.digest, accept.ended)
    except Unavailable as error:
        # A newer program made that digest, so this one cannot compare. The rest of the batch is committed.
        return error
    if not same:
        return Conflict(
            f"conversation_id {accept.ended.conversation_id!r} is taken by other content (stored digest"
            f" {stored.digest}, sent {accept.digest}); send it under an id of its own. Where its log begins with"
            " the stored one it is a revision, if intake.revisions is true"
        )
    return stored if new or stored.replayed else structs.replace(stored, replayed=True)


# The receipt's insert decides what is new, and all else is made of its rows. A number of the conversations' own
# sequence is taken for each row that was sent, as ever: numbers have gaps where there were replays.
_INSERT = f"""
WITH sent AS MATERIALIZED (
    SELECT *, nextval('conversation_seq_seq') AS seq
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                $7::timestamptz[], $8::timestamptz[], $9::integer[], $10::integer[], $11::bytea[], $12::bytea[],
                $13::text[], $14::text[], $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[], $19::bytea[],
                $20::bytea[]$more_arrays)
        AS t (conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
              started_at, ended_at, turns, exchanges, digest, body, language, timezone, metadata, notes, log_hash,
              id_hash, id_hmac, user_hmac$more_columns)
), fresh AS (
    INSERT INTO receipt (seq, received_at, turns, id_hash, digest, notes)
    SELECT seq, convo_now(), turns, id_hash, digest, notes FROM sent
    WHERE $refused
    ON CONFLICT (id_hash) DO NOTHING
    RETURNING seq, id_hash, received_at
), conversations AS (
    INSERT INTO conversation (seq, conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
                              started_at, ended_at, received_at, turns, exchanges,
                              language, timezone, metadata, log_hash$column$trace)
    OVERRIDING SYSTEM VALUE
    SELECT seq, conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag,
           coalesce(started_at, ended_at, convo_now()), coalesce(ended_at, greatest(started_at, convo_now())),
           convo_now(), sent.turns, exchanges, language, timezone, metadata, log_hash$column$trace
    FROM fresh JOIN sent USING (seq)
), logs AS ({LogStore.PUT}), books AS (
    INSERT INTO ledger (day, kind, n$column) SELECT {DAY}, 'accepted', count(*)$column FROM $booked
), jobs AS (
    INSERT INTO job (seq, fair_key$column$owed$parked)
    SELECT seq, $fair_key$column$owed$parked_since FROM fresh JOIN sent USING (seq)
$prefixes$events)
SELECT seq, id_hash, received_at FROM fresh
"""
# While nothing was ever erased, no HMAC is computed. Where that is not so any more, nothing is inserted, and the other
# statement is run: this session has met the list.
_REFUSALS = ("NOT (SELECT EXISTS (SELECT FROM erasure))", NOT_REFUSED)
# Where there is no other tenant, an accept pays nothing for what one needs.
_PLAIN = {"$column": "", "$booked": "fresh GROUP BY 1"}
_TENANTED = {
    "$column": ", tenant",
    "$booked": "fresh JOIN sent USING (seq) GROUP BY 1, tenant",
}
# Where there are revisions, each new conversation says besides how its log is known again (store/jobs/revisions.py).
_PREFIXES = """), prefixes AS (
    INSERT INTO log_prefix (seq, items, log_digest)
    SELECT seq, items, log_digest FROM fresh JOIN sent USING (seq)
"""
# Columns that not every batch has, in the order of their parameters.
_TENANT_COLUMNS = {"tenant": "smallint[]"}
_OWED_COLUMNS = {"owed": "bigint[]", "waits_for": "text[]"}
_PREFIX_COLUMNS = {"items": "integer[]", "log_digest": "bytea[]"}
_TRACE_COLUMNS = {"trace": "text[]"}
_FIRST_MORE = 21
# The key that shares out the leases (store/jobs/fair_lease.py).
_FAIR_KEYS: dict[FairKey, str] = {"user": "user_id", "bot": "bot_id", "none": "''"}
_KNOWN = """
SELECT seq, id_hash, digest, turns, received_at, notes, state::text AS state,
       current_setting('synchronous_standby_names') <> '' AS awaited
FROM receipt WHERE id_hash = ANY($1::bytea[])
"""
ERASE_CONVERSATIONS = "DELETE FROM conversation WHERE seq = ANY($1::bigint[])"
ERASE_PREFIXES = "DELETE FROM log_prefix WHERE seq = ANY($1::bigint[])"
ERASE_RECEIPTS = "DELETE FROM receipt WHERE seq = ANY($1::bigint[])"
"""For canaries alone: what a client was acknowledged keeps its receipt."""
ERASE_FROM_RECEIPTS = """
UPDATE receipt SET state = 'e', id_hash = gone.id_hmac, turns = 0, digest = '', notes = NULL, user_hmac = NULL
FROM unnest($1::bigint[], $2::bytea[]) AS gone (seq, id_hmac) WHERE receipt.seq = gone.seq
"""
"""For what a client was acknowledged: its receipt is found by the HMAC of its id from now on, and says no more."""
Receipts = dict[str, Stored]
"""By ``Accept.own_id``."""
Owe = Callable[[Accept], Owed]
InsertStatements = Mapping[tuple[bool, bool], str]
"""Accept's statement in its forms: whether it looks for each id on the list of what was erased, which it does not as
long as nothing ever was, and whether the batch has conversations of another tenant than the default one."""


def insert_statements(
    fair_key: FairKey, *, events: bool = False, owed: bool = False, revisions: bool = False, traces: bool = False
) -> InsertStatements:
    """Return accept's statement in all its forms; with ``events`` it appends the event of each new conversation.

    With ``owed`` it has two columns more: the set of parts of each job, and what a process must have to lease it. With
    ``revisions`` it stores besides what a conversation is known by when a longer log comes. With ``traces`` it has a
    column more: the trace that each was sent in.
    """
    found = {}
    for looks, tenanted in itertools.product((False, True), repeat=2):
        prefix, form = (f"{FAIR_PREFIX} || ", _TENANTED) if tenanted else ("", _PLAIN)
        text = _INSERT.replace("$events", APPEND_ACCEPTED if events else "").replace("$refused", _REFUSALS[looks])
        text = text.replace("$fair_key", prefix + _FAIR_KEYS[fair_key])
        text = text.replace("$prefixes", _PREFIXES if revisions else "")
        text = text.replace("$parked_since", ", CASE WHEN waits_for <> '' THEN convo_now() END" if owed else "")
        text = text.replace("$parked", ", parked_since" if owed else "")
        more = {
            **(_TENANT_COLUMNS if tenanted else {}),
            **(_OWED_COLUMNS if owed else {}),
            **(_PREFIX_COLUMNS if revisions else {}),
            **(_TRACE_COLUMNS if traces else {}),
        }
        arrays = [f", ${_FIRST_MORE + at}::{kind}" for at, kind in enumerate(more.values())]
        text = text.replace("$more_arrays", "".join(arrays))
        text = text.replace("$more_columns", "".join(f", {name}" for name in more))
        text = text.replace("$owed", ", owed, waits_for" if owed else "")
        text = text.replace("$trace", ", trace" if traces else "")
        for name, part in form.items():
            text = text.replace(name, part)
        found[looks, tenanted] = text
    return found


class DecidesConflicts(Protocol):
    """Decides what is sent under an id that is taken by other content, as ``store.jobs.revisions``."""

    def concerns(self, notes: bytes | None) -> bool:
        """Return whether a conflict with the receipt of these notes can be anything else."""

    async def resolve(
        self, dedicated: DedicatedConnection, conflicts: Mapping[str, tuple[Accept, Conflict]]
    ) -> dict[str, Stored | ConvoError]:
        """Return what becomes of each of these, by its ``own_id``."""


class Inserts(Struct, frozen=True, kw_only=True):
    """How accept's statement is written, and what fills its columns, those of parts and revisions where it has them.

    ``traced`` are its forms for a batch in which something was sent in a trace that is recorded.
    """

    statements: InsertStatements
    traced: InsertStatements
    owe: Owe | None
    owed_sets: OwedSets
    revisions: bool = False

    async def run(
        self, connection: Connection, key: InstallationKey | None, sent: Sequence[Accept], hashes: Sequence[bytes]
    ) -> list[Mapping[str, Any]]:
        """Insert what is new of these, whose ids have these ``hashes``; return ``seq``, hash and time of each."""
        numbers = [row.tenant.number for row in sent]
        tenants = [numbers] if any(numbers) else []
        owed = await self._owed_columns(connection, sent)
        prefixes = ([row.items for row in sent], [row.log_digest for row in sent]) if self.revisions else ()
        traces = [[row.trace for row in sent]] if any(row.trace for row in sent) else []
        values = (*_columns(sent), hashes, *_hmacs(key, sent), *tenants, *owed, *prefixes, *traces)
        statements = self.traced if traces else self.statements
        return await connection.fetch(statements[key is not None, bool(tenants)], *values)

    async def _owed_columns(self, connection: Connection, sent: Sequence[Accept]) -> tuple[list[Any], ...]:
        """Return these columns; a set that this process has not met is stored first, by a statement of its own."""
        if self.owe is None:
            return ()
        owed = [self.owe(row) for row in sent]
        await self.owed_sets.store(connection, owed)
        return [one.number for one in owed], [one.needs for one in owed]


def make_inserts(
    fair_key: FairKey, owe: Owe | None, owed_sets: OwedSets, *, events: bool = False, revisions: bool = False
) -> Inserts:
    """Make what inserts conversations; as ``insert_statements``."""
    write = partial(insert_statements, fair_key, events=events, owed=owe is not None, revisions=revisions)
    return Inserts(statements=write(), traced=write(traces=True), owe=owe, owed_sets=owed_sets, revisions=revisions)


async def _insert(connection: Connection, inserts: Inserts, rows: Mapping[str, Accept]) -> tuple[Receipts, Receipts]:
    """Insert what is new of these rows by ``Accept.own_id``; return the new receipts, and those that were there before.

    What is in neither was erased. Two statements, each a transaction of its own: within one, a row that another process
    commits meanwhile is neither inserted nor visible. What the first one inserted stays stored when the second one
    fails: the client sends it again, and that is a replay. The rows come sorted, or two processes with overlapping
    batches would deadlock: by their ids and not by the hashes, because programs that know no receipts take the same
    hashes in that order.
    """
    key = met_list(connection)
    sent = list(rows.values())
    hashes = [row.tenant.id_hash(row.ended.conversation_id) for row in sent]
    ids = dict(zip(hashes, rows, strict=True))
    new = await inserts.run(connection, key, sent, hashes)
    fresh = {ids[row["id_hash"]]: new_receipt(rows[ids[row["id_hash"]]], row) for row in new}
    if len(fresh) == len(rows):
        return fresh, {}
    missing = [hashed for hashed, own_id in ids.items() if own_id not in fresh]
    found = await connection.fetch(_KNOWN, missing)
    known = {ids[row["id_hash"]]: known_receipt(rows[ids[row["id_hash"]]], row) for row in found}
    if len(known) < len(missing):
        if key is None and await meet_list(connection) is not None:
            return await _insert(connection, inserts, rows)
        await _check_erased(connection, key, [rows[ids[hashed]] for hashed in missing if ids[hashed] not in known])
    if any(row["awaited"] for row in found):
        # An accept that ended at its deadline while it waited for a standby has left its row here, and only here.
        await connection.fetch(CONFIRM)
    return fresh, known


def new_receipt(accept: Accept, row: Mapping[str, Any]) -> Stored:
    """Return the receipt of what was inserted just now."""
    return Stored(
        seq=row["seq"],
        conversation_id=accept.ended.conversation_id,
        digest=accept.digest,
        turns=accept.turns,
        received_at=row["received_at"],
        notes=accept.notes,
        replayed=False,
    )


def known_receipt(accept: Accept, row: Mapping[str, Any]) -> Stored:
    """Return the receipt that was there before, of whatever content."""
    return Stored(
        seq=row["seq"],
        conversation_id=accept.ended.conversation_id,
        digest=digests.expand(row["digest"]),
        turns=row["turns"],
        received_at=row["received_at"],
        notes=row["notes"],
        state=STATES[row["state"]],
        replayed=True,
    )


async def _check_erased(connection: Connection, key: InstallationKey | None, rows: Sequence[Accept]) -> None:
    """Pass if each of these, which is neither new nor known, is so because it was erased.

    Raises:
        TransactionLost: one is not: another process removed it at this moment.
    """
    hmacs = list(zip(*_hmacs(key, rows), strict=True))
    erased = await erased_among(connection, {one for pair in hmacs for one in pair}) if hmacs else set()
    if not hmacs or not all(erased.intersection(pair) for pair in hmacs):
        raise TransactionLost("a conversation was deleted while it was sent again")


def _hmacs(key: InstallationKey | None, rows: Sequence[Accept]) -> tuple[list[bytes], list[bytes]]:
    if key is None:
        return [], []
    return (
        [key.hmac_of("conversation", row.own_id) for row in rows],
        [key.hmac_of("user", row.tenant.own(row.ended.user_id)) for row in rows],
    )


def _columns(rows: Sequence[Accept]) -> tuple[list[Any], ...]:
    ended = [row.ended for row in rows]
    return (
        [e.conversation_id for e in ended],
        [e.user_id for e in ended],
        [e.bot_id for e in ended],
        _sparse([e.bot_name or None for e in ended]),
        _sparse([e.bot_type or None for e in ended]),
        _sparse([e.agent_tag or None for e in ended]),
        _sparse([_finite(row.started_at) for row in rows]),
        _sparse([_finite(row.ended_at) for row in rows]),
        [row.turns for row in rows],
        [row.exchanges for row in rows],
        [digests.compact(row.digest) for row in rows],
        [row.body for row in rows],
        _sparse([e.language or None for e in ended]),
        _sparse([e.timezone or None for e in ended]),
        _sparse([_metadata(e) for e in ended]),
        _sparse([row.notes for row in rows]),
        [row.log_hash for row in rows],
    )


def _sparse(column: list[Any]) -> list[Any]:
    """Leave out a column in which there is nothing: unnest fills it up with nulls, and asyncpg is slow with each."""
    return column if any(column) else []


def _metadata(ended: ConversationEnded) -> bytes | None:
    metadata = b"null" if ended.metadata is UNSET else bytes(ended.metadata)
    return None if metadata == b"null" else metadata


def _finite(at: datetime | None) -> datetime | None:
    """Move the first and the last possible instant by a microsecond: asyncpg takes them for infinities."""
    if at == _FIRST:
        return _FIRST + timedelta.resolution
    return _LAST - timedelta.resolution if at == _LAST else at


_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
