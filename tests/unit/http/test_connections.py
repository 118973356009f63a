from __future__ import annotations

from unittest.mock import Mock

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from convo.http.connections import Connections
from convo.http.forwarded import Proxies
from convo.observe import metrics
from convo.settings import ConnectionSettings, ServerSettings


def member(peer: str = "1.2.3.4", phase: str = "idle") -> Mock:
    return Mock(peer=peer, phase=phase)


def open_connections(most: int = 3, per_peer: int = 2, trusted: str = "") -> Connections:
    settings = ConnectionSettings(connections_per_peer_max=per_peer)
    return Connections(settings, Proxies(ServerSettings(trusted_proxies=trusted)), most)


async def test_beyond_the_limit_no_connection_is_added() -> None:
    full = open_connections()
    here = [member(peer) for peer in "abc"]
    assert all(full.add(one) for one in here)
    late = member("d")
    assert not full.add(late)
    full.remove(late)
    assert len(full) == 3
    full.remove(here[0])
    assert full.add(late)


async def test_one_address_has_its_share_unless_it_is_a_proxys() -> None:
    some = open_connections(9)
    assert [some.add(member("a")) for _ in range(3)] == [True, True, False]
    assert some.add(member("b"))
    through = open_connections(9, trusted="10.0.0.1, 2001:db8::1")
    assert all(through.add(member("10.0.0.1")) for _ in range(5))
    assert [through.add(member("2001:db8::1")) for _ in range(3)] == [True, True, True]


async def test_a_network_of_addresses_has_the_share_of_one() -> None:
    some = open_connections(9)
    here = [member(f"2001:db8::{number}") for number in range(3)]
    assert [some.add(one) for one in here] == [True, True, False]
    assert some.add(member("2001:db8:0:1::1"))
    some.remove(here[0])
    assert some.add(here[2])


async def test_a_removed_connection_leaves_nothing_behind() -> None:
    some = open_connections()
    for number in range(1000):
        one = member(str(number))
        some.add(one)
        some.remove(one)
    assert not some._of_client
    assert len(some) == 0


async def test_the_phases_are_counted_when_somebody_asks() -> None:
    some = open_connections(9, 9)
    for phase in ("idle", "idle", "body"):
        some.add(member(phase=phase))
    wanted = ("idle", "body", "write")
    found = [metrics.registry.get_sample_value("convo_connections", {"phase": phase}) for phase in wanted]
    assert found == [2.0, 1.0, 0.0]
    told = metrics.exposition().decode()
    for phase in metrics.CONNECTION_PHASES:
        assert f'convo_deadline_exceeded_total{{name="connection.{phase}"}}' in told


async def test_at_the_stop_every_open_connection_ends_if_it_is_idle() -> None:
    some = open_connections()
    one, gone = member("a"), member("b")
    some.add(one)
    some.add(gone)
    some.remove(gone)
    some.drain()
    assert some.draining
    one.end_if_idle.assert_called_once_with()
    gone.end_if_idle.assert_not_called()


async def test_a_failure_that_repeats_is_logged_once_in_five_seconds_with_its_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    some = open_connections()
    with capture_logs() as lines:
        for _ in range(4):
            some.log_failed(ValueError("bug"))
        await trio.sleep(5)
        some.log_failed(ValueError("bug"))
    assert [(line["event"], line["suppressed"]) for line in lines] == [
        ("connection_failed", 0),
        ("connection_failed", 3),
    ]


async def test_a_refused_connection_is_logged_apart_from_failures() -> None:
    full = open_connections(most=0)
    with capture_logs() as lines:
        full.log_failed(ValueError("bug"))
        full.add(member("a"))
        full.add(member("b"))
    assert [(line["event"], line.get("peer")) for line in lines] == [
        ("connection_failed", None),
        ("connections_full", "a"),
    ]


@pytest.mark.parametrize("times", [1, 256])
async def test_a_refused_connection_may_wait_for_its_client_unless_too_many_do(times: int) -> None:
    some = open_connections()
    seen = [some.refusing() for _ in range(times)]
    assert all(one.__enter__() for one in seen)
    with some.refusing() as may_linger:
        assert may_linger is (times < 256)
