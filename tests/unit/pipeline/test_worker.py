from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from convo.analysis.analyze import Analyst
from convo.analysis.job_calls import JobCalls
from convo.conversation.model import Conversation, Finding
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.publisher import Handed
from convo.pipeline.worker import Worker
from convo.runtime import threads
from convo.runtime.bell import Bell
from convo.settings import Settings
from convo.store import logs
from convo.store.jobs.lease import Lease
from tests.support.making import THREE

AT = datetime(2026, 3, 2, tzinfo=UTC)
SMALL = logs.pack(b'[{"role":"user","content":"hi"}]')
LARGE = logs.pack(json.dumps([{"role": "user", "content": "a" * threads.LARGE_BYTES}]).encode())


class Ended:
    """Takes the endings of jobs, by the seq of each."""

    def __init__(self) -> None:
        self.settled: list[int] = []
        self.failed: list[str] = []

    def hold(self, _lease: Lease, _since: float) -> AbstractContextManager[trio.CancelScope]:
        return trio.CancelScope()

    def calls_of(self, lease: Lease) -> JobCalls:
        return JobCalls(lease.seq)

    async def store_part(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def settle(self, job: JobAtWork) -> None:
        await trio.lowlevel.checkpoint()
        self.settled.append(job.lease.seq)

    def own_failures(self, _lease: Lease, failures: Any) -> Any:
        return failures

    async def fail(self, _job: JobAtWork, reason: str, *_: object) -> None:
        await trio.lowlevel.checkpoint()
        self.failed.append(reason)


class Waiting:
    """An analyst that is asked and answers when ``open`` is set."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.asked: list[int] = []

    async def find(self, conversation: Conversation) -> Finding:
        self.asked.append(len(conversation.turns[0].text))
        await self.open.wait()
        return THREE["emotion"]


def lease(seq: int, packed: bytes, *, log_hash: bytes | None = None) -> Handed:
    made = Lease(
        seq=seq,
        token=seq,
        attempts=1,
        fair_key="u",
        conversation_id=f"talk-{seq}",
        user_id="u",
        bot_id="b",
        digest="2:0",
        log_hash=log_hash or logs.hash_of(packed),
        started_at=AT,
        ended_at=AT,
        exchanges=0,
        parts={},
    )
    return made, 0.0


async def work(
    bodies: list[bytes], analyst: Waiting, ended: Ended, seen: Callable[[], Awaitable[None]], **wrong: Any
) -> None:
    """Have eight workers do a job for each log, and call ``seen`` when nothing goes on without it."""

    async def take(seq: int, _digest: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return bodies[seq]

    worker = Worker(
        settings=Settings(),
        endings=ended,  # type: ignore[arg-type]
        settle=ended.settle,
        take_log=take,
        analysts=lambda _: {"emotion": Analyst(by="m/1", find=analyst.find)},
        bell=Bell(),
    )
    send, receive = trio.open_memory_channel[Handed](0)
    async with trio.open_nursery() as nursery:
        for _ in range(Settings().jobs.workers):
            nursery.start_soon(worker.run, receive.clone())
        async with send:
            for seq, body in enumerate(bodies):
                await send.send(lease(seq, body, **wrong))
        await seen()


async def test_two_of_eight_workers_have_a_large_conversation_and_small_ones_pass_by() -> None:
    analyst, ended = Waiting(), Ended()

    async def seen() -> None:
        with trio.fail_after(10):
            while len(analyst.asked) < 4:  # noqa: ASYNC110  (threads report to nobody)
                await trio.sleep(0.01)
        assert sorted(analyst.asked) == [2, 2, threads.LARGE_BYTES, threads.LARGE_BYTES]
        analyst.open.set()

    await work([*[LARGE] * 6, SMALL, SMALL], analyst, ended, seen)
    assert sorted(ended.settled) == list(range(8))
    assert len(analyst.asked) == 8


@pytest.mark.parametrize(("workers", "handed_over"), [(1, [0, 1]), (3, [])])
async def test_a_settle_is_handed_over_where_no_other_worker_is_free(workers: int, handed_over: list[int]) -> None:
    analyst, ended, handed = Waiting(), Ended(), Ended()
    analyst.open.set()

    async def take(_seq: int, _digest: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return SMALL

    worker = Worker(
        settings=Settings(),
        endings=ended,  # type: ignore[arg-type]
        settle=handed.settle,
        take_log=take,
        analysts=lambda _: {"emotion": Analyst(by="m/1", find=analyst.find)},
        bell=Bell(),
    )
    send, receive = trio.open_memory_channel[Handed](0)
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(worker.run, receive.clone())
        await wait_all_tasks_blocked()
        async with send:
            for seq in range(2):
                await send.send(lease(seq, SMALL))
            await wait_all_tasks_blocked()
    assert sorted(handed.settled) == handed_over
    assert sorted(handed.settled + ended.settled) == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"x", b"not zstd at all", LARGE[:3]])
async def test_a_damaged_log_is_a_wrong_log_and_no_bug(damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convo.observe.log_records.job_crashed", lambda **_: pytest.fail("a bug"))
    analyst, ended = Waiting(), Ended()

    await work([damage], analyst, ended, trio.lowlevel.checkpoint, log_hash=logs.hash_of(LARGE))
    assert (ended.settled, len(ended.failed)) == ([], 1)
    assert "its hash is another" in ended.failed[0]


def test_a_packed_log_says_how_long_it_is() -> None:
    assert logs.unpacked_bytes(SMALL) == len(logs.unpack(SMALL))
    assert logs.unpacked_bytes(LARGE) == len(logs.unpack(LARGE)) > threads.LARGE_BYTES > 100 * len(LARGE)
