from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.settings import EventsSettings, Settings
from convo.store.couriers import lease_courier, move_cursor, read_events, release_courier
from convo.store.event_expiry import find_expiring
from convo.store.event_numbers import number_events
from tests.support.making import Process, ask, open_process, shift_clock

ON = Settings(events=EventsSettings(types=("conversation.accepted",)))
ONE, OTHER = "folder-a.1", "folder-b.1"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, ON) as opened:
        yield opened


async def test_one_process_has_the_lease_and_another_takes_over_when_it_is_over_or_given_back(process: Process) -> None:
    postgres = process.postgres
    first = await lease_courier(postgres, "rabbitmq", ONE)
    assert first is not None
    assert first.cursor == 0
    assert await lease_courier(postgres, "rabbitmq", OTHER) is None
    renewed = await lease_courier(postgres, "rabbitmq", ONE)
    assert renewed == first
    assert await move_cursor(postgres, first, 7)
    await shift_clock(postgres, "21 seconds")
    other = await lease_courier(postgres, "rabbitmq", OTHER)
    assert other is not None
    assert (other.cursor, other.token != first.token) == (7, True)
    assert not await move_cursor(postgres, first, 9), "a process that lost its lease moves nothing"
    await release_courier(postgres, "rabbitmq", OTHER)
    assert not await move_cursor(postgres, other, 9), "nor does one that has given it back"
    again = await lease_courier(postgres, "rabbitmq", ONE)
    assert again is not None
    assert again.cursor == 7


async def test_the_next_start_on_a_folder_has_the_lease_at_once(process: Process) -> None:
    first = await lease_courier(process.postgres, "rabbitmq", "folder-a.1")
    again = await lease_courier(process.postgres, "rabbitmq", "folder-a.2")
    assert first is not None
    assert again is not None
    assert again.token != first.token


async def test_a_cursor_never_goes_back(process: Process) -> None:
    courier = await lease_courier(process.postgres, "rabbitmq", ONE)
    assert courier is not None
    assert await move_cursor(process.postgres, courier, 7)
    assert await move_cursor(process.postgres, courier, 3)
    assert await ask(process.postgres, "SELECT cursor FROM courier") == 7


async def test_events_of_other_types_are_passed_over(process: Process) -> None:
    await process.accepted("talk-1")
    await process.accepted("talk-2")
    await number_events(process.postgres)
    page = await read_events(process.postgres, 0, 10, ["user.erased"])
    assert (page.events, page.looked_to) == ([], 2)
    page = await read_events(process.postgres, 0, 1, [])
    assert ([one.conversation_id for one in page.events], page.looked_to) == (["talk-1"], 1)
    page = await read_events(process.postgres, 2, 10, [])
    assert (page.events, page.looked_to) == ([], 2)


async def test_what_would_expire_unconfirmed_is_reported_while_a_process_has_the_courier(process: Process) -> None:
    await process.accepted("talk-1")
    await number_events(process.postgres)
    await shift_clock(process.postgres, "6 days")
    assert await find_expiring(process.postgres, 7) == [], "nobody is switched on"
    courier = await lease_courier(process.postgres, "rabbitmq", ONE)
    assert courier is not None
    assert [one.receiver for one in await find_expiring(process.postgres, 7)] == ["rabbitmq"]
    assert await move_cursor(process.postgres, courier, 1)
    assert await find_expiring(process.postgres, 7) == []
