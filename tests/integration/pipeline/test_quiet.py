from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio

from convo.analysis.analyze import Analyst, Analysts
from convo.conversation.model import Conversation, Finding
from convo.settings import JobsSettings, Settings
from tests.support.making import THREE, Process, ask, at_work, dies, instant, open_process, rows

WORKERS, SUSPECTS, OTHERS = 8, 4, 300
SUSPECT_SECONDS, OTHER_SECONDS = 1.0, 0.3
SETTINGS = Settings(jobs=JobsSettings(workers=WORKERS, lease_seconds=5, heartbeat_seconds=0.3, poll_seconds=0.1))
UNDONE = "SELECT count(*) FROM job WHERE state <> 'done'"

Span = tuple[str, str, float, float]
"""Which process worked on which conversation, from when to when."""


def timed(process: str, spans: list[Span]) -> Analysts:
    """Make analysts that take a while, a suspect a longer one, and note it."""

    async def find(conversation: Conversation) -> Finding:
        started = trio.current_time()
        suspect = conversation.conversation_id.startswith("suspect")
        await trio.sleep(SUSPECT_SECONDS if suspect else OTHER_SECONDS)
        spans.append((process, conversation.conversation_id, started, trio.current_time()))
        return THREE["emotion"]

    return {**instant(), "emotion": Analyst(by="timed/1", find=find)}


async def accept_all(process: Process) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(SUSPECTS):
            nursery.start_soon(process.accepted, f"suspect-{n}")
        for n in range(OTHERS):
            nursery.start_soon(partial(process.accepted, f"other-{n}", user_id=f"user-{n % 50}"))
    marked = """
    WITH marked AS (
        UPDATE job SET crashes = 2 FROM conversation c
        WHERE c.seq = job.seq AND starts_with(conversation_id, 'suspect') RETURNING 1
    ) SELECT count(*) FROM marked
    """
    assert await ask(process.postgres, marked) == SUSPECTS


async def work_off(database: str, owners: tuple[str, ...]) -> list[Span]:
    """Let these processes work side by side until every job is done; return who worked on what."""
    spans: list[Span] = []

    async def work(owner: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with open_process(database, SETTINGS, owner) as process, trio.open_nursery() as nursery:
            await nursery.start(process.held.beat)
            async with at_work(process, timed(owner, spans), workers=WORKERS):
                task_status.started()
                while await ask(process.postgres, UNDONE):  # noqa: ASYNC110  (the database tells nobody)
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    async with open_process(database, SETTINGS) as process:
        await accept_all(process)
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for owner in owners:
                nursery.start_soon(work, owner)
    return sorted(spans, key=lambda span: span[2])


def suspects_and_others(spans: list[Span]) -> tuple[list[Span], list[Span]]:
    suspects = [span for span in spans if span[1].startswith("suspect")]
    others = [span for span in spans if not span[1].startswith("suspect")]
    assert (len(suspects), len(others)) == (SUSPECTS, OTHERS)
    return suspects, others


def overlap(one: Span, other: Span) -> bool:
    return one[2] < other[3] and other[2] < one[3]


def longest_gap(others: list[Span]) -> float:
    """Return the longest time in which no other job was started, while some still waited."""
    return max(later[2] - earlier[2] for earlier, later in pairwise(others))


async def test_suspects_run_one_at_a_time_with_nothing_beside_them_while_the_other_process_works_on(
    database: str,
) -> None:
    suspects, others = suspects_and_others(await work_off(database, ("here/one", "there/two")))
    assert not any(overlap(*pair) for pair in pairwise(suspects))
    for suspect in suspects:
        assert not [one for one in others if one[0] == suspect[0] and overlap(one, suspect)]
    # Each suspect alone would be a gap of a second.
    assert longest_gap(others) < SUSPECT_SECONDS
    during = [one for one in others if any(suspect[2] <= one[2] < suspect[3] for suspect in suspects)]
    assert len(during) >= SUSPECTS * WORKERS


@pytest.mark.long
async def test_a_process_alone_on_its_database_lets_the_others_in_after_each_suspect(database: str) -> None:
    suspects, others = suspects_and_others(await work_off(database, ("here/one",)))
    assert not [one for one in others if any(overlap(one, suspect) for suspect in suspects)]
    # While others wait, each suspect is followed by as much time for them.
    last = others[-1][2]
    for earlier, later in pairwise(suspects):
        if later[2] < last:
            between = [one for one in others if earlier[3] <= one[2] < later[2]]
            assert later[2] - earlier[3] >= SUSPECT_SECONDS
            assert len(between) >= 2 * WORKERS
    # One suspect, and what was at work before it.
    assert longest_gap(others) < 2 * SUSPECT_SECONDS + OTHER_SECONDS


async def test_nobody_is_blamed_for_what_killed_the_process_of_a_suspect(database: str) -> None:
    async with open_process(database, SETTINGS) as process:
        await accept_all(process)
        async with trio.open_nursery() as nursery:

            async def die_with(conversation: Conversation) -> Finding:
                if conversation.conversation_id.startswith("suspect"):
                    await dies(process.postgres, process.jobs.owner)
                    nursery.cancel_scope.cancel()
                await trio.sleep(OTHER_SECONDS)
                return THREE["emotion"]

            async def work() -> None:
                async with at_work(process, {**instant(), "emotion": Analyst(by="m/1", find=die_with)}, workers=8):
                    await trio.sleep(60)

            nursery.start_soon(work)
    blamed = await counted(database)
    assert blamed == {"other": 0, "suspect": SUSPECTS * 2 + 1}


async def counted(database: str) -> dict[str, Any]:
    query = """
    SELECT split_part(conversation_id, '-', 1), sum(crashes)::integer
    FROM every_job JOIN conversation USING (seq) GROUP BY 1
    """
    async with open_process(database, SETTINGS) as process:
        return dict(await rows(process.postgres, query))
