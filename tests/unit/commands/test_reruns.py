from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from convo.commands import cli, reanalysing
from convo.commands.reruns import read_beginning
from convo.errors import Refused
from convo.store.jobs.promotion import Promoted
from convo.store.jobs.reruns import Rerun

AT = datetime(2026, 11, 30, tzinfo=UTC)
RERUN = Rerun(
    number=1,
    part="tier",
    version="p1:0f3c5a9d7e21",
    owed=7,
    received_since=None,
    bot_id=None,
    sample=1.0,
    rate=0.0,
    state="ended",
    after_seq=40,
    until_seq=40,
    total=40,
    looked_at=40,
    made_at=AT,
    counts={"done": 30, "promoted": 2, "failed": 1, "waiting": 0},
)
COMPARED = reanalysing.PartComparison(
    part="tier",
    version="p1:0f3c5a9d7e21",
    state="ended",
    counts={"done": 30, "failed": 1},
    compared=30,
    without_current=0,
    agreement=0.8,
    fields={"tier": 6},
    differences=(
        reanalysing.ResultDifference(
            conversation_id="talk-\x1b[31m1", fields=("tier",), current={"tier": "gold"}, candidate={"tier": "basic"}
        ),
    ),
    scores_moved=6,
    points=-120,
    seconds=15.0,
    made_by={"m/p1:0f3c5a9d7e21": 30},
)


def test_a_time_is_a_date_a_moment_or_a_span_before_now() -> None:
    assert read_beginning("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert read_beginning("2026-01-31T18:00:00+02:00") == datetime(2026, 1, 31, 16, tzinfo=UTC)
    assert abs(datetime.now(UTC) - timedelta(days=30) - read_beginning(" 30d ")) < timedelta(minutes=1)
    for wrong in ("yesterday", "", "30", "d", "2026-13-01"):
        with pytest.raises(Refused, match="--since"):
            read_beginning(wrong)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sample", "0"], "--sample"),
        (["--sample", "1.5"], "--sample"),
        (["--rate", "-1"], "--rate"),
        (["--workers", "0"], "--workers"),
        (["--since", "soon"], "--since"),
    ],
)
def test_what_is_not_valid_is_refused_before_anything_is_done(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reanalyse", "--part", "tier", *words]) == 1
    assert named in capsys.readouterr().err


def test_what_is_typed_is_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def reanalyse(_settings: object, wanted: reanalysing.WantedRerun, workers: int) -> Rerun:
        asked.extend([wanted, workers])
        return RERUN

    monkeypatch.setattr(reanalysing, "reanalyse", reanalyse)
    words = ["--part", "tier", "--since", "2026-01-31", "--bot", "pika", "--sample", "0.5", "--rate", "3"]
    assert cli.main(["reanalyse", *words, "--workers", "7"]) == 0
    wanted = reanalysing.WantedRerun(
        part="tier", received_since=datetime(2026, 1, 31, tzinfo=UTC), bot_id="pika", sample=0.5, rate=3.0
    )
    assert asked == [wanted, 7]
    shown = capsys.readouterr().out
    assert "p1:0f3c5a9d7e21" in shown
    assert "40 of 40" in shown
    assert "32" in shown


def test_a_dry_run_counts_and_a_pause_pauses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = reanalysing.CountedRerun(part="tier", version="p1:0", conversations=12, up_to_date=3)
    monkeypatch.setattr(reanalysing, "count_rerun", lambda *_: counted)
    monkeypatch.setattr(reanalysing, "pause_rerun", lambda *_: RERUN)
    assert cli.main(["reanalyse", "--part", "tier", "--dry-run"]) == 0
    assert "12" in capsys.readouterr().out
    assert cli.main(["reanalyse", "--part", "tier", "--pause", "--json"]) == 0
    assert '"number": 1' in capsys.readouterr().out


def test_a_comparison_shows_agreement_differences_and_what_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reanalysing, "compare_part", lambda *_, **__: COMPARED)
    assert cli.main(["compare", "tier"]) == 0
    shown = capsys.readouterr().out
    for text in ("80.0%", "differ in tier", "6, by -120 points in all", "0.50 s each", '"basic"', "m/p1:0f3c5a9d7e21"):
        assert text in shown
    # What a conversation is called is never obeyed by a terminal.
    assert "\x1b" not in shown


def test_a_promotion_that_is_refused_is_exit_1_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reanalysing, "compare_part", lambda *_, **__: COMPARED)
    assert cli.main(["compare", "tier", "--promote", "--min-agreement", "0.9"]) == 1
    assert "80.0% agree, and --min-agreement is 90.0%" in capsys.readouterr().err
    done = Promoted(conversations=30, moved=6, points=-120)
    promoted = msgspec.structs.replace(COMPARED, promoted=done)
    monkeypatch.setattr(reanalysing, "compare_part", lambda *_, **__: promoted)
    assert cli.main(["compare", "tier", "--promote", "--min-agreement", "0.5"]) == 0
    assert "30 conversations, 6 scores by -120 points" in capsys.readouterr().out


def test_a_share_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "tier", "--promote", "--min-agreement", "90"]) == 1
    assert "--min-agreement 90" in capsys.readouterr().err
