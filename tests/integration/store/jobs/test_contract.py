"""What the pipeline relies on of the job table: the same tests for the real one and for the fake of the long tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import DatabaseUnavailable, LeaseLost
from convo.settings import JobsSettings, Settings
from convo.store.job_sql import POISON_AT, SUSPECT_AT
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from tests.support.fake_jobs import FakeJobs, Table
from tests.support.making import THREE, Process, ask, dies, open_process, rows, shift_clock, store_part

SETTINGS = JobsSettings(attempts_max=3, give_up_seconds=1000.0)
Anything = Any


class House(Protocol):
    """A job table with the processes ``here/one`` and ``there/two``; the second one is not running."""

    jobs: Anything
    other: Anything

    async def accept(self, conversation_id: str, user_id: str = "user-1") -> None: ...
    async def settle(self, lease: Lease) -> Any: ...
    async def pass_time(self, seconds: float) -> None: ...
    async def row(self, conversation_id: str) -> dict[str, Any]: ...
    async def relationship(self, user_id: str) -> int: ...
    async def other_dies(self) -> None: ...


COLUMNS = ("state", "attempts", "crashes", "waits_for", "delayed", "last_error")


class RealHouse:
    def __init__(self, process: Process) -> None:
        self.jobs = process.jobs
        self.other = Jobs(process.postgres, SETTINGS, "there/two")
        self._process = process
        self._passed = 0.0

    async def accept(self, conversation_id: str, user_id: str = "user-1") -> None:
        await self._process.accepted(conversation_id, user_id=user_id)

    async def settle(self, lease: Lease) -> Any:
        return await self._process.settler.settle(lease)

    async def pass_time(self, seconds: float) -> None:
        self._passed += seconds
        await shift_clock(self._process.postgres, f"{self._passed} seconds")

    async def row(self, conversation_id: str) -> dict[str, Any]:
        query = f"SELECT {', '.join(COLUMNS)} FROM every_job JOIN conversation USING (seq) WHERE conversation_id = $1"
        (found,) = await rows(self._process.postgres, query, conversation_id)
        return dict(zip(COLUMNS, found, strict=True))

    async def relationship(self, user_id: str) -> int:
        query = "SELECT coalesce(sum(score), 0)::integer FROM relationship WHERE user_id = $1"
        found: int = await ask(self._process.postgres, query, user_id)
        return found

    async def other_dies(self) -> None:
        await dies(self._process.postgres, self.other.owner)


class FakeHouse:
    def __init__(self) -> None:
        self._table = Table()
        self.jobs = FakeJobs(self._table, SETTINGS)
        self.other = FakeJobs(self._table, SETTINGS, "there/two")

    async def accept(self, conversation_id: str, user_id: str = "user-1") -> None:
        self._table.accept(conversation_id, user_id)

    async def settle(self, lease: Lease) -> Any:
        return await self.jobs.settle(lease)

    async def pass_time(self, seconds: float) -> None:
        self._table.offset += seconds

    async def row(self, conversation_id: str) -> dict[str, Any]:
        return {name: getattr(self._table.named(conversation_id), name) for name in COLUMNS}

    async def relationship(self, user_id: str) -> int:
        return self._table.relationships.get(user_id, 0)

    async def other_dies(self) -> None:
        await self.other.dies()


@pytest.fixture(params=["real", "fake"])
async def house(request: pytest.FixtureRequest, database: str) -> AsyncIterator[House]:
    if request.param == "fake":
        yield FakeHouse()
        return
    async with open_process(database, Settings(jobs=SETTINGS)) as process:
        yield RealHouse(process)


async def taken(house: House, count: int = 1, **how: Any) -> list[Lease]:
    found: list[Lease] = await house.jobs.lease(count, **how)
    return found


async def names(house: House, count: int, **how: Any) -> list[str]:
    return [lease.conversation_id for lease in await taken(house, count, **how)]


async def analysed(house: House, lease: Lease) -> Lease:
    for name, finding in THREE.items():
        if name not in lease.parts:
            await store_part(house.jobs, lease, name, "test/1", finding)
    return lease


# --- leasing


async def test_jobs_are_leased_in_rounds_and_oldest_first(house: House) -> None:
    for user, count in (("b", 3), ("a", 2), ("c", 1)):
        for n in range(count):
            await house.accept(f"{user}-{n}", f"user-{user}")
    assert await names(house, 2) == ["a-0", "b-0"]
    assert await names(house, 9) == ["c-0", "a-1", "b-1", "b-2"]
    assert await names(house, 9) == []


async def test_what_is_leased_is_nobody_elses(house: House) -> None:
    await house.accept("talk-1")
    await taken(house)
    assert await house.other.lease(1) == []
    assert (await house.row("talk-1"))["state"] == "leased"


# --- endings


async def test_a_settled_job_counts_once(house: House) -> None:
    await house.accept("talk-1")
    (lease,) = await taken(house)
    found = await house.settle(await analysed(house, lease))
    with pytest.raises(LeaseLost):
        await house.settle(lease)
    assert (found.value, found.final, await house.relationship("user-1")) == (9, True, 9)
    assert (await house.row("talk-1"))["state"] == "done"


async def test_a_job_with_a_part_missing_is_not_settled(house: House) -> None:
    await house.accept("talk-1")
    (lease,) = await taken(house)
    await store_part(house.jobs, lease, "emotion", "test/1", THREE["emotion"])
    with pytest.raises(DatabaseUnavailable):
        await house.settle(lease)


async def test_a_failure_waits_and_the_last_one_buries(house: House) -> None:
    await house.accept("talk-1")
    for attempt in (1, 2, 3):
        (lease,) = await taken(house)
        assert lease.attempts == attempt - 1
        assert await house.jobs.fail(lease, f"reason {attempt}", {}, later=40) == (attempt == 3)
        assert await names(house, 1) == []
        await house.pass_time(41)
    row = await house.row("talk-1")
    assert (row["state"], row["attempts"], row["last_error"]) == ("dead", 3, "reason 3")
    await house.jobs.retry(WHOLE_DEFAULT, "talk-1")
    assert await names(house, 1) == ["talk-1"]


async def test_parts_stay_when_a_job_comes_back(house: House) -> None:
    await house.accept("talk-1")
    (lease,) = await taken(house)
    await store_part(house.jobs, lease, "emotion", "test/1", THREE["emotion"])
    await house.jobs.park(lease, "llm", "down")
    (again,) = await taken(house)
    assert again.parts == {"emotion": THREE["emotion"]}
    assert again.attempts == 0


async def test_a_parked_job_waits_for_its_dependency_and_keeps_its_place(house: House) -> None:
    await house.accept("talk-1")
    await house.accept("talk-2")
    for lease in await taken(house, 2):
        await house.jobs.park(lease, "llm", "llm: down")
    await house.accept("talk-3")
    assert await names(house, 3, out=["llm"]) == ["talk-3"]
    assert await house.row("talk-1") == {
        "state": "ready",
        "attempts": 0,
        "crashes": 0,
        "waits_for": "llm",
        "delayed": False,
        "last_error": "llm: down",
    }
    assert [lease.conversation_id for lease in await house.jobs.lease_probe("llm")] == ["talk-1"]
    assert await house.jobs.lease_probe("memory") == []
    assert await names(house, 3) == ["talk-2"]


async def test_parked_for_a_while_it_waits_at_least_so_long(house: House) -> None:
    await house.accept("talk-1")
    (lease,) = await taken(house)
    await house.jobs.park(lease, "llm", "busy", later=40)
    assert await names(house, 1) == []
    await house.pass_time(41)
    assert await names(house, 1) == ["talk-1"]


async def test_parked_for_too_long_it_is_buried(house: House) -> None:
    await house.accept("talk-1")
    (lease,) = await taken(house)
    await house.jobs.park(lease, "llm", "llm: down")
    await house.pass_time(999)
    assert (await house.jobs.rescue()).buried == {}
    await house.pass_time(2)
    ((_, reason),) = (await house.jobs.rescue()).buried.items()
    assert reason.startswith("llm was out")
    assert reason.endswith("its last word: llm: down")
    row = await house.row("talk-1")
    assert (row["state"], row["attempts"], row["waits_for"]) == ("dead", 0, "")


async def test_a_released_job_keeps_its_place(house: House) -> None:
    await house.accept("talk-1")
    await house.accept("talk-2")
    (lease,) = await taken(house)
    await house.jobs.release(lease)
    assert await names(house, 2) == ["talk-1", "talk-2"]


LATE: dict[str, Callable[[House, Lease], Awaitable[object]]] = {
    "store_part": lambda house, one: store_part(house.jobs, one, "emotion", "late/1", THREE["emotion"]),
    "fail": lambda house, one: house.jobs.fail(one, "late", {}, later=1),
    "park": lambda house, one: house.jobs.park(one, "llm", "late"),
    "release": lambda house, one: house.jobs.release(one),
    "settle": lambda house, one: house.settle(one),
}


@pytest.mark.parametrize("write", LATE)
async def test_a_late_worker_can_write_nothing(house: House, write: str) -> None:
    await house.accept("talk-1")
    (late,) = await taken(house)
    await analysed(house, late)
    await house.pass_time(31)
    assert (await house.jobs.rescue()).rescued == 1
    before = await house.row("talk-1")
    with pytest.raises(LeaseLost):
        await LATE[write](house, late)
    assert await house.row("talk-1") == before


async def test_a_renewed_lease_is_not_rescued(house: House) -> None:
    await house.accept("talk-1")
    leases = await taken(house)
    await house.pass_time(29)
    assert await house.jobs.renew(leases) == {leases[0].token}
    await house.pass_time(29)
    assert (await house.jobs.rescue()).rescued == 0


async def test_the_end_of_a_lease_is_no_crash(house: House) -> None:
    await house.accept("talk-1")
    await house.other.lease(1)
    await house.pass_time(31)
    assert (await house.jobs.rescue()).rescued == 1
    assert (await house.row("talk-1"))["crashes"] == 0


# --- poison


async def crash(house: House, times: int) -> None:
    """Let the predecessor of the other process die so often with what it has leased."""
    for _ in range(times):
        if not await house.other.lease_suspect():
            await house.other.lease(9)
        await house.other_dies()


async def test_a_stop_counts_no_crash(house: House) -> None:
    await house.accept("talk-1")
    for _ in range(4):
        await taken(house)
        assert await house.jobs.release_all() == 1
    assert (await house.row("talk-1"))["crashes"] == 0


async def test_after_two_crashes_a_job_is_leased_only_as_a_suspect(house: House) -> None:
    await house.accept("talk-1")
    await crash(house, SUSPECT_AT - 1)
    assert not await house.jobs.has_suspects()
    await crash(house, 1)
    assert await house.jobs.has_suspects()
    assert await names(house, 9) == []
    (suspect,) = await house.jobs.lease_suspect()
    assert not await house.jobs.has_suspects()
    found = await house.settle(await analysed(house, suspect))
    assert found.final


async def test_three_more_crashes_with_nothing_beside_it_bury_it_as_poison(house: House) -> None:
    await house.accept("talk-1")
    # Two made it a suspect.
    assert POISON_AT == 2 + 3
    await crash(house, POISON_AT - 1)
    assert (await house.jobs.rescue()).buried == {}
    await crash(house, 1)
    assert [*(await house.jobs.rescue()).buried.values()] == [
        f"poison: {POISON_AT} times the process that worked on it died"
    ]
    row = await house.row("talk-1")
    assert (row["state"], row["attempts"]) == ("dead", 0)
    await house.jobs.retry(WHOLE_DEFAULT, "talk-1")
    assert await names(house, 1) == ["talk-1"]


async def test_a_suspect_that_waits_for_a_dependency_that_is_out_holds_up_nobody(house: House) -> None:
    await house.accept("talk-1")
    await crash(house, SUSPECT_AT)
    (suspect,) = await house.jobs.lease_suspect()
    await house.jobs.park(suspect, "llm", "down")
    assert not await house.jobs.has_suspects(out=["llm"])
    assert await house.jobs.lease_suspect(out=["llm"]) == []
    assert await house.jobs.has_suspects()


# --- attempts that are given back


async def test_attempts_given_back_leave_a_failed_job_parked_and_due(house: House) -> None:
    await house.accept("talk-1")
    (one,) = await house.jobs.lease(1)
    await house.jobs.fail(one, "refused", {}, later=500.0)
    await house.pass_time(501.0)
    (one,) = await house.jobs.lease(1)
    await house.jobs.fail(one, "refused", {}, later=500.0)
    assert await house.jobs.give_back({one.seq: 1}, "llm") == 1
    row = await house.row("talk-1")
    assert (row["state"], row["attempts"], row["waits_for"], row["delayed"]) == ("ready", 1, "llm", False)
    assert await house.jobs.lease(1, out=["llm"]) == []
    (again,) = await house.jobs.lease(1)
    assert again.attempts == 1


async def test_attempts_given_back_revive_a_job_that_died_of_them(house: House) -> None:
    await house.accept("talk-1")
    attempts: dict[int, int] = {}
    for _ in range(3):
        (one,) = await house.jobs.lease(1)
        await house.jobs.fail(one, "refused", {}, later=0.0)
        attempts[one.seq] = attempts.get(one.seq, 0) + 1
    assert (await house.row("talk-1"))["state"] == "dead"
    assert await house.jobs.give_back(attempts, "llm") == 1
    row = await house.row("talk-1")
    assert (row["state"], row["attempts"], row["waits_for"]) == ("ready", 0, "llm")
    (again,) = await house.jobs.lease(1)
    await store_all(house.jobs, again)
    await house.settle(again)
    assert (await house.row("talk-1"))["state"] == "done"


async def test_a_job_at_work_keeps_its_lease_and_one_that_is_done_its_count(house: House) -> None:
    await house.accept("talk-1")
    await house.accept("talk-2")
    for one in await house.jobs.lease(2):
        await house.jobs.fail(one, "refused", {}, later=0.0)
    one, two = await house.jobs.lease(2)
    await store_all(house.jobs, one)
    await house.settle(one)
    assert await house.jobs.give_back({one.seq: 1, two.seq: 5}, "llm") == 1
    assert (await house.row("talk-1"))["attempts"] == 2
    assert (await house.row("talk-2"))["attempts"] == 0
    await house.jobs.release(two)
    assert (await house.row("talk-2"))["waits_for"] == ""


async def test_each_job_that_finds_out_whether_a_dependency_is_back_is_another_users(house: House) -> None:
    for user in ("a", "b", "c"):
        await house.accept(f"talk-{user}", user_id=user)
    for one in await house.jobs.lease(3):
        await house.jobs.park(one, "llm", "down")
    probed = []
    for _ in range(4):
        (one,) = await house.jobs.lease_probe("llm")
        probed.append(one.user_id)
        await house.jobs.park(one, "llm", "down")
    assert sorted(probed[:3]) == ["a", "b", "c"]
    assert probed[3] == probed[0]


async def store_all(jobs: Anything, lease: Lease) -> None:
    for name, finding in THREE.items():
        await store_part(jobs, lease, name, "test/1", finding)
