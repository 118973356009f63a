"""What many operators who ask at once cost."""

from __future__ import annotations

import threading
from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked

from convo.observe import metrics
from convo.runtime.threads import OPERATIONS
from convo.web.operations import SharedAnswer


async def test_all_who_ask_while_one_answer_is_made_get_the_next_one() -> None:
    may_end, made = threading.Semaphore(0), list[bytes]()

    def make() -> bytes:
        may_end.acquire(timeout=10)
        made.append(b"%d" % len(made))
        return made[-1]

    shared, answers = SharedAnswer(partial(OPERATIONS.call_behind, make)), list[bytes]()

    async def ask() -> None:
        answers.append(await shared.body())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        may_end.release(2)
    assert answers == [b"0"] + [b"1"] * 5
    may_end.release()
    assert await shared.body() == b"2"


async def test_where_one_is_cancelled_the_others_get_an_answer_all_the_same() -> None:
    may_end = threading.Semaphore(0)

    def make() -> bytes:
        may_end.acquire(timeout=10)
        return b"made"

    shared, answers = SharedAnswer(partial(OPERATIONS.call_behind, make)), list[bytes]()

    async def ask() -> None:
        answers.append(await shared.body())

    first = trio.CancelScope()

    async def ask_in_vain() -> None:
        with first:
            await ask()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_in_vain)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        first.cancel()
        may_end.release(2)
    assert answers == [b"made"]


def test_a_scrape_may_pause_after_each_metric_and_each_cell_of_one() -> None:
    for number in range(50):
        metrics.wait_seconds.labels(f"test.{number}").observe(0.1)
    for exposition in (metrics.exposition, metrics.openmetrics_exposition):
        pauses = list[None]()
        text = exposition(lambda: pauses.append(None))  # noqa: B023  (called at once)
        assert len(pauses) > sum(1 for _ in metrics.registry.collect())
        assert text.count(b"\n") / len(pauses) < 20
