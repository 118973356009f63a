"""The routes that read conversations and users, and the two that change a dead letter: rows become answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import UNSET, Struct

from convo.analysis.part import PARTS, DeclaredPartView, Part, PartsView, shown_answer
from convo.analysis.scoring import Score, score
from convo.conversation import digest as digests
from convo.conversation.owed import DeclaredPart, result_version
from convo.conversation.score import level
from convo.conversation.tenant import Reach
from convo.http.turns import end_turn
from convo.observe import log_records
from convo.settings import Settings
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.audit_queue import AuditQueue
from convo.store.conversations import ConversationRow, FoundConversation, FoundRelationship, Reader
from convo.store.jobs import parts
from convo.store.jobs.table import Jobs
from convo.store.jobs.watch import Watch
from convo.store.listing import ListFilter
from convo.store.lookup import revision_of
from convo.store.outcomes import PartRecord
from convo.store.relationship_history import HistoryPlace
from convo.web import queries
from convo.web.conversation_costs import cost_view
from convo.web.description import views
from convo.web.description.messages import Answer, encode
from convo.web.log_pages import TURNS_WEIGHT, TurnsPage, sent_log, turns_of_log
from convo.web.reads import AfterSome, Reads, ReadUnderWay
from convo.web.shared_answers import SharedAnswers

# What is kept of a request's time for writing the answer after a wait.
_WAIT_MARGIN_SECONDS = 0.5
_ENDED = ("done", "dead", "superseded")


class ReadRoutes(Struct, frozen=True, kw_only=True):
    """The reading routes, with what they need; ``revived`` is called when a dead letter is ready again."""

    settings: Settings
    reader: Reader
    jobs: Jobs
    watch: Watch
    reads: Reads
    revived: Callable[[], None]
    audit_queue: AuditQueue
    shared: SharedAnswers

    async def one(self, conversation_id: str, query: Mapping[str, str], if_none_match: str, reach: Reach) -> Answer:
        """Answer with one conversation; with ``wait``, when it has ended or the wait is over.

        Raises:
            NotFound: no conversation has this id, or it has no such revision.
            Expired: its content is no longer stored.
            Invalid: ``wait`` is not a number of seconds, ``revision`` no number, or ``cost`` neither 0 nor 1.
        """
        revision, costs = queries.revision_of_query(query), queries.cost_of(query)
        latest = trio.current_effective_deadline() - _WAIT_MARGIN_SECONDS
        until = min(trio.current_time() + queries.wait_of(query), latest)
        with self.reads.begin() as read:
            found = await self.reader.one(reach, conversation_id, revision, costs=costs)
            if found.row["state"] in _ENDED or until <= trio.current_time():
                return await self._shown(read, found, if_none_match, revision)
        while True:
            await self._until_ended(found, until, reach, revision)
            with self.reads.begin() as read:
                now = await self.reader.one(reach, conversation_id, revision, costs=costs)
                # Where a newer revision came meanwhile, that one's end is waited for.
                newer = now.row["seq"] != found.row["seq"] and now.row["state"] not in _ENDED
                if not newer or until <= trio.current_time():
                    return await self._shown(read, now, if_none_match, revision)
            found = now

    async def _shown(
        self, read: ReadUnderWay, found: FoundConversation, if_none_match: str, revision: int | None
    ) -> Answer:
        bytes_ = sum(len(part.result) for part in found.parts.values()) + len(found.row["metadata"] or "")
        read.hold(2 * bytes_)
        return await read.answer(lambda _: _tagged(encode(self._view(found, revision)), if_none_match), bytes_)

    async def _until_ended(self, found: FoundConversation, until: float, reach: Reach, revision: int | None) -> None:
        end_turn()
        with self.watch.waiting(found.row["seq"]) as ended:
            # It may have ended between the first read and the watch.
            with self.reads.begin():
                now = await self.reader.one(reach, found.row["conversation_id"], revision)
            if now.row["seq"] == found.row["seq"] and now.row["state"] not in _ENDED:
                with trio.move_on_at(until):
                    await ended.wait()  # no deadline: an event of ours

    def _view(self, found: FoundConversation, revision: int | None) -> views.ConversationView:
        row = found.row
        return views.ConversationView(
            **{name: row[name] for name in _PLAIN},
            digest=digests.expand(row["digest"]),
            metadata=None if row["metadata"] is None else msgspec.Raw(row["metadata"]),
            revision=revision_of(row["notes"]),
            waits_for=row["waits_for"] or None,
            log_state="expired" if row["log_retired"] else "stored",
            parts=_parts(found),
            score=self._score(found),
            links=views.links(row["conversation_id"], revision),
            cost=UNSET if found.costs is None else cost_view(found.costs),
        )

    def _score(self, found: FoundConversation) -> Score:
        row = found.row
        if found.details is not None:
            details = found.details
            return Score(
                value=row["score"], final=True, breakdown=details.breakdown, weights_version=details.weights_version
            )
        stored = {name: parts.stored_finding(part) for name, part in found.parts.items() if part.state == "done"}
        provisional = score(row["exchanges"], stored, self.settings.score, found.owed)
        # Only settling makes a score final, even if every part is done.
        return msgspec.structs.replace(provisional, final=False)

    async def log(
        self, conversation_id: str, query: Mapping[str, str], if_none_match: str, caller: Caller, reach: Reach
    ) -> Answer:
        """Answer with a page of the turns of one conversation, or with its log as it was sent.

        The audit log notes it, also where the client had the log already.

        Raises:
            Invalid: ``as`` is neither ``turns`` nor ``sent``, or the limit or the cursor is not valid.
            NotFound: no conversation has this id, or it has no such revision.
            Expired: its content is no longer stored, or its log alone.
            WrongLog: the stored log is another's.
            Overloaded: too many reads are under way, or the read could not be noted.
        """
        most = self.settings.web.log_turns_max
        as_sent, revision = queries.log_form_of(query) == "sent", queries.revision_of_query(query)
        page = TurnsPage(start=queries.cursor_of(query) or 0, limit=queries.limit_of(query, most, most))
        noted = self.settings.audit_log.reads
        if noted:
            self.audit_queue.check_room()
        with self.reads.begin() as read:
            found = await self.reader.log_sizes(reach, conversation_id, revision)
            # Before the log is read: a small packed one can be a large log.
            read.hold(found.packed_bytes + found.unpacked_bytes * (1 if as_sent else TURNS_WEIGHT))
            packed = await self.reader.packed_log(found)

            def make(after_some: AfterSome) -> Answer:
                body = sent_log(found, packed) if as_sent else turns_of_log(found, packed, page, after_some)
                return _tagged(body, if_none_match)

            answer = await read.answer(make, max(found.packed_bytes, found.unpacked_bytes))
        if noted:
            # Before a byte of it is sent: a client that is gone by then may still have been one that reads.
            target = AuditTarget(kind="conversation", id=conversation_id, user_id=found.row["user_id"])
            detail = {**({"as": "sent"} if as_sent else {}), **({"revision": revision} if revision else {})} or None
            self.audit_queue.add(
                AuditEntry(action="log_read", tenant=reach.tenant, caller=caller, target=target, detail=detail)
            )
        return answer

    async def many(self, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with a page of conversations, newest first.

        Raises:
            Invalid: a filter, the limit, the cursor or ``as_of`` is not valid.
        """
        limit, as_of = queries.limit_of(query, self.settings.web.list_rows_max), queries.as_of_query(query)
        wanted = ListFilter(
            user_id=queries.id_of(query, "user_id"),
            user_prefix=queries.id_of(query, "user_prefix") or None,
            bot_id=queries.id_of(query, "bot_id"),
            state=queries.state_of(query),
            before=queries.cursor_of(query),
        )
        return await self.shared.answer(
            ("conversations", reach, wanted, limit), as_of, lambda: self._listed(reach, wanted, limit)
        )

    async def _listed(self, reach: Reach, wanted: ListFilter, limit: int) -> Answer:
        with self.reads.begin() as read:
            found = await self.reader.many(reach, wanted, limit)
            cursor = None if found.next_before is None else queries.cursor_after(found.next_before)

            def view() -> Struct:
                return views.ListView(conversations=tuple(map(_summary, found.rows)), next_cursor=cursor)

            return await _page(read, found.rows, view)

    async def retry(self, conversation_id: str, caller: Caller, reach: Reach) -> Answer:
        """Make a dead letter ready again.

        Raises:
            NotFound: no conversation has this id.
            Expired: its content is no longer stored.
            NotDead: it is not a dead letter.
        """
        await self.jobs.retry(reach, conversation_id, caller)
        log_records.job_retried(conversation_id=conversation_id)
        self.revived()
        links = views.links(conversation_id)
        view = views.RetryView(conversation_id=conversation_id, state="ready", attempts=0, links=links)
        return Answer(status=202, body=encode(view), headers=[("Location", links.self)])

    async def acknowledge(self, conversation_id: str, caller: Caller, reach: Reach) -> Answer:
        """Mark a dead letter as reviewed, and leave it dead.

        Raises:
            NotFound: no conversation has this id.
            Expired: its content is no longer stored.
            NotDead: it is not a dead letter.
        """
        attempts = await self.jobs.acknowledge(reach, conversation_id, caller)
        log_records.job_acknowledged(conversation_id=conversation_id)
        links = views.links(conversation_id)
        view = views.AcknowledgedView(conversation_id=conversation_id, state="dead", attempts=attempts, links=links)
        return _ok(view)

    async def relationship(self, user_id: str, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with the sum of a user's scores in all, and a page of it by bot.

        Raises:
            NotFound: nothing of this user is stored.
            Invalid: the limit or the cursor is not valid.
        """
        limit = queries.limit_of(query, self.settings.web.list_rows_max)
        before = queries.cursor_of(query)
        with self.reads.begin() as read:
            found = await self.reader.relationship(reach, user_id, before=before, limit=limit + 1)
            return await _page(read, found.bots, lambda: self._relationship(user_id, found, limit))

    def _relationship(self, user_id: str, found: FoundRelationship, limit: int) -> Struct:
        sums, weights = found.sums, self.settings.score
        bots = [{name: row[name] for name in _BOT} for row in found.bots[:limit]]
        return views.RelationshipView(
            user_id=user_id,
            score=sums["total_score"],
            level=level(sums["total_score"], weights),
            conversations=sums["total_conversations"],
            last_emotion=sums["newest_emotion"],
            bots=tuple(views.BotRelationship(**bot, level=level(bot["score"], weights)) for bot in bots),
            next_cursor=queries.next_cursor(found.bots, limit, "last_seq"),
        )

    async def history(self, user_id: str, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with a page of how a user's score came about, newest first, of all bots or of one.

        Raises:
            NotFound: nothing of this user is stored.
            Invalid: the limit, the bot or the cursor is not valid.
        """
        limit = queries.limit_of(query, self.settings.web.list_rows_max)
        bot_id, begins = queries.id_of(query, "bot_id"), queries.history_place_of(query)
        place = None if begins is None else HistoryPlace(before=begins[0], score=begins[1])
        with self.reads.begin():
            found = await self.reader.history(reach, user_id, bot_id, place=place, limit=limit)
        weights = self.settings.score
        points = [
            views.HistoryPointView(**msgspec.structs.asdict(one), level=level(one.score, weights))
            for one in found.points
        ]
        after = found.next_place
        cursor = None if after is None else queries.history_cursor(after.before, after.score)
        return _ok(
            views.RelationshipHistoryView(user_id=user_id, bot_id=bot_id, points=tuple(points), next_cursor=cursor)
        )

    async def memories(self, user_id: str, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with a page of what is remembered about a user, newest first.

        Raises:
            NotFound: nothing of this user is stored.
            Invalid: the limit or the cursor is not valid.
        """
        limit = queries.limit_of(query, self.settings.web.list_rows_max)
        before = queries.cursor_of(query)

        def view(rows: Sequence[ConversationRow]) -> Struct:
            found = tuple(views.MemoryView(**{name: row[name] for name in _MEMORY}) for row in rows[:limit])
            next_cursor = queries.next_cursor(rows, limit, "memory_seq")
            return views.MemoriesView(user_id=user_id, memories=found, next_cursor=next_cursor)

        with self.reads.begin() as read:
            rows = await self.reader.memories(reach, user_id, before=before, limit=limit + 1)
            return await _page(read, rows, partial(view, rows))


_PLAIN = (
    *("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag", "started_at", "ended_at"),
    *("language", "timezone", "received_at", "turns", "state", "attempts", "parked_since", "last_error"),
)
_BOT = ("bot_id", "score", "conversations", "last_emotion")
_MEMORY = ("text", "kind", "conversation_id", "first_seen_at")
_SUMMED = (
    *("conversation_id", "user_id", "bot_id", "started_at", "ended_at", "received_at", "turns", "state", "attempts"),
    *("score", "last_error"),
)


async def _page(read: ReadUnderWay, rows: Sequence[ConversationRow], view: Callable[[], Struct]) -> Answer:
    """Answer with the view of a page of rows."""
    bytes_ = len(rows) * _BYTES_OF_ROW + sum(len(row.get(name) or "") for row in rows for name in _LONG)
    read.hold(2 * bytes_)
    return await read.answer(lambda _: _ok(view()), bytes_)


# What a row holds besides its long texts, as JSON. The largest page of usual rows takes a millisecond: no thread.
_BYTES_OF_ROW = 256
_LONG = ("text", "last_error")


def _ok(view: Struct) -> Answer:
    return Answer(status=200, body=encode(view))


def _tagged(body: bytes, if_none_match: str) -> Answer:
    """Answer with the body and its tag, or 304 if the client already has this body."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    headers = [("ETag", tag), ("Cache-Control", "no-cache")]
    if tag in known or "*" in known:
        return Answer(status=304, body=b"", headers=headers)
    return Answer(status=200, body=body, headers=headers)


def _summary(row: ConversationRow) -> views.ConversationSummary:
    summed = {name: row[name] for name in _SUMMED}
    return views.ConversationSummary(**summed, links=views.links(row["conversation_id"]))


def _parts(found: FoundConversation) -> Any:
    """Return the view of the parts by their names: the default ones first, then the declared ones."""
    owed = {part.name: part for part in found.owed.parts}
    default = {part.name: _part(part, owed[part.name], found.parts.get(part.name)) for part in PARTS}
    if not found.owed.number:
        return PartsView(**default)
    declared = {name: part for name, part in owed.items() if name not in default}
    return {**default, **{name: _declared(part, found.parts.get(name)) for name, part in declared.items()}}


def _part(part: Part, owed: DeclaredPart, found: PartRecord | None) -> Struct:
    """Return the view of one part; a failed part stays failed here while its job is tried again."""
    own = part.shown(parts.stored_finding(found)) if found is not None and found.state == "done" else {}
    return part.view(**{**_common(owed, found), **own})


def _declared(owed: DeclaredPart, found: PartRecord | None) -> DeclaredPartView:
    own = shown_answer(parts.stored_finding(found).finding) if found is not None and found.state == "done" else {}
    return DeclaredPartView(**{"required": owed.required, **_common(owed, found), **own})


def _common(owed: DeclaredPart, found: PartRecord | None) -> dict[str, Any]:
    """Return the fields that are the same for every part."""
    if owed.skipped:
        return {"state": "skipped", "version": owed.version or None, "error": owed.skipped}
    if found is None:
        return {"state": "waiting", "version": owed.version or None}
    tried = {"state": found.state, "by": found.made_by or None, "error": found.error, "updated_at": found.updated_at}
    version = found.version or owed.version
    return {**tried, "version": version or result_version(found.name, found.made_by, None)}
