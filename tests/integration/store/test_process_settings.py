from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from convo.conversation.score import Weights
from convo.settings import FairnessSettings, JobsSettings, LlmSettings, MemorySettings, Settings
from convo.store.process_settings import ACCEPTING, Comparison, compare, differences, forget, shared_settings, unserved
from tests.support.making import Process, ask, open_process, shift_clock

BY_BOT = Settings(fairness=FairnessSettings(key="bot"))


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def named(found: Comparison) -> list[tuple[str, object, object, str]]:
    return [(one.key, one.here, one.there, one.process) for one in found.differences]


def only_accepting(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, jobs=JobsSettings(workers=0))


async def test_the_later_of_two_that_differ_takes_no_jobs_until_the_first_one_stops(process: Process) -> None:
    postgres = process.postgres
    assert await compare(postgres, "here/one", Settings()) == Comparison(takes_jobs=True)
    later = await compare(postgres, "there/two", BY_BOT)
    assert (later.takes_jobs, named(later)) == (False, [("fairness.key", "bot", "user", "here/one")])
    assert (await compare(postgres, "here/one", Settings())).takes_jobs
    assert (await compare(postgres, "there/three", Settings())).takes_jobs
    await forget(postgres, "here/one")
    assert named(await compare(postgres, "there/two", BY_BOT)) == [("fairness.key", "bot", "user", "there/three")]
    await forget(postgres, "there/three")
    assert (await compare(postgres, "there/two", BY_BOT)).takes_jobs
    assert not (await compare(postgres, "here/one", Settings())).takes_jobs


async def test_of_several_that_come_at_once_and_differ_one_takes_jobs(process: Process) -> None:
    found: list[bool] = []

    async def come(number: int) -> None:
        settings = Settings(score=Weights(question=number))
        found.append((await compare(process.postgres, f"there/{number}", settings)).takes_jobs)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(come, number)
    assert sorted(found) == [False] * 5 + [True]


async def test_a_process_counts_for_its_own_lease_and_yields_when_it_comes_back_later(process: Process) -> None:
    postgres = process.postgres
    long = Settings(jobs=JobsSettings(lease_seconds=100))
    assert (await compare(postgres, "here/one", long)).takes_jobs
    await shift_clock(postgres, "99 seconds")
    assert not (await compare(postgres, "there/two", BY_BOT)).takes_jobs
    await shift_clock(postgres, "101 seconds")
    assert (await compare(postgres, "there/two", BY_BOT)).takes_jobs
    assert not (await compare(postgres, "here/one", long)).takes_jobs


async def test_a_process_without_workers_never_takes_jobs_and_shares_only_what_accepting_needs(
    process: Process,
) -> None:
    postgres = process.postgres
    accepting = only_accepting(Settings(score=Weights(question=9)))
    assert await compare(postgres, "there/two", only_accepting(BY_BOT)) == Comparison(takes_jobs=False)
    assert (await compare(postgres, "here/one", Settings())).takes_jobs
    assert await compare(postgres, "there/three", accepting) == Comparison(takes_jobs=False, others_take=True)
    assert named(await compare(postgres, "there/two", only_accepting(BY_BOT))) == [
        ("fairness.key", "bot", "user", "here/one")
    ]


async def test_what_killed_processes_left_is_removed_after_a_day(process: Process) -> None:
    await compare(process.postgres, "gone/1", Settings())
    await shift_clock(process.postgres, "25 hours")
    await compare(process.postgres, "here/one", Settings())
    assert await ask(process.postgres, "SELECT string_agg(name, ',') FROM process_settings") == "here/one"


async def test_an_earlier_process_on_the_same_folder_stands_in_nobodys_way(process: Process) -> None:
    assert (await compare(process.postgres, "folder.first", Settings())).takes_jobs
    assert (await compare(process.postgres, "folder.second", BY_BOT)).takes_jobs
    assert named(await compare(process.postgres, "other.first", Settings())) == [
        ("fairness.key", "user", "bot", "folder")
    ]


async def test_a_dependency_is_served_by_a_living_process_that_takes_jobs_and_has_it(process: Process) -> None:
    postgres = process.postgres
    model = Settings(llm=LlmSettings(model="one"))

    async def missing() -> list[str]:
        async def body(connection: Any) -> list[str]:
            return await unserved(connection, ["", "llm", "oracle"])

        return await postgres.run("test.unserved", body)

    assert await missing() == ["llm", "oracle"]
    await compare(postgres, "there/two", only_accepting(model))
    assert await missing() == ["llm", "oracle"]
    await compare(postgres, "here/one", model)
    assert await missing() == ["oracle"]
    await shift_clock(postgres, "31 seconds")
    assert await missing() == ["llm", "oracle"]


def test_a_key_that_one_of_two_does_not_know_is_not_compared() -> None:
    found = differences({"digest": 2, "new": 1}, {"b": {"digest": 2, "old": 3}, "a": {"digest": 1, "new": 1}})
    assert [str(one) for one in found] == ["digest is 2 here and 1 in a"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"fairness": FairnessSettings(key="bot")}, "fairness.key is bot here and user in a"),
        ({"score": Weights(question=7)}, "score.question is 7 here and 3 in a"),
        ({"jobs": JobsSettings(attempts_max=2)}, "jobs.attempts_max is 2 here and 5 in a"),
        ({"jobs": JobsSettings(give_up_seconds=60.0)}, "jobs.give_up_seconds is 60 here and 604800 in a"),
        ({"llm": LlmSettings(model="one")}, "llm.model is one here and none in a"),
        ({"memory": MemorySettings(url="http://m", dialect="mem0")}, "memory.url is mem0 here and none in a"),
    ],
)
def test_what_all_must_have_the_same_is_compared(changed: dict[str, Any], expected: str) -> None:
    mine = msgspec.structs.replace(Settings(), **changed)
    found = differences(shared_settings(mine), {"a": shared_settings(Settings())})
    assert [str(one) for one in found] == [expected]


def test_what_accepting_needs_is_part_of_what_all_share() -> None:
    assert set(shared_settings(Settings())) >= ACCEPTING
