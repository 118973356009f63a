from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from convo.analysis.analyze import Analyst, NoteFinding, Together, analyze, in_process
from convo.conversation.model import Conversation, Finding, PartName
from convo.errors import (
    ConvoError,
    DeadlineExceeded,
    LeaseLost,
    RemoteFailedLater,
    RemotePending,
    RemoteRefused,
)
from tests.support.fakes import conversation_of
from tests.support.making import THREE, Asked, Stuck, failing, instant

TALK = conversation_of("What is the capital of France?", "Paris.")


class Shelf:
    """Stores parts in memory."""

    def __init__(self, error: ConvoError | None = None) -> None:
        self.stored: dict[PartName, tuple[str, Finding]] = {}
        self.changed = trio.Event()
        self._error = error

    async def store(self, name: PartName, by: str, finding: Finding) -> None:
        await trio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error
        self.stored[name] = (by, finding)
        self.changed.set()


async def test_every_part_is_stored_with_who_made_it() -> None:
    shelf = Shelf()
    assert await analyze(TALK, instant(), (), shelf.store) == {}
    assert shelf.stored == {name: (f"instant-{name}/1", finding) for name, finding in THREE.items()}


async def test_a_part_that_another_one_answered_is_stored_in_that_ones_name() -> None:
    async def find(_: Conversation, names: Sequence[PartName], note: NoteFinding) -> None:
        await trio.lowlevel.checkpoint()
        for name in names:
            note(name, "backup/1", THREE[name])

    shelf = Shelf()
    asked = replace(instant()["emotion"], by="first/1", together=Together(find=find))
    await analyze(TALK, {**instant(), "emotion": asked}, (), shelf.store)
    assert shelf.stored["emotion"] == ("backup/1", THREE["emotion"])


async def test_the_parts_are_found_side_by_side(autojump_clock: MockClock) -> None:
    def slow(name: PartName) -> Analyst:
        async def find(_: Conversation) -> Finding:
            await trio.sleep(10)
            return THREE[name]

        return Analyst(by="slow/1", find=find)

    shelf = Shelf()
    await analyze(TALK, {name: slow(name) for name in THREE}, (), shelf.store)
    assert trio.current_time() == 10
    assert set(shelf.stored) == set(THREE)


async def test_a_part_is_stored_when_it_arrives_not_when_all_are_there() -> None:
    shelf, stuck = Shelf(), Stuck(THREE["emotion"])
    async with trio.open_nursery() as nursery:
        analysts = {**instant(), "emotion": stuck.analyst}
        have: list[PartName] = ["memories"]
        nursery.start_soon(lambda: analyze(TALK, analysts, have, shelf.store))
        with trio.fail_after(5):
            await shelf.changed.wait()
        assert set(shelf.stored) == {"questions"}
        stuck.let_go.set()
    assert set(shelf.stored) == {"questions", "emotion"}


async def test_only_what_is_missing_is_asked_for() -> None:
    shelf, asked = Shelf(), Asked()
    await analyze(TALK, instant(asked), ("questions", "memories"), shelf.store)
    assert asked == Asked(emotion=1)
    assert set(shelf.stored) == {"emotion"}


async def test_a_part_that_fails_leaves_the_others_alone() -> None:
    shelf, refused = Shelf(), RemoteRefused("llm", "401")
    failures = await analyze(TALK, {**instant(), "emotion": failing(refused)}, (), shelf.store)
    assert {name: (failure.by, failure.error) for name, failure in failures.items()} == {
        "emotion": ("failing/1", refused)
    }
    assert set(shelf.stored) == {"questions", "memories"}


async def test_what_the_store_says_is_raised_after_the_other_parts_came_to_their_end() -> None:
    stuck, lost = Stuck(THREE["emotion"]), LeaseLost("gone")
    stuck.let_go.set()
    with pytest.raises(LeaseLost):
        await analyze(TALK, {**instant(), "emotion": stuck.analyst}, (), Shelf(lost).store)
    assert not stuck.cancelled


async def test_a_cancellation_reaches_every_part() -> None:
    parts = [Stuck(finding) for finding in THREE.values()]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            analysts = dict(zip(THREE, (part.analyst for part in parts), strict=True))
            nursery.start_soon(lambda: analyze(TALK, analysts, (), Shelf().store))
            for part in parts:
                await part.asked.wait()
            scope.cancel()
    assert [part.cancelled for part in parts] == [True, True, True]


# --- the embedded analyst


def noting(thread: list[int]) -> Callable[[Conversation], Finding]:
    def find(_: Conversation) -> Finding:
        thread.append(threading.get_ident())
        return THREE["emotion"]

    return find


@pytest.mark.parametrize(("offload_chars", "here"), [(37, True), (36, False)])
async def test_from_a_size_on_the_embedded_analyst_works_in_a_thread(offload_chars: int, *, here: bool) -> None:
    assert sum(len(turn.text) for turn in TALK.turns) == 36
    threads: list[int] = []
    analyst = in_process("local/2", noting(threads), trio.Lock(), offload_chars)
    assert await analyst.find(TALK) == THREE["emotion"]
    assert (threads == [threading.get_ident()]) is here


@pytest.mark.parametrize(("characters", "here"), [(4_095, True), (4_096, False)])
async def test_a_long_text_does_not_hold_the_loop(characters: int, *, here: bool) -> None:
    threads: list[int] = []
    await in_process("local/2", noting(threads), trio.Lock()).find(conversation_of("x" * characters))
    assert (threads == [threading.get_ident()]) is here


async def test_an_embedded_analyst_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convo.analysis.analyze._LOCAL_SECONDS", 0.05)
    let_go = threading.Event()

    def endless(_: Conversation) -> Finding:
        let_go.wait(60)
        return THREE["emotion"]

    with pytest.raises(DeadlineExceeded, match=r"analysis\.local"):
        await in_process("local/2", endless, trio.Lock(), 1).find(TALK)
    let_go.set()


@pytest.mark.parametrize("offload_chars", [1, 1000])
async def test_embedded_analysts_work_one_after_another_and_the_loop_turns_between_them(offload_chars: int) -> None:
    turns, at_work, seen = 0, 0, []

    def find(_: Conversation) -> Finding:
        nonlocal at_work
        at_work += 1
        seen.append((at_work, turns))
        at_work -= 1
        return THREE["emotion"]

    async def turning() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    turn = trio.Lock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turning)
        async with trio.open_nursery() as finding:
            for _ in range(4):
                finding.start_soon(in_process("local/2", find, turn, offload_chars).find, TALK)
        nursery.cancel_scope.cancel()
    assert [side_by_side for side_by_side, _ in seen] == [1, 1, 1, 1]
    assert seen[-1][1] - seen[0][1] >= 2


async def test_one_that_never_ends_is_given_up_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convo.analysis.analyze._LOCAL_SECONDS", 0.1)
    turn, let_go = trio.Lock(), threading.Event()

    def endless(_: Conversation) -> Finding:
        let_go.wait(60)
        return THREE["emotion"]

    try:
        with pytest.raises(DeadlineExceeded):
            await in_process("local/2", endless, turn, 1).find(TALK)
        threads: list[int] = []
        assert await in_process("local/2", noting(threads), turn, 1).find(TALK) == THREE["emotion"]
    finally:
        let_go.set()


async def test_what_to_ask_with_later_is_kept_at_once() -> None:
    kept: list[tuple[PartName, str]] = []
    stuck = Stuck(THREE["emotion"])
    at_work = RemotePending("memory", "at work", ticket="e-1", later_seconds=2.0)

    async def keep(name: PartName, ticket: str) -> None:
        await trio.lowlevel.checkpoint()
        kept.append((name, ticket))

    analysts = {**instant(), "memories": failing(at_work), "emotion": stuck.analyst}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: analyze(TALK, analysts, (), Shelf().store, keep))
        await trio.testing.wait_all_tasks_blocked()
        assert kept == [("memories", "e-1")]
        nursery.cancel_scope.cancel()


async def test_a_ticket_that_is_of_no_use_any_more_is_removed() -> None:
    kept: list[tuple[PartName, str]] = []

    async def keep(name: PartName, ticket: str) -> None:
        await trio.lowlevel.checkpoint()
        kept.append((name, ticket))

    failed, refused = RemoteFailedLater("memory", "failed"), RemoteRefused("llm", "answered 400")
    analysts = {**instant(), "memories": failing(failed), "emotion": failing(refused)}
    failures = await analyze(TALK, analysts, (), Shelf().store, keep)
    assert set(failures) == {"memories", "emotion"}
    assert kept == [("memories", "")]


async def test_a_ticket_that_cannot_be_stored_fails_the_run() -> None:
    async def keep(_name: PartName, _ticket: str) -> None:
        await trio.lowlevel.checkpoint()
        raise LeaseLost("lost")

    at_work = RemotePending("memory", "at work", ticket="e-1", later_seconds=2.0)
    with pytest.raises(LeaseLost):
        await analyze(TALK, {**instant(), "memories": failing(at_work)}, (), Shelf().store, keep)
