from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.conversation.model import Finding, PartName
from convo.errors import BadRow, DatabaseUnavailable
from convo.pipeline.at_work import TOGETHER_SECONDS, JobAtWork
from convo.store.jobs.lease import Lease
from tests.support.making import THREE, lease


class Shelf:
    """Stores parts, and raises what is given for a part."""

    def __init__(self, **errors: Exception) -> None:
        self.stored: list[PartName] = []
        self.errors = errors

    async def store(self, _lease: Lease, name: PartName, _by: str, _finding: Finding) -> None:
        await trio.lowlevel.checkpoint()
        if name in self.errors:
            raise self.errors[name]
        self.stored.append(name)


def job(*missing: PartName) -> JobAtWork:
    return JobAtWork(lease(), {}, missing)


async def test_the_last_part_is_not_stored_by_itself(autojump_clock: MockClock) -> None:
    one, shelf = job("emotion"), Shelf()
    one.note("emotion", "m/1", THREE["emotion"])
    await one.store_if_others_are_slow(shelf.store)
    assert (shelf.stored, set(one.found)) == ([], {"emotion"})


async def test_parts_that_come_within_a_moment_go_along_with_the_ending(autojump_clock: MockClock) -> None:
    one, shelf = job("emotion", "questions"), Shelf()

    async def find(name: PartName, seconds: float) -> None:
        await trio.sleep(seconds)
        one.note(name, "m/1", THREE[name])
        await one.store_if_others_are_slow(shelf.store)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find, "emotion", 1.0)
        nursery.start_soon(find, "questions", 1.0 + TOGETHER_SECONDS / 2)
    assert (shelf.stored, set(one.found)) == ([], {"emotion", "questions"})
    assert trio.current_time() == 1.0 + TOGETHER_SECONDS / 2


async def test_a_part_is_stored_by_itself_when_another_one_is_slow(autojump_clock: MockClock) -> None:
    one, shelf = job("emotion", "questions"), Shelf()
    one.note("emotion", "m/1", THREE["emotion"])
    began = trio.current_time()
    # On the virtual clock: one that waited for ever would hang the run.
    with trio.fail_after(60):
        await one.store_if_others_are_slow(shelf.store)
    assert trio.current_time() - began == pytest.approx(TOGETHER_SECONDS)
    assert (shelf.stored, one.found) == (["emotion"], {})


async def test_parts_that_were_slow_together_are_stored_once_each(autojump_clock: MockClock) -> None:
    one, shelf = job("emotion", "memories", "questions"), Shelf()

    async def find(name: PartName) -> None:
        one.note(name, "m/1", THREE[name])
        await one.store_if_others_are_slow(shelf.store)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find, "emotion")
        nursery.start_soon(find, "memories")
    assert (sorted(shelf.stored), one.found) == (["emotion", "memories"], {})


async def test_what_the_database_refuses_is_dropped_and_the_rest_is_stored() -> None:
    one, shelf = job("emotion", "memories"), Shelf(emotion=BadRow("22P05"))
    for name in ("emotion", "memories"):
        one.note(name, "m/1", THREE[name])
    with pytest.raises(BadRow):
        await one.store_found(shelf.store)
    assert (shelf.stored, one.found) == (["memories"], {})


async def test_what_cannot_be_stored_now_is_kept() -> None:
    one, shelf = job("emotion"), Shelf(emotion=DatabaseUnavailable("away"))
    one.note("emotion", "m/1", THREE["emotion"])
    with pytest.raises(DatabaseUnavailable):
        await one.store_found(shelf.store)
    assert set(one.found) == {"emotion"}
