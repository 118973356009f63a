from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.store import keys
from convo.store.audit_log import NO_CALLER, Caller
from convo.store.open_alerts import OpenKey, acknowledge_alert, close_alerts, list_open, mark_open, open_alert
from convo.store.postgres import Postgres
from tests.support.making import Process, ask, open_process, rows, shift_clock

SHARED: OpenKey = ("DEAD_LETTER", "jobs", "")
HERE: OpenKey = ("LLM_UNAVAILABLE", "llm", "here")
THERE: OpenKey = ("LLM_UNAVAILABLE", "llm", "there")


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def by(postgres: Postgres) -> dict[OpenKey, str | None]:
    return {one.key: one.acknowledged.by if one.acknowledged else None for one in await list_open(postgres)}


async def test_an_alert_is_stored_once_marked_and_removed_when_it_is_over(process: Process) -> None:
    postgres = process.postgres
    first = await open_alert(postgres, SHARED)
    assert (first.step, first.acknowledged) == (-1, None)
    assert [(one.key, one.step) for one in await mark_open(postgres, {SHARED: 1, HERE: 0})] == [(SHARED, 1)]
    # What is written late moves no step back.
    await mark_open(postgres, {SHARED: 0})
    again = await open_alert(postgres, SHARED)
    assert again.step == 1
    await close_alerts(postgres, [SHARED])
    assert await list_open(postgres) == []


async def test_an_acknowledgement_holds_in_all_processes_and_the_first_one_stays(process: Process) -> None:
    postgres = process.postgres
    for key in (SHARED, HERE, THERE):
        await open_alert(postgres, key)
    found = await acknowledge_alert(postgres, "LLM_UNAVAILABLE", "llm", "anna", NO_CALLER)
    assert {one.key for one in found} == {HERE, THERE}
    await acknowledge_alert(postgres, "LLM_UNAVAILABLE", None, "ben", NO_CALLER)
    assert await by(postgres) == {SHARED: None, HERE: "anna", THERE: "anna"}
    noted = "SELECT detail ->> 'by' FROM audit_log WHERE action = 'alert_acknowledged'"
    assert await rows(postgres, noted) == [("anna",)]
    (marked,) = await mark_open(postgres, {THERE: 0})
    assert marked.acknowledged is not None
    assert marked.acknowledged.by == "anna"


async def test_nothing_is_acknowledged_or_noted_where_nothing_lasts(process: Process) -> None:
    await open_alert(process.postgres, SHARED)
    assert await acknowledge_alert(process.postgres, "DEAD_LETTER", "job", "anna", NO_CALLER) == []
    assert await ask(process.postgres, "SELECT count(*) FROM audit_log WHERE action = 'alert_acknowledged'") == 0


async def test_an_acknowledgement_is_noted_with_the_name_of_the_key(process: Process) -> None:
    key_id = (await keys.new(process.postgres, "pager", ("admin",), 0)).split("_")[1]
    await open_alert(process.postgres, SHARED)
    caller = Caller(key_id=key_id, address="192.0.2.7")
    (one,) = await acknowledge_alert(process.postgres, "DEAD_LETTER", None, "", caller)
    assert one.acknowledged is not None
    assert one.acknowledged.by == "pager"
    found = await rows(
        process.postgres,
        "SELECT key_id, address, detail ->> 'type', detail ->> 'by' FROM audit_log WHERE action = 'alert_acknowledged'",
    )
    assert found == [(key_id, "192.0.2.7", "DEAD_LETTER", "pager")]


async def test_what_nobody_has_marked_for_five_minutes_counts_no_more(process: Process) -> None:
    postgres = process.postgres
    await open_alert(postgres, SHARED)
    await acknowledge_alert(postgres, "DEAD_LETTER", None, "anna", NO_CALLER)
    await shift_clock(postgres, "299 seconds")
    carried = await open_alert(postgres, SHARED)
    assert carried.acknowledged is not None
    assert 299 <= carried.age_seconds < 310
    await shift_clock(postgres, "600 seconds")
    assert await list_open(postgres) == []
    assert await acknowledge_alert(postgres, "DEAD_LETTER", None, "anna", NO_CALLER) == []
    anew = await open_alert(postgres, SHARED)
    assert (anew.acknowledged, anew.step) == (None, -1)
    assert anew.age_seconds < 5


async def test_another_process_with_the_same_alert_takes_an_acknowledgement_over(process: Process) -> None:
    postgres = process.postgres
    await open_alert(postgres, HERE)
    await acknowledge_alert(postgres, "LLM_UNAVAILABLE", None, "anna", NO_CALLER)
    taken = await open_alert(postgres, THERE)
    assert taken.acknowledged is not None
    other = await open_alert(postgres, ("LLM_UNAVAILABLE", "llm.backup", "there"))
    assert other.acknowledged is None
    # Its own end ends it for those that come later.
    await close_alerts(postgres, [HERE, THERE])
    assert (await open_alert(postgres, HERE)).acknowledged is None
