from __future__ import annotations

from convo.alerts.shared import SharedState
from convo.settings import AlertsSettings
from convo.store.processes import enter
from convo.store.shared_figures import read_shared_figures
from tests.support.making import ask, entry_of, open_process, settled


async def test_the_queue_is_counted_by_state_each_job_once(database: str) -> None:
    async with open_process(database) as process:
        found = await read_shared_figures(process.postgres)
        assert (found.ready, found.leased, found.dead, found.oldest_seconds, found.processes) == (0, 0, 0, 0.0, ())
        await process.accepted(*(f"talk-{number}" for number in range(9)))
        await settled(process, 2)
        await process.jobs.lease(2)
        ready = "(SELECT min(seq) FROM job WHERE state = 'ready' AND NOT delayed AND waits_for = '')"
        later = "available_at = convo_now() + interval '1 minute'"
        await ask(process.postgres, f"UPDATE job SET delayed = true, {later} WHERE seq = {ready}")
        parked = "waits_for = 'llm', parked_since = convo_now()"
        await ask(process.postgres, f"UPDATE job SET {parked} WHERE seq = {ready}")
        # What is parked for a while is delayed, too, and is counted as parked alone.
        await ask(process.postgres, f"UPDATE job SET {parked}, delayed = true, {later} WHERE seq = {ready}")
        found = await read_shared_figures(process.postgres)
        assert (found.ready, found.delayed, found.parked, found.leased, found.dead) == (2, 1, 2, 2, 0)
        assert (found.accepted, found.ended) == (9, 2)
        assert 0 < found.oldest_seconds < 60


async def test_a_process_is_shown_with_its_work_and_whether_it_leads(database: str) -> None:
    async with open_process(database, owner="one.a1") as process, open_process(database, owner="two.b2") as other:
        await enter(process.postgres, entry_of("one.a1", workers=4))
        await enter(process.postgres, entry_of("two.b2", workers=0))
        lead = SharedState(other.postgres, AlertsSettings())
        assert await lead.lead()
        await process.accepted("talk-1")
        await process.jobs.lease(1)
        found = {one.name: one for one in (await read_shared_figures(process.postgres)).processes}
        await lead.close()
        assert {name: (one.workers, one.working, one.leads) for name, one in found.items()} == {
            "one.a1": (4, 1, False),
            "two.b2": (0, 0, True),
        }
        assert found["one.a1"].version is None
        assert 0 <= found["one.a1"].seen_seconds < 60
