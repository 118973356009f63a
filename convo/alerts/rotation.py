"""Computes who is on call at a point in time, of the rotation and the overrides of ``[oncall]``.

Open it to change when the turn passes on. It is pure: the caller says what time it is. The turn passes on at an hour of
the wall clock in ``oncall.timezone``: at 09:00 before and after a change of clocks, so a week with such a change has an
hour more or less. An hour that a change leaves out begins when the clocks are put forward, and of one that comes twice
the first counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

from msgspec import Struct, structs

from convo.settings import OncallOverride, OncallSettings, Weekday

_WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
_WEEK_DAYS = 7


class Shift(Struct, frozen=True, kw_only=True):
    """The time in which one person is on call, in UTC; ``until`` is None where nobody else has a turn.

    ``override``: it begins with an override, and not with a hand-over of the rotation.
    """

    person: str
    since: datetime
    until: datetime | None
    override: bool = False


def zone(settings: OncallSettings) -> ZoneInfo:
    """Return the time zone of the rotation.

    Raises:
        ZoneInfoNotFoundError, ValueError: there is none of this name.
    """
    return ZoneInfo(settings.timezone)


def shifts(settings: OncallSettings, at: datetime, count: int) -> list[Shift]:
    """List the shift at ``at`` and the next ones, at most ``count``; none where nobody is in the rotation.

    ``since`` of the first is its last hand-over, or the edge of an override.
    """
    found: list[Shift] = []
    for part in _parts(settings, at, count * len(settings.turns) + 1):
        if found and found[-1].person == part.person:
            found[-1] = structs.replace(found[-1], until=part.until)
            continue
        if len(found) == count:
            break
        found.append(part)
    else:
        # After the last override nobody else has a turn.
        found[-1:] = [structs.replace(one, until=None) for one in found[-1:]]
    return found


def on_call(settings: OncallSettings, at: datetime) -> str | None:
    """Return who is on call at ``at``; None where nobody is in the rotation."""
    return _person(settings, at) if settings.turns else None


def in_order(settings: OncallSettings, at: datetime) -> tuple[str, ...]:
    """Return everybody, in the order in which an alert is escalated: who is on call, then by the weeks that follow."""
    if not settings.turns:
        return ()
    week = _week(settings, at)
    coming = [_of_week(settings, week + ahead) for ahead in range(1, len(settings.turns) + 1)]
    return tuple(dict.fromkeys((_person(settings, at), *coming, *settings.people)))


def _parts(settings: OncallSettings, at: datetime, weeks: int) -> Iterator[Shift]:
    """Yield the times between one edge and the next, until so many weeks after the last override."""
    if not settings.turns:
        return
    ends = [_instant(settings, one.until) for one in settings.overrides]
    end = max([at, *ends]) + timedelta(days=_WEEK_DAYS * weeks)
    since = max(_edges(settings, at, before=True))
    while since <= end:
        until = min(_edges(settings, max(at, since), before=False))
        yield Shift(
            person=_person(settings, max(at, since)),
            since=since,
            until=until,
            override=_override(settings, max(at, since)) is not None,
        )
        since = until


def _edges(settings: OncallSettings, at: datetime, *, before: bool) -> Iterator[datetime]:
    """Yield when the turn could pass on: at or before ``at``, or after it."""
    yield _handover(settings, _week(settings, at) + (0 if before else 1))
    for one in settings.overrides:
        for edge in (_instant(settings, one.from_), _instant(settings, one.until)):
            if (edge <= at) == before:
                yield edge


def _person(settings: OncallSettings, at: datetime) -> str:
    override = _override(settings, at)
    return override.person if override is not None else _of_week(settings, _week(settings, at))


def _override(settings: OncallSettings, at: datetime) -> OncallOverride | None:
    for one in reversed(settings.overrides):
        if _instant(settings, one.from_) <= at < _instant(settings, one.until):
            return one
    return None


def _of_week(settings: OncallSettings, week: int) -> str:
    return settings.turns[week % len(settings.turns)]


def _week(settings: OncallSettings, at: datetime) -> int:
    """Return the number of the week: 0 is the one of ``start``, those before it are negative."""
    week = (at.astimezone(zone(settings)).date() - _handover(settings, 0).astimezone(zone(settings)).date()).days
    week //= _WEEK_DAYS
    return week if _handover(settings, week) <= at else week - 1


def _handover(settings: OncallSettings, week: int) -> datetime:
    """Return when a week begins."""
    start = settings.start
    first = start - timedelta(days=(start.weekday() - _WEEKDAYS.index(settings.handover_day)) % _WEEK_DAYS)
    day = first + timedelta(days=_WEEK_DAYS * week)
    return _instant(settings, datetime.combine(day, time(settings.handover_hour)))


def _instant(settings: OncallSettings, at: datetime) -> datetime:
    return (at if at.tzinfo is not None else at.replace(tzinfo=zone(settings))).astimezone(UTC)
