from __future__ import annotations

import pytest
import trio
import trio.testing

from convo.errors import TooManyRequests
from convo.settings import AuthSettings
from convo.web.wrong_keys import WrongKeys

HERE = "192.0.2.1"


def seconds_to_wait(wrong: WrongKeys, address: str = HERE) -> float:
    try:
        wrong.take(address)
    except TooManyRequests as error:
        return error.retry_after_seconds or 0.0
    return 0.0


async def test_an_address_may_show_so_many_at_once_and_then_its_rate(autojump_clock: trio.testing.MockClock) -> None:
    wrong = WrongKeys(AuthSettings(wrong_keys_per_second=0.25, wrong_keys_burst=2.0))
    assert [seconds_to_wait(wrong) for _ in range(3)] == [0, 0, 4]
    assert seconds_to_wait(wrong, "192.0.2.2") == 0
    await trio.sleep(4)
    assert [seconds_to_wait(wrong) for _ in range(2)] == [0, 4]


async def test_a_good_key_costs_nothing(autojump_clock: trio.testing.MockClock) -> None:
    wrong = WrongKeys(AuthSettings(wrong_keys_burst=1.0))
    for _ in range(3):
        wrong.take(HERE)
        wrong.give_back(HERE)
    assert [seconds_to_wait(wrong) for _ in range(2)] == [0, 1]


async def test_a_debt_is_paid_off(autojump_clock: trio.testing.MockClock) -> None:
    wrong = WrongKeys(AuthSettings(wrong_keys_burst=1.0))
    for _ in range(11):
        wrong.take(HERE, even_in_debt=True)
    assert seconds_to_wait(wrong) == 11


async def test_a_flood_from_other_addresses_resets_nobody() -> None:
    wrong = WrongKeys(AuthSettings(wrong_keys_per_second=0.001, wrong_keys_burst=1.0))
    assert seconds_to_wait(wrong) == 0
    for number in range(20_000):
        seconds_to_wait(wrong, f"10.0.{number >> 8}.{number & 255}")
    with pytest.raises(TooManyRequests):
        wrong.take(HERE)
