from __future__ import annotations

from convo.web.buckets import Buckets

ME = "192.0.2.1"
FULL = 1000


def full_of_debts(tracked_max: int = 3) -> Buckets:
    """A table in which every place belongs to a client that owes something until FULL."""
    buckets = Buckets(1, tracked_max)
    for number in range(tracked_max):
        buckets.of(f"2001:db8:{number}::/64", 0)[0] = FULL
    return buckets


def test_a_client_is_remembered_from_one_request_to_the_next() -> None:
    buckets = Buckets(2, 10)
    buckets.of(ME, 0)[1] = 5.0
    assert buckets.of(ME, 1) == [0.0, 5.0]
    assert buckets.of("192.0.2.2", 1) == [0.0, 0.0]


def test_no_flood_makes_a_client_that_owes_something_forgotten() -> None:
    buckets = Buckets(1, 100)
    buckets.of(ME, 0)[0] = FULL
    for number in range(100_000):
        buckets.of(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0)[0] = 1.0
    assert buckets.of(ME, 0) == [FULL]
    assert len(buckets._tracked) == 100
    assert len(buckets._shared) <= 1024


def test_a_client_whose_limits_are_full_again_makes_room() -> None:
    buckets = full_of_debts()
    buckets.of(ME, FULL)[0] = FULL + 1
    assert list(buckets._tracked)[-1] == ME
    assert len(buckets._tracked) == 3


def test_where_the_table_is_full_those_of_one_network_share() -> None:
    buckets = full_of_debts()
    for number in range(5):
        buckets.of(f"2001:db9:0:{number}::/64", 0)[0] += 10
    assert buckets.of("2001:db9:0:9::/64", 0) == [50]
    assert buckets.of("2001:db9:0:9::/64", 0) is not buckets.of("2001:dba::/64", 0)


def test_who_leaves_a_shared_place_takes_its_debt_along() -> None:
    buckets = full_of_debts()
    buckets.of(ME, 0)[0] = 2 * FULL
    assert buckets.of(ME, FULL + 1) == [2 * FULL]
    assert ME in buckets._tracked
    buckets.of(ME, FULL + 1)[0] = 3 * FULL
    assert buckets.of("192.0.2.2", FULL + 1) == [2 * FULL], "a copy: what one takes later is its own"


def test_a_debt_of_one_limit_is_enough_to_be_remembered() -> None:
    buckets = Buckets(2, 1)
    buckets.of(ME, 0)[1] = FULL
    buckets.of("192.0.3.2", 1)
    assert buckets.of(ME, 1) == [0.0, FULL]
