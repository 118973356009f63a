from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from convo.dependencies import row_name
from convo.errors import (
    RemoteBusy,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
    RemoteWithheld,
)
from convo.resilience.chain import REFUSED_SECONDS, Chain
from convo.resilience.dependency import Dependency
from convo.resilience.systemic import SpentAttempt
from convo.runtime.deadline import deadline
from convo.settings import RemoteSettings

Fails = Callable[[str], RemoteError]


class Row:
    """A first server and a fallback; each answers with its name, or fails as told."""

    def __init__(self, **settings: Any) -> None:
        usual = {"breaker_failures": 2, "breaker_jobs": 3, "backoff_seconds": 2.0}
        names = ("llm", "llm.backup")
        self.links = [Dependency(name, RemoteSettings(**{**usual, **settings}), random=lambda: 0.0) for name in names]
        self.chain = Chain("llm", self.links, random=lambda: 0.0)
        self.fails: dict[str, Fails] = {}
        self.slow: set[str] = set()
        self.asked: list[str] = []

    async def ask(self, job: int = 1) -> str:
        return await self.chain.ask(self._ask_link, job)

    async def _ask_link(self, place: int, elsewhere: bool) -> str:  # noqa: FBT001  (as ``Chain`` calls it)
        link = self.links[place]

        async def attempt() -> str:
            self.asked.append(link.name)
            if link.name in self.slow:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            if link.name in self.fails:
                raise self.fails[link.name](link.name)
            return link.name

        return await link.call("llm.questions", attempt, elsewhere=elsewhere)

    async def failure(self, job: int = 1) -> RemoteError:
        with pytest.raises(RemoteError) as caught:
            await self.ask(job)
        return caught.value


def down(name: str) -> RemoteError:
    return RemoteUnavailable(name, "answered 503")


def refused(name: str) -> RemoteError:
    return RemoteRefused(name, "answered 400")


@pytest.mark.parametrize(
    ("fails", "attempts"),
    [
        (down, 2),
        (lambda name: RemoteGarbage(name, "no JSON"), 2),
        (refused, 1),
        (lambda name: RemoteDenied(name, "answered 401"), 1),
        (lambda name: RemoteBusy(name, "answered 429", retry_after_seconds=30.0), 1),
        (lambda name: RemoteBusy(name, "answered 429"), 1),
    ],
    ids=["out", "unusable", "refuses the request", "refuses the key", "asks for a pause", "is busy"],
)
async def test_however_the_first_fails_the_next_one_is_asked(
    autojump_clock: MockClock, fails: Fails, attempts: int
) -> None:
    row = Row()
    row.fails["llm"] = fails
    assert await row.ask() == "llm.backup"
    assert row.asked == ["llm"] * attempts + ["llm.backup"]
    assert trio.current_time() == (2.0 if attempts == 2 else 0.0), "a pause is not waited for where another can answer"


async def test_what_is_out_is_left_out_until_its_breaker_lets_a_call_through(autojump_clock: MockClock) -> None:
    row = Row(breaker_open_seconds=60.0)
    row.fails["llm"] = down
    await row.ask()
    row.asked.clear()
    assert await row.ask() == "llm.backup"
    assert row.asked == ["llm.backup"]
    row.fails.clear()
    await trio.sleep(60.0)
    assert await row.ask() == "llm", "the first one is asked again by itself"
    assert row.chain.flows()


async def test_two_attempts_at_two_servers_that_never_answer_end_when_the_ladder_says(
    autojump_clock: MockClock,
) -> None:
    row = Row(attempt_seconds=15.0, attempts=3, backoff_seconds=10.0, backoff_max_seconds=10.0, breaker_failures=9)
    row.slow = {"llm", "llm.backup"}
    with deadline("analysis.job", 80.5):
        failure = await row.failure()
    assert row.asked == ["llm", "llm", "llm.backup", "llm.backup"]
    assert trio.current_time() == 80.0
    assert [one.dependency for one in failure.asked] == ["llm", "llm.backup"]


async def test_a_server_without_time_for_a_whole_attempt_is_not_asked(autojump_clock: MockClock) -> None:
    row = Row(attempt_seconds=15.0, breaker_failures=9)
    row.slow = {"llm"}
    with deadline("analysis.job", 46.0):
        failure = await row.failure()
    assert row.asked == ["llm", "llm"]
    assert failure.outage
    assert trio.current_time() == 32.0


async def test_while_one_flows_all_flow_and_nobody_probes(autojump_clock: MockClock) -> None:
    row = Row(breaker_open_seconds=60.0)
    row.fails = {"llm": down}
    await row.ask()
    assert (row.chain.flows(), row.chain.wants_probe()) == (True, False)
    row.fails = {"llm": down, "llm.backup": down}
    await row.failure()
    assert not row.chain.flows()
    assert "llm: its breaker is open" in row.chain.described()
    assert "llm.backup: its breaker is open" in row.chain.described()
    await trio.sleep(60.0)
    assert row.chain.wants_probe()
    row.chain.probe_sent()
    assert not row.chain.wants_probe()


async def test_a_job_is_at_fault_only_where_it_is_at_each_of_them(autojump_clock: MockClock) -> None:
    row = Row()
    row.fails = {"llm": refused, "llm.backup": refused}
    error = await row.failure()
    assert (error.dependency, error.outage, row_name(error.dependency)) == ("llm", False, "llm")
    assert not row.chain.is_at_fault(error, 1)
    row.fails["llm.backup"] = down
    error = await row.failure()
    assert (error.dependency, error.outage, row_name(error.dependency)) == ("llm.backup", True, "llm")
    assert row.chain.is_at_fault(error, 1)
    assert error.later_seconds == REFUSED_SECONDS, "the refusal of the other one may have its price"


async def test_a_fault_that_all_jobs_meet_is_one_servers_own_also_where_the_other_answers(
    autojump_clock: MockClock,
) -> None:
    row = Row(breaker_open_seconds=60.0)
    row.fails["llm"] = refused
    for job in range(3):
        assert await row.ask(job) == "llm.backup"
    assert not row.links[0].flows(), "three jobs in a row were refused alike"
    assert row.links[1].flows()
    row.asked.clear()
    await row.ask(9)
    assert row.asked == ["llm.backup"]


async def test_what_jobs_spent_on_a_fault_of_both_is_given_back_once(autojump_clock: MockClock) -> None:
    row = Row()
    row.fails = {"llm": refused, "llm.backup": refused}
    for job in range(3):
        error = await row.failure(job)
        if not row.chain.is_at_fault(error, job):
            row.chain.note_spent(error, job, SpentAttempt())
    assert row.chain.take_owed() == {0: 1, 1: 1}
    assert row.chain.take_owed() == {}
    row.chain.owe_again({7: 1})
    row.chain.forget_jobs()
    assert row.chain.take_owed() == {}


async def test_what_is_withheld_is_asked_of_nobody_and_costs_no_breaker(autojump_clock: MockClock) -> None:
    row = Row()
    for link in row.links:
        link.withheld = lambda: "llm.daily_budget is spent"
    error = await row.failure()
    assert isinstance(error, RemoteWithheld)
    assert error.outage
    assert row.chain.is_at_fault(error, 1)
    assert (row.asked, row.chain.flows(), row.chain.wants_probe()) == ([], False, False)
    assert "llm.daily_budget is spent" in row.chain.described()
    for link in row.links:
        link.withheld = str
    assert row.chain.flows()
