from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.http import turns as turns_module
from convo.http.turns import Turns, end_turn
from convo.runtime import precedence
from convo.runtime.precedence import Precedence


async def busy(steps: int, seen: list[str]) -> None:
    """Be ready to run again at each step, as tasks are that have work to do."""
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    seen.append("busy")


async def test_requests_begin_one_after_the_other(autojump_clock: MockClock) -> None:
    turns, inside, most = Turns(Precedence()), 0, 0

    async def request() -> None:
        nonlocal inside, most
        async with turns.turn("10.0.0.1"):
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(request)
    assert (inside, most) == (0, 1)


async def test_a_request_begins_when_nothing_else_can_run(mock_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            seen.append("request")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        nursery.start_soon(busy, 50, seen)
    assert seen == ["busy", "request"]
    assert mock_clock.current_time() == 0


async def test_in_a_loop_that_is_never_quiet_a_request_begins_all_the_same(mock_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            seen.append("request")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        nursery.start_soon(busy, 50, seen)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert seen == []
        mock_clock.jump(0.005)
    assert seen == ["request", "busy"]


async def test_in_a_busy_loop_a_turn_that_lasts_keeps_the_next_request_for_a_moment_only(mock_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request(name: str) -> None:
        async with turns.turn("10.0.0.1"):
            seen.append(name)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(request, "next")
        nursery.start_soon(busy, 100, seen)
        for seconds in (0.019, 0.002, 0.005):
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert seen == ["first"]
            mock_clock.jump(seconds)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert seen == ["first", "next"]
        nursery.cancel_scope.cancel()


async def test_the_next_request_begins_while_the_one_before_waits_and_nothing_runs(mock_clock: MockClock) -> None:
    turns, next_began = Turns(Precedence()), trio.Event()

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            await next_began.wait()

    async def next_request() -> None:
        async with turns.turn("10.0.0.1"):
            next_began.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await wait_all_tasks_blocked()
        nursery.start_soon(next_request)
    assert mock_clock.current_time() == 0


async def test_in_a_busy_loop_a_request_that_waits_for_long_can_end_its_turn(mock_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request(name: str) -> None:
        # As the framework does: another task serves the request.
        async with turns.turn("10.0.0.1"), trio.open_nursery() as nursery:
            nursery.start_soon(wait, name)

    async def wait(name: str) -> None:
        seen.append(name)
        end_turn()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for name in ("first", "next"):
            nursery.start_soon(request, name)
            nursery.start_soon(busy, 40, [])
            for _ in range(15):
                await trio.lowlevel.checkpoint()
            mock_clock.jump(0.005)
            for _ in range(15):
                await trio.lowlevel.checkpoint()
            assert seen[-1] == name
        nursery.cancel_scope.cancel()
    end_turn()  # a caller of our own has none


@pytest.mark.parametrize(
    ("flooding", "other"), [("10.0.0.1", "10.0.0.2"), ("2001:db8:0:1::1", "2001:db8:0:2::1"), ("10.0.0.1", "")]
)
async def test_a_client_with_many_connections_waits_for_itself_and_the_others_do_not_wait_for_it(
    autojump_clock: MockClock, flooding: str, other: str
) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request(address: str) -> None:
        async with turns.turn(address):
            seen.append(address)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(request, flooding)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(request, other)
    assert seen.index(other) <= 2
    assert seen.count(flooding) == 10


async def test_addresses_of_one_network_are_one_client(autojump_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request(address: str) -> None:
        async with turns.turn(address):
            seen.append(address)
            await trio.lowlevel.checkpoint()

    same = [f"2001:db8::{number:x}" for number in range(1, 11)]
    async with trio.open_nursery() as nursery:
        for address in same:
            nursery.start_soon(request, address)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(request, "10.0.0.2")
    assert seen.index("10.0.0.2") <= 2


async def test_whoever_leaves_while_waiting_holds_nobody_up(autojump_clock: MockClock) -> None:
    turns, seen = Turns(Precedence()), list[str]()

    async def request(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with turns.turn("10.0.0.1"):
                seen.append(name)
                await trio.sleep(0.01)

    scopes = [trio.CancelScope() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for name, scope in zip("abcd", scopes, strict=True):
            nursery.start_soon(request, name, scope)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        scopes[1].cancel()
        scopes[2].cancel()
    assert seen == ["a", "d"]


async def test_a_request_begins_when_no_accept_is_under_way(mock_clock: MockClock) -> None:
    accepts, seen = Precedence(), list[str]()
    turns = Turns(accepts)

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            seen.append("request")

    for number in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                accepts.begin()
            nursery.start_soon(request)
            await wait_all_tasks_blocked()
            accepts.end()
            await wait_all_tasks_blocked()
            assert len(seen) == 2 * number
            accepts.end()
            nursery.start_soon(busy, 50, seen)
    assert seen == ["busy", "request"] * 2
    assert mock_clock.current_time() == 0


async def test_where_an_accept_is_always_under_way_a_request_begins_all_the_same(mock_clock: MockClock) -> None:
    accepts, began = Precedence(), trio.Event()
    turns = Turns(accepts)

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            began.set()

    async with trio.open_nursery() as nursery:
        accepts.begin()
        nursery.start_soon(request)
        await wait_all_tasks_blocked()
        accepts.begin()
        accepts.end()
        mock_clock.jump(0.0149)
        await wait_all_tasks_blocked()
        assert not began.is_set()
        mock_clock.jump(0.0002)
        await began.wait()


# --- what they leave to accepts


@pytest.fixture
def loop_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the loop has worked, by the only one who works: the test."""
    worked = [0.0]
    monkeypatch.setattr(turns_module, "thread_time", lambda: worked[0])
    # Of the virtual clock, for the rest is slept by it.
    monkeypatch.setattr(precedence, "perf_counter", trio.current_time)
    return worked


def with_an_accept(share: float) -> Precedence:
    accepts = Precedence()
    accepts.others_share = share
    accepts.begin()
    accepts.end()
    return accepts


async def test_while_conversations_come_in_the_next_request_rests_by_what_the_last_one_took(
    autojump_clock: MockClock, loop_time: list[float]
) -> None:
    turns = Turns(with_an_accept(0.25))
    began = trio.current_time()
    async with turns.turn("10.0.0.1"):
        loop_time[0] += 0.010
    async with turns.turn("10.0.0.2"):
        assert trio.current_time() - began == pytest.approx(0.030, abs=0.003)


async def test_requests_that_overlap_are_counted_once_each(autojump_clock: MockClock, loop_time: list[float]) -> None:
    turns = Turns(with_an_accept(0.5))
    async with turns.turn("10.0.0.1"):
        loop_time[0] += 0.010
        end_turn()
        async with turns.turn("10.0.0.2"):
            loop_time[0] += 0.020
    # What is worked while no turn is under way is nobody's.
    loop_time[0] += 5.0
    rested = trio.current_time()
    async with turns.turn("10.0.0.3"):
        pass
    async with turns.turn("10.0.0.4"):
        assert trio.current_time() - rested == pytest.approx(0.020, abs=0.003)


async def test_where_no_conversation_comes_in_nobody_rests(autojump_clock: MockClock, loop_time: list[float]) -> None:
    turns, began = Turns(Precedence()), trio.current_time()
    async with turns.turn("10.0.0.1"):
        loop_time[0] += 1.0
    async with turns.turn("10.0.0.2"):
        assert trio.current_time() - began == pytest.approx(0, abs=0.003)


@pytest.mark.usefixtures("loop_time")
async def test_a_request_rests_for_what_threads_have_worked_too(autojump_clock: MockClock) -> None:
    accepts = with_an_accept(0.25)
    turns, began = Turns(accepts), trio.current_time()
    accepts.note_worked(0.010)
    async with turns.turn("10.0.0.1"):
        assert trio.current_time() - began >= 0.027


@pytest.mark.usefixtures("loop_time")
async def test_a_request_that_has_rested_begins_though_others_have_worked_meanwhile(
    autojump_clock: MockClock,
) -> None:
    accepts = with_an_accept(0.25)
    turns, began = Turns(accepts), trio.current_time()
    accepts.note_worked(0.010)

    async def work() -> None:
        await trio.sleep(0.020)
        accepts.note_worked(0.010)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with turns.turn("10.0.0.1"):
            assert 0.027 <= trio.current_time() - began < 0.055, "and not only after the rests of both"
