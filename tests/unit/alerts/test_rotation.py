from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from convo.alerts.rotation import in_order, on_call, shifts
from convo.settings import OncallOverride, OncallSettings, PersonSettings

PEOPLE = {name: PersonSettings(email=f"{name}@example.com") for name in ("anna", "ben", "chris")}


def rotation(**fields: Any) -> OncallSettings:
    usual = {"people": PEOPLE, "start": date(2027, 3, 22), "timezone": "Europe/Berlin"}
    return OncallSettings(**{**usual, **fields})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def override(person: str, since: str, until: str) -> OncallOverride:
    return OncallOverride(from_=datetime.fromisoformat(since), until=datetime.fromisoformat(until), person=person)


def test_the_turn_passes_on_at_the_same_hour_when_the_clocks_are_put_forward() -> None:
    first, second = shifts(rotation(), utc("2027-03-24T12:00"), 2)
    assert (first.person, first.since, first.until) == ("anna", utc("2027-03-22T08:00"), utc("2027-03-29T07:00"))
    assert (second.person, second.until) == ("ben", utc("2027-04-05T07:00"))
    assert second.until is not None
    assert (utc("2027-03-29T07:00") - first.since, second.until - second.since) == (
        timedelta(hours=167),
        timedelta(hours=168),
    )
    assert on_call(rotation(), utc("2027-03-29T06:59:59")) == "anna"
    assert on_call(rotation(), utc("2027-03-29T07:00")) == "ben"


def test_the_turn_passes_on_at_the_same_hour_when_the_clocks_are_put_back() -> None:
    settings = rotation(start=date(2027, 10, 25))
    (first,) = shifts(settings, utc("2027-10-31T00:30"), 1)
    assert (first.person, first.since, first.until) == ("anna", utc("2027-10-25T07:00"), utc("2027-11-01T08:00"))
    assert on_call(settings, utc("2027-11-01T07:59:59")) == "anna"
    assert on_call(settings, utc("2027-11-01T08:00")) == "ben"


def test_an_hour_that_is_left_out_begins_when_the_clocks_are_put_forward() -> None:
    settings = rotation(start=date(2027, 3, 21), handover_day="sunday", handover_hour=2)
    assert on_call(settings, utc("2027-03-28T00:59:59")) == "anna"
    assert on_call(settings, utc("2027-03-28T01:00")) == "ben"


def test_of_an_hour_that_comes_twice_the_first_counts() -> None:
    settings = rotation(start=date(2027, 10, 24), handover_day="sunday", handover_hour=2)
    assert on_call(settings, utc("2027-10-30T23:59:59")) == "anna"
    assert on_call(settings, utc("2027-10-31T00:00")) == "ben"
    assert on_call(settings, utc("2027-10-31T01:30")) == "ben"


@pytest.mark.parametrize("hour", range(24))
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Auckland", "Asia/Ho_Chi_Minh"])
def test_at_every_hour_somebody_is_on_call_and_turns_follow_each_other(zone: str, hour: int) -> None:
    settings = rotation(timezone=zone, handover_hour=hour)
    at, end = utc("2027-03-01T00:00"), utc("2027-12-01T00:00")
    while at < end:
        one, after = shifts(settings, at, 2)
        assert one.until == after.since
        assert one.since <= at < after.since
        assert "anna ben chris anna".find(f"{one.person} {after.person}") >= 0
        at = after.since


def test_the_week_of_the_start_is_the_firsts_whichever_day_that_is() -> None:
    settings = rotation(start=date(2027, 3, 25), handover_day="wednesday")
    assert on_call(settings, utc("2027-03-24T08:00")) == "anna"
    assert on_call(settings, utc("2027-03-24T07:59")) == "chris"
    assert on_call(settings, utc("2027-02-24T08:00")) == "chris"


def test_an_override_has_its_time_alone_and_the_last_one_counts() -> None:
    settings = rotation(
        overrides=(
            override("chris", "2027-03-23T09:00", "2027-03-25T09:00"),
            override("ben", "2027-03-24T09:00", "2027-03-24T21:00"),
        )
    )
    found = [(one.person, one.since, one.override) for one in shifts(settings, utc("2027-03-22T10:00"), 6)]
    assert found == [
        ("anna", utc("2027-03-22T08:00"), False),
        ("chris", utc("2027-03-23T08:00"), True),
        ("ben", utc("2027-03-24T08:00"), True),
        ("chris", utc("2027-03-24T20:00"), True),
        ("anna", utc("2027-03-25T08:00"), False),
        ("ben", utc("2027-03-29T07:00"), False),
    ]


def test_an_override_across_the_change_of_clocks_ends_on_the_wall_clock() -> None:
    settings = rotation(overrides=(override("ben", "2027-03-27T22:00", "2027-03-28T10:00"),))
    assert on_call(settings, utc("2027-03-27T20:59")) == "anna"
    assert on_call(settings, utc("2027-03-27T21:00")) == "ben"
    assert on_call(settings, utc("2027-03-28T07:59")) == "ben"
    assert on_call(settings, utc("2027-03-28T08:00")) == "anna"


def test_a_time_with_an_offset_is_taken_as_it_is() -> None:
    settings = rotation(overrides=(override("ben", "2027-03-24T09:00+00:00", "2027-03-24T10:00+00:00"),))
    assert on_call(settings, utc("2027-03-24T08:30")) == "anna"
    assert on_call(settings, utc("2027-03-24T09:30")) == "ben"


def test_one_person_has_no_end_and_nobody_is_next() -> None:
    settings = rotation(rotation=("ben",))
    (only,) = shifts(settings, utc("2027-03-24T12:00"), 4)
    assert (only.person, only.until) == ("ben", None)
    assert in_order(settings, utc("2027-03-24T12:00")) == ("ben", "anna", "chris")


def test_an_alert_goes_to_who_has_the_next_turn_and_each_stands_once() -> None:
    settings = rotation(rotation=("anna", "anna", "ben", "chris"))
    assert in_order(settings, utc("2027-03-24T12:00")) == ("anna", "ben", "chris")
    away = rotation(overrides=(override("chris", "2027-03-23T09:00", "2027-03-25T09:00"),))
    assert in_order(away, utc("2027-03-24T12:00")) == ("chris", "ben", "anna")


def test_without_people_nobody_is_on_call() -> None:
    assert on_call(OncallSettings(), utc("2027-03-24T12:00")) is None
    assert shifts(OncallSettings(), utc("2027-03-24T12:00"), 3) == []
    assert in_order(OncallSettings(), utc("2027-03-24T12:00")) == ()
    assert OncallSettings().paging("CRITICAL") == "nobody"
