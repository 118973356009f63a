"""The reading routes: rows of the store become answers; it knows no framework and changes nothing but a dead letter."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import trio
from msgspec import Struct

from convo import threads
from convo.config import Settings
from convo.conversation import transcript
from convo.conversation.model import PART_NAMES, Memories, Mood, PartName, Questions
from convo.conversation.score import Breakdown, Score, level, score
from convo.deadline import deadline
from convo.errors import Invalid
from convo.observe import events
from convo.store import logs, parts
from convo.store.conversations import Found, Reader, Row
from convo.store.jobs import Jobs
from convo.store.watch import Watch
from convo.web import answers
from convo.web.door import Answer, encode

# What is kept back of a request's budget for the answer to a wait.
_WAIT_MARGIN_SECONDS = 0.5
_LIMIT_DEFAULT = 50
_ENDED = ("done", "dead")
# float() alone reads far more: white space, underscores, the digits of every script, nan.
_NUMBER = re.compile(r"\+?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
Query = Mapping[str, str]


class Reading(Struct, frozen=True, kw_only=True):
    """What the reading routes work with."""

    settings: Settings
    reader: Reader
    jobs: Jobs
    watch: Watch
    revived: Callable[[], None]

    async def one(self, conversation_id: str, query: Query, if_none_match: str) -> Answer:
        """Answer with one conversation; with ``wait``, as soon as it has ended or the wait is over.

        Raises:
            NotFound: there is none of this id.
            Invalid: ``wait`` is not a number of seconds.
        """
        latest = trio.current_effective_deadline() - _WAIT_MARGIN_SECONDS
        until = min(trio.current_time() + self._wait_seconds(query), latest)
        found = await self.reader.one(conversation_id)
        if found.row["state"] not in _ENDED and until > trio.current_time():
            found = await self._when_ended(found, until)
        return _tagged(encode(self._view(found)), if_none_match)

    async def _when_ended(self, found: Found, until: float) -> Found:
        conversation_id = found.row["conversation_id"]
        with self.watch.waiting(found.row["seq"]) as ended:
            # It may have ended before anybody watched.
            found = await self.reader.one(conversation_id)
            if found.row["state"] in _ENDED:
                return found
            with trio.move_on_at(until):
                await ended.wait()
        return await self.reader.one(conversation_id)

    def _wait_seconds(self, query: Query) -> float:
        text = query.get("wait", "0")
        seconds = float(text) if _NUMBER.fullmatch(text) else math.inf
        if seconds == math.inf:
            raise Invalid(f"wait={text!r} is not a number of seconds from 0", path="wait")
        return seconds

    def _view(self, found: Found) -> answers.ConversationView:
        row = found.row
        return answers.ConversationView(
            **{name: row[name] for name in _PLAIN},
            waits_for=row["waits_for"] or None,
            parts=answers.PartsView(
                questions=_questions(found.parts.get("questions")),
                emotion=_emotion(found.parts.get("emotion")),
                memories=_memories(found.parts.get("memories")),
            ),
            score=self._score(found),
            links=answers.links(row["conversation_id"]),
        )

    def _score(self, found: Found) -> Score:
        row = found.row
        if row["state"] == "done":
            breakdown = msgspec.json.decode(row["breakdown"], type=Breakdown)
            return Score(value=row["score"], final=True, breakdown=breakdown, weights_version=row["weights_version"])
        done: dict[PartName, Any] = {name: _result(name, found.parts.get(name)) for name in PART_NAMES}
        provisional = score(
            exchanges=row["exchanges"],
            questions=len(done["questions"].questions) if done["questions"] else None,
            new_memories=found.parts["memories"]["new_memories"] if done["memories"] else None,
            emotion=done["emotion"].emotion if done["emotion"] else None,
            weights=self.settings.score,
        )
        # Only settling makes a score final, also when every part is in.
        return msgspec.structs.replace(provisional, final=False)

    async def log(self, conversation_id: str, if_none_match: str) -> Answer:
        """Answer with the turns of one conversation.

        Raises:
            NotFound: there is none of this id.
        """
        row = await self.reader.log(conversation_id)
        if len(row["body"]) * 8 < self.settings.web.offload_bytes:
            return _tagged(_log(row), if_none_match)
        with deadline("web.encode", self.settings.web.request_seconds):
            encoded = await trio.to_thread.run_sync(_log, row, abandon_on_cancel=True, limiter=threads.REQUESTS)
            return _tagged(encoded, if_none_match)

    async def many(self, query: Query) -> Answer:
        """Answer with a page of conversations, newest first.

        Raises:
            Invalid: a filter, a limit or a cursor that is none.
        """
        state = query.get("state")
        if state is not None and state not in ("ready", "leased", "done", "dead"):
            raise Invalid(f"state={state!r} is not one of ready, leased, done, dead", path="state")
        limit = self._limit(query)
        rows = await self.reader.many(
            user_id=_id(query, "user_id"),
            bot_id=_id(query, "bot_id"),
            state=state,
            before=_cursor(query),
            limit=limit + 1,
        )
        summaries = tuple(_summary(row) for row in rows[:limit])
        return _ok(answers.ListView(conversations=summaries, next_cursor=_next(rows, limit, "seq")))

    async def retry(self, conversation_id: str) -> Answer:
        """Make a dead letter ready again.

        Raises:
            NotFound: there is none of this id.
            NotDead: it is not a dead letter.
        """
        await self.jobs.retry(conversation_id)
        events.job_retried(conversation_id=conversation_id)
        self.revived()
        links = answers.links(conversation_id)
        view = answers.RetryView(conversation_id=conversation_id, state="ready", attempts=0, links=links)
        return Answer(status=202, body=encode(view), headers=[("Location", links.self)])

    async def acknowledge(self, conversation_id: str) -> Answer:
        """Note that somebody has reviewed a dead letter, and leave it dead.

        Raises:
            NotFound: there is none of this id.
            NotDead: it is not a dead letter.
        """
        attempts = await self.jobs.acknowledge(conversation_id)
        events.job_acknowledged(conversation_id=conversation_id)
        links = answers.links(conversation_id)
        view = answers.AcknowledgedView(conversation_id=conversation_id, state="dead", attempts=attempts, links=links)
        return _ok(view)

    async def relationship(self, user_id: str) -> Answer:
        """Answer with the sum of a user's scores, over all bots and by bot."""
        rows = await self.reader.relationship(user_id)
        total = sum(row["score"] for row in rows)
        return _ok(
            answers.RelationshipView(
                user_id=user_id,
                score=total,
                level=level(total, self.settings.score),
                conversations=sum(row["conversations"] for row in rows),
                last_emotion=rows[0]["last_emotion"] if rows else None,
                bots=tuple(
                    answers.BotRelationship(**row, level=level(row["score"], self.settings.score)) for row in rows
                ),
            )
        )

    async def memories(self, user_id: str, query: Query) -> Answer:
        """Answer with a page of what is remembered about a user, newest first.

        Raises:
            Invalid: a limit or a cursor that is none.
        """
        limit = self._limit(query)
        rows = await self.reader.memories(user_id, before=_cursor(query), limit=limit + 1)
        names = ("text", "kind", "conversation_id", "first_seen_at")
        found = tuple(answers.MemoryView(**{name: row[name] for name in names}) for row in rows[:limit])
        return _ok(answers.MemoriesView(user_id=user_id, memories=found, next_cursor=_next(rows, limit, "memory_seq")))

    def _limit(self, query: Query) -> int:
        text = query.get("limit", str(_LIMIT_DEFAULT))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
            raise Invalid(f"limit={text!r} is not a number from 1", path="limit")
        return min(int(text), self.settings.web.list_rows_max)


_PLAIN = (
    *("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag", "started_at", "ended_at"),
    *("received_at", "digest", "turns", "state", "attempts", "parked_since", "last_error"),
)
_SUMMED = (
    *("conversation_id", "user_id", "bot_id", "started_at", "ended_at", "received_at", "turns", "state", "attempts"),
    *("score", "last_error"),
)


def _ok(view: Struct) -> Answer:
    return Answer(status=200, body=encode(view))


def _tagged(body: bytes, if_none_match: str) -> Answer:
    """Answer 304 to a client that has this very body already."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    headers = [("ETag", tag), ("Cache-Control", "no-cache")]
    if tag in known or "*" in known:
        return Answer(status=304, body=b"", headers=headers)
    return Answer(status=200, body=body, headers=headers)


def _log(row: Row) -> bytes:
    items = transcript.decode_log(logs.unpack(row["body"]))
    turns = transcript.turns(items, row["started_at"], row["ended_at"])
    return encode(answers.LogView(conversation_id=row["conversation_id"], turns=turns))


def _summary(row: Row) -> answers.ConversationSummary:
    summed = {name: row[name] for name in _SUMMED}
    return answers.ConversationSummary(**summed, links=answers.links(row["conversation_id"]))


def _result(name: PartName, part: Row | None) -> Questions | Mood | Memories | None:
    return None if part is None or part["state"] != "done" else parts.finding(name, part["result"])


def _told(part: Row | None) -> dict[str, Any]:
    """Tell of a part what is the same for all three; a failed part whose job is tried again is told as failed."""
    if part is None:
        return {"state": "waiting"}
    return {"state": part["state"], "by": part["made_by"], "error": part["error"], "updated_at": part["updated_at"]}


def _questions(part: Row | None) -> answers.QuestionsView:
    found = _result("questions", part)
    return answers.QuestionsView(**_told(part), questions=found.questions if isinstance(found, Questions) else None)


def _emotion(part: Row | None) -> answers.EmotionView:
    found = _result("emotion", part)
    return answers.EmotionView(**_told(part), emotion=found.emotion if isinstance(found, Mood) else None)


def _memories(part: Row | None) -> answers.FoundMemoriesView:
    found = _result("memories", part)
    if part is None or not isinstance(found, Memories):
        return answers.FoundMemoriesView(**_told(part))
    facts = tuple(answers.FoundMemory(text=fact.text, kind=fact.kind, operation=fact.operation) for fact in found.facts)
    return answers.FoundMemoriesView(**_told(part), memories=facts, new=part["new_memories"])


def _id(query: Query, name: str) -> str | None:
    value = query.get(name)
    if value is not None and "\x00" in value:
        raise Invalid(f"{name} holds a NUL character", path=name)
    return value


def _next(rows: Sequence[Row], limit: int, column: str) -> str | None:
    """Make the cursor of the next page, if there is one: one row more than a page was read to see."""
    if len(rows) <= limit:
        return None
    return base64.urlsafe_b64encode(str(rows[limit - 1][column]).encode()).decode().rstrip("=")


def _cursor(query: Query) -> int | None:
    text = query.get("cursor")
    if text is None:
        return None
    try:
        number = int(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        number = -1
    if not 0 <= number < 1 << 63:
        raise Invalid(f"cursor={text!r} is none of ours; send next_cursor of the page before", path="cursor")
    return number
