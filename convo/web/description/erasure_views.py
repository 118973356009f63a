"""The answer of an erasure: what was erased, how many rows by table, and what may remain where, until when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from convo.conversation.identity import IdKind


class RemainsView(Struct, frozen=True, kw_only=True):
    """What may still lie in one place, although no statement and no answer shows it any more, and until when."""

    where: str
    what: str
    until: str


class ErasureView(Struct, frozen=True, kw_only=True):
    """The receipt of an erasure."""

    kind: IdKind
    hmac: Annotated[str, Meta(description="What stands for the id from now on, in the audit log too.")]
    begun_at: Annotated[
        datetime | None, Meta(description="From then on the id is refused; of a user, what ended until then.")
    ]
    ended_at: Annotated[
        datetime | None, Meta(description="Null for a dry run, and where not all of a user is erased yet: ask again.")
    ]
    dry_run: bool
    repeated: Annotated[bool, Meta(description="It was erased by an earlier request, and this is that receipt.")]
    removed: Annotated[Mapping[str, int], Meta(description="Rows that went, by table.")]
    changed: Annotated[Mapping[str, int], Meta(description="Rows that stay and lost what was of the erased, by table.")]
    told: Annotated[Mapping[str, int], Meta(description="Deletions that a memory service has confirmed, by service.")]
    waiting: Annotated[
        Mapping[str, int],
        Meta(description="Deletions that a memory service has yet to confirm; convo tells it until then. Ask again."),
    ]
    remains: tuple[RemainsView, ...]
