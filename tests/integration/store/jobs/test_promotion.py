from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio

from convo.conversation.model import Answered, Finding, Memories, Mood, Questions
from convo.conversation.owed import DEFAULT_OWED, DeclaredPart, Owed, Points, owed_of
from convo.conversation.score import Weights
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.settings import EventsSettings, IntakeSettings, Settings
from convo.store.conversations import FoundConversation, Reader
from convo.store.jobs import settle
from convo.store.jobs.promotion import Compared, Promoted, Promotion
from convo.store.jobs.reruns import RerunOrder, Reruns
from convo.store.owed_sets import OwedSets
from tests.integration.store.jobs.test_revisions import balanced, opened, relationship, sent, settled
from tests.support.making import Process, ask, remembering, rows

ON = Settings(
    intake=IntakeSettings(revisions=True),
    events=EventsSettings(types=("conversation.analysed", "relationship.level_changed")),
)
TIER = DeclaredPart(
    name="tier",
    who="llm",
    version="p1:tier",
    analyst="model-1",
    prompt="Which tier?",
    schema={"type": "object", "properties": {"tier": {"enum": ["gold", "basic"]}}, "required": ["tier"]},
    points=Points(field="tier", values={"gold": 20}),
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with opened(database, ON) as found:
        yield found


async def found_again(
    process: Process, part: str, findings: dict[str, Finding], *, owed: Owed = DEFAULT_OWED, version: str = "p1:new"
) -> Promotion:
    """Find a part again for all conversations; each finding is by the id of its conversation."""
    sets = OwedSets()
    reruns = Reruns(process.postgres, sets)
    rerun, _ = await reruns.begin(RerunOrder(part=part, version=version, owed=owed))
    while (taking := await reruns.take(rerun, 100, 30)).reason != "ended":
        for one in taking.taken:
            assert await reruns.done(one, "test/2", findings[one.conversation_id], 0.5)
    return Promotion(process.postgres, rerun, Weights(), sets, process.outbox)


async def all_compared(promotion: Promotion) -> dict[str, Compared]:
    return {one.conversation_id: one async for one in promotion.compared()}


async def read(process: Process, conversation_id: str = "talk-1") -> FoundConversation:
    return await Reader(process.postgres, process.log_store).one(WHOLE_DEFAULT, conversation_id)


def asked(count: int) -> Questions:
    return Questions(questions=("Why?",) * count)


async def test_a_candidate_stands_beside_the_current_result_and_changes_nothing(process: Process) -> None:
    for name in ("talk-1", "talk-2"):
        await sent(process, 2, name)
        await settled(process, questions=1)
    before = await relationship(process)
    promotion = await found_again(process, "questions", {"talk-1": asked(3), "talk-2": asked(1)})
    found = await all_compared(promotion)
    assert (found["talk-1"].differs, found["talk-1"].moves) == (("questions",), 6)
    assert (found["talk-2"].differs, found["talk-2"].moves) == ((), 0)
    assert found["talk-1"].current == asked(1)
    assert (found["talk-1"].made_by, found["talk-1"].seconds) == ("test/2", 0.5)
    assert await relationship(process) == before
    assert (await read(process)).parts["questions"].made_by == "test/1"
    assert await balanced(process)


async def test_a_promotion_moves_score_and_relationship_by_the_difference_once(process: Process) -> None:
    for name in ("talk-1", "talk-2"):
        await sent(process, 2, name)
        await settled(process, questions=1)
    ((_, before, _),) = await relationship(process)
    promotion = await found_again(process, "questions", {"talk-1": asked(3), "talk-2": asked(1)})
    assert await promotion.promote() == Promoted(conversations=2, moved=1, points=6)
    assert await relationship(process) == [("user-1", before + 6, 2)]
    shown = await read(process)
    assert shown.parts["questions"].made_by == "test/2"
    assert shown.details is not None
    assert shown.details.breakdown.questions.count == 3
    assert await balanced(process)
    assert await promotion.promote() == Promoted()
    assert await relationship(process) == [("user-1", before + 6, 2)]
    noted = await rows(process.postgres, "SELECT detail::text FROM audit_log WHERE action = 'promote'")
    assert len(noted) == 1
    assert '"points": 6' in noted[0][0]
    assert '"conversations": 2' in noted[0][0]
    events = await rows(process.postgres, "SELECT conversation_id FROM event WHERE type = 'conversation.analysed'")
    assert sorted(events) == [("talk-1",), ("talk-1",), ("talk-2",), ("talk-2",)]


async def test_two_that_promote_at_the_same_moment_move_it_once(process: Process) -> None:
    names = [f"talk-{n}" for n in range(60)]
    for name in names:
        await sent(process, 2, name)
        await settled(process)
    ((_, before, _),) = await relationship(process)
    promotion = await found_again(process, "questions", {name: asked(1) for name in names})
    done: list[Promoted] = []

    async def promote() -> None:
        done.append(await promotion.promote())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(promote)
        nursery.start_soon(promote)
    assert sum(one.points for one in done) == 180
    assert sum(one.conversations for one in done) == 60
    assert await relationship(process) == [("user-1", before + 180, 60)]
    assert await balanced(process)


async def test_a_re_run_of_memories_scores_what_the_first_run_scored(process: Process) -> None:
    await sent(process, 2)
    await settled(process, "dog", "moon")
    await sent(process, 2, "later")
    await settled(process, "dog", "tea")
    ((_, before, _),) = await relationship(process)
    same: dict[str, Finding] = {"talk-1": remembering("dog", "moon"), "later": remembering("dog", "tea")}
    promotion = await found_again(process, "memories", same)
    assert {one.moves for one in (await all_compared(promotion)).values()} == {0}
    assert await promotion.promote() == Promoted(conversations=2)
    assert [(await read(process, name)).parts["memories"].new_memories for name in ("talk-1", "later")] == [2, 1]
    # A service that knows them all answers with none, and one more.
    none: dict[str, Finding] = {
        "talk-1": Memories(facts=(*remembering("dog", operation="NONE").facts, *remembering("cat").facts)),
        "later": remembering("tea", operation="NONE"),
    }
    again = await found_again(process, "memories", none, version="p1:newer")
    assert await again.promote() == Promoted(conversations=2, moved=1, points=5)
    assert [(await read(process, name)).parts["memories"].new_memories for name in ("talk-1", "later")] == [3, 1]
    assert await relationship(process) == [("user-1", before + 5, 2)]
    assert await balanced(process)


async def test_an_emotion_of_the_newest_conversation_is_the_relationships_after_a_promotion(process: Process) -> None:
    for name in ("talk-1", "talk-2"):
        await sent(process, 2, name)
        await settled(process)
    promotion = await found_again(
        process, "emotion", {"talk-1": Mood(emotion="angry"), "talk-2": Mood(emotion="interesting")}
    )
    assert (await promotion.promote()).points == 15
    assert await ask(process.postgres, "SELECT last_emotion FROM relationship") == "interesting"
    assert await balanced(process)


async def test_a_part_that_was_not_owed_is_added_with_its_points(process: Process) -> None:
    for name in ("talk-1", "talk-2"):
        await sent(process, 2, name)
        await settled(process)
    ((_, before, _),) = await relationship(process)
    promotion = await found_again(
        process,
        "tier",
        {"talk-1": Answered(answer={"tier": "gold"}), "talk-2": Answered(answer={"tier": "basic"})},
        owed=owed_of([TIER]),
        version="p1:tier",
    )
    found = await all_compared(promotion)
    assert [(one.current, one.differs, one.moves) for one in found.values()] == [(None, (), 20), (None, (), 0)]
    assert (await promotion.promote()).points == 20
    assert await relationship(process) == [("user-1", before + 20, 2)]
    shown = await read(process)
    assert (shown.parts["tier"].version, shown.owed.version("tier")) == ("p1:tier", "p1:tier")
    assert await balanced(process)
    # What has this version now is not found again.
    again = await found_again(process, "tier", {}, owed=owed_of([TIER]), version="p1:tier")
    assert await all_compared(again) == {}


async def test_a_promotion_beside_a_revision_that_is_settled_leaves_the_sum_right(process: Process) -> None:
    await sent(process, 2)
    await settled(process, questions=1)
    promotion = await found_again(process, "questions", {"talk-1": asked(3)})
    # The newer one is not analysed yet: until then the promoted score counts.
    await sent(process, 4)
    assert (await promotion.promote()).points == 6
    assert await balanced(process)
    score = await settled(process, questions=2)
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)


async def test_a_result_of_a_score_that_counts_no_more_moves_no_relationship(process: Process) -> None:
    await sent(process, 2)
    await settled(process, questions=1)
    promotion = await found_again(process, "questions", {"talk-1": asked(3)})
    await sent(process, 4)
    score = await settled(process, questions=2)
    assert (await promotion.promote()).points == 0
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)


async def test_a_level_that_a_promotion_reaches_is_an_event(process: Process) -> None:
    await sent(process, 2)
    await settled(process)
    promotion = await found_again(process, "questions", {"talk-1": asked(200)})
    await promotion.promote()
    found = await rows(process.postgres, "SELECT data ->> 'level' FROM event WHERE type = 'relationship.level_changed'")
    assert found == [("acquaintance",)]


async def test_a_promotion_waits_for_a_newer_revision_that_is_settled_at_this_moment(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sent(process, 2)
    await settled(process, questions=1)
    promotion = await found_again(process, "questions", {"talk-1": asked(3)})
    await sent(process, 4)
    relate = settle._relate

    async def slowly(connection: Any, *rest: Any) -> None:
        await connection.fetchval("SELECT pg_sleep(0.6)")
        await relate(connection, *rest)

    monkeypatch.setattr(settle, "_relate", slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(settled, process, questions=2))
        await trio.sleep(0.3)
        done = await promotion.promote()
    assert (done.conversations, done.points) == (1, 0)
    assert await relationship(process) == [("user-1", (await read(process)).row["score"], 1)]
    assert await balanced(process)
