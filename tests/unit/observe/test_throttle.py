from __future__ import annotations

from convo.observe.throttle import Throttle


def test_a_key_passes_once_in_an_interval_and_then_with_the_number_suppressed() -> None:
    throttle = Throttle(5.0)
    assert [throttle.due("full", now) for now in (0.0, 1.0, 2.0, 4.9)] == [0, None, None, None]
    assert [throttle.due("full", now) for now in (5.0, 6.0, 10.0)] == [3, None, 1]


def test_each_key_has_its_own_interval() -> None:
    throttle = Throttle(5.0)
    assert [throttle.due(key, 1.0) for key in ("one", "two", "one")] == [0, 0, None]


def test_without_another_interval_a_key_passes_every_ten_seconds() -> None:
    throttle = Throttle()
    assert [throttle.due("key", now) for now in (0.0, 9.9, 10.0)] == [0, None, 1]


def test_after_forget_every_key_passes_at_once() -> None:
    throttle = Throttle()
    throttle.due("key", 0.0)
    throttle.forget()
    assert throttle.due("key", 0.0) == 0


def test_the_keys_are_bounded() -> None:
    throttle = Throttle()
    for number in range(10_000):
        assert throttle.due(number, 0.0) == 0
    assert len(throttle._passed) <= 100
