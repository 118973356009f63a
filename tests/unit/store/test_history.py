from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from convo.errors import Refused
from convo.store.history import FoundPoint, Point, SeenHistory

SEEN = Point(system="7", generation="one", counter=10, mark=5)


def found(asked: Point | None = SEEN, *, seen_mark: int | None = 5, **now: Any) -> FoundPoint:
    return FoundPoint(point=structs.replace(SEEN, **now), asked=asked, seen_mark=seen_mark)


def seen_in(folder: Path | None) -> SeenHistory:
    history = SeenHistory(folder)
    history.settle(found(None))
    return history


@pytest.mark.parametrize(
    ("now", "seen_mark", "shown"),
    [
        ({"system": "8"}, 5, "another cluster"),
        ({"generation": ""}, None, "no history"),
        ({"generation": "two"}, 5, "restored"),
        ({"counter": 9}, None, "its counter is 9, and 10 was seen"),
        ({"counter": 11}, 6, "in another way"),
        ({"counter": 11}, None, "in another way"),
    ],
)
def test_a_database_that_went_back_is_known_by(
    now: dict[str, Any], seen_mark: int | None, shown: str, tmp_path: Path
) -> None:
    history = seen_in(tmp_path)
    assert history.note(found(seen_mark=seen_mark, **now))
    assert shown in history.went_back
    assert history.seen == SEEN


@pytest.mark.parametrize(
    ("now", "seen_mark"),
    [({}, 5), ({"counter": 11, "mark": 6}, 5), ({"counter": 10_010, "mark": 6}, None), ({"system": ""}, 5)],
)
def test_a_database_that_counted_on_did_not_go_back(now: dict[str, Any], seen_mark: int | None, tmp_path: Path) -> None:
    history = seen_in(tmp_path)
    assert not history.note(found(seen_mark=seen_mark, **now))
    assert not history.went_back


def test_an_answer_that_comes_late_is_compared_with_what_was_seen_when_it_was_asked(tmp_path: Path) -> None:
    history = seen_in(tmp_path)
    assert not history.note(found(counter=12, mark=7))
    assert not history.note(found(counter=11, mark=6))
    assert history.seen is not None
    assert history.seen.counter == 12


def test_that_it_went_back_is_found_once_and_lasts_until_it_is_settled(tmp_path: Path) -> None:
    history = seen_in(tmp_path)
    assert history.note(found(counter=3))
    assert not history.note(found(counter=3))
    history.settle(found(counter=3, mark=1))
    assert not history.went_back
    assert not history.note(found(history.seen, counter=4, mark=2, seen_mark=1))


@pytest.mark.parametrize("now", [{"generation": "two"}, {"counter": 3}, {"system": "8"}])
def test_an_answer_to_what_was_seen_before_it_was_settled_shows_nothing(now: dict[str, Any], tmp_path: Path) -> None:
    history = seen_in(tmp_path)
    assert history.note(found(seen_mark=None, **now))
    history.settle(found(None, **now))
    assert not history.note(found(seen_mark=None, **now))
    assert not history.went_back


def test_what_was_seen_is_known_after_a_restart(tmp_path: Path) -> None:
    seen_in(tmp_path).save()
    assert SeenHistory(tmp_path).seen == SEEN


def test_without_a_folder_nothing_is_compared() -> None:
    history = seen_in(None)
    assert not history.note(found(counter=3))
    history.save()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("?")
    with pytest.raises(Refused, match="mend it, or remove it"):
        SeenHistory(tmp_path)


def test_what_cannot_be_written_is_logged(tmp_path: Path) -> None:
    history = seen_in(tmp_path / "missing")
    with capture_logs() as lines:
        history.save()
    assert [line["event"] for line in lines] == ["history_not_saved"]
