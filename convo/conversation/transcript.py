"""Reading a log as turns: once when a conversation is accepted, to check it, and anew whenever its turns are needed.

``item`` reads one item; a vendor's names for speaker, words and time are added in ``voices``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any, TypeVar

from msgspec import UNSET, Struct, UnsetType

from convo import errors
from convo.conversation.decode import Received
from convo.conversation.item import ItemReading, read_any, read_classic, read_item
from convo.conversation.model import ConversationEnded, SentTime, Speaker, Turn, UnreadItem
from convo.conversation.nesting import too_deep
from convo.conversation.score import count_exchanges
from convo.conversation.sent import PLAIN_TYPES, is_too_deep, items_of, read_log
from convo.conversation.times import TIME_WANTED, Moment, moment
from convo.conversation.voices import PLAIN_SPEAKERS

T = TypeVar("T")

UNREAD_MAX = 10
# Of usual items, a tenth of a millisecond of work.
_SLICE_ITEMS = 200

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_KNOWN = (
    "who spoke is read from character, speaker, role, from, sender, author and the like (user, human, customer, …;"
    " assistant, agent, bot, ai, model, …), the words from content, text, value, message, transcript, parts,"
    " audio.transcript and the like"
)

_Kept = tuple[Speaker, str, Moment | None, str | None]


class CheckedLog(Struct, frozen=True):
    """What the accept path knows of a conversation that can be analysed.

    ``turns`` counts the items in which somebody spoke, ``user_turns`` those of the user, ``exchanges`` what
    ``score.count_exchanges`` makes of them; ``unread`` is the first of the items that could not be read. The times are
    the client's, else the log's earliest and latest, else ``None``; where both are known, ``started_at`` is never after
    ``ended_at``.
    """

    turns: int
    exchanges: int
    started_at: datetime | None
    ended_at: datetime | None
    unread: tuple[UnreadItem, ...] = ()
    user_turns: int = 0


def check_log(received: Received) -> CheckedLog:
    """Check everything that the analysis will rely on, in one pass over the log.

    Raises:
        Invalid: a time of the conversation that cannot be used, items nested too deeply, or a log that carries
            something of which no item yields words; the path names it.
    """
    start, end = span(received.ended)
    items = received.sent.items
    read = _read_plain(items) or _read_all(received.sent.name, items)
    start, end = _span_with(read.times, start, end)
    speakers = read.speakers
    return CheckedLog(
        len(speakers), count_exchanges(speakers), start, end, tuple(read.unread), user_turns=speakers.count("user")
    )


def span(ended: ConversationEnded) -> tuple[datetime | None, datetime | None]:
    """Read the start and the end that the client sent, in UTC; ``None`` for what it did not send.

    Raises:
        Invalid: not a time, outside the years 1 to 9999 in UTC, or an end before its start.
    """
    start = _sent_time(ended.start_time, "$.start_time", None)
    end = _sent_time(ended.end_time, "$.end_time", start)
    if start is not None and end is not None and end < start:
        raise errors.Invalid("must not be before start_time", path="$.end_time")
    return start, end


def turns(log: bytes, started_at: datetime, ended_at: datetime) -> tuple[Turn, ...]:
    """Read the turns of a log as it was sent, with a time each.

    A missing time is interpolated between its nearest known neighbours; a first turn without one was said at
    ``started_at``, a last one at ``ended_at``. Times that were sent stay as they are, in whatever order.
    """
    return some_turns(log, started_at, ended_at)[0]


def some_turns(  # noqa: PLR0913  (a log with its times, and which turns of it)
    log: bytes,
    started_at: datetime,
    ended_at: datetime,
    *,
    begin: int = 0,
    end: int | None = None,
    after_some: Callable[[], None] = lambda: None,
) -> tuple[tuple[Turn, ...], int]:
    """Read the turns with an index from ``begin`` to below ``end``, as ``turns``; return besides how many there are.

    ``after_some`` is called after every few items.
    """
    kept = _in_slices(_kept(items_of(read_log(log))), after_some)
    times = _filled([_at(at, started_at) for _, _, at, _ in kept], started_at, ended_at)
    wanted = (
        Turn(speaker=who, text=words, at=at, name=UNSET if name is None else name)
        for (who, words, _, name), at in islice(zip(kept, times, strict=True), begin, end)
    )
    return tuple(_in_slices(wanted, after_some)), len(kept)


def _in_slices(every: Iterator[T], after_some: Callable[[], None]) -> list[T]:
    found: list[T] = []
    while some := list(islice(every, _SLICE_ITEMS)):
        found += some
        after_some()
    return found


# --- the items


class _Read(Struct):
    speakers: list[Speaker] = []
    times: list[Moment] = []
    unread: list[UnreadItem] = []


def _read_plain(items: list[Any]) -> _Read | None:
    """Read a log of plain items of which nothing is odd; ``None`` for any other log.

    Most logs are of these, and each of hundreds of items is seen on the accept path.
    """
    if not items or type(items[0]) not in PLAIN_TYPES:
        return None
    # Most words begin with a letter: the few that do not are looked at closely, for they may be no words at all.
    odd = [item.words for item in items if not item.words[:1].isalnum()]
    if any(not words.replace("\0", "").strip() for words in odd):
        return None
    try:
        return _Read(
            [PLAIN_SPEAKERS[item.who] for item in items],
            [moment(item.timestamp) for item in items if item.timestamp is not UNSET],
        )
    except (KeyError, ValueError, OverflowError):
        return None


def _read_all(name: str, items: list[Any]) -> _Read:
    read = _Read()
    lost = None
    for index, item in enumerate(items):
        reading = read_classic(item) or _read_other(item, name, index)
        if reading.who is not None:
            read.speakers.append(reading.who)
            if reading.at is not None:
                read.times.append(reading.at)
        if reading.unread:
            if len(read.unread) < UNREAD_MAX:
                read.unread.append(UnreadItem(path=f"$.{name}[{index}]", fields=reading.missed))
            lost = lost or (index, reading)
    if lost and not read.speakers:
        raise _no_words(name, *lost)
    return read


def _read_other(item: object, name: str, index: int) -> ItemReading:
    if is_too_deep(item):
        raise too_deep(f"$.{name}[{index}]")
    return read_any(item)


def _kept(items: list[Any]) -> Iterator[_Kept]:
    for item in items:
        reading = read_item(item)
        if reading.who is not None:
            yield reading.who, reading.words, reading.at, reading.name


def _no_words(name: str, index: int, reading: ItemReading) -> errors.Invalid:
    fields = ", ".join(reading.missed) if reading.missed else "no fields"
    return errors.Invalid(
        f"no item of the log yields words; the first that was not understood has {fields}; {_KNOWN}",
        path=f"$.{name}[{index}]",
    )


# --- times


def _sent_time(value: SentTime | UnsetType, path: str, start: datetime | None) -> datetime | None:
    if value is None or value is UNSET:
        return None
    try:
        at = moment(value)
        if isinstance(at, timedelta) and start is not None:
            at = start + at
    except (ValueError, OverflowError) as error:
        raise errors.Invalid(TIME_WANTED, path=path) from error
    if isinstance(at, timedelta):
        raise errors.Invalid(f"is seconds from a start that is not known; {TIME_WANTED}", path=path)
    return at


def _span_with(
    times: list[Moment], start: datetime | None, end: datetime | None
) -> tuple[datetime | None, datetime | None]:
    """Complete what the client said of start and end by the times of its items."""
    if not times:
        return start, end
    known = [at for at in times if isinstance(at, datetime)]
    distances = [at for at in times if isinstance(at, timedelta)]
    if start is None and known:
        start = min(known) if end is None else min(*known, end)
    if start is None and end is not None:
        start = _moved(end, -max(distances))
    if start is not None:
        known += [_moved(start, distance) for distance in distances]
        end = end if end is not None else max(*known, start)
    return start, end


def _at(at: Moment | None, started_at: datetime) -> datetime | None:
    return _moved(started_at, at) if isinstance(at, timedelta) else at


def _moved(at: datetime, by: timedelta) -> datetime:
    try:
        return at + by
    except OverflowError:
        return _FIRST if by < timedelta() else _LAST


def _filled(times: list[datetime | None], started_at: datetime, ended_at: datetime) -> Iterable[datetime]:
    known = [at for at in times if at is not None]
    if len(known) == len(times):
        return known
    filled = list(times)
    # What the client says of start and end may contradict the log: the times of the turns then win.
    if filled[0] is None:
        filled[0] = min([started_at, *known[:1]])
    if filled[-1] is None:
        filled[-1] = max([ended_at, *known[-1:]])
    return _interpolated(filled)


def _interpolated(times: Iterable[datetime | None]) -> Iterator[datetime]:
    anchors = [(index, at) for index, at in enumerate(times) if at is not None]
    for (index, at), (next_index, next_at) in pairwise(anchors):
        steps = next_index - index
        # In whole microseconds: many turns times many years would overflow a timedelta.
        apart = (next_at - at) // timedelta.resolution
        for step in range(steps):
            yield at + timedelta.resolution * (apart * step // steps)
    yield anchors[-1][1]
