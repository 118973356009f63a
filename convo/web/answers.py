"""What a client is answered, as values; it knows neither how they are found nor how they are sent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import quote

from msgspec import UNSET, Meta, Struct, UnsetType

from convo.alerts.formats import AlertView
from convo.conversation.cause import Cause
from convo.conversation.model import EmotionName, JobState, Level, Links, PartState, Turn
from convo.conversation.score import Score
from convo.errors import ConvoError
from convo.tasks import TaskView

Count = Annotated[int, Meta(ge=0)]
Cursor = Annotated[str | None, Meta(description="Send it as `cursor` for the next page; null on the last one.")]
MadeBy = Annotated[
    str | None, Meta(description="Who made it, with a version: `local/1`; null while nobody has.", examples=["local/1"])
]
Failure = Annotated[str | None, Meta(description="Why the last try failed; null where none did.")]


WaitsFor = Annotated[
    str | None,
    Meta(description="The dependency that this job waits for, its attempts unspent: `llm` or `memory`; null for none."),
]


class QuestionsView(Struct, frozen=True, kw_only=True):
    """The questions that the user raised, in order; null while the part is not done."""

    state: PartState
    by: MadeBy = None
    questions: tuple[str, ...] | None = None
    error: Failure = None
    updated_at: datetime | None = None


class EmotionView(Struct, frozen=True, kw_only=True):
    """How the user felt about the conversation as a whole; null while the part is not done."""

    state: PartState
    by: MadeBy = None
    emotion: EmotionName | None = None
    error: Failure = None
    updated_at: datetime | None = None


class FoundMemory(Struct, frozen=True, kw_only=True):
    """One thing to remember, as this conversation's analysis said it; only an ADD can be new."""

    text: str
    kind: str
    operation: Literal["ADD", "UPDATE", "DELETE", "NONE"]


class FoundMemoriesView(Struct, frozen=True, kw_only=True):
    """What to remember from one conversation, and how much of it was new for the user."""

    state: PartState
    by: MadeBy = None
    memories: tuple[FoundMemory, ...] | None = None
    new: Count | None = None
    error: Failure = None
    updated_at: datetime | None = None


class PartsView(Struct, frozen=True, kw_only=True):
    """The three parts of an analysis, each with a state of its own."""

    questions: QuestionsView
    emotion: EmotionView
    memories: FoundMemoriesView


class ConversationView(Struct, frozen=True, kw_only=True):
    """One conversation and what is found in it so far; nothing changes once the score is final."""

    conversation_id: str
    user_id: str
    bot_id: str
    bot_name: str | None
    bot_type: str | None
    agent_tag: str | None
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    digest: str
    turns: Count
    state: JobState
    attempts: Count
    waits_for: WaitsFor
    parked_since: datetime | None
    parts: PartsView
    score: Score
    last_error: Failure
    links: Links


class RunView(Struct, frozen=True, kw_only=True):
    """One lease of a conversation's job: who had it, how it ended, and the seconds spent in each named wait."""

    began_at: datetime
    ended_at: datetime
    ending: Annotated[
        str, Meta(description="`settle`, `fail`, `bury`, `park`, `release`, `rescue` (silent) or `crash` (gone).")
    ]
    by: str
    reason: str | None
    waits: dict[str, float]


class ExplainView(Struct, frozen=True, kw_only=True):
    """Why a conversation stands as it does."""

    conversation_id: str
    state: JobState
    cause: Cause
    here: Annotated[str | None, Meta(description="How what it waits for stands in the process that answers.")]
    ahead: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Conversations whose turn comes first; null unless queued.")
    ]
    done_per_second: Annotated[float, Meta(description="Done in the last minute, by all processes.", ge=0)]
    seconds_left: Annotated[float | None, Meta(description="At that rate, until it is done; null where unknown.")]
    attempts: Count
    crashes: Count
    runs: tuple[RunView, ...]
    links: Links


class LogView(Struct, frozen=True, kw_only=True):
    """The turns of one conversation, in order; times that were not sent are interpolated."""

    conversation_id: str
    turns: tuple[Turn, ...]


class ConversationSummary(Struct, frozen=True, kw_only=True):
    """One line of a list; the score is null until it is final."""

    conversation_id: str
    user_id: str
    bot_id: str
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    turns: Count
    state: JobState
    attempts: Count
    score: Count | None
    last_error: Failure
    links: Links


class ListView(Struct, frozen=True, kw_only=True):
    """One page of conversations, newest first."""

    conversations: tuple[ConversationSummary, ...]
    next_cursor: Cursor


class RetryView(Struct, frozen=True, kw_only=True):
    """A dead letter that is ready again."""

    conversation_id: str
    state: JobState
    attempts: Count
    links: Links


class AcknowledgedView(Struct, frozen=True, kw_only=True):
    """A dead letter that somebody has reviewed; it stays dead."""

    conversation_id: str
    state: JobState
    attempts: Count
    links: Links


class AlertsView(Struct, frozen=True, kw_only=True):
    """The alerts of one process: those that last, oldest first, and those that ended lately, the last one first."""

    active: tuple[AlertView, ...]
    recent: tuple[AlertView, ...]
    leads: Annotated[
        bool, Meta(description="Whether this process tells of what all share: backlog, dead letters, books, silence.")
    ]
    sinks: Annotated[tuple[str, ...], Meta(description="Who is told.")]


class SinkTestView(Struct, frozen=True, kw_only=True):
    """Whether one sink took the test, and why not."""

    sink: str
    ok: bool
    detail: str | None = None


class AlertsTestView(Struct, frozen=True, kw_only=True):
    """How a test alert was taken by every sink."""

    sinks: tuple[SinkTestView, ...]


class BotRelationship(Struct, frozen=True, kw_only=True):
    """What one bot's conversations add to a relationship."""

    bot_id: str
    score: Count
    level: Level
    conversations: Count
    last_emotion: EmotionName


class RelationshipView(Struct, frozen=True, kw_only=True):
    """The sum of a user's final scores over all bots; of a user without any, a stranger's with nothing in it."""

    user_id: str
    score: Count
    level: Level
    conversations: Count
    last_emotion: EmotionName | None
    bots: tuple[BotRelationship, ...]


class MemoryView(Struct, frozen=True, kw_only=True):
    """One thing remembered about a user, and the conversation that it was first seen in."""

    text: str
    kind: str
    conversation_id: str
    first_seen_at: datetime


class MemoriesView(Struct, frozen=True, kw_only=True):
    """One page of what is remembered about a user, newest first."""

    user_id: str
    memories: tuple[MemoryView, ...]
    next_cursor: Cursor


class LiveView(Struct, frozen=True, kw_only=True):
    """The process runs and its loop turns."""

    status: Literal["alive"] = "alive"


class DependencyView(Struct, frozen=True, kw_only=True):
    """Whether one dependency answers, and the seconds its ping took."""

    ok: bool
    seconds: float | None
    detail: str | None = None


class ReadyView(Struct, frozen=True, kw_only=True):
    """Whether requests can be served, and what stands in the way."""

    status: Literal["ready", "unavailable", "migrating", "draining"]
    dependencies: dict[str, DependencyView]
    warnings: tuple[str, ...] = ()


class TasksView(Struct, frozen=True, kw_only=True):
    """Every task of one process, from the one that started it all."""

    pid: int
    tasks: Count
    root: TaskView


class Problem(Struct, frozen=True, kw_only=True):
    """What went wrong, as RFC 9457 has it; `code` is stable and the one to switch on."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    code: str
    detail: str
    path: Annotated[str, Meta(description="The field at fault: `$.conversation_log[3].character`.")] | UnsetType = UNSET
    conversation_id: str | UnsetType = UNSET


def problem(error: ConvoError, conversation_id: str | None = None) -> Problem:
    """Make the answer to an error; ``type`` points to the code's place in ``/docs``."""
    return Problem(
        type=f"/docs#{error.code}",
        title=error.title,
        status=error.status,
        code=error.code,
        detail=error.detail,
        path=error.path or UNSET,
        conversation_id=conversation_id or UNSET,
    )


def links(conversation_id: str) -> Links:
    """Make the links of a conversation, its id percent-encoded."""
    self = "/v1/conversations/" + quote(conversation_id, safe="")
    return Links(self=self, log=self + "/log")
