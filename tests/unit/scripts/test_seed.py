from __future__ import annotations

import trio
from trio.testing import MockClock

from scripts.seed import side_by_side


async def test_a_pace_is_kept_even_while_answers_are_slow(autojump_clock: MockClock) -> None:
    started: list[float] = []
    ended = 0

    async def slow(_item: int) -> None:
        started.append(trio.current_time())
        await trio.sleep(1.0)

    def count() -> None:
        nonlocal ended
        ended += 1

    begin = trio.current_time()
    await side_by_side(range(6), 9, 4.0, slow, count)

    assert [at - begin for at in started] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert ended == 6


async def test_without_a_pace_only_the_number_abreast_holds_back(autojump_clock: MockClock) -> None:
    started: list[float] = []

    async def slow(_item: int) -> None:
        started.append(trio.current_time())
        await trio.sleep(1.0)

    begin = trio.current_time()
    await side_by_side(range(5), 2, 0, slow, lambda: None)

    assert [at - begin for at in started] == [0.0, 0.0, 1.0, 1.0, 2.0]
