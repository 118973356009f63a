"""The JSON bodies of answers about conversations and users, one Struct each.

Open this file to add a field to such an answer. Alerts and health are in ``service_views``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from msgspec import UNSET, Meta, Struct, UnsetType

from convo.analysis.part import FailureText, PartsView
from convo.analysis.scoring import Score
from convo.conversation.model import EmotionName, JobState, Level, Links, Turn
from convo.dependencies import DEPENDENCIES
from convo.store.jobs.cause import Cause
from convo.web.description.cost_views import ConversationCostView

WholeNumber = Annotated[int, Meta(ge=0)]
Cursor = Annotated[str | None, Meta(description="Send it as `cursor` to read the next page; null on the last page.")]
WaitsFor = Annotated[
    str | None,
    Meta(
        description="The dependency that this job waits for,"
        f" {' or '.join(f'`{name}`' for name in DEPENDENCIES)}; or a"
        " service of a declared part (`part.NAME`, with its version where no other will do); null for none. No attempt"
        " is spent."
    ),
]


class ConversationView(Struct, frozen=True, kw_only=True):
    """One conversation and what was found in it so far; nothing changes after the score is final."""

    conversation_id: str
    user_id: str
    bot_id: str
    bot_name: str | None
    bot_type: str | None
    agent_tag: str | None
    language: Annotated[str | None, Meta(description="As it was sent: a BCP 47 tag.")]
    timezone: Annotated[str | None, Meta(description="As it was sent: an IANA name.")]
    metadata: Annotated[
        Any, Meta(description="The object that was sent.", extra_json_schema={"type": ["object", "null"]})
    ]
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    digest: str
    turns: WholeNumber
    revision: Annotated[int, Meta(ge=1, description="Which revision this is; without `?revision=` it is the newest.")]
    state: JobState
    attempts: WholeNumber
    waits_for: WaitsFor
    parked_since: datetime | None
    log_state: Annotated[
        Literal["stored", "expired"],
        Meta(description="`expired` where the log is no longer stored (retention): then `GET …/log` is 410."),
    ]
    parts: PartsView
    score: Score
    last_error: FailureText
    links: Links
    cost: Annotated[
        ConversationCostView | UnsetType, Meta(description="What it has cost so far; only there with `?cost=1`.")
    ] = UNSET


class WaitView(Struct, frozen=True, kw_only=True):
    """One named wait of a run, and when it was, to a few milliseconds: two clocks meet in it."""

    name: str
    began_at: datetime
    ended_at: datetime


class RunView(Struct, frozen=True, kw_only=True):
    """One run of a conversation's job: which process ran it, how it ended, and the seconds spent in each named wait."""

    began_at: datetime
    ended_at: datetime
    ending: Annotated[
        str,
        Meta(
            description="`settle`, `fail`, `bury`, `park`, `release`, `rescue` (lease ran out), `crash` (process died)."
        ),
    ]
    by: str
    reason: str | None
    waits: dict[str, float]
    timeline: (
        Annotated[
            tuple[WaitView, ...],
            Meta(
                description="When the longest of its waits from 5 ms on were, at most 32; one may lie within another."
                " Missing where there are none, and of runs of an older program."
            ),
        ]
        | UnsetType
    ) = UNSET


class ExplainView(Struct, frozen=True, kw_only=True):
    """Why a conversation is in its state."""

    conversation_id: str
    state: JobState
    cause: Cause
    here: Annotated[
        str | None,
        Meta(description="The state of the dependency that it waits for, as seen by the process that answers."),
    ]
    ahead: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description="Conversations that will be analysed before it, an estimate where over 2,000 are queued; null"
            " unless it is queued."
        ),
    ]
    done_per_second: Annotated[
        float, Meta(description="Conversations done in the last minute, by all processes, as a rate.", ge=0)
    ]
    seconds_left: Annotated[float | None, Meta(description="Seconds until it is done, at that rate; null if unknown.")]
    attempts: WholeNumber
    crashes: WholeNumber
    runs: tuple[RunView, ...]
    links: Links


class LogView(Struct, frozen=True, kw_only=True):
    """A page of one conversation's turns, in order, as they are read from its log; a missing time is interpolated."""

    conversation_id: str
    turns: tuple[Turn, ...]
    next_cursor: str | None


class ConversationSummary(Struct, frozen=True, kw_only=True):
    """One row of a list; the score is null until it is final."""

    conversation_id: str
    user_id: str
    bot_id: str
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    turns: WholeNumber
    state: JobState
    attempts: WholeNumber
    score: WholeNumber | None
    last_error: FailureText
    links: Links


class ListView(Struct, frozen=True, kw_only=True):
    """One page of conversations, newest first."""

    conversations: tuple[ConversationSummary, ...]
    next_cursor: Cursor


class ReanalysisOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be found again."""

    part: Annotated[
        str | None,
        Meta(description="One part, as it is declared now; null or absent: all that the conversation is owed."),
    ] = None


class ReanalysisView(Struct, frozen=True, kw_only=True):
    """A conversation of which parts are being found again."""

    conversation_id: str
    parts: tuple[str, ...]
    links: Links


class RetryView(Struct, frozen=True, kw_only=True):
    """A dead letter that is ready again."""

    conversation_id: str
    state: JobState
    attempts: WholeNumber
    links: Links


class DeadReasonView(Struct, frozen=True, kw_only=True):
    """Dead letters with the same last error, in which `#` stands for a number, and when they became dead letters."""

    reason: str
    count: WholeNumber
    oldest_at: datetime
    newest_at: datetime


class DeadReasonsView(Struct, frozen=True, kw_only=True):
    """Dead letters by their reason, the most frequent first; `complete` is false where there are too many to count."""

    total: WholeNumber
    complete: bool
    reasons: tuple[DeadReasonView, ...]


class RetriedView(Struct, frozen=True, kw_only=True):
    """How many dead letters are ready again, or would be, and where the next batch begins."""

    retried: WholeNumber
    dry_run: bool
    next_cursor: Annotated[
        str | None, Meta(description="Send it as `cursor` for the next batch; null when all were looked at.")
    ]


class AcknowledgedView(Struct, frozen=True, kw_only=True):
    """A dead letter that was reviewed; it stays dead."""

    conversation_id: str
    state: JobState
    attempts: WholeNumber
    links: Links


class BotRelationship(Struct, frozen=True, kw_only=True):
    """What one bot's conversations add to a relationship."""

    bot_id: str
    score: WholeNumber
    level: Level
    conversations: WholeNumber
    last_emotion: EmotionName


class RelationshipView(Struct, frozen=True, kw_only=True):
    """The sum of a user's final scores over all bots, and a page of the bots, the latest first.

    For a user without any, score 0 and level `stranger`.
    """

    user_id: str
    score: WholeNumber
    level: Level
    conversations: WholeNumber
    last_emotion: EmotionName | None
    bots: tuple[BotRelationship, ...]
    next_cursor: str | None


class HistoryPointView(Struct, frozen=True, kw_only=True):
    """One conversation that was scored, with the sum and the level after it."""

    at: Annotated[datetime, Meta(description="When it was scored.")]
    conversation_id: str
    bot_id: str
    emotion: EmotionName | None
    points: Annotated[int, Meta(ge=0, description="The score of this conversation.")]
    score: Annotated[int, Meta(ge=0, description="The sum after it, of all bots or of the one that was asked for.")]
    level: Level


class RelationshipHistoryView(Struct, frozen=True, kw_only=True):
    """A page of how a user's score came about, newest first.

    What is in no row any more (by retention, or of an earlier service) is in the sum before the first point.
    """

    user_id: str
    bot_id: Annotated[str | None, Meta(description="The bot that was asked for; null: all.")]
    points: tuple[HistoryPointView, ...]
    next_cursor: Cursor


class MemoryView(Struct, frozen=True, kw_only=True):
    """One fact remembered about a user, and the conversation that it was first found in."""

    text: str
    kind: str
    conversation_id: Annotated[str | None, Meta(description="Null where that one is no longer stored (retention).")]
    first_seen_at: datetime


class MemoriesView(Struct, frozen=True, kw_only=True):
    """One page of the facts remembered about a user, newest first."""

    user_id: str
    memories: tuple[MemoryView, ...]
    next_cursor: Cursor


def links(conversation_id: str, revision: int | None = None) -> Links:
    """Return the links of a conversation, with its id percent-encoded; with ``revision`` those of that one."""
    path = "/v1/conversations/" + quote(conversation_id, safe="")
    query = "" if revision is None else f"?revision={revision}"
    return Links(self=path + query, log=path + "/log" + query)
