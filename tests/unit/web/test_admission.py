from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from convo.errors import Overloaded
from convo.observe import metrics
from convo.settings import IntakeSettings
from convo.web.admission import Admission

REQUEST_SECONDS = 8.0


def door(requests: int = 3, bytes_: int = 100, *, random: float = 0.0) -> Admission:
    settings = IntakeSettings(in_flight_max=requests, bytes_in_flight_max=bytes_)
    return Admission(settings, REQUEST_SECONDS, random=lambda: random)


@contextmanager
def admitted(admission: Admission, bytes_: int) -> Iterator[None]:
    admission.check(bytes_)
    with admission.place() as place:
        place.grow(bytes_)
        place.enter()
        yield


@contextmanager
def full(admission: Admission, requests: int = 3) -> Iterator[None]:
    with ExitStack() as inside:
        for _ in range(requests):
            inside.enter_context(admitted(admission, 1))
        yield


def refused(admission: Admission, bytes_: int = 1) -> float:
    with pytest.raises(Overloaded) as caught, admitted(admission, bytes_):
        pass
    assert caught.value.retry_after_seconds is not None
    return caught.value.retry_after_seconds


async def test_so_many_requests_are_let_in_and_no_more(autojump_clock: MockClock) -> None:
    admission = door()
    with full(admission):
        refused(admission)
    await trio.sleep(1)
    with full(admission):
        assert admission.requests == 3
    assert (admission.requests, admission.bytes) == (0, 0)


async def test_when_it_is_full_a_request_is_refused_before_its_body_is_read() -> None:
    admission = door()
    with full(admission), pytest.raises(Overloaded, match="3 requests are under way"):
        admission.check(0)


async def test_so_many_bytes_are_let_in_and_no_more() -> None:
    admission = door(requests=10)
    with admitted(admission, 60):
        with admitted(admission, 40):
            refused(admission)
        with admitted(admission, 40):
            assert admission.bytes == 100


async def test_one_alone_is_let_in_whatever_its_size() -> None:
    admission = door()
    with admitted(admission, 101):
        refused(admission)


async def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = door()
    with pytest.raises(ZeroDivisionError), admitted(admission, 50):
        raise ZeroDivisionError
    assert (admission.requests, admission.bytes) == (0, 0)


async def test_retry_after_is_when_those_inside_are_done_at_the_measured_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admission = door(requests=100, bytes_=1000)
    # 20 a second for a long while.
    for _ in range(1000):
        with admitted(admission, 1):
            await trio.sleep(0.05)
    assert admission.update_rate(trio.current_time()) == pytest.approx(20, rel=0.01)
    with full(admission, 100):
        assert refused(admission) == pytest.approx(5, rel=0.02)


async def test_a_rate_fades_when_nothing_ends_any_more(autojump_clock: trio.testing.MockClock) -> None:
    admission = door(requests=10)
    for _ in range(1000):
        with admitted(admission, 1):
            await trio.sleep(0.01)
    with full(admission, 10):
        at_once = refused(admission)
        await trio.sleep(30)
        assert refused(admission) == REQUEST_SECONDS > at_once


async def test_retry_after_is_never_longer_than_the_budget_of_those_inside() -> None:
    admission = door()
    with full(admission):
        assert refused(admission) == REQUEST_SECONDS


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 8.0), (0.5, 12.0), (1.0, 16.0)])
async def test_those_refused_together_are_spread_over_as_long_again(random: float, seconds: float) -> None:
    admission = door(random=random)
    with full(admission):
        assert refused(admission) == seconds


async def test_for_a_second_after_a_refusal_it_is_known_to_refuse(autojump_clock: MockClock) -> None:
    admission = door()
    assert not admission.refuses()
    with full(admission):
        assert not admission.refuses()
        refused(admission)
    assert admission.refuses()
    await trio.sleep(0.9)
    assert admission.refuses()
    await trio.sleep(0.1)
    assert not admission.refuses()


async def test_what_is_under_way_is_a_gauge() -> None:
    admission = door()
    with admitted(admission, 40):
        shown = metrics.exposition().decode()
        assert "convo_intake_in_flight 1.0" in shown
        assert "convo_intake_in_flight_bytes 40.0" in shown


async def test_while_it_refuses_those_let_in_are_spaced_out(autojump_clock: MockClock) -> None:
    admission = door(requests=3)
    with full(admission, 3):
        refused(admission)
    with admitted(admission, 1):
        refused(admission)  # there is room, but not at the same moment
        await trio.sleep(0.002)
        with admitted(admission, 1):
            refused(admission)
    await trio.sleep(1)
    with admitted(admission, 1), admitted(admission, 1):
        pass


async def test_the_spacing_admits_slightly_more_than_end(autojump_clock: MockClock) -> None:
    admission = door(requests=3)
    for _ in range(10_000):  # 1,000 a second
        with admitted(admission, 1):
            await trio.sleep(0.001)
    with full(admission, 3):
        refused(admission)
    let_in, ended = 0, 0.1 * admission.update_rate(trio.current_time())
    for _ in range(5_000):
        await trio.sleep(0.00002)
        with suppress(Overloaded), admitted(admission, 1):
            let_in += 1
    assert let_in == pytest.approx(ended / 0.7, rel=0.1)


async def test_while_its_body_is_read_a_request_holds_only_the_bytes_that_have_come() -> None:
    admission = door(requests=1)
    with admission.place() as slow, admission.place() as slower:
        slow.grow(30)
        slower.grow(30)
        assert (admission.requests, admission.bytes) == (0, 60)
        with admitted(admission, 40):
            assert (admission.requests, admission.bytes) == (1, 100)
            with pytest.raises(Overloaded, match="bytes are under way"):
                slow.grow(1)
            with pytest.raises(Overloaded, match="1 requests are under way"):
                slow.enter()
        slow.enter()
        assert admission.requests == 1
    assert (admission.requests, admission.bytes) == (0, 0)


async def test_a_request_that_is_alone_may_have_any_size() -> None:
    admission = door()
    with admission.place() as alone:
        alone.grow(99)
        alone.grow(99)
        with pytest.raises(Overloaded):
            admission.check(1)


async def test_after_a_flood_no_request_is_refused(autojump_clock: MockClock) -> None:
    admission = door(requests=3)
    with full(admission, 3):
        refused(admission)
    turned_away = []
    for _ in range(100):  # pairs, 50 of them a second: far below what could be let in
        for _ in range(2):
            try:
                with admitted(admission, 1):
                    pass
            except Overloaded:
                turned_away.append(trio.current_time())
        await trio.sleep(0.02)
    assert turned_away
    assert turned_away[-1] < 1.0 <= trio.current_time()
    assert not admission.refuses()
