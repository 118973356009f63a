"""The values of convo: what a client sends, what it is answered, what is found; pure data, no rules.

All are frozen. Times are aware datetimes in UTC unless a line says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Speaker = Literal["user", "bot"]
EmotionName = Literal["interesting", "boring", "neutral", "angry", "happy", "sad"]
PartName = str
"""The name of a part: one of ``owed.DEFAULT_PARTS``, or of those that are declared in ``[parts]``."""
PartState = Literal["waiting", "done", "failed", "refused", "skipped"]
JobState = Literal["ready", "leased", "done", "dead", "superseded"]
"""``superseded``: it was not analysed yet when a newer revision of its conversation came, and is not any more."""
StateFilter = Literal["ready", "leased", "done", "dead", "parked"]
"""The states of a job, and ``parked``: ready, and waiting for a dependency that is out."""
Level = Literal["stranger", "acquaintance", "friend"]

# No control characters; "." and ".." would be taken out of a path, also where they are percent-encoded.
_ID_PATTERN = r"^(?!\.{1,2}\Z)[^\x00-\x1f\x7f-\x9f]+\Z"
CANARY_USER = "convo:canary"
"""The user of convo's own test conversations; nobody else may use this id."""
Identifier = Annotated[str, Meta(min_length=1, max_length=255, pattern=_ID_PATTERN)]
Label = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00]*\Z")]
# A BCP 47 tag and an IANA name by their form alone: which of them exist changes from year to year.
LanguageTag = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*\Z")]
Timezone = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,3}\Z")]
SentTime = str | int | float | None
"""A time as it was sent: see ``times``."""


class ConversationEnded(Struct, frozen=True, kw_only=True, gc=False):
    """The body of ``POST /v1/conversations/end``, as sent: nothing filled in, nothing normalised.

    An id that was sent as an integer is its decimal text. The log may come under either spelling, or under another
    name that ``found_log`` knows. It and ``metadata`` are the bytes that were sent.
    """

    conversation_id: Identifier
    user_id: Identifier
    bot_id: Identifier
    bot_name: Label | None | UnsetType = UNSET
    bot_type: Label | None | UnsetType = UNSET
    agent_tag: Label | None | UnsetType = UNSET
    start_time: SentTime | UnsetType = UNSET
    end_time: SentTime | UnsetType = UNSET
    language: LanguageTag | None | UnsetType = UNSET
    timezone: Timezone | None | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    conversation_log: Raw | UnsetType = UNSET
    conversation_logs: Raw | UnsetType = UNSET


class Turn(Struct, frozen=True, kw_only=True, gc=False):
    """One thing said: who, what, when, and the name of the speaker where one was sent."""

    speaker: Speaker
    text: str
    at: datetime
    name: str | UnsetType = UNSET


class Conversation(Struct, frozen=True, kw_only=True, dict=True):
    """What an analyst reads: one conversation with its turns in order.

    ``asked_before``: an earlier run may have asked the remote services, and its answers may be lost. ``tickets`` hold,
    by part, what to ask a service with that was still at work on it. ``remote_prefix`` tells its tenant where a service
    is given ids: those of two tenants are two users, and two conversations, to it.

    In ``__dict__`` analysts keep what they have made of the turns, as ``functools.cached_property`` does.
    """

    conversation_id: str
    user_id: str
    bot_id: str
    digest: str
    turns: tuple[Turn, ...]
    asked_before: bool = False
    tickets: Mapping[PartName, str] = {}
    remote_prefix: str = ""

    @property
    def remote_id(self) -> str:
        """What a service is given as the id of the conversation."""
        return self.remote_prefix + self.conversation_id

    @property
    def remote_user(self) -> str:
        """What a service is given as the id of the user."""
        return self.remote_prefix + self.user_id


class Links(Struct, frozen=True, kw_only=True, gc=False):
    """Where to read more; paths, ids percent-encoded."""

    self: str
    log: str


class UnreadItem(Struct, frozen=True, kw_only=True, gc=False):
    """An item that is kept as it was sent and could not be read, or its time could not: the names of its fields."""

    path: str
    fields: tuple[str, ...]


class ReceiptNotes(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What a receipt says besides: kept with the conversation, so that it says the same to every replay."""

    ignored: tuple[str, ...] = ()
    unread: tuple[UnreadItem, ...] = ()
    revision: int = 1


class Receipt(Struct, frozen=True, kw_only=True, gc=False):
    """The answer to an accepted conversation; the same for every replay, for ever.

    ``turns`` counts the items of the log in which somebody spoke; ``received_at`` is the database's clock at the first
    commit. ``ignored`` names fields of the body that are not stored, ``unread`` items that are stored and no turns; of
    both only the first few. ``state`` is not there as long as the conversation is stored, and ``revision`` is not there
    in the receipt of the first one.
    """

    conversation_id: str
    digest: str
    turns: int
    received_at: datetime
    links: Links
    ignored: tuple[str, ...] = ()
    unread: tuple[UnreadItem, ...] = ()
    state: Annotated[
        Literal["expired"] | UnsetType,
        Meta(description="`expired` where the content is no longer stored; else the field is not there."),
    ] = UNSET
    revision: Annotated[
        Annotated[int, Meta(ge=2)] | UnsetType,
        Meta(description="The number of a revision; the first receipt of an id has no such field."),
    ] = UNSET


# --- what an analysis finds


class Questions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The questions that the user raised, in order.

    ``refused`` is why the analyst refuses this conversation, empty where it does not: nothing was found then, and
    nothing will be.
    """

    questions: tuple[str, ...]
    refused: str = ""


class Mood(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the user felt about the conversation as a whole.

    It is not ``judged`` in a language that nobody knew, nor where it is ``refused``, as in ``Questions``.
    """

    emotion: EmotionName
    judged: bool = True
    refused: str = ""


KEY_CHARS_MAX = 200
"""The longest key of a memory: it is in an index, where an entry with the user's id has at most 2,704 bytes."""


def bounded_key(key: str) -> str:
    """Return the key of a memory, or its hash where it is longer than ``KEY_CHARS_MAX``."""
    return key if len(key) <= KEY_CHARS_MAX else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class MemoryFact(Struct, frozen=True, kw_only=True):
    """One thing to remember about a user.

    ``key`` makes it unique for that user: the remote service's id, or the normalised fact itself.
    ``operation`` is what the finder says of it; only ADD can be new.
    """

    key: str
    text: str
    kind: str = "fact"
    operation: Literal["ADD", "UPDATE", "DELETE", "NONE"] = "ADD"


class Memories(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to remember from one conversation, before it is known which of it is new.

    The other two are for a service that may have answered an earlier run, whose answer is lost: then a NONE can stand
    for what it added in that run. ``listed`` are the keys of NONE facts that the service has now. ``uncertain`` is true
    where that could not be found out.
    """

    facts: tuple[MemoryFact, ...]
    listed: tuple[str, ...] = ()
    uncertain: bool = False


class Answered(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of a part that was declared in the settings: an object that fits its schema.

    ``refused`` as in ``Questions``.
    """

    answer: Mapping[str, Any] = {}
    refused: str = ""


Finding = Questions | Mood | Memories | Answered
"""What one part of an analysis holds when it is done."""
