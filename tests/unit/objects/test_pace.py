from __future__ import annotations

import trio
from trio.testing import MockClock

from convo.objects.pace import PackingPace
from convo.observe import metrics


async def test_while_conversations_come_in_it_rests_thirty_times_as_long_as_it_works(autojump_clock: MockClock) -> None:
    pace = PackingPace()
    assert pace.rest_seconds(0.02) == 0.02
    assert pace.piece_bytes == 1 << 20
    metrics.intake_batch_rows.observe(1)
    assert round(pace.rest_seconds(0.02), 3) == 0.647
    assert pace.piece_bytes == 128 << 10
    await trio.sleep(1.1)
    assert pace.rest_seconds(0.02) == 0.02


async def test_where_room_comes_first_it_does_not_give_way(autojump_clock: MockClock) -> None:
    pace = PackingPace()
    pace.hurries = True
    metrics.intake_batch_rows.observe(1)
    assert pace.rest_seconds(0.02) == 0.02


async def test_no_step_is_followed_by_a_long_rest(autojump_clock: MockClock) -> None:
    pace = PackingPace()
    metrics.intake_batch_rows.observe(1)
    assert pace.rest_seconds(30.0) == 1.0
    assert pace.rest_seconds(0.0) == 0.01


async def test_it_works_more_as_long_as_more_comes_in_than_it_moves(autojump_clock: MockClock) -> None:
    pace = PackingPace()
    rests = []
    for front in (1000.0, 1010.0, 1020.0, 1030.0, 1000.0, 900.0, None, None):
        pace.note_turn(front)
        metrics.intake_batch_rows.observe(1)
        rests.append(round(pace.rest_seconds(0.02), 3))
    assert rests == [0.647, 0.313, 0.147, 0.063, 0.147, 0.313, 0.647, 0.647]


async def test_as_many_logs_go_into_an_object_as_fit_into_its_time(autojump_clock: MockClock) -> None:
    pace = PackingPace()
    pace.note_refer(200, 0.01)
    assert pace.logs_max == 400
    pace.note_refer(400, 0.04)
    assert pace.logs_max == 500
    metrics.intake_batch_rows.observe(1)
    pace.note_refer(500, 0.02)
    assert pace.logs_max == 250
    pace.note_refer(250, 5.0)
    assert pace.logs_max == 100
