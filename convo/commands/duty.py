"""``convo oncall``: who is on call now, or at another time, and who is next, by the settings of this machine.

It asks no server. Open it to change what is printed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct
from rich.console import Group, RenderableType

from convo.alerts.rotation import Shift, shifts, zone
from convo.commands.output import add_row, make_table, plain, print_json, show_result
from convo.conversation.times import instant
from convo.errors import Refused
from convo.settings import OncallSettings

_TURNS = 4


class Duty(Struct, frozen=True, kw_only=True):
    """Who is on call at a time, and who follows; ``now`` and ``next`` are None where there is no such person."""

    at: datetime
    timezone: str
    now: Shift | None
    next: Shift | None
    later: tuple[Shift, ...]


def show_duty(oncall: OncallSettings, at: str | None, *, as_json: bool) -> int:
    """Print who is on call at a time, now where none is given; return 1 where nobody is."""
    try:
        found = find_duty(oncall, datetime.now(UTC) if at is None else _time(oncall, at))
    except (ValueError, OverflowError):
        raise Refused(f"--at {at}: a time such as 2027-03-28T09:00:00, 2027-03-28 or 2027-03-28T07:00:00Z") from None
    if as_json:
        print_json(found)
    else:
        show_result(draw_duty(oncall, found))
    return 0 if found.now else 1


def find_duty(oncall: OncallSettings, at: datetime) -> Duty:
    """Find who is on call at a time, and the turns that follow."""
    turns = shifts(oncall, at, _TURNS)
    now, coming = (turns[0], turns[1:]) if turns else (None, [])
    return Duty(
        at=at,
        timezone=oncall.timezone,
        now=now,
        next=coming[0] if coming else None,
        later=tuple(coming[1:]),
    )


def draw_duty(oncall: OncallSettings, duty: Duty) -> RenderableType:
    """Draw the turns, in the time zone of the rotation."""
    if duty.now is None:
        return plain("nobody is on call: oncall.people is empty (convo help oncall)")
    table = make_table("", "who", "from", "until", "notified by")
    rows = [("now", duty.now), *(("next", one) for one in [duty.next] if one), *(("then", one) for one in duty.later)]
    for word, shift in rows:
        who = f"{shift.person} (override)" if shift.override else shift.person
        until = "no end" if shift.until is None else _local(oncall, shift.until)
        add_row(table, word, who, _local(oncall, shift.since), until, _ways(oncall, shift.person))
    return Group(table, plain(f"Times are of {duty.timezone}; this is at {_local(oncall, duty.at)}.", "dim"))


def _ways(oncall: OncallSettings, name: str) -> str:
    person = oncall.people[name]
    ways = {"e-mail": person.email, "PagerDuty": person.pagerduty_key, "Slack": person.slack_url}
    return ", ".join(way for way, is_set in ways.items() if is_set)


def _local(oncall: OncallSettings, at: datetime) -> str:
    return at.astimezone(zone(oncall)).strftime("%a %Y-%m-%d %H:%M")


def _time(oncall: OncallSettings, text: str) -> datetime:
    """Read a time; without an offset it is one of the rotation's time zone. Raises: ValueError, OverflowError."""
    given = f"{text}T00:00:00" if ":" not in text else f"{text}:00" if text.count(":") == 1 else text
    at = instant(given)
    has_offset = given[19:].lstrip(".0123456789") != ""
    return at if has_offset else at.replace(tzinfo=zone(oncall)).astimezone(UTC)
