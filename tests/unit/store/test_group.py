from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.errors import BadRow, Conflict, ConvoError, DatabaseUnavailable, Draining, TransactionLost
from convo.observe import tracing
from convo.observe.traced_waits import PastWaits, record_wait
from convo.observe.tracing import Recorder
from convo.runtime.deadline import deadline, wait_observers
from convo.store.group import Group

Outcomes = dict[str, str | ConvoError]


class Ledger:
    """Commits batches of texts, each in ``seconds``; notes what it was given, and fails as it is told."""

    def __init__(self, *then: ConvoError | None, seconds: float = 1.0, bad: str = "") -> None:
        self.batches: list[list[str]] = []
        self.then = deque(then)
        self.seconds = seconds
        self.bad = bad

    async def commit(self, batch: Sequence[str]) -> list[str | ConvoError]:
        self.batches.append(list(batch))
        await trio.sleep(self.seconds)
        error = self.then.popleft() if self.then else None
        if error is not None:
            raise error
        if self.bad and any(item in self.bad for item in batch):
            raise BadRow("refused", sqlstate="23514")
        return [Conflict("taken") if item == "taken" else f"{item} stored" for item in batch]


class NamedLedger(Ledger):
    """Commits under a named deadline, as a unit of work does."""

    async def commit(self, batch: Sequence[str]) -> list[str | ConvoError]:
        with deadline("db.settle", 10.0):
            return await super().commit(batch)


@asynccontextmanager
async def at_work(
    ledger: Ledger,
    *,
    rows_max: int = 100,
    bytes_max: int = 1000,
    size: Callable[[str], int] = len,
    gather_seconds: float = 0.0,
) -> AsyncIterator[Group[str, str]]:
    group: Group[str, str] = Group(
        ledger.commit,
        rows_max=rows_max,
        bytes_max=bytes_max,
        unit_seconds=ledger.seconds,
        item_bytes=size,
        gather_seconds=gather_seconds,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(group.run)
        yield group
        nursery.cancel_scope.cancel()


async def submit(group: Group[str, str], item: str, outcomes: Outcomes, *, seconds: float = 1000.0) -> None:
    with trio.move_on_after(seconds):
        try:
            outcomes[item] = await group.submit(item)
        except ConvoError as error:
            outcomes[item] = error


async def submit_all(group: Group[str, str], *items: str, seconds: float = 1000.0) -> Outcomes:
    """Submit these items at the same time, in this order."""
    outcomes: Outcomes = {}
    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(partial(submit, group, item, outcomes, seconds=seconds))
            await wait_all_tasks_blocked()
    return outcomes


async def test_a_lone_item_is_committed_at_once(autojump_clock: MockClock) -> None:
    ledger = Ledger(seconds=0.25)
    async with at_work(ledger) as group:
        assert await group.submit("a") == "a stored"
        assert trio.current_time() == 0.25


async def test_a_batch_gathers_for_a_while_as_long_as_items_come_several_at_a_time(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    outcomes: Outcomes = {}
    async with at_work(ledger, gather_seconds=0.5) as group, trio.open_nursery() as nursery:
        for item, at in (("a", 0.0), ("b", 0.5), ("c", 0.6), ("d", 2.1), ("e", 2.3), ("f", 4.4)):
            await trio.sleep_until(at)
            nursery.start_soon(submit, group, item, outcomes)
    # The batch after one of two waited until 2.5; all others were begun at once.
    assert ledger.batches == [["a"], ["b", "c"], ["d", "e"], ["f"]]
    assert trio.current_time() == 4.4 + 1.0


async def test_while_one_transaction_is_under_way_the_next_batch_gathers(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, "a", "b", "c", "d")
    assert ledger.batches == [["a"], ["b", "c", "d"]]
    assert outcomes == {item: f"{item} stored" for item in "abcd"}
    assert trio.current_time() == 2.0


async def test_a_batch_has_at_most_so_many_rows_in_the_order_they_came(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with at_work(ledger, rows_max=2) as group:
        await submit_all(group, "a", "b", "c", "d", "e")
    assert ledger.batches == [["a"], ["b", "c"], ["d", "e"]]


async def test_a_batch_has_at_most_so_many_bytes(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with at_work(ledger, bytes_max=4) as group:
        await submit_all(group, "a", "bb", "cc", "d")
    assert ledger.batches == [["a"], ["bb", "cc"], ["d"]]


async def test_an_item_over_the_bytes_is_committed_alone(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with at_work(ledger, bytes_max=4) as group:
        await submit_all(group, "a", "b", "ccccccc", "d")
    assert ledger.batches == [["a"], ["b"], ["ccccccc"], ["d"]]


async def test_an_error_among_the_outcomes_is_that_items_alone(autojump_clock: MockClock) -> None:
    async with at_work(Ledger()) as group:
        outcomes = await submit_all(group, "a", "b", "taken", "c")
    assert isinstance(outcomes.pop("taken"), Conflict)
    assert outcomes == {item: f"{item} stored" for item in "abc"}


# --- cancelled waiters


async def test_a_waiter_cancelled_before_its_batch_is_taken_leaves_with_its_item(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    outcomes: Outcomes = {}
    async with at_work(ledger) as group, trio.open_nursery() as nursery:
        nursery.start_soon(submit, group, "a", outcomes)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(submit, group, "b", outcomes, seconds=0.5))
        nursery.start_soon(submit, group, "c", outcomes)
    assert ledger.batches == [["a"], ["c"]]
    assert outcomes == {"a": "a stored", "c": "c stored"}


async def test_one_cancelled_afterwards_only_ends_its_waiting(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    outcomes: Outcomes = {}
    async with at_work(ledger) as group, trio.open_nursery() as nursery:
        nursery.start_soon(partial(submit, group, "a", outcomes, seconds=0.5))
        await wait_all_tasks_blocked()
        nursery.start_soon(submit, group, "b", outcomes)
    assert ledger.batches == [["a"], ["b"]]
    assert outcomes == {"b": "b stored"}


async def test_when_all_who_waited_have_left_nothing_is_committed(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with at_work(ledger) as group:
        await submit_all(group, "a", "b", "c", seconds=0.5)
        await trio.sleep(10)
        assert ledger.batches == [["a"]]
        assert await group.submit("d") == "d stored"


# --- bad rows


async def test_bad_rows_are_split_off_in_halves_until_each_is_alone(autojump_clock: MockClock) -> None:
    ledger = Ledger(bad="dg")
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, *"abcdefgh")
    assert ledger.batches == [
        ["a"],
        ["b", "c", "d", "e", "f", "g", "h"],
        ["b", "c", "d"],
        ["b"],
        ["c", "d"],
        ["c"],
        ["d"],
        ["e", "f", "g", "h"],
        ["e", "f"],
        ["g", "h"],
        ["g"],
        ["h"],
    ]
    assert {item for item, outcome in outcomes.items() if isinstance(outcome, BadRow)} == {"d", "g"}
    assert {item for item, outcome in outcomes.items() if outcome == f"{item} stored"} == set("abcefh")


async def test_a_half_that_fails_for_another_reason_leaves_the_other_half_alone(autojump_clock: MockClock) -> None:
    ledger = Ledger(None, None, DatabaseUnavailable("away"), bad="c")
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, *"abcde")
    assert {item: type(outcome) for item, outcome in outcomes.items()} == {
        "a": str,
        "b": DatabaseUnavailable,
        "c": DatabaseUnavailable,
        "d": str,
        "e": str,
    }


# --- lost transactions


async def test_a_lost_transaction_is_repeated_once(autojump_clock: MockClock) -> None:
    ledger = Ledger(TransactionLost("deadlock"))
    async with at_work(ledger) as group:
        assert await group.submit("a") == "a stored"
    assert ledger.batches == [["a"], ["a"]]


async def test_one_that_is_lost_twice_fails_its_waiters_and_not_the_next_batch(autojump_clock: MockClock) -> None:
    ledger = Ledger(TransactionLost("deadlock"), TransactionLost("deadlock"))
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, "a", "b")
    assert ledger.batches == [["a"], ["a"], ["b"]]
    assert isinstance(outcomes["a"], TransactionLost)
    assert outcomes["b"] == "b stored"


@pytest.mark.parametrize(("seconds", "batches"), [(1.9, 1), (2.1, 2)])
async def test_a_lost_one_is_repeated_only_if_its_oldest_waiter_can_afford_it(
    autojump_clock: MockClock, seconds: float, batches: int
) -> None:
    ledger = Ledger(TransactionLost("deadlock"))
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, "a", seconds=seconds)
        assert ledger.batches == [["a"]] * batches
    assert isinstance(outcomes["a"], str if batches == 2 else TransactionLost)


async def test_a_waiter_that_has_left_keeps_no_one_from_the_repeat(autojump_clock: MockClock) -> None:
    ledger = Ledger(None, TransactionLost("deadlock"))
    outcomes: Outcomes = {}
    async with at_work(ledger) as group, trio.open_nursery() as nursery:
        nursery.start_soon(submit, group, "a", outcomes)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(submit, group, "b", outcomes, seconds=1.5))
        nursery.start_soon(submit, group, "c", outcomes)
    assert outcomes == {"a": "a stored", "c": "c stored"}


async def test_any_other_failure_fails_its_waiters_at_once(autojump_clock: MockClock) -> None:
    ledger = Ledger(None, DatabaseUnavailable("away"))
    async with at_work(ledger) as group:
        outcomes = await submit_all(group, "a", "b", "c")
        assert ledger.batches == [["a"], ["b", "c"]]
        assert trio.current_time() == 2.0
    assert [type(outcomes[item]) for item in "abc"] == [str, DatabaseUnavailable, DatabaseUnavailable]


# --- the stop


async def test_whoever_waits_at_the_stop_is_told_of_it(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    outcomes: Outcomes = {}
    async with trio.open_nursery() as clients, at_work(ledger) as group:
        for item in ("under way", "gathered"):
            clients.start_soon(submit, group, item, outcomes)
            await wait_all_tasks_blocked()
    assert ledger.batches == [["under way"]]
    assert [type(outcome) for outcome in outcomes.values()] == [Draining, Draining]


async def test_after_the_stop_nobody_waits_in_vain(autojump_clock: MockClock) -> None:
    async with at_work(Ledger()) as group:
        pass
    with pytest.raises(Draining):
        await group.submit("late")


async def test_a_bug_in_the_commit_ends_the_loop_and_no_one_waits_for_ever(autojump_clock: MockClock) -> None:
    async def buggy(_: Sequence[str]) -> Any:
        await trio.lowlevel.checkpoint()
        raise KeyError("bug")

    group: Group[str, str] = Group(buggy, rows_max=1, bytes_max=1, unit_seconds=1, item_bytes=len)
    outcomes: Outcomes = {}
    async with trio.open_nursery() as clients:
        clients.start_soon(submit, group, "a", outcomes)
        with pytest.raises(KeyError):
            await group.run()
    assert isinstance(outcomes["a"], Draining)


class Sent:
    """An item that can be watched."""


@pytest.mark.parametrize("whose", ["its own", "the batch's"])
async def test_an_error_holds_no_item_until_the_collector_comes(whose: str, autojump_clock: MockClock) -> None:
    async def commit(batch: Sequence[Sent]) -> list[ConvoError]:
        await trio.sleep(1)
        if whose == "the batch's":
            raise DatabaseUnavailable("away")
        return [Conflict("taken") for _ in batch]

    group: Group[Sent, str] = Group(commit, rows_max=100, bytes_max=1000, unit_seconds=1, item_bytes=lambda _: 1)

    async def send(seconds: float) -> None:
        item = Sent()
        watched.append(weakref.ref(item))
        with trio.move_on_after(seconds):
            with suppress(ConvoError):
                await group.submit(item)

    watched: list[weakref.ref[Sent]] = []
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(group.run)
            async with trio.open_nursery() as sending:
                for seconds in (1000, 1000, 0.5):
                    sending.start_soon(send, seconds)
            await trio.sleep(5)
            assert [one() for one in watched] == [None] * 3
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()


# --- traces


async def test_a_commit_stands_in_the_trace_of_each_caller_that_has_one(autojump_clock: MockClock) -> None:
    ledger = NamedLedger()
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        one, other = (tracing.begin_span(name, "server") for name in ("one", "other"))
        assert one is not None
        assert other is not None
        async with at_work(ledger) as group, trio.open_nursery() as nursery:
            nursery.start_soon(submit, group, "under way", {})
            await wait_all_tasks_blocked()
            for item, span in (("a", one), ("b", None), ("c", other)):
                with tracing.resumed_span(span):
                    nursery.start_soon(submit, group, item, {})
                await wait_all_tasks_blocked()
    assert ledger.batches == [["under way"], ["a", "b", "c"]]
    spans = recorder.take(100)
    names = ["wait for batch", "db.settle"]
    assert [(span.name, span.parent_id) for span in spans] == [
        (name, span.span_id) for span in (one, other) for name in names
    ]
    assert {span.attributes.get("convo.batch_rows") for span in spans} == {None, 3}


async def test_a_commit_that_was_lost_stands_there_with_its_error_and_before_the_next_try(
    autojump_clock: MockClock,
) -> None:
    ledger = NamedLedger(TransactionLost("lost"))
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        span = tracing.begin_span("one", "server")
        async with at_work(ledger) as group:
            with tracing.resumed_span(span):
                assert await group.submit("a") == "a stored"
    spans = recorder.take(100)
    assert [one.name for one in spans] == ["wait for batch", "db.settle"] * 2
    assert [one.attributes.get("error.type") for one in spans] == [None, "transaction_lost", None, None]
    assert spans[2].began_ns >= spans[1].ended_ns


async def test_nothing_is_gathered_where_nothing_is_recorded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PastWaits] = []

    def make() -> PastWaits:
        made.append(PastWaits())
        return made[-1]

    monkeypatch.setattr("convo.store.group.PastWaits", make)
    async with at_work(NamedLedger()) as group:
        await group.submit("a")
        assert made == []
        with tracing.recording(Recorder(sample=1.0, spans_max=1)):
            await group.submit("b")
    assert len(made) == 1
