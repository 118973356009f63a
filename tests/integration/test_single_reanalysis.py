from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from msgspec import structs

from convo import single_reanalysis
from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import Analyst
from convo.conversation.model import Conversation, Finding, Mood
from convo.conversation.owed import DEFAULT_OWED
from convo.conversation.tenant import WHOLE_DEFAULT, Reach
from convo.errors import ConvoError, Expired, Invalid, NotAnalysed, NotFound, Overloaded, RemoteError, RerunOpen
from convo.settings import JobsSettings, Settings
from convo.single_reanalysis import SingleReanalyses
from convo.store.audit_log import Caller
from convo.store.conversations import Reader
from convo.store.jobs.reruns import RerunOrder, Reruns
from convo.store.owed_sets import OwedSets
from tests.support.making import Process, ask, instant, open_process, rows, settled, told

QUICK = Settings(
    jobs=JobsSettings(
        lease_seconds=3.0, heartbeat_seconds=0.2, backoff_seconds=0.05, backoff_max_seconds=0.1, attempts_max=2
    )
)
CALLER = Caller(key_id="0123456789ab", address="192.0.2.7")
DIES = """
WITH gone AS (DELETE FROM outcome RETURNING seq)
INSERT INTO job (seq, fair_key, state, ended_at) SELECT seq, 'user-1', 'dead', convo_now() FROM gone
"""
OF_RERUNS = "SELECT count(*) FROM rerun"


class Feeling:
    """An analyst of emotions that finds another one now, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.emotion: Any = "interesting"
        self.error: RemoteError | None = None
        self.gate = trio.Event()
        self.gate.set()

    async def find(self, _: Conversation) -> Finding:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Mood(emotion=self.emotion)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, QUICK) as found:
        await found.accepted("talk-1", user_id="user-1", bot_id="pika")
        await settled(found, 1)
        yield found


def made(process: Process, feeling: Feeling) -> SingleReanalyses:
    local = {**instant(), "emotion": Analyst(by="instant-emotion/1", find=feeling.find)}
    return SingleReanalyses(
        QUICK, process.postgres, OwedSets(), AnalystsOfSets(local, {}), process.log_store.take, process.outbox
    )


@asynccontextmanager
async def at_work(again: SingleReanalyses) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.run)
        yield
        nursery.cancel_scope.cancel()


async def ended(process: Process) -> None:
    """Wait until no re-run is left."""
    with trio.fail_after(20):
        while await ask(process.postgres, OF_RERUNS):  # noqa: ASYNC110
            await trio.sleep(0.02)


async def scores(process: Process) -> tuple[int, int]:
    """Return the score of the conversation, and the sum of its user."""
    outcome = await ask(process.postgres, "SELECT score FROM outcome")
    return outcome, await ask(process.postgres, "SELECT sum(score)::bigint FROM relationship")


async def emotion(process: Process) -> Any:
    found = await Reader(process.postgres, process.log_store).one(WHOLE_DEFAULT, "talk-1")
    return found.parts["emotion"]


async def test_what_is_found_takes_the_place_of_the_result_and_moves_the_score(process: Process) -> None:
    # By the same analyst as before: the version is the same, and it is asked again for all that.
    feeling, before = Feeling(), await scores(process)
    again = made(process, feeling)
    old = await emotion(process)
    async with at_work(again):
        assert await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER) == ["emotion"]
        await ended(process)
    new = await emotion(process)
    assert (feeling.asked, b"interesting" in bytes(new.result), b"interesting" in bytes(old.result)) == (1, True, False)
    assert new.updated_at > old.updated_at
    moved = [now - then for now, then in zip(await scores(process), before, strict=True)]
    assert moved[0] == moved[1] > 0
    noted = "SELECT action, key_id, detail FROM audit_log WHERE action IN ('reanalyse', 'promote') ORDER BY number"
    assert [(action, key_id) for action, key_id, _ in await rows(process.postgres, noted)] == [
        ("reanalyse", CALLER.key_id),
        ("promote", None),
    ]


async def test_without_a_part_all_that_it_is_owed_is_found_again(process: Process) -> None:
    feeling = Feeling()
    again = made(process, feeling)
    async with at_work(again):
        names = await again.order(WHOLE_DEFAULT, "talk-1", None, CALLER)
        await ended(process)
    assert sorted(names) == ["emotion", "memories", "questions"]
    assert await ask(process.postgres, "SELECT count(*) FROM candidate WHERE state = 'promoted'") == 3


async def test_it_does_not_wait_for_live_work(process: Process) -> None:
    await process.accepted("live-1", "live-2")
    await ask(process.postgres, "UPDATE job SET available_at = convo_now() - interval '1 minute'")
    feeling = Feeling()
    again = made(process, feeling)
    async with at_work(again):
        await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
        await ended(process)
    assert feeling.asked == 1


async def test_where_nothing_is_found_the_result_stays(process: Process) -> None:
    feeling, before = Feeling(), (await scores(process), bytes((await emotion(process)).result))
    feeling.error = RemoteError("llm", "no sense in it")
    again = made(process, feeling)
    with told() as names:
        async with at_work(again):
            await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
            await ended(process)
    assert "rerun_failed" in names
    assert "part_found_again" not in names
    assert feeling.asked == 2
    assert (await scores(process), bytes((await emotion(process)).result)) == before


async def test_an_outage_ends_it_in_time(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_reanalysis, "_SLACK_SECONDS", -2 * QUICK.analysis.job_seconds + 0.5)
    feeling = Feeling()
    feeling.error = RemoteError("llm", "away")
    feeling.error.outage = True
    again = made(process, feeling)
    with told() as names:
        async with at_work(again):
            await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
            await ended(process)
    assert "rerun_failed" in names
    assert feeling.asked >= 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("", NotFound),
        ("UPDATE conversation SET log_retired = true", Expired),
        (
            DIES,
            NotAnalysed,
        ),
    ],
)
async def test_only_what_is_analysed_and_stored_is_analysed_again(
    process: Process, change: str, error: type[ConvoError]
) -> None:
    again = made(process, Feeling())
    if change:
        await ask(process.postgres, change)
    with pytest.raises(error):
        await again.order(WHOLE_DEFAULT, "talk-1" if change else "nobody-1", "emotion", CALLER)
    assert await ask(process.postgres, OF_RERUNS) == 0


async def test_what_is_not_reached_is_not_found(process: Process) -> None:
    again = made(process, Feeling())
    with pytest.raises(NotFound):
        await again.order(Reach(bots=("tom",)), "talk-1", "emotion", CALLER)
    with pytest.raises(NotFound):
        await again.order(
            structs.replace(WHOLE_DEFAULT, tenant=structs.replace(WHOLE_DEFAULT.tenant, number=3, name="x")),
            "talk-1",
            None,
            CALLER,
        )


async def test_a_part_that_nobody_declares_is_refused(process: Process) -> None:
    with pytest.raises(Invalid, match="there is no part 'mood'") as caught:
        await made(process, Feeling()).order(WHOLE_DEFAULT, "talk-1", "mood", CALLER)
    assert caught.value.path == "$.part"


async def test_one_re_run_of_a_part_is_open_at_a_time(process: Process) -> None:
    again, reruns = made(process, Feeling()), Reruns(process.postgres, OwedSets())
    await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
    for part in ("emotion", None):
        with pytest.raises(RerunOpen, match="the part emotion is under way"):
            await again.order(WHOLE_DEFAULT, "talk-1", part, CALLER)
    assert await ask(process.postgres, OF_RERUNS) == 1, "of three parts none was begun"
    # A re-run of many takes its place, and is not taken for one of a single conversation.
    rerun, new = await reruns.begin(RerunOrder(part="emotion", version="p1:0", owed=DEFAULT_OWED))
    assert (new, rerun.sample) == (True, 1.0)
    with pytest.raises(RerunOpen):
        await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)


async def test_one_whose_process_ended_is_in_nobodys_way(process: Process) -> None:
    feeling = Feeling()
    await made(process, feeling).order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
    again = made(process, feeling)
    await ask(process.postgres, "UPDATE rerun SET made_at = convo_now() - interval '1 hour'")
    async with at_work(again):
        await again.order(WHOLE_DEFAULT, "talk-1", "emotion", CALLER)
        with trio.fail_after(20):
            while await ask(process.postgres, f"{OF_RERUNS} WHERE state <> 'ended'"):  # noqa: ASYNC110
                await trio.sleep(0.02)
    assert feeling.asked == 1


async def test_so_many_wait_at_most(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_reanalysis, "WAITING_MAX", 2)
    again = made(process, Feeling())
    with pytest.raises(Overloaded):
        await again.order(WHOLE_DEFAULT, "talk-1", None, CALLER)
    assert await ask(process.postgres, OF_RERUNS) == 0
