from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
from msgspec import UNSET

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import NotFound
from convo.runtime.deadline import CollectedWaits
from convo.store import ledger
from convo.store.jobs import explain
from convo.store.jobs.explain import Explained, read_explanation
from convo.web.explaining import _runs
from tests.support.making import Process, ask, dies, open_dedicated, open_process, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def explained(process: Process, conversation_id: str = "talk-1") -> Explained:
    return await read_explanation(process.postgres, WHOLE_DEFAULT, conversation_id)


def endings(found: Explained) -> list[tuple[str, str | None]]:
    return [(run["ending"], run["reason"]) for run in found.runs]


async def test_there_is_nothing_to_explain_of_what_is_not_there(process: Process) -> None:
    with pytest.raises(NotFound, match="'talk-1'"):
        await explained(process)


async def test_every_lease_leaves_a_run_with_its_ending_its_reason_and_its_waits(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.release(await process.leased(), reason="we stop", waits={"llm.questions": 1.23456})
    await process.jobs.park(await process.leased(), "llm", "llm: down", waits={"llm.emotion": 2.0})
    await process.jobs.fail(await process.leased(), "llm: 422", {}, later=0.001)
    await shift_clock(process.postgres, "1 second")
    await process.leased()
    assert await dies(process.postgres, process.jobs.owner) == 1
    await process.leased()
    await ask(process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second'")
    await process.jobs.rescue()
    lease = await process.analysed(await process.leased())
    await process.settler.settle(lease, {"memory.extract": 0.5})
    found = await explained(process)
    assert endings(found) == [
        ("release", "we stop"),
        ("park", "llm: down"),
        ("fail", "llm: 422"),
        ("crash", "its process is gone"),
        ("rescue", "its process was silent"),
        ("settle", None),
    ]
    waits = [msgspec.json.decode(run["waits"]) for run in found.runs]
    assert waits == [{"llm.questions": 1.235}, {"llm.emotion": 2.0}, {}, {}, {}, {"memory.extract": 0.5}]
    assert {run["made_by"] for run in found.runs} == {"here/one"}
    assert all(run["began_at"] <= run["ended_at"] for run in found.runs)


async def test_of_each_run_the_longer_waits_have_their_time_and_old_ones_have_none(process: Process) -> None:
    waits = CollectedWaits(trio.current_time())
    waits.spans += [("db.take", 0.0, 0.0123456), ("llm.questions", 0.01, 1.5)]
    await process.accepted("talk-1")
    await process.jobs.release(await process.leased(), reason="we stop", waits=waits)
    await process.jobs.release(await process.leased(), reason="we stop", waits={"llm.questions": 1.0})
    lease = await process.analysed(await process.leased())
    await process.settler.settle(lease, waits)
    found = await explained(process)
    line = [["db.take", 0.0, 0.012], ["llm.questions", 0.01, 1.5]]
    assert [msgspec.json.decode(run["timeline"] or "null") for run in found.runs] == [line, None, line]
    first, second, last = _runs(found)
    assert second.timeline is UNSET
    for run in (first, last):
        assert run.timeline is not UNSET
        began = [(one.name, (one.began_at - run.began_at).total_seconds()) for one in run.timeline]
        assert began == [("db.take", 0.0), ("llm.questions", 0.01)]
        assert [(one.ended_at - one.began_at).total_seconds() for one in run.timeline] == [0.012, 1.49]


async def test_a_burial_is_a_run_too(process: Process) -> None:
    await process.accepted("talk-1")
    lease = msgspec.structs.replace(await process.leased(), attempts=4)
    await process.jobs.fail(lease, "llm: 422", {}, later=1)
    assert endings(await explained(process)) == [("bury", "llm: 422")]


async def test_of_many_runs_the_newest_hundred_are_shown_oldest_first(process: Process) -> None:
    await process.accepted("talk-1")
    await ask(
        process.postgres,
        """
        WITH many AS (
            INSERT INTO run (seq, began_at, ended_at, ending, made_by, reason)
            SELECT 1, convo_now(), convo_now() + make_interval(secs => n), 'park', 'here/one', n::text
            FROM generate_series(1, 150) AS n ORDER BY random()
        ) SELECT 1
        """,
    )
    found = await explained(process)
    assert [run["reason"] for run in found.runs] == [str(n) for n in range(51, 151)]


async def test_the_jobs_ahead_are_counted_in_rounds(process: Process) -> None:
    for user, count in (("a", 5), ("b", 2), ("c", 1)):
        for n in range(count):
            await process.accepted(f"{user}-{n}", user_id=f"user-{user}")
    # Before the third of a: its two, both of b, the one of c.
    assert (await explained(process, "a-2")).ahead == 2 + 2 + 1
    assert (await explained(process, "c-0")).ahead == 0 + 1 + 1
    (lease,) = await process.jobs.lease(1)
    assert (await explained(process, lease.conversation_id)).ahead is None


async def test_of_more_jobs_than_are_looked_at_the_first_keys_stand_for_all(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "COUNTED_MAX", 4)
    for n in range(10):
        await process.accepted(f"talk-{n}", user_id=f"user-{n}")
    # Nine others have one job each. Four of the ten are looked at: without the asked one's own three, or all four.
    assert (await explained(process, "talk-0")).ahead == round(3 * 10 / 4)
    assert (await explained(process, "talk-9")).ahead == 4 * 10 / 4


async def test_a_job_far_back_in_a_long_line_comes_about_where_its_age_is(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "COUNTED_MAX", 4)
    await process.accepted(*(f"talk-{n}" for n in range(10)))
    await ask(process.postgres, "UPDATE job SET available_at = '2026-01-01T00:00Z'::timestamptz + seq * interval '1 s'")
    assert (await explained(process, "talk-3")).ahead == 3
    assert (await explained(process, "talk-6")).ahead == round(10 * 6 / 9)
    assert (await explained(process, "talk-9")).ahead == 10


async def test_the_rate_is_that_of_the_last_minute_also_after_the_books_were_folded(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    for lease in await process.jobs.lease(3):
        await process.settler.settle(await process.analysed(lease))
    assert (await explained(process)).rate == 3 / 60
    await shift_clock(process.postgres, "61 seconds")
    async with open_dedicated(process.postgres) as dedicated:
        await ledger.compare_recent(dedicated)
    assert (await explained(process)).rate == 0
