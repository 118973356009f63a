from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from msgspec import structs

from convo import erasure
from convo.analysis.declared import sampled_at
from convo.conversation.model import Answered, Mood
from convo.conversation.owed import DEFAULT_OWED, DeclaredPart, owed_of, version_of
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.store.audit_log import NO_CALLER
from convo.store.jobs import part_jobs
from convo.store.jobs.part_jobs import NewPartJob, PartJobs
from convo.store.jobs.reruns import Rerun, RerunOrder, Reruns, TakenCandidate
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Connection
from tests.integration.store.jobs.test_revisions import ON, opened, sent, settled
from tests.integration.test_retention import after, removed
from tests.support.making import Process, ask, open_process, rows, shift_clock
from tests.support.making import settled as settled_all

NEW = version_of("emotion", "test/2")
TIER = DeclaredPart(
    name="tier",
    who="llm",
    version="p1:tier",
    analyst="model-1",
    prompt="Which tier?",
    schema={"type": "object", "properties": {"tier": {"enum": ["gold", "basic"]}}, "required": ["tier"]},
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as found:
        yield found


def reruns_of(process: Process) -> Reruns:
    """Return the tables as one more process sees them."""
    return Reruns(process.postgres, OwedSets())


def order(**fields: Any) -> RerunOrder:
    return RerunOrder(**{"part": "emotion", "version": NEW, "owed": DEFAULT_OWED, **fields})


async def begun(process: Process, **fields: Any) -> tuple[Reruns, Rerun]:
    reruns = reruns_of(process)
    rerun, _ = await reruns.begin(order(**fields))
    return reruns, rerun


async def taken(reruns: Reruns, rerun: Rerun, count: int = 100) -> list[TakenCandidate]:
    """Take what there is; the first look of a page only lets its conversations wait."""
    for _ in range(3):
        found = await reruns.take(rerun, count, 30)
        if found.taken:
            return list(found.taken)
    return []


async def names(reruns: Reruns, rerun: Rerun) -> list[str]:
    return sorted(one.conversation_id for one in await taken(reruns, rerun))


async def analysed(process: Process, *ids: str, **fields: Any) -> None:
    await process.accepted(*ids, **fields)
    await settled_all(process, len(ids))


# --- which conversations


async def test_what_is_analysed_with_another_version_is_found_again(process: Process) -> None:
    await analysed(process, "talk-1", "talk-2")
    await process.accepted("waits")
    await ask(process.postgres, "UPDATE job SET delayed = true, available_at = convo_now() + interval '1 hour'")
    reruns, rerun = await begun(process)
    assert await names(reruns, rerun) == ["talk-1", "talk-2"]


async def test_what_has_the_version_already_is_not_found_again(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process, version=version_of("emotion", "test/1"))
    assert await taken(reruns, rerun) == []
    assert (await reruns.take(rerun, 1, 30)).reason == "ended"
    found = await reruns.read("emotion")
    assert found is not None
    assert (found.state, found.looked_at, found.counts) == ("ended", 1, {})


async def test_one_bot_a_time_and_a_sample_choose_conversations(process: Process) -> None:
    ids = [f"talk-{n}" for n in range(20)]
    await analysed(process, *ids)
    await analysed(process, "other", bot_id="bot-2")
    reruns = reruns_of(process)
    half = [one for one in [*ids, "other"] if sampled_at(one) < 0.5]
    assert 0 < len(half) < 20
    since = await ask(process.postgres, "SELECT received_at FROM conversation WHERE conversation_id = 'talk-5'")
    for fields, wanted in (
        ({"bot_id": "bot-2"}, ["other"]),
        ({"sample": 0.5}, half),
        ({"received_since": since}, [*ids[5:], "other"]),
    ):
        rerun, new = await reruns.begin(order(version=f"p1:{fields}", **fields))
        assert new
        assert await reruns.count(order(version=f"p1:{fields}", **fields)) == (len(wanted), 0)
        assert await names(reruns, rerun) == sorted(wanted)


async def test_an_older_revision_an_expired_log_and_a_dead_letter_are_passed_over(database: str) -> None:
    async with opened(database, ON) as process:
        await sent(process, 2)
        await settled(process)
        await sent(process, 4)
        await settled(process)
        await sent(process, 2, "no-log")
        await settled(process)
        await sent(process, 2, "dead")
        lease = structs.replace(await process.leased(), attempts=4)
        await process.jobs.fail(lease, "why", {}, later=0)
        await ask(process.postgres, "UPDATE conversation SET log_retired = true WHERE conversation_id = 'no-log'")
        reruns, rerun = await begun(process)
        (one,) = await taken(reruns, rerun)
        assert one.conversation_id == "talk-1"
        assert await ask(process.postgres, "SELECT turns FROM conversation WHERE seq = $1", one.seq) == 4


async def test_pages_of_conversations_are_looked_at_one_after_the_other(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.store.jobs.reruns.LOOKED_AT_ROWS", 3)
    await analysed(process, *(f"talk-{n}" for n in range(8)))
    reruns, rerun = await begun(process)
    found: list[str] = []
    while (taking := await reruns.take(rerun, 100, 30)).reason != "ended":
        assert len(taking.taken) <= 3
        for one in taking.taken:
            assert await reruns.done(one, "test/2", Mood(emotion="sad"), 0.5)
            found.append(one.conversation_id)
    assert sorted(found) == [f"talk-{n}" for n in range(8)]


async def test_what_a_part_job_has_found_is_a_candidate_as_it_is(process: Process) -> None:
    await analysed(process, "talk-1", "talk-2")
    sets, owed = OwedSets(), owed_of([TIER])

    async def add(connection: Connection) -> None:
        await sets.store(connection, [owed])
        seq = await connection.fetchval("SELECT seq FROM conversation WHERE conversation_id = 'talk-1'")
        await part_jobs.add(connection, [NewPartJob(seq=seq, name="tier", owed=owed)])

    await process.postgres.run("test.add", add)
    jobs = PartJobs(process.postgres, sets)
    (job,) = await jobs.take(["llm"], 1, 30)
    assert await jobs.done(job, "model-1", Answered(answer={"tier": "gold"}))
    reruns = Reruns(process.postgres, OwedSets())
    rerun, _ = await reruns.begin(order(part="tier", version="p1:tier", owed=owed))
    assert await names(reruns, rerun) == ["talk-2"]
    found = await rows(process.postgres, "SELECT state, made_by, result::text FROM candidate ORDER BY seq")
    assert found[0][:2] == ("done", "model-1")
    assert msgspec.json.decode(found[0][2]) == {"answer": {"tier": "gold"}}


# --- who works on it


async def test_two_processes_share_the_work_and_nothing_is_found_twice(process: Process) -> None:
    await analysed(process, *(f"talk-{n}" for n in range(6)))
    one, rerun = await begun(process)
    other = reruns_of(process)
    mine = await taken(one, rerun, 4)
    theirs = await taken(other, rerun, 4)
    assert (len(mine), len(theirs)) == (4, 2)
    assert {found.seq for found in mine}.isdisjoint(found.seq for found in theirs)


async def test_what_a_silent_process_had_is_taken_by_another_one_and_its_late_result_is_refused(
    process: Process,
) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    (late,) = await taken(reruns, rerun)
    assert await taken(reruns, rerun) == []
    assert await reruns.renew([late], 30) == {late.seq}
    await ask(process.postgres, "UPDATE candidate SET available_at = convo_now()")
    (again,) = await taken(reruns, rerun)
    assert await reruns.renew([late], 30) == set()
    assert not await reruns.done(late, "test/2", Mood(emotion="sad"), 1)
    assert await reruns.done(again, "test/2", Mood(emotion="happy"), 1)
    assert not await reruns.failed(again, "test/2", "too late", later=None)
    assert await ask(process.postgres, "SELECT result ->> 'emotion' FROM candidate") == "happy"


async def test_what_is_given_back_is_due_at_once(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    (one,) = await taken(reruns, rerun)
    await reruns.give_back([one])
    assert [found.seq for found in await taken(reruns, rerun)] == [one.seq]


async def test_a_failure_is_tried_again_later_and_the_last_one_stays(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    (one,) = await taken(reruns, rerun)
    assert await reruns.failed(one, "test/2", "out", later=60, spent=False)
    assert (await reruns.take(rerun, 1, 30)).reason == "later"
    await ask(process.postgres, "UPDATE candidate SET available_at = convo_now()")
    (again,) = await taken(reruns, rerun)
    assert again.attempts == 0
    assert await reruns.failed(again, "test/2", "wrong", later=None)
    assert (await reruns.take(rerun, 1, 30)).reason == "ended"
    assert await rows(process.postgres, "SELECT state, error, attempts FROM candidate") == [("failed", "wrong", 1)]


async def test_nothing_is_taken_while_a_live_job_waits(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    await process.accepted("live")
    await ask(process.postgres, "UPDATE job SET available_at = convo_now() - interval '1 second'")
    assert (await reruns.take(rerun, 1, 30)).reason == "live"
    await settled_all(process, 1)
    assert await names(reruns, rerun) == ["talk-1"]


async def test_a_paused_re_run_gives_nothing_until_it_goes_on_where_it_was(process: Process) -> None:
    await analysed(process, "talk-1", "talk-2")
    reruns, rerun = await begun(process)
    (one, _) = await taken(reruns, rerun, 2)
    paused = await reruns.pause("emotion")
    assert paused is not None
    assert (await reruns.take(rerun, 1, 30)).reason == "paused"
    # What was under way may end.
    assert await reruns.done(one, "test/2", Mood(emotion="sad"), 1)
    assert await reruns.pause("questions") is None
    again, new = await reruns.begin(order())
    assert (again.number, new, again.state) == (rerun.number, False, "running")


async def test_another_version_ends_the_re_run_before_it(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    (one,) = await taken(reruns, rerun)
    newer, new = await reruns.begin(order(version="p1:newer"))
    assert new
    assert (await reruns.take(rerun, 1, 30)).reason == "ended"
    assert [found.seq for found in await taken(reruns, newer)] == [one.seq]
    assert not await reruns.done(one, "test/2", Mood(emotion="sad"), 1)


async def test_a_rate_holds_for_all_processes_together(process: Process) -> None:
    await analysed(process, *(f"talk-{n}" for n in range(10)))
    reruns, rerun = await begun(process, rate=2.0)
    assert len(await taken(reruns, rerun, 10)) == 1
    assert (await reruns_of(process).take(rerun, 10, 30)).reason == "rate"
    await ask(process.postgres, "UPDATE rerun SET next_at = next_at - interval '1 second'")
    assert len(await taken(reruns, rerun, 10)) == 2
    # However long nothing was taken, no more than a second's worth comes at once.
    await ask(process.postgres, "UPDATE rerun SET next_at = next_at - interval '1 hour'")
    assert len(await taken(reruns, rerun, 10)) == 2
    assert (await reruns.take(rerun, 10, 30)).reason == "rate"


# --- what goes with a conversation


async def test_a_candidate_goes_with_its_conversation(process: Process) -> None:
    await analysed(process, "talk-1", "talk-2")
    reruns, rerun = await begun(process)
    for one in await taken(reruns, rerun):
        await reruns.done(one, "test/2", Mood(emotion="sad"), 1)
    await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, "talk-1", NO_CALLER, erased=lambda _: None)
    assert await ask(process.postgres, "SELECT count(*) FROM candidate") == 1
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    assert await ask(process.postgres, "SELECT count(*) FROM candidate") == 0


async def test_a_candidate_whose_conversation_was_erased_at_that_moment_holds_nothing_up(process: Process) -> None:
    await analysed(process, "talk-1")
    reruns, rerun = await begun(process)
    assert not (await reruns.take(rerun, 1, 30)).taken
    await ask(process.postgres, "DELETE FROM conversation")
    assert await taken(reruns, rerun) == []
    assert (await reruns.take(rerun, 1, 30)).reason == "ended"
