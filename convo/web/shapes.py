"""The accepted shapes of a log's items as Structs, for the description; reading them is ``transcript``'s affair."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

_Words = Annotated[str | None | UnsetType, Meta(description="What was said; an item without any is skipped.")]
_Time = Annotated[str | None | UnsetType, Meta(description="When; interpolated between its neighbours if missing.")]
_TEXT_TYPES = ["text", "input_text", "output_text"]


class CharacterItem(Struct, frozen=True, kw_only=True):
    """Told apart by `character`."""

    character: Literal["BOT_RESPONSE_CONVERSATION", "USER_RESPONSE_CONVERSATION", "BOT", "PIKA", "USER"]
    content: _Words = UNSET
    timestamp: _Time = UNSET


class SpeakerItem(Struct, frozen=True, kw_only=True):
    """Told apart by `speaker`."""

    speaker: Literal["pika", "user"]
    turn_id: str | int | None | UnsetType = UNSET
    text: _Words = UNSET
    timestamp: _Time = UNSET


class ContentPart(Struct, frozen=True, kw_only=True):
    """One part of an OpenAI item; one that holds no words is skipped."""

    type: str
    text: str | UnsetType = UNSET


_Part = Annotated[
    ContentPart,
    Meta(extra_json_schema={"if": {"properties": {"type": {"enum": _TEXT_TYPES}}}, "then": {"required": ["text"]}}),
]


class RoleItem(Struct, frozen=True, kw_only=True):
    """OpenAI's, told apart by `role`; only what user and assistant said is kept."""

    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: str | list[_Part] | None | UnsetType = UNSET
    timestamp: _Time = UNSET


class FromItem(Struct, frozen=True, kw_only=True):
    """ShareGPT's, told apart by `from`; only what human and gpt said is kept."""

    from_: Literal["human", "user", "gpt", "assistant", "system"] = msgspec.field(name="from")
    value: _Words = UNSET
    timestamp: _Time = UNSET


ITEM_SHAPES = (CharacterItem, SpeakerItem, RoleItem, FromItem)
