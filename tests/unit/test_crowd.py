from __future__ import annotations

from unittest.mock import Mock

import pytest
import trio
import trio.testing

from convo.config import ConnectionSettings, ServerSettings
from convo.observe import metrics
from convo.web.crowd import Crowd, Sparsely
from convo.web.forwarded import Proxies


def member(peer: str = "1.2.3.4", phase: str = "idle") -> Mock:
    return Mock(peer=peer, phase=phase)


def crowd(most: int = 3, per_peer: int = 2, trusted: str = "") -> Crowd:
    settings = ConnectionSettings(connections_per_peer_max=per_peer)
    return Crowd(settings, Proxies(ServerSettings(trusted_proxies=trusted)), most)


async def test_there_is_room_for_so_many_and_then_for_nobody() -> None:
    full = crowd()
    here = [member(peer) for peer in "abc"]
    assert all(full.enter(one) for one in here)
    late = member("d")
    assert not full.enter(late)
    full.leave(late)
    assert len(full) == 3
    full.leave(here[0])
    assert full.enter(late)


async def test_one_address_has_its_share_unless_it_is_a_proxys() -> None:
    some = crowd(9)
    assert [some.enter(member("a")) for _ in range(3)] == [True, True, False]
    assert some.enter(member("b"))
    through = crowd(9, trusted="10.0.0.1")
    assert all(through.enter(member("10.0.0.1")) for _ in range(5))


async def test_who_left_is_forgotten() -> None:
    some = crowd()
    for number in range(1000):
        one = member(str(number))
        some.enter(one)
        some.leave(one)
    assert not some._of_peer
    assert len(some) == 0


async def test_the_phases_are_counted_when_somebody_asks() -> None:
    some = crowd(9, 9)
    for phase in ("idle", "idle", "body"):
        some.enter(member(phase=phase))
    wanted = ("idle", "body", "write")
    found = [metrics.registry.get_sample_value("convo_connections", {"phase": phase}) for phase in wanted]
    assert found == [2.0, 1.0, 0.0]
    told = metrics.exposition().decode()
    for phase in metrics.CONNECTION_PHASES:
        assert f'convo_deadline_exceeded_total{{name="connection.{phase}"}}' in told


async def test_the_end_is_told_to_everybody() -> None:
    some = crowd()
    one, gone = member("a"), member("b")
    some.enter(one)
    some.enter(gone)
    some.leave(gone)
    some.drain()
    assert some.draining
    one.dismiss.assert_called_once_with()
    gone.dismiss.assert_not_called()


async def test_what_happens_often_is_told_once_in_a_while(autojump_clock: trio.testing.MockClock) -> None:
    told: list[tuple[str, int]] = []
    tell = Sparsely[str](lambda thing, unsaid: told.append((thing, unsaid)))
    for thing in "abcd":
        tell(thing)
    await trio.sleep(5)
    tell("e")
    assert told == [("a", 0), ("e", 3)]


@pytest.mark.parametrize("times", [1, 256])
async def test_those_turned_away_are_seen_off_unless_they_are_too_many(times: int) -> None:
    some = crowd()
    seen = [some.seeing_off() for _ in range(times)]
    assert all(one.__enter__() for one in seen)
    with some.seeing_off() as there_is_time:
        assert there_is_time is (times < 256)
