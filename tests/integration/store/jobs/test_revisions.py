from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from msgspec import structs

from convo import erasure, retention, user_erasure
from convo.conversation.identity import revision_hash
from convo.conversation.model import Mood, Questions
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT, Reach, Tenant
from convo.erase_again import erase_again
from convo.errors import Conflict, ConvoError, Erased, Expired, LeaseLost, NotFound, Unavailable
from convo.settings import EventsSettings, IntakeSettings, Settings
from convo.store import audit, ledger, process_programs
from convo.store.audit_log import NO_CALLER
from convo.store.conversations import FoundConversation, Reader
from convo.store.erasures import note_begin
from convo.store.installation_key import read_installation_key
from convo.store.intake import Accept, Stored
from convo.store.jobs.lease import Lease
from convo.store.listing import ListFilter
from convo.store.lookup import revision_of
from convo.store.migrations import migrations, number_of
from convo.store.postgres import Connection
from tests.integration.test_retention import after, removed
from tests.support.making import (
    Process,
    accept,
    ask,
    open_dedicated,
    open_process,
    remembering,
    rows,
    shift_clock,
    store_part,
)

ON = Settings(intake=IntakeSettings(revisions=True), events=EventsSettings(types=("conversation.revised",)))
SAID = ("Hello!", "Hi!", "Why do dogs bark?", "They talk.", "How far is the moon?", "Far.")
Outcome = Stored | ConvoError


@asynccontextmanager
async def opened(url: str, settings: Settings = ON, owner: str = "here/one") -> AsyncIterator[Process]:
    """Open a process that has announced its program, as each does that serves."""
    async with open_process(url, settings, owner) as process:

        async def announce(connection: Connection) -> None:
            name = owner.rpartition("/")[2]
            await process_programs.announce(connection, name, "0.9", migrations()[-1].number)

        await process.postgres.run("test.announce", announce)
        yield process


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with opened(database) as found:
        yield found


def talk(turns: int, conversation_id: str = "talk-1", **fields: Any) -> Accept:
    return accept(conversation_id, revisions=True, said=SAID[:turns], **fields)


async def sent(process: Process, turns: int, conversation_id: str = "talk-1", **fields: Any) -> Stored:
    return await process.committer.accept(talk(turns, conversation_id, **fields))


async def settled(process: Process, *memories: str, questions: int = 0, operation: str = "ADD") -> int:
    """Analyse the one job that is due; return its score."""
    return await settled_under(process, await process.leased(), *memories, questions=questions, operation=operation)


async def settled_under(
    process: Process, lease: Lease, *memories: str, questions: int = 0, operation: str = "ADD"
) -> int:
    found = {
        "questions": Questions(questions=("Why?",) * questions),
        "emotion": Mood(emotion="neutral"),
        "memories": remembering(*memories, operation=operation),
    }
    return (await process.settler.settle(await process.analysed(lease, found))).value  # type: ignore[arg-type]


async def relationship(process: Process) -> list[tuple[Any, ...]]:
    return await rows(process.postgres, "SELECT user_id, score, conversations FROM relationship ORDER BY user_id")


async def read(process: Process, revision: int | None = None, conversation_id: str = "talk-1") -> FoundConversation:
    return await Reader(process.postgres, process.log_store).one(WHOLE_DEFAULT, conversation_id, revision)


async def listed(process: Process, **wanted: Any) -> list[tuple[str, int]]:
    page = await Reader(process.postgres, process.log_store).many(WHOLE_DEFAULT, ListFilter(**wanted), 50)
    return [(row["conversation_id"], row["turns"]) for row in page.rows]


async def balanced(process: Process) -> bool:
    """Return whether the books, the receipts and the relationships agree with the tables."""
    async with open_dedicated(process.postgres) as dedicated:
        gaps, odd = await ledger.gaps(dedicated), await audit.anomalies(dedicated)
    print(gaps, odd)
    return not gaps and not odd


async def refused(process: Process, again: Accept) -> str:
    with pytest.raises(Conflict) as caught:
        await process.committer.accept(again)
    return caught.value.detail


# --- what is a revision


async def test_a_longer_log_is_a_revision_with_a_receipt_of_its_own(process: Process) -> None:
    first, second = await sent(process, 2), await sent(process, 4)
    assert (second.replayed, second.turns) == (False, 4)
    assert second.seq > first.seq
    assert second.digest != first.digest
    assert (revision_of(first.notes), revision_of(second.notes)) == (1, 2)
    assert (await read(process)).row["turns"] == 4
    assert await balanced(process)


async def test_every_revision_is_replayed_from_its_own_receipt(process: Process) -> None:
    first, second, third = [await sent(process, turns) for turns in (2, 4, 6)]
    again = [await sent(process, turns) for turns in (2, 4, 6)]
    assert again == [structs.replace(one, replayed=True) for one in (first, second, third)]
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 3


async def test_a_replay_of_an_earlier_revision_is_one_also_where_no_more_are_stored(database: str) -> None:
    async with opened(database) as process:
        stored = [await sent(process, turns) for turns in (2, 4)]
    async with opened(database, Settings()) as process:
        for turns, one in zip((2, 4), stored, strict=True):
            assert await process.committer.accept(accept(said=SAID[:turns])) == structs.replace(one, replayed=True)
        with pytest.raises(Conflict, match=r"intake\.revisions"):
            await process.committer.accept(accept(said=SAID[:6]))


async def test_the_same_log_with_other_fields_is_a_revision_and_the_first_body_stays_a_replay(process: Process) -> None:
    first = await sent(process, 2)
    second = await sent(process, 2, language="vi")
    assert (revision_of(second.notes), second.replayed) == (2, False)
    assert await sent(process, 2) == structs.replace(first, replayed=True)


async def test_any_other_log_is_a_conflict_that_says_why(process: Process) -> None:
    await sent(process, 4)
    assert "does not begin with the stored one" in await refused(process, talk(2))
    assert "does not begin with the stored one" in await refused(process, accept(revisions=True, said=SAID[1:]))
    assert "another user or bot" in await refused(process, talk(6, user_id="user-2"))
    assert "another user or bot" in await refused(process, talk(6, bot_id="bot-2"))
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 1


async def test_what_was_stored_while_the_setting_was_off_is_not_revised(database: str) -> None:
    async with opened(database, Settings()) as process:
        await process.accepted("talk-1", said=SAID[:2])
        with pytest.raises(Conflict, match=r"a revision, if intake\.revisions is true"):
            await process.committer.accept(accept(said=SAID[:4]))
        assert await ask(process.postgres, "SELECT count(*) FROM log_prefix") == 0
    async with opened(database) as process:
        assert "stored while intake.revisions was false" in await refused(process, talk(4))
        assert (await sent(process, 2)).replayed


async def test_with_the_setting_off_the_statement_of_an_accept_is_what_it_was(database: str) -> None:
    async with opened(database, Settings()) as off, opened(database, ON, "here/two") as on:
        plain, more = (one.committer._inserts.statements[False, False] for one in (off, on))
        # A revision takes two units more: then the request's own time bounds the wait.
        assert on.committer.wait_seconds == off.committer.wait_seconds + 2 * on.postgres.unit_seconds
    assert "log_prefix" not in plain
    assert "$21" not in plain
    assert "log_prefix" in more


async def test_no_stored_log_is_read(process: Process) -> None:
    await sent(process, 2)
    await ask(process.postgres, "DELETE FROM conversation_log")
    assert revision_of((await sent(process, 4)).notes) == 2


async def test_revisions_of_many_ids_in_one_batch_each_stand_for_their_own(process: Process) -> None:
    outcomes: dict[str, Outcome] = {}

    async def send(name: str, turns: int) -> None:
        try:
            outcomes[f"{name} {turns}"] = await sent(process, turns, name)
        except ConvoError as error:
            outcomes[f"{name} {turns}"] = error

    names = [f"next-{n}" for n in range(12)]
    for name in names:
        await sent(process, 2, name)
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(send, name, 4)
            nursery.start_soon(send, name, 2)
    assert all(isinstance(one, Stored) for one in outcomes.values())
    assert {revision_of(outcomes[f"{name} 4"].notes) for name in names} == {2}  # type: ignore[union-attr]
    assert await balanced(process)


async def test_of_two_revisions_at_the_same_moment_each_stands_once(database: str) -> None:
    async with opened(database) as one, opened(database, ON, "here/two") as other:
        for round_ in range(8):
            name = f"talk-{round_}"
            await sent(one, 2, name)
            outcomes: list[Outcome] = []

            async def send(process: Process, turns: int, name: str = name, outcomes: list[Outcome] = outcomes) -> None:
                try:
                    outcomes.append(await sent(process, turns, name))
                except Conflict as error:
                    outcomes.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, one, 4)
                nursery.start_soon(send, other, 6)
            kept = [found for found in outcomes if isinstance(found, Stored)]
            # The shorter one is a conflict where it came second.
            numbers = sorted(revision_of(found.notes) for found in kept)
            assert numbers in ([2], [2, 3])
            assert (await read(one, conversation_id=name)).row["turns"] == 6
        assert await balanced(one)


async def test_the_same_revision_from_two_processes_is_stored_once(database: str) -> None:
    async with opened(database) as one, opened(database, ON, "here/two") as other:
        await sent(one, 2)
        found: list[Stored] = []

        async def send(process: Process) -> None:
            found.append(await sent(process, 4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            nursery.start_soon(send, other)
        assert sorted(one.replayed for one in found) == [False, True]
        assert found[0].seq == found[1].seq
        assert await balanced(one)


async def test_no_revision_is_stored_beside_an_older_program(process: Process) -> None:
    await sent(process, 2)

    async def announce(connection: Connection) -> None:
        await process_programs.announce(connection, "one", "0.8", number_of("revisions") - 1)

    await process.postgres.run("test.announce", announce)
    with pytest.raises(Unavailable, match="older version"):
        await sent(process, 4)
    assert (await read(process)).row["turns"] == 2


# --- reading


async def test_any_revision_is_read_and_lists_have_the_newest_alone(process: Process) -> None:
    for turns in (2, 4, 6):
        await sent(process, turns)
    await sent(process, 2, "talk-2")
    assert [(await read(process, number)).row["turns"] for number in (1, 2, 3)] == [2, 4, 6]
    assert (await read(process)).row["turns"] == 6
    with pytest.raises(NotFound, match="has no revision 4"):
        await read(process, 4)
    assert (await read(process, 1, "talk-2")).row["turns"] == 2
    with pytest.raises(NotFound, match="has no revision 2"):
        await read(process, 2, "talk-2")
    for wanted in ({}, {"user_id": "user-1"}, {"bot_id": "bot-1"}, {"state": "ready"}):
        assert await listed(process, **wanted) == [("talk-2", 2), ("talk-1", 6)]


# --- jobs and scores


async def test_a_settled_revision_moves_score_and_relationship_by_the_difference(process: Process) -> None:
    await sent(process, 2)
    first = await settled(process, questions=1)
    assert await relationship(process) == [("user-1", first, 1)]
    await sent(process, 6)
    # Until it is analysed, the one before it counts.
    assert await relationship(process) == [("user-1", first, 1)]
    second = await settled(process, questions=3)
    assert second != first
    assert await relationship(process) == [("user-1", second, 1)]
    assert [(await read(process, number)).row["score"] for number in (1, 2)] == [first, second]
    assert await listed(process, state="done") == [("talk-1", 6)]
    assert await balanced(process)


async def test_a_run_under_way_is_fenced_by_a_newer_revision(process: Process) -> None:
    await sent(process, 2)
    late = await process.leased()
    await sent(process, 4)
    assert process.superseded == [late.seq]
    with pytest.raises(LeaseLost):
        await store_part(process.jobs, late, "questions", "test/1", Questions(questions=()))
    with pytest.raises(LeaseLost):
        await process.settler.settle(late)
    assert await process.jobs.renew([late]) == set()
    assert (await read(process, 1)).row["state"] == "superseded"
    score = await settled(process)
    assert await relationship(process) == [("user-1", score, 1)]
    assert await process.jobs.lease(5) == []
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == {"accepted": 2, "superseded": 1, "done": 1}


async def test_what_waits_in_between_is_passed_over_and_the_difference_is_to_what_counted(process: Process) -> None:
    await sent(process, 2)
    await settled(process, questions=2)
    await sent(process, 4)
    await sent(process, 6)
    assert [(await read(process, number)).row["state"] for number in (1, 2, 3)] == ["done", "superseded", "ready"]
    score = await settled(process, questions=1)
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)


async def test_a_dead_revision_changes_nothing_and_the_next_one_takes_its_place(process: Process) -> None:
    await sent(process, 2)
    first = await settled(process)
    await sent(process, 4)
    lease = structs.replace(await process.leased(), attempts=4)
    assert await process.jobs.fail(lease, "why", {}, later=0)
    assert await relationship(process) == [("user-1", first, 1)]
    assert (await read(process)).row["state"] == "dead"
    assert await balanced(process)
    await sent(process, 6)
    assert await listed(process, state="dead") == []
    score = await settled(process, questions=4)
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)


async def test_a_score_that_is_settled_twice_moves_the_relationship_once(process: Process) -> None:
    await sent(process, 2)
    await settled(process)
    await sent(process, 4)
    lease = await process.leased()
    score = await settled_under(process, lease, questions=3)
    with pytest.raises(LeaseLost):
        await process.settler.settle(lease)
    assert await relationship(process) == [("user-1", score, 1)]


async def test_memories_that_an_earlier_revision_told_first_count_for_the_newer_one(process: Process) -> None:
    await sent(process, 2)
    await settled(process, "dog", "moon")
    await sent(process, 4)
    await settled(process, "dog", "moon", "tea")
    assert (await read(process)).parts["memories"].new_memories == 3
    # A service that knows them already says nothing of them.
    await sent(process, 6)
    await settled(process, "dog", operation="NONE")
    assert (await read(process)).parts["memories"].new_memories == 3
    await sent(process, 2, "talk-2")
    await settled(process, "dog", "sun")
    assert (await read(process, None, "talk-2")).parts["memories"].new_memories == 1
    assert await balanced(process)


async def test_memories_of_a_run_that_was_fenced_count_for_the_newer_one(process: Process) -> None:
    await sent(process, 2)
    late = await process.leased()
    await store_part(process.jobs, late, "memories", "test/1", remembering("dog"))
    await sent(process, 4)
    await settled(process, "dog")
    assert (await read(process)).parts["memories"].new_memories == 1


async def test_a_revision_is_an_event_with_its_number(process: Process) -> None:
    await sent(process, 2)
    await sent(process, 4)
    found = await rows(process.postgres, "SELECT type, conversation_id, data::text FROM event")
    assert [(kind, name, msgspec.json.decode(data)) for kind, name, data in found] == [
        ("conversation.revised", "talk-1", {"turns": 4, "revision": 2})
    ]


async def test_the_same_id_of_another_tenant_is_another_conversation(process: Process) -> None:
    acme = Tenant(number=1, name="acme")
    await ask(process.postgres, "INSERT INTO tenant (number, name) VALUES (1, 'acme')")
    await sent(process, 2)
    await process.committer.accept(structs.replace(talk(2), tenant=acme))
    stored = await process.committer.accept(structs.replace(talk(4), tenant=acme))
    assert revision_of(stored.notes) == 2
    reader = Reader(process.postgres, process.log_store)
    assert (await reader.one(Reach(tenant=acme), "talk-1")).row["turns"] == 4
    assert (await reader.one(WHOLE_DEFAULT, "talk-1")).row["turns"] == 2
    with pytest.raises(NotFound):
        await reader.one(WHOLE_DEFAULT, "talk-1", 2)
    assert await balanced(process)


# --- erasure and retention


async def erased(process: Process, conversation_id: str = "talk-1") -> list[int]:
    gone: list[int] = []
    await erasure.erase_conversation(
        process.postgres, WHOLE_DEFAULT, conversation_id, NO_CALLER, erased=gone.extend, outbox=process.outbox
    )
    return gone


async def all_gone(process: Process) -> None:
    tables = ("conversation", "conversation_log", "log_prefix", "job", "outcome", "part", "run", "memory")
    for table in (*tables, "relationship"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 0, table
    hashed = DEFAULT.id_hash("talk-1")
    hashes = [hashed, *(revision_hash(hashed, number) for number in range(1, 9))]
    assert await ask(process.postgres, "SELECT count(*) FROM receipt WHERE id_hash = ANY($1)", hashes) == 0
    assert await ask(process.postgres, "SELECT count(*) FROM receipt WHERE state <> 'e' OR digest <> ''") == 0


async def test_a_conversation_is_erased_with_all_its_revisions(process: Process) -> None:
    seqs = [(await sent(process, 2)).seq]
    await settled(process, "dog")
    seqs.append((await sent(process, 4)).seq)
    await settled(process, "dog", "moon")
    seqs.append((await sent(process, 6)).seq)
    assert sorted(await erased(process)) == seqs
    await all_gone(process)
    assert await balanced(process)
    for turns in (2, 4, 6, 3):
        with pytest.raises(Erased):
            await sent(process, turns)
    with pytest.raises(Erased):
        await read(process)


@pytest.mark.parametrize("batch", [1, 2, 200])
async def test_a_user_is_erased_with_all_revisions(
    process: Process, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", batch)
    for turns in (2, 4, 6):
        await sent(process, turns)
        await settled(process, f"key {turns}")
    found = await user_erasure.erase_user(
        process.postgres, DEFAULT, "user-1", NO_CALLER, erased=lambda _: None, until=trio.current_time() + 60
    )
    assert found.ended_at is not None
    await all_gone(process)
    assert await balanced(process)
    with pytest.raises(Erased):
        await sent(process, 6)


async def test_no_revision_is_stored_of_what_an_erasure_of_its_user_has_yet_to_come_to(process: Process) -> None:
    await sent(process, 2)

    async def list_user(connection: Connection) -> None:
        key = await read_installation_key(connection)
        await note_begin(connection, "user", key.hmac_of("user", "user-1"))

    await process.postgres.run("test.list", list_user)
    with pytest.raises(Erased):
        await sent(process, 4, end_time="2100-01-01T00:00:00Z")
    assert (await read(process)).row["turns"] == 2


async def test_an_erased_revision_that_counted_takes_its_score_with_it(process: Process) -> None:
    await sent(process, 2, "kept")
    kept = await settled(process, questions=1)
    await sent(process, 2)
    await settled(process, questions=2)
    await sent(process, 4)
    await settled(process, questions=3)
    await erased(process)
    assert await relationship(process) == [("user-1", kept, 1)]
    assert await balanced(process)


async def test_revisions_expire_one_by_one_and_what_has_expired_is_not_revised(process: Process) -> None:
    await sent(process, 2)
    await settled(process, questions=1)
    await shift_clock(process.postgres, "20 days")
    await sent(process, 4)
    score = await settled(process, questions=2)
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)
    with pytest.raises(Expired, match="revision 1 of conversation 'talk-1' has expired"):
        await read(process, 1)
    assert (await sent(process, 2)).state == "expired"
    await shift_clock(process.postgres, "60 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    assert await relationship(process) == [("user-1", score, 1)]
    assert await balanced(process)
    assert "has expired" in await refused(process, talk(6))
    assert (await sent(process, 4)).state == "expired"
    assert sorted(await erased(process)) != []
    await ask(process.postgres, "DELETE FROM relationship")
    await all_gone(process)


async def test_a_score_stays_until_the_newer_one_has_taken_its_place(process: Process) -> None:
    await sent(process, 2)
    first = await settled(process, questions=1)
    await shift_clock(process.postgres, "31 days")
    await sent(process, 4)
    assert await removed(process, after(conversations_days=30)) == {}
    second = await settled(process, questions=2)
    assert await relationship(process) == [("user-1", second, 1)]
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    assert await relationship(process) == [("user-1", second, 1)]
    assert await balanced(process)
    assert first != second


async def test_a_revision_that_comes_after_retention_has_looked_keeps_the_score(process: Process) -> None:
    await sent(process, 2)
    await settled(process, questions=1)
    await shift_clock(process.postgres, "31 days")
    days = after(conversations_days=30)

    async def look(connection: Connection) -> retention.Over:
        return await retention.find_conversations(connection, days, None, 100)

    over = await process.postgres.run("test.look", look)
    assert len(over.ended) == 1
    await sent(process, 4)
    went = await process.postgres.run("test.retire", partial(retention.retire, over=over))
    assert went["conversations"] == 0
    second = await settled(process, questions=2)
    assert await relationship(process) == [("user-1", second, 1)]
    assert await balanced(process)


async def test_what_was_superseded_expires_as_what_is_done(process: Process) -> None:
    await sent(process, 2)
    await sent(process, 4)
    await settled(process)
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 2}
    assert await ledger.totals(process.postgres) == {"accepted": 2, "retired": 2, "done": 0, "superseded": 0}
    assert await balanced(process)


@pytest.mark.parametrize("expired", [False, True])
async def test_revisions_that_a_backup_brought_back_are_erased_again(process: Process, *, expired: bool) -> None:
    for turns in (2, 4, 6):
        await sent(process, turns)
        await settled(process, f"key {turns}")
    if expired:
        await shift_clock(process.postgres, "31 days")
        await removed(process, after(conversations_days=30))

    async def bring_back(connection: Connection) -> None:
        key = await read_installation_key(connection)
        hmac = key.hmac_of("conversation", "talk-1")
        hash_hmac = key.hmac_of_hash(DEFAULT.id_hash("talk-1"))
        await connection.execute("INSERT INTO erase_again VALUES ('conversation', $1, 1, $2)", hmac, hash_hmac)

    await process.postgres.run("test.bring", bring_back)
    done = await erase_again(process.postgres, erased=lambda _: None)
    assert done is not None
    assert await ask(process.postgres, "SELECT count(*) FROM erase_again") == 0
    hashed = DEFAULT.id_hash("talk-1")
    hashes = [hashed, *(revision_hash(hashed, number) for number in range(1, 4))]
    assert await ask(process.postgres, "SELECT count(*) FROM receipt WHERE id_hash = ANY($1)", hashes) == 0
    assert await ask(process.postgres, "SELECT count(*) FROM receipt WHERE state = 'e' AND digest = ''") == 3
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 0
    for turns in (2, 4, 6):
        with pytest.raises(Erased):
            await sent(process, turns)
    if not expired:
        assert await balanced(process)


async def test_what_an_expired_revision_told_first_goes_with_the_conversation(process: Process) -> None:
    await sent(process, 2)
    await settled(process, "dog")
    await shift_clock(process.postgres, "20 days")
    await sent(process, 4)
    await settled(process, "moon")
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    assert await ask(process.postgres, "SELECT count(*) FROM memory") == 2
    assert len(await erased(process)) == 2
    await all_gone(process)
    assert await balanced(process)
