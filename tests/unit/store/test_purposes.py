from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.errors import PoolExhausted
from convo.observe import metrics
from convo.store.purposes import PURPOSES, RESERVED, Shares
from tests.support.source_tree import modules

READERS = 3
SIZES: dict[str, int] = {"readers": READERS, **{str(purpose): size for purpose, size in RESERVED.items()}}


def shares() -> Shares:
    return Shares(READERS, acquire_seconds=1.0)


def names_on_the_pool() -> Iterator[str]:
    """Yield the names that stand in ``postgres.run("db.…")``."""
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "run":
                owner = ast.unparse(node.func.value)
                match node.args:
                    case [ast.Constant(value=str(name)), *_] if owner.endswith("postgres"):
                        yield name


def test_every_unit_of_work_on_the_pool_has_a_purpose() -> None:
    found = set(names_on_the_pool())
    assert len(found) > 15
    assert found - PURPOSES.keys() == set()


@pytest.mark.parametrize("full", SIZES)
async def test_a_purpose_that_holds_all_of_its_connections_keeps_no_other_one_waiting(full: str) -> None:
    opened = shares()
    of = {str(purpose): name for name, purpose in PURPOSES.items()}
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            await opened.take(of[full])
            await trio.sleep_forever()

        for _ in range(SIZES[full] + 96):
            nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        for purpose, name in of.items():
            if purpose != full:
                taken = [await opened.take(name)]
                assert opened.in_use() == (SIZES[full], SIZES[full])
                for one in taken:
                    one.release()
        nursery.cancel_scope.cancel()


async def test_whoever_finds_none_free_is_refused_after_the_setting_and_takes_none(autojump_clock: MockClock) -> None:
    opened = shares()
    held = [await opened.take("db.keys")]
    started = trio.current_time()
    with pytest.RaisesGroup(
        pytest.RaisesExc(PoolExhausted, match=r"no connection of the keys .* database\.acquire_seconds = 1 s")
    ):
        await in_another_task(opened, "db.keys")
    assert trio.current_time() - started == 1.0
    held[0].release()
    await in_another_task(opened, "db.keys")


async def test_whoever_waits_gets_the_one_that_becomes_free(autojump_clock: MockClock) -> None:
    opened = shares()
    held = await opened.take("db.keys")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_another_task, opened, "db.keys")
        await trio.sleep(0.5)
        held.release()
    assert trio.current_time() % 1 == 0.5


async def in_another_task(opened: Shares, name: str) -> None:
    """Take and release as a task of its own: a limiter gives each task one."""
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            (await opened.take(name)).release()

        nursery.start_soon(take)


async def test_the_metric_counts_those_in_use() -> None:
    taken = await shares().take("db.settle")
    shown = b'convo_database_connections{purpose="endings"} %d.0\n'
    assert shown % 1 in metrics.exposition()
    taken.release()
    assert shown % 0 in metrics.exposition()


async def test_in_use_is_of_the_readers_while_nobody_waits() -> None:
    opened = shares()
    await opened.take("db.keys")
    assert opened.in_use() == (0, READERS)
