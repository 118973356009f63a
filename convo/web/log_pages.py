"""Makes the answer of ``GET …/log`` of a packed log: a page of its turns, or the log as it was sent.

All of it can run in a thread. It is made in pieces, because a single call into msgspec holds every other thread, the
loop's as well, until it ends.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation import transcript
from convo.store import logs
from convo.store.conversations import FoundLog
from convo.web import queries
from convo.web.description import views
from convo.web.description.messages import encode

TURNS_WEIGHT = 4
"""How many times its own size a log needs in memory while it is read as turns: 3 to 9 times, the shorter its turns."""


class TurnsPage(Struct, frozen=True, kw_only=True):
    """Which turns are asked for: at most ``limit``, from the one with the index ``start``."""

    start: int
    limit: int


def sent_log(found: FoundLog, packed: bytes) -> bytes:
    """Return the log as it was sent.

    Raises:
        WrongLog: the stored log is another's.
    """
    return logs.unpack_checked(packed, found.row["log_hash"], found.row["conversation_id"])


def turns_of_log(found: FoundLog, packed: bytes, page: TurnsPage) -> bytes:
    """Return a page of the log's turns, as JSON.

    Raises:
        WrongLog: the stored log is another's.
    """
    row = found.row
    turns = transcript.turns(sent_log(found, packed), row["started_at"], row["ended_at"])
    end = page.start + page.limit
    next_cursor = queries.cursor_after(end) if end < len(turns) else None
    pieces: Any = tuple(msgspec.Raw(encode(turn)) for turn in turns[page.start : end])
    return encode(views.LogView(conversation_id=row["conversation_id"], turns=pieces, next_cursor=next_cursor))
