"""Accept, worker, publisher and analysis cancelled at every step they make, and what must hold after each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from convo.analysis.analyze import analyze
from convo.conversation.model import Finding, PartName
from convo.errors import LeaseLost
from convo.pipeline.publisher import LEASED_AHEAD_MAX, Handed
from convo.settings import JobsSettings, Settings
from convo.store import audit, ledger
from convo.store.jobs.lease import Lease
from tests.support.fakes import conversation_of
from tests.support.making import THREE, Process, accept, ask, at_work, instant, open_dedicated, open_process, rows, told
from tests.support.walking import walk

SETTINGS = Settings(jobs=JobsSettings(poll_seconds=0.02, backoff_seconds=0.01, backoff_max_seconds=0.01))
Work = Callable[[], Awaitable[object]]


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, SETTINGS) as opened:
        yield opened


async def books_balance(process: Process) -> None:
    async with open_dedicated(process.postgres) as dedicated:
        assert await ledger.gaps(dedicated) == []
        assert await audit.anomalies(dedicated) == []


async def test_an_accept_that_is_cancelled_anywhere_is_whole_or_not_there(process: Process) -> None:
    async def begin(step: int) -> Work:
        sent = accept(f"talk-{step}")
        return lambda: process.committer.accept(sent)

    async def look(step: int) -> None:
        # The client never saw an answer, and sends the same again.
        stored = await process.committer.accept(accept(f"talk-{step}"))
        query = """
        SELECT count(*) FROM conversation JOIN every_job USING (seq) JOIN conversation_log USING (seq)
        WHERE conversation_id = $1
        """
        assert await ask(process.postgres, query, stored.conversation_id) == 1

    steps = await walk(begin, look)
    assert steps > 3
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == steps
    await books_balance(process)


async def test_a_worker_that_is_cancelled_anywhere_loses_nothing_and_counts_once(process: Process) -> None:
    async def begin(step: int) -> Work:
        await process.accepted(f"talk-{step}")
        lease = await process.leased()
        send, receive = trio.open_memory_channel[Handed](1)
        await send.send((lease, trio.current_time()))
        await send.aclose()

        async def work() -> None:
            await process.worker(instant()).run(receive)

        return work

    async def look(step: int) -> None:
        # What the worker could not end itself ends with its lease.
        await process.jobs.release_all()
        state, attempts = await process.state(f"talk-{step}")
        assert (state, attempts) in {("ready", 0), ("done", 1)}
        if state == "ready":
            async with at_work(process, instant()):
                with trio.fail_after(10):
                    while await process.state(f"talk-{step}") != ("done", 1):  # noqa: ASYNC110
                        await trio.sleep(0.005)

    with told():
        steps = await walk(begin, look)
    assert steps > 10
    ((score, conversations),) = await rows(process.postgres, "SELECT score, conversations FROM relationship")
    assert conversations == steps
    assert score == await ask(process.postgres, "SELECT sum(score)::bigint FROM every_job")
    await books_balance(process)


async def test_a_publisher_that_is_cancelled_anywhere_leaves_no_job_behind(process: Process) -> None:
    async def begin(step: int) -> Work:
        await process.accepted(f"talk-{step}")
        send, receive = trio.open_memory_channel[Handed](LEASED_AHEAD_MAX)
        handed: list[str] = []

        async def publish_until_handed() -> None:
            async with trio.open_nursery() as nursery:

                async def take() -> None:
                    async with receive.clone() as channel:
                        async for lease, _ in channel:
                            handed.append(lease.conversation_id)
                            nursery.cancel_scope.cancel()

                nursery.start_soon(take)
                nursery.start_soon(process.publisher.run, send, receive)

        return publish_until_handed

    async def look(step: int) -> None:
        # As the service does when it stops: what was leased and not handed over goes back.
        await process.jobs.release_all()
        assert await process.state(f"talk-{step}") == ("ready", 0)
        (lease,) = await process.jobs.lease(1)
        assert lease.conversation_id == f"talk-{step}"
        await process.settler.settle(await process.analysed(lease))

    with told():
        steps = await walk(begin, look)
    assert steps > 5
    await books_balance(process)


async def test_an_analysis_that_is_cancelled_anywhere_stores_a_part_once_or_not_at_all() -> None:
    stored: dict[int, list[PartName]] = {}

    async def begin(step: int) -> Work:
        mine = stored[step] = []

        async def store(name: PartName, by: str, finding: Finding) -> None:
            await trio.lowlevel.checkpoint()
            mine.append(name)
            await trio.lowlevel.checkpoint()

        return lambda: analyze(conversation_of("Why?"), instant(), (), store)

    async def look(step: int) -> None:
        await trio.lowlevel.checkpoint()
        assert len(set(stored[step])) == len(stored[step])

    steps = await walk(begin, look)
    assert sorted(stored[steps]) == sorted(THREE)
    assert any(len(names) not in (0, 3) for names in stored.values())


async def test_a_settle_whose_caller_is_cancelled_anywhere_counts_once(process: Process) -> None:
    leases: dict[int, Lease] = {}

    async def begin(step: int) -> Work:
        await process.accepted(f"talk-{step}")
        leases[step] = await process.analysed(await process.leased())
        return lambda: process.settler.settle(leases[step])

    async def look(step: int) -> None:
        # It left with its item before the batch was taken, or the batch is under way and this one comes too late.
        with suppress(LeaseLost):
            await process.settler.settle(leases[step])
        assert await process.state(f"talk-{step}") == ("done", 1)

    steps = await walk(begin, look)
    ((conversations,),) = await rows(process.postgres, "SELECT conversations FROM relationship")
    assert conversations == steps
