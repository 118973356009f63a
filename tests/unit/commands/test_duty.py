from __future__ import annotations

import json
from datetime import date, datetime

import pytest

from convo.commands import duty
from convo.errors import Refused
from convo.settings import OncallOverride, OncallSettings, PersonSettings, Secret

PEOPLE = {
    "anna": PersonSettings(email="anna@example.com", pagerduty_key=Secret("sekrit")),
    "ben": PersonSettings(email="ben@example.com"),
}
ONCALL = OncallSettings(
    people=PEOPLE,
    start=date(2027, 3, 22),
    timezone="Europe/Berlin",
    overrides=(
        OncallOverride(from_=datetime(2027, 3, 24, 9), until=datetime(2027, 3, 25, 9), person="ben"),  # noqa: DTZ001
    ),
)


def shown(capsys: pytest.CaptureFixture[str], at: str, *, as_json: bool = False) -> str:
    assert duty.show_duty(ONCALL, at, as_json=as_json) == 0
    return capsys.readouterr().out


def test_it_shows_who_is_on_call_now_and_who_is_next_in_the_rotations_own_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line for line in shown(capsys, "2027-03-22T10:00").splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells[:3] == [
        ["now", "anna", "Mon 2027-03-22 09:00", "Wed 2027-03-24 09:00", "e-mail, PagerDuty"],
        ["next", "ben (override)", "Wed 2027-03-24 09:00", "Thu 2027-03-25 09:00", "e-mail"],
        ["then", "anna", "Thu 2027-03-25 09:00", "Mon 2027-03-29 09:00", "e-mail, PagerDuty"],
    ]


def test_the_same_as_json_is_in_utc_and_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "2027-03-27", as_json=True)
    found = json.loads(text)
    assert "sekrit" not in text
    assert found["at"] == "2027-03-26T23:00:00Z"
    assert (found["now"]["person"], found["now"]["until"]) == ("anna", "2027-03-29T07:00:00Z")
    assert (found["next"]["person"], found["next"]["since"]) == ("ben", "2027-03-29T07:00:00Z")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2027-03-28T09:00", "2027-03-28T07:00:00Z"),
        ("2027-03-28T09:00:00", "2027-03-28T07:00:00Z"),
        ("2027-03-28T09:00:00Z", "2027-03-28T09:00:00Z"),
        ("2027-03-28T09:00:00+01:00", "2027-03-28T08:00:00Z"),
        ("2027-03-28", "2027-03-27T23:00:00Z"),
    ],
)
def test_a_time_without_an_offset_is_one_of_the_rotation(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(shown(capsys, typed, as_json=True))["at"] == meant


@pytest.mark.parametrize("typed", ["tomorrow", "9999-12-31", "0001-01-01", "2027-02-30"])
def test_a_time_that_is_none_is_refused_with_examples(typed: str) -> None:
    with pytest.raises(Refused, match=f"--at {typed}: a time such as"):
        duty.show_duty(ONCALL, typed, as_json=False)


def test_without_people_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert duty.show_duty(OncallSettings(), None, as_json=False) == 1
    assert "nobody is on call: oncall.people is empty" in capsys.readouterr().out
    assert duty.show_duty(OncallSettings(), None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["now"] is None
