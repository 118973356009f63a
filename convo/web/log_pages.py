"""Makes the answer of ``GET …/log`` of a packed log: a page of its turns, or the log as it was sent.

All of it can run in a thread. It is made in pieces, between which that thread can give way: a single call into
msgspec holds every other thread, the loop's as well, until it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation import transcript
from convo.conversation.model import Turn
from convo.store import logs
from convo.store.conversations import FoundLog
from convo.web import queries
from convo.web.description import views
from convo.web.description.messages import encode

TURNS_WEIGHT = 4
"""How many times its own size a log needs in memory while it is read as turns: 3 to 9 times, the shorter its turns."""

# Of usual turns, a tenth of a millisecond of work.
_AT_ONCE = 400


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


def turns_of_log(found: FoundLog, packed: bytes, page: TurnsPage, after_some: Callable[[], None]) -> bytes:
    """Return a page of the log's turns, as JSON; call ``after_some`` after every few turns.

    Raises:
        WrongLog: the stored log is another's.
    """
    row = found.row
    log, end = sent_log(found, packed), page.start + page.limit
    turns, count = transcript.some_turns(
        log, row["started_at"], row["ended_at"], begin=page.start, end=end, after_some=after_some
    )
    next_cursor = queries.cursor_after(end) if end < count else None
    pieces: Any = tuple(_encoded(turns, after_some))
    return encode(views.LogView(conversation_id=row["conversation_id"], turns=pieces, next_cursor=next_cursor))


def _encoded(turns: Sequence[Turn], after_some: Callable[[], None]) -> Iterator[msgspec.Raw]:
    for number, turn in enumerate(turns, 1):
        yield msgspec.Raw(encode(turn))
        if not number % _AT_ONCE:
            after_some()
