from __future__ import annotations

from types import SimpleNamespace

import trio
from trio.testing import MockClock

from convo.config import Settings
from convo.pipeline.worker import Worker
from convo.store.jobs import Lease
from tests.making import lease, told


async def test_an_ending_that_does_not_end_is_given_up_after_its_share_of_the_stop(autojump_clock: MockClock) -> None:
    worker = Worker.__new__(Worker)
    worker._settings = Settings()
    left: list[Lease] = []
    worker._held = SimpleNamespace(left=left.append)  # type: ignore[assignment]
    began = trio.current_time()
    with told() as events, worker._ending(lease()):
        await trio.sleep_forever()
    assert trio.current_time() - began == Settings().shutdown.settle_seconds
    assert "ending_failed" in events
    assert left == [lease()]
