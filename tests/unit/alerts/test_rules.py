from __future__ import annotations

import pytest

from convo.alerts.rules import CAPS, KINDS, LEVELS, AlertLevel, Board, Condition, Notice, condition, explain_link

MINUTE = 60.0


def held(level: AlertLevel = "CRITICAL", *, count: int = 0, component: str = "it") -> Condition:
    return condition("DEAD_LETTER", component, "because", level=level, count=count)


def changes(notices: list[Notice]) -> list[tuple[str, int]]:
    return [(notice.change, notice.alert.count) for notice in notices]


def told_at(board: Board, level: AlertLevel, until: float, step: float = 1.0) -> list[float]:
    """Hold one condition without a break, and list when it is told."""
    at, times = 0.0, []
    while at <= until:
        times += [at for _ in board.update(at, [held(level)])]
        at += step
    return times


def test_a_condition_is_notified_when_it_begins_and_when_it_ends_and_not_between() -> None:
    board = Board(900.0)
    assert changes(board.update(0.0, [held()])) == [("raised", 1)]
    assert board.update(1.0, [held()]) == []
    (notice,) = board.update(2.0, [])
    assert (notice.change, notice.alert.since, notice.alert.until) == ("resolved", 0.0, 2.0)
    assert board.active == ()
    assert [alert.until for alert in board.recent] == [2.0]


@pytest.mark.parametrize(("level", "minutes"), [("CRITICAL", 15), ("HIGH", 30), ("MEDIUM", 60), ("LOW", 120)])
def test_what_lasts_is_notified_again_at_its_levels_pace(level: AlertLevel, minutes: int) -> None:
    pause = minutes * MINUTE
    assert told_at(Board(900.0), level, 3 * pause, step=10.0) == [0.0, pause, 2 * pause, 3 * pause]


@pytest.mark.parametrize(("level", "most", "seconds"), [(level, *cap) for level, cap in CAPS.items()])
def test_no_key_is_notified_more_often_than_its_levels_cap(level: AlertLevel, most: int, seconds: float) -> None:
    board, times = Board(1.0), []
    for second in range(int(4 * seconds)):
        # It comes and goes each other second, the worst that it can do.
        found = [held(level)] if second % 2 == 0 else []
        times += [float(second) for notice in board.update(float(second), found) if notice.change != "resolved"]
    assert times
    for start in times:
        assert sum(start <= at < start + seconds for at in times) <= most
    assert max(sum(start <= at < start + seconds for at in times) for start in times) == most


def test_what_comes_back_within_a_minute_is_folded_into_a_count() -> None:
    board = Board(900.0)
    assert changes(board.update(0.0, [held("HIGH")])) == [("raised", 1)]
    assert changes(board.update(1.0, [])) == [("resolved", 1)]
    for second in range(2, 60, 2):
        assert board.update(second, [held("HIGH")]) == []
        assert board.update(second + 1, []) == []
    assert changes(board.update(60.0, [held("HIGH")])) == [("raised", 30)]


def test_a_raise_that_was_held_back_is_notified_as_soon_as_it_may_if_it_still_lasts() -> None:
    board = Board(900.0)
    board.update(0.0, [held()])
    board.update(1.0, [])
    assert board.update(2.0, [held()]) == []
    assert board.update(59.0, [held()]) == []
    (notice,) = board.update(60.0, [held()])
    assert (notice.change, notice.alert.since) == ("raised", 2.0)


def test_the_end_of_what_was_not_notified_is_not_notified() -> None:
    board = Board(900.0)
    board.update(0.0, [held()])
    board.update(1.0, [])
    board.update(2.0, [held()])
    assert board.update(3.0, []) == []
    assert [alert.notified for alert in board.recent] == [0, 1]


def test_what_happens_again_while_it_lasts_is_counted() -> None:
    board = Board(900.0)
    assert changes(board.update(0.0, [held(count=3)])) == [("raised", 3)]
    board.update(1.0, [held(count=4)])
    assert changes(board.update(900.0, [held()])) == [("lasting", 7)]
    assert changes(board.update(901.0, [])) == [("resolved", 7)]


def test_two_components_of_a_type_are_two_alerts() -> None:
    board = Board(900.0)
    found = [held(component="one"), held(component="two")]
    assert changes(board.update(0.0, found)) == [("raised", 1), ("raised", 1)]
    assert changes(board.update(1.0, found[:1])) == [("resolved", 1)]


def test_what_another_process_raises_from_now_on_is_dropped_without_a_notification() -> None:
    board = Board(900.0)
    board.update(0.0, [held()])
    board.forget(lambda _: True)
    assert board.update(1.0, []) == []
    assert (board.active, board.recent) == ((), ())


def test_only_the_last_hundred_that_ended_are_kept() -> None:
    board = Board(900.0)
    for number in range(300):
        board.update(float(number), [held()] if number % 2 == 0 else [])
    assert len(board.recent) == 100
    assert board.recent[0].until == 299.0


def test_every_type_has_a_level_and_one_line_of_what_to_do() -> None:
    for name, kind in KINDS.items():
        assert kind.level in LEVELS, name
        assert kind.do.endswith("."), name
        assert "\n" not in kind.do, name


def test_the_types_of_the_old_service_and_ours_are_there_with_their_levels() -> None:
    promised = {
        "POSTGRES_POOL_EXHAUSTED": "CRITICAL", "POSTGRES_QUERY_TIMEOUT": "MEDIUM", "POSTGRES_UNAVAILABLE": "CRITICAL",
        "DISK_LOW": "HIGH", "LLM_TIMEOUT": "HIGH", "LLM_RATE_LIMIT": "HIGH", "LLM_UNAVAILABLE": "HIGH",
        "MEMORY_TIMEOUT": "MEDIUM", "MEMORY_UNAVAILABLE": "HIGH", "SLOW_REQUEST": "HIGH", "SLOW_DATABASE_QUERY": "LOW",
        "BACKLOG_OLD": "HIGH", "DEAD_LETTER": "CRITICAL", "LOOP_BLOCKED": "HIGH", "DEADLINE_BURN": "HIGH",
        "LEDGER_GAP": "CRITICAL", "SILENCE": "MEDIUM", "FOLDER_COPIED": "HIGH", "KEYS_NOT_READ": "CRITICAL",
        "WEBHOOK_OFF": "HIGH", "EVENT_ASIDE": "MEDIUM", "EVENT_UNDELIVERED": "HIGH", "EVENTS_EXPIRING": "HIGH",
    }  # fmt: skip
    assert {name: KINDS[name].level for name in promised} == promised


def test_the_explain_link_quotes_the_id() -> None:
    assert explain_link("a b/ü") == "/v1/conversations/a%20b%2F%C3%BC/explain"
