"""The JSON of the frames of ``GET /v1/live``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct


class LiveOpeningView(Struct, frozen=True, kw_only=True):
    """The first frame: which ones can follow."""

    figures: Annotated[bool, Meta(description="Whether figures are sampled here (`page.sample_seconds`).")]
    changes: Annotated[bool, Meta(description="Whether events are appended here (`events.types`).")]


class ChangesView(Struct, frozen=True, kw_only=True):
    """How many events there were since the frame before, by type; who takes frames slowly misses some of them."""

    sequence: Annotated[int, Meta(ge=1, description="The number of the last event: `as_of` of a list.")]
    types: Mapping[str, int]
