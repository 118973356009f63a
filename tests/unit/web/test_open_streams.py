from __future__ import annotations

import pytest
import trio
import trio.testing

from convo.errors import Overloaded
from convo.web.authority import ShownKey
from convo.web.open_streams import OpenStreams

BAD = ShownKey(key_id="bad")


def made(most: int = 10) -> OpenStreams:
    return OpenStreams(most, lambda shown: shown != BAD)


async def test_only_the_streams_whose_key_is_not_good_any_more_end(autojump_clock: trio.testing.MockClock) -> None:
    streams = made()
    kept, session, refused, free = (
        streams.begin(one) for one in (ShownKey(key_id="good"), ShownKey(session_id="s"), BAD, None)
    )
    started = trio.current_time()
    waited: list[float] = []

    async def wait() -> None:
        await refused.wait(trio.Event(), started + 60)
        waited.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        streams.end_refused()
    assert waited == [5]
    assert [one.over for one in (kept, session, refused, free)] == [False, False, True, False]
    # One that was busy while it was ended does not wait afterwards.
    await refused.wait(trio.Event(), started + 60)
    assert trio.current_time() == started + 5


async def test_there_are_at_most_so_many_streams_and_none_while_the_process_stops() -> None:
    streams = made(2)
    first, second = streams.begin(None), streams.begin(None)
    with pytest.raises(Overloaded, match="streams_max"):
        streams.begin(None)
    assert [first.left(), first.left()] == [True, False]
    third = streams.begin(None)
    streams.stop()
    assert [one.over for one in (first, second, third)] == [False, True, True]
    with pytest.raises(Overloaded, match="stopping"):
        streams.begin(None)
