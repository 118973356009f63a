"""The shapes of a log's items as Structs, for the description alone: ``conversation.item`` reads them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

USER_EXAMPLES = ("user", "human", "customer", "caller", "END_USER", "USER", "USER_RESPONSE_CONVERSATION")
BOT_EXAMPLES = ("assistant", "bot", "agent", "ai", "model", "gpt", "pika", "BOT", "BOT_RESPONSE_CONVERSATION")
NEITHER_EXAMPLES = ("system", "developer", "tool", "function")

_WHO_TEXT = (
    f"Who spoke, in any spelling of a user ({', '.join(USER_EXAMPLES)}, …) or of a bot ({', '.join(BOT_EXAMPLES)}, …)."
    f" What belongs to neither ({', '.join(NEITHER_EXAMPLES)}, …) is kept and is no turn."
)
_Who = Annotated[str, Meta(description=_WHO_TEXT, examples=["user", "assistant"])]
_Words = Annotated[str | None | UnsetType, Meta(description="What was said; an item without any is no turn.")]
_Time = Annotated[
    str | float | None | UnsetType,
    Meta(
        description="When: RFC 3339 (UTC where no offset stands), or a number: below 1e8 seconds from the start, below"
        " 1e11 seconds since 1970, else milliseconds. Interpolated between its neighbours if missing."
    ),
]
_Name = Annotated[str | None | UnsetType, Meta(description="The speaker's name, as in a family or a group.")]


class CharacterItem(Struct, frozen=True, kw_only=True):
    """The speaker in `character`, the words in `content`."""

    character: _Who
    content: _Words = UNSET
    timestamp: _Time = UNSET


class SpeakerItem(Struct, frozen=True, kw_only=True):
    """The speaker in `speaker`, the words in `text`."""

    speaker: _Who
    turn_id: str | int | None | UnsetType = UNSET
    text: _Words = UNSET
    timestamp: _Time = UNSET


class ContentPart(Struct, frozen=True, kw_only=True):
    """One part of a content: its words stand in one of these fields; one that holds no speech is read past."""

    type: str | UnsetType = UNSET
    text: Any = UNSET
    transcript: _Words = UNSET
    refusal: _Words = UNSET


class RoleItem(Struct, frozen=True, kw_only=True):
    """The speaker in `role`, the words in `content`, `parts` or `message`: OpenAI's, Gemini's, Vercel's and others'."""

    role: _Who
    name: _Name = UNSET
    content: str | list[str | ContentPart] | None | UnsetType = UNSET
    parts: list[str | ContentPart] | UnsetType = UNSET
    message: _Words = UNSET
    timestamp: _Time = UNSET


class FromItem(Struct, frozen=True, kw_only=True):
    """The speaker in `from`, the words in `value`: ShareGPT's."""

    from_: _Who = field(name="from")
    value: _Words = UNSET
    timestamp: _Time = UNSET


class OtherItem(Struct, frozen=True, kw_only=True):
    """Any other object: kept as it was sent.

    A turn where a speaker and words are found under the names that other vendors use: `sender`, `author.role`, `event`,
    `participantRole`, …; `body`, `transcript`, `utterance`, `audio.transcript`, ….
    """

    timestamp: Any = UNSET


ITEM_SHAPES = (CharacterItem, SpeakerItem, RoleItem, FromItem, OtherItem)
