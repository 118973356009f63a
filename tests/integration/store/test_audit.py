from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.errors import BadRow
from convo.store import audit
from convo.store.postgres import DedicatedConnection
from tests.support.making import Process, ask, deleted, open_dedicated, open_process, settled


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


@pytest.fixture
async def dedicated(process: Process) -> AsyncIterator[DedicatedConnection]:
    async with open_dedicated(process.postgres) as opened:
        yield opened


@pytest.mark.parametrize("page_rows", [1, 2, 100_000])
async def test_missing_logs_orphans_and_wrong_sums_are_found(
    process: Process, dedicated: DedicatedConnection, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(audit, "PAGE_ROWS", page_rows)
    await process.accepted("talk-1", "talk-2", "talk-3")
    await settled(process, 3)
    await process.accepted("talk-4")
    await process.jobs.release(await process.analysed(await process.leased()))
    await deleted(process, "conversation_log", "talk-1")
    await deleted(process, "conversation", "talk-2", "talk-4")
    await ask(process.postgres, "UPDATE relationship SET score = score + 1")
    found = {odd.what: (odd.count, odd.examples) for odd in await audit.anomalies(dedicated)}
    assert found == {
        "conversations without a log": (1, ("talk-1",)),
        "receipts without a conversation": (2, ("2", "4")),
        "logs without a conversation": (2, ("2", "4")),
        "jobs without a conversation": (1, ("4",)),
        "outcomes without a conversation": (1, ("2",)),
        "parts without a conversation": (3, ("4 questions", "4 emotion", "4 memories")),
        "runs without a conversation": (1, ("4",)),
        "relationships that are not the sum of their scores": (1, ("user-1 bot-1",)),
    }


async def test_a_job_that_is_missing_and_one_that_is_open_and_done_are_found(
    process: Process, dedicated: DedicatedConnection
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await settled(process, 2)
    await deleted(process, "outcome", "talk-1")
    await ask(process.postgres, "INSERT INTO job (seq, fair_key) SELECT seq, 'user-1' FROM outcome")
    await ask(process.postgres, "UPDATE relationship SET score = 4, conversations = 1")
    found = {odd.what: odd.examples for odd in await audit.anomalies(dedicated)}
    assert found == {
        "conversations without a job": ("talk-1",),
        "jobs that are open and have an outcome": ("2",),
    }


async def test_what_several_pages_find_is_summed_up_with_the_first_ten_examples(
    process: Process, dedicated: DedicatedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE_ROWS", 4)
    ids = [f"talk-{n:02}" for n in range(15)]
    await process.accepted(*ids)
    await deleted(process, "conversation_log", *ids[1:14])
    (found,) = await audit.anomalies(dedicated)
    assert (found.what, found.count, found.examples) == ("conversations without a log", 13, tuple(ids[1:11]))


async def test_a_wrong_or_a_missing_sum_is_found_whichever_users_share_its_page(
    process: Process, dedicated: DedicatedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE_USERS", 2)
    users = [f"user-{n}" for n in range(7)]
    for user in users:
        await process.accepted(f"talk-{user}", user_id=user)
    await settled(process, len(users))
    assert await audit.anomalies(dedicated) == []
    await ask(process.postgres, "UPDATE relationship SET score = score + 1 WHERE user_id IN ('user-0', 'user-3')")
    await ask(process.postgres, "DELETE FROM relationship WHERE user_id IN ('user-2', 'user-6')")
    (found,) = await audit.anomalies(dedicated)
    assert (found.count, sorted(found.examples)) == (4, [f"user-{n} bot-1" for n in (0, 2, 3, 6)])


async def test_a_day_that_was_never_booked_and_an_old_lease_are_found(
    process: Process, dedicated: DedicatedConnection
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await process.jobs.lease(1)
    for table in ("conversation", "receipt"):
        await ask(process.postgres, f"UPDATE {table} SET received_at = '2026-01-01T12:00Z' WHERE seq = 2")
        await ask(process.postgres, f"UPDATE {table} SET received_at = '2026-01-03T12:00Z' WHERE seq = 3")
    await ask(process.postgres, "INSERT INTO ledger (day, kind, n) VALUES ('2026-01-03', 'accepted', 1)")
    await ask(process.postgres, "UPDATE job SET leased_until = now() - interval '1 hour' WHERE state = 'leased'")
    found = {odd.what: odd.examples for odd in await audit.anomalies(dedicated)}
    assert found == {
        "days with conversations that were never booked": ("2026-01-01",),
        "leases that ended over five minutes ago": ("1",),
    }


@pytest.mark.parametrize("page_rows", [1, 100_000])
@pytest.mark.parametrize(
    "wrong",
    [
        "DELETE FROM receipt WHERE seq = 2",
        "UPDATE receipt SET seq = 9 WHERE seq = 2",
        "UPDATE receipt SET id_hash = 'sixteen bytes ..' WHERE seq = 2",
        "UPDATE receipt SET turns = turns + 1 WHERE seq = 2",
        "UPDATE receipt SET received_at = received_at - interval '1 s' WHERE seq = 2",
        "UPDATE receipt SET state = 'x' WHERE seq = 2",
    ],
)
async def test_a_conversation_without_its_own_receipt_is_found(
    process: Process,
    dedicated: DedicatedConnection,
    monkeypatch: pytest.MonkeyPatch,
    page_rows: int,
    wrong: str,
) -> None:
    monkeypatch.setattr(audit, "PAGE_ROWS", page_rows)
    await process.accepted("talk-1", "talk-2", "Bé-ɸ 🐘")
    assert await audit.anomalies(dedicated) == []
    await ask(process.postgres, wrong)
    found = {odd.what: odd.examples for odd in await audit.anomalies(dedicated)}
    assert found.pop("conversations without their receipt") == ("talk-2",)
    assert found == ({"receipts without a conversation": ("9",)} if "SET seq" in wrong else {})


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "'lost'"},
        {"state": "'leased'"},
        {"lease_token": "7"},
        {"state": "'dead'"},
        {"ended_at": "now()"},
        {"reviewed_at": "now()"},
        {"waits_for": "'llm'"},
    ],
)
async def test_a_job_that_came_in_with_a_state_that_cannot_be_is_found(
    process: Process, dedicated: DedicatedConnection, columns: dict[str, str]
) -> None:
    await process.accepted("talk-1", "talk-2")
    assert await audit.anomalies(dedicated) == []
    await deleted(process, "job", "talk-1")
    names, values = ", ".join(columns), ", ".join(columns.values())
    await ask(process.postgres, f"INSERT INTO job (seq, fair_key, {names}) VALUES (1, 'user-1', {values})")
    found = {odd.what: odd.examples for odd in await audit.anomalies(dedicated)}
    assert found == {"jobs in a state that cannot be": ("1",)}


async def test_a_receipt_in_no_known_state_cannot_be_made_of_one_and_is_found_where_it_came_in(
    process: Process, dedicated: DedicatedConnection
) -> None:
    await process.accepted("talk-1")
    with pytest.raises(BadRow):
        await ask(process.postgres, "UPDATE receipt SET state = 'q'")
    await ask(
        process.postgres,
        "INSERT INTO receipt (seq, received_at, turns, state, id_hash, digest) VALUES (7, now(), 1, 'q', 'h', 'd')",
    )
    found = {odd.what: odd.examples for odd in await audit.anomalies(dedicated)}
    assert found == {"receipts in a state that there is not": ("7",)}
