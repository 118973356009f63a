from __future__ import annotations

from typing import Any, cast

import trio
from trio.testing import MockClock

from convo.analysis.analyze import PartFailure
from convo.errors import ConvoError, DatabaseUnavailable, RemoteGarbage, RemoteRefused, RemoteUnavailable
from convo.pipeline.blame import Blame
from convo.resilience.dependency import Dependency
from convo.settings import LlmSettings, MemorySettings
from tests.support.making import lease, told


class Books:
    """A job table that notes which attempts are given back; while ``away`` it stores nothing."""

    def __init__(self) -> None:
        self.back: list[tuple[dict[int, int], str]] = []
        self.away = False

    async def give_back(self, attempts: dict[int, int], dependency: str) -> int:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise DatabaseUnavailable("away")
        self.back.append((attempts, dependency))
        return len(attempts)


def failing(**errors: ConvoError) -> Any:
    return {name: PartFailure(by="m/1", error=error) for name, error in errors.items()}


def refused(dependency: str = "llm", wait: str = "llm.questions") -> RemoteRefused:
    error = RemoteRefused(dependency, "answered 400")
    error.wait = wait
    return error


def blame(books: Books) -> tuple[Blame, Dependency]:
    llm, memory = Dependency("llm", LlmSettings(breaker_jobs=3)), Dependency("memory", MemorySettings(breaker_jobs=3))
    return Blame(cast("Any", books), {"llm": llm, "memory": memory}), llm


def end(one: Blame, seq: int, failures: Any) -> bool:
    """End a job as the worker does; return whether it spent an attempt."""
    own = one.own(lease(seq), failures)
    if own:
        one.spent(lease(seq), failures)
    return bool(own)


async def test_what_fails_three_jobs_alike_is_given_back_and_opens_the_breaker(autojump_clock: MockClock) -> None:
    books = Books()
    one, llm = blame(books)
    with told() as names:
        assert [end(one, seq, failing(questions=refused())) for seq in (1, 2, 3, 4)] == [True, True, False, False]
        await one.give_back()
    assert books.back == [({1: 1, 2: 1}, "llm")]
    assert names == ["breaker_opened"]
    assert not llm.flows()


async def test_an_outage_and_a_bug_are_told_apart_as_ever(autojump_clock: MockClock) -> None:
    one, _ = blame(Books())
    assert not end(one, 1, failing(questions=RemoteUnavailable("llm", "answered 503")))
    assert end(one, 2, failing(questions=ConvoError("the log is missing")))
    assert end(one, 3, failing(emotion=RemoteGarbage("another", "no JSON")))


async def test_an_attempt_that_two_dependencies_cost_is_given_back_once(autojump_clock: MockClock) -> None:
    books = Books()
    one, _ = blame(books)
    both = [failing(questions=refused(), memories=refused("memory", "memory.extract")) for _ in range(3)]
    with told():
        for seq, failures in enumerate(both):
            end(one, seq, failures)
        await one.give_back()
    assert books.back == [({0: 1, 1: 1}, "llm")]


async def test_what_cannot_be_stored_now_is_given_back_later(autojump_clock: MockClock) -> None:
    books = Books()
    one, _ = blame(books)
    with told() as names:
        for seq in (1, 2, 3):
            end(one, seq, failing(questions=refused()))
        books.away = True
        await one.give_back()
        books.away = False
        await one.give_back()
    assert books.back == [({1: 1, 2: 1}, "llm")]
    assert "ending_failed" in names
