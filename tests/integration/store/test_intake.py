from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from convo.conversation import digest as digests
from convo.conversation.identity import id_hash
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.erase import ERASURES
from convo.errors import (
    BadRow,
    Conflict,
    ConvoError,
    DatabaseUnavailable,
    Draining,
    Expired,
    NotFound,
    TransactionLost,
    Unavailable,
)
from convo.observe import tracing
from convo.observe.traced_waits import record_wait
from convo.observe.tracing import Recorder, Span
from convo.runtime.deadline import deadline, wait_observers
from convo.settings import IntakeSettings, Settings
from convo.store import audit, ledger, migrate
from convo.store.conversations import Reader
from convo.store.intake import Accept, Stored
from convo.store.jobs.explain import read_explanation
from convo.store.logs import CommittedLog
from convo.store.migrations import migrations
from convo.store.postgres import DURABLE, Connection
from convo.web.accept import traced
from tests.support.making import Process, accept, ask, open_dedicated, open_process, rows, settled, told

Outcome = Stored | ConvoError


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def submit(process: Process, sent: Accept, outcomes: list[Outcome]) -> None:
    try:
        outcomes.append(await process.committer.accept(sent))
    except ConvoError as error:
        outcomes.append(error)


async def submit_all(process: Process, batch: Sequence[Accept], span: Span | None = None) -> list[Outcome]:
    """Submit these at the same time, those with a trace within ``span``; return what came of each, in their order."""
    outcomes: list[list[Outcome]] = [[] for _ in batch]
    async with trio.open_nursery() as nursery:
        for sent, outcome in zip(batch, outcomes, strict=True):
            with tracing.resumed_span(span if sent.trace else None):
                nursery.start_soon(submit, process, sent, outcome)
            # Trio starts tasks in any order; few enough to wait for each come in the order of the batch.
            if len(batch) < 10:
                await wait_all_tasks_blocked()
    return [outcome for (outcome,) in outcomes]


async def stored_ids(process: Process) -> list[str]:
    return [found for (found,) in await rows(process.postgres, "SELECT conversation_id FROM conversation ORDER BY seq")]


async def submit_behind(
    process: Process, transactions: Transactions, batch: Sequence[Accept], span: Span | None = None
) -> list[Outcome]:
    """Submit these while the transaction of another one is under way, so that they are the next batch."""
    transactions.before = [sleeping(0.3)]
    outcomes: list[Outcome] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit, process, accept("first"), outcomes)
        await under_way(process)
        behind = await submit_all(process, batch, span)
    assert isinstance(outcomes[0], Stored)
    return behind


class Transactions:
    """Watches the committer's units of work; ``before`` and ``after`` run on each one's own connection."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.statements: list[list[str]] = []
        self.before: list[Callable[[Connection], Any]] = []
        self.after: list[Callable[[Connection], Any]] = []
        self._line = process.committer._dedicated
        self._run = self._line.run

    async def run(self, name: str, body: Callable[[Any], Any], *, begin: str = DURABLE, seconds: Any = None) -> Any:
        mine: list[str] = []
        self.statements.append(mine)

        async def watched(connection: Any) -> Any:
            if self.before:
                await self.before.pop(0)(connection)
            outcome = await body(_Watched(connection, mine))
            if self.after:
                await self.after.pop(0)(connection)
            return outcome

        return await self._run(name, watched, begin=begin, seconds=seconds)


class _Watched:
    def __init__(self, connection: Any, statements: list[str]) -> None:
        self._connection = connection
        self._statements = statements

    async def fetch(self, query: str, *values: Any) -> Any:
        self._statements.append(query)
        return await self._connection.fetch(query, *values)


@pytest.fixture
def transactions(process: Process, monkeypatch: pytest.MonkeyPatch) -> Transactions:
    watching = Transactions(process)
    monkeypatch.setattr(process.committer._dedicated, "run", watching.run)
    return watching


async def ending(connection: Connection) -> None:
    await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    await connection.fetchval("SELECT 1")


def sleeping(seconds: float) -> Callable[[Connection], Any]:
    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT pg_sleep($1)", seconds)

    return body


def raising(sqlstate: str) -> Callable[[Connection], Any]:
    async def body(connection: Connection) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$")

    return body


async def under_way(process: Process) -> None:
    """Wait until the committer's connection sleeps in the middle of a transaction."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with trio.fail_after(5):
        while not await ask(process.postgres, query):  # noqa: ASYNC110  (the server tells nobody)
            await trio.sleep(0.01)


# --- one conversation


async def test_an_accepted_conversation_is_a_row_its_log_and_its_job(process: Process) -> None:
    sent = accept("talk-1")
    stored = await process.committer.accept(sent)
    assert (stored.conversation_id, stored.digest, stored.turns, stored.replayed) == ("talk-1", sent.digest, 3, False)
    assert await rows(process.postgres, "SELECT seq, received_at FROM conversation") == [
        (stored.seq, stored.received_at)
    ]
    assert await rows(process.postgres, "SELECT seq, state, attempts FROM job") == [(stored.seq, "ready", 0)]
    ((seq, body),) = await rows(process.postgres, "SELECT seq, body FROM conversation_log")
    assert (seq, body) == (stored.seq, sent.body)


async def test_what_was_committed_is_handed_over_with_its_log(process: Process) -> None:
    sent = accept("talk-1")
    stored = await process.committer.accept(sent)
    await process.committer.accept(sent)
    assert process.taken == [CommittedLog(seq=stored.seq, digest=sent.digest, body=sent.body)]


async def test_the_same_content_again_is_a_replay_with_the_same_receipt(process: Process) -> None:
    first = await process.committer.accept(accept("talk-1"))
    again = await process.committer.accept(accept("talk-1"))
    assert again == msgspec.structs.replace(first, replayed=True)
    assert await ask(process.postgres, "SELECT count(*) FROM job") == 1


async def test_a_replay_is_one_also_after_its_job_is_done(process: Process) -> None:
    first = await process.committer.accept(accept("talk-1"))
    await process.settler.settle(await process.analysed(await process.leased()))
    assert await process.committer.accept(accept("talk-1")) == msgspec.structs.replace(first, replayed=True)
    assert await process.state() == ("done", 1)


async def test_other_content_under_a_taken_id_is_a_conflict_that_names_both_digests(process: Process) -> None:
    one, other = accept("talk-1"), accept("talk-1", said=("Something else.",))
    await process.committer.accept(one)
    with pytest.raises(Conflict) as caught:
        await process.committer.accept(other)
    assert one.digest in caught.value.detail
    assert other.digest in caught.value.detail
    assert await ask(process.postgres, "SELECT count(*) FROM conversation_log") == 1


async def test_a_digest_of_an_unknown_version_fails_its_own_waiter_and_no_other(
    process: Process, transactions: Transactions
) -> None:
    await process.committer.accept(accept("newer"))
    await ask(process.postgres, r"UPDATE receipt SET digest = '\x03ab'")
    refused, other = await submit_behind(process, transactions, [accept("newer"), accept("other")])
    assert isinstance(refused, Unavailable)
    assert not isinstance(refused, Conflict)
    assert isinstance(other, Stored)


# --- batches


async def test_while_one_transaction_is_under_way_the_next_batch_gathers(
    process: Process, transactions: Transactions
) -> None:
    outcomes = await submit_behind(process, transactions, [accept(f"talk-{n}") for n in range(20)])
    assert all(isinstance(outcome, Stored) and not outcome.replayed for outcome in outcomes)
    assert len(transactions.statements) == 2
    assert len({outcome.received_at for outcome in outcomes if isinstance(outcome, Stored)}) == 1


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (IntakeSettings(batch_rows=3), [1, 3, 3, 2]),
        (IntakeSettings(batch_bytes=2 * len(accept("talk-1").body)), [1, 2, 2, 2, 2]),
    ],
)
async def test_a_transaction_takes_so_many_rows_and_bytes(
    database: str, settings: IntakeSettings, sizes: list[int]
) -> None:
    async with open_process(database, Settings(intake=settings)) as process:
        watching = Transactions(process)
        process.committer._dedicated.run = watching.run  # type: ignore[method-assign]
        await submit_behind(process, watching, [accept(f"talk-{n}") for n in range(8)])
        query = "SELECT count(*)::integer FROM conversation GROUP BY received_at ORDER BY received_at"
        assert [n for (n,) in await rows(process.postgres, query)] == sizes


async def test_a_batch_is_sorted_by_id(process: Process, transactions: Transactions) -> None:
    names = ["zoe", "Zoe", "ann", "émile", "bob", "10", "9"]
    await submit_behind(process, transactions, [accept(name) for name in names])
    assert await stored_ids(process) == ["first", *sorted(names)]


async def test_in_one_batch_the_same_content_is_one_row_and_many_waiters(
    process: Process, transactions: Transactions
) -> None:
    outcomes = await submit_behind(process, transactions, [accept("talk-1") for _ in range(10)])
    assert len(transactions.statements) == 2
    assert sorted(outcome.replayed for outcome in outcomes if isinstance(outcome, Stored)) == [False] + [True] * 9
    assert len({(outcome.seq, outcome.received_at) for outcome in outcomes if isinstance(outcome, Stored)}) == 1


async def test_in_one_batch_other_content_under_the_id_is_a_conflict(
    process: Process, transactions: Transactions
) -> None:
    said = [("This.",), ("Something else.",), ("This.",), ("Something else.",)]
    batch = [accept("talk-1", said=words) for words in said]
    outcomes = await submit_behind(process, transactions, batch)
    assert len(transactions.statements) == 2
    assert [type(outcome).__name__ for outcome in outcomes] == ["Stored", "Conflict", "Stored", "Conflict"]
    stored = await ask(process.postgres, "SELECT digest FROM receipt WHERE id_hash = $1", id_hash("talk-1"))
    assert digests.expand(stored) == batch[0].digest


async def test_ids_that_were_there_are_read_by_a_second_statement(process: Process, transactions: Transactions) -> None:
    await process.committer.accept(accept("talk-1"))
    await process.committer.accept(accept("talk-1"))
    assert [len(statements) for statements in transactions.statements] == [1, 2]


async def test_a_row_that_another_process_commits_meanwhile_is_seen_by_the_second_statement(
    process: Process, database: str
) -> None:
    async with open_process(database, owner="here/two") as other:
        sent = accept("talk-1")

        async def slowly(connection: Connection) -> None:
            await connection.execute(_STORED, id_hash("talk-1"), digests.compact(sent.digest))
            await sleeping(0.3)(connection)  # the row is inserted, its commit is to come

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.postgres.run, "db.accept", slowly)
            await under_way(process)
            stored = await process.committer.accept(sent)
    assert stored.replayed
    assert await ask(process.postgres, "SELECT count(*) FROM receipt") == 1


_STORED = """
INSERT INTO receipt (seq, id_hash, received_at, turns, digest)
VALUES (nextval('conversation_seq_seq'), $1, now(), 2, $2)
"""


async def test_500_concurrent_copies_are_one_row_one_job_and_the_same_receipt(process: Process) -> None:
    outcomes = await submit_all(process, [accept("talk-1") for _ in range(500)])
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert len(stored) == 500
    assert sum(not outcome.replayed for outcome in stored) == 1
    assert len({msgspec.structs.replace(outcome, replayed=True) for outcome in stored}) == 1
    for table in ("conversation", "conversation_log", "job"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 1


# --- durability


@pytest.mark.parametrize("scope", ["DATABASE %I", "ROLE current_user IN DATABASE %I"])
async def test_accepts_commit_with_fsync_whatever_the_servers_default(database: str, scope: str) -> None:
    async with open_process(database) as process:
        await ask(
            process.postgres,
            "DO $$ BEGIN EXECUTE format('ALTER "
            + scope.replace("current_user", "%2$I").replace("DATABASE %I", "DATABASE %1$I")
            + " SET synchronous_commit = off', current_database(), current_user); END $$",
        )
    async with open_process(database) as process:
        watching = Transactions(process)
        process.committer._dedicated.run = watching.run  # type: ignore[method-assign]
        shown: list[str] = []

        async def show(connection: Connection) -> None:
            shown.append(await connection.fetchval("SHOW synchronous_commit"))

        watching.after = [show]
        assert await ask(process.postgres, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'") == (
            "off"
        )
        await process.committer.accept(accept("talk-1"))
        assert shown == ["on"]


# --- waiters that leave


async def test_a_waiter_cancelled_before_its_batch_is_taken_leaves_with_its_row(
    process: Process, transactions: Transactions
) -> None:
    transactions.before = [sleeping(0.3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.committer.accept, accept("under-way"))
        await under_way(process)
        with trio.move_on_after(0.05):
            await process.committer.accept(accept("left"))
        await process.committer.accept(accept("stayed"))
    assert await stored_ids(process) == ["under-way", "stayed"]


async def test_afterwards_only_its_waiting_ends_and_the_row_is_there(
    process: Process, transactions: Transactions
) -> None:
    transactions.before = [sleeping(0.2)]
    with trio.move_on_after(0.05) as scope:
        await process.committer.accept(accept("talk-1"))
    assert scope.cancelled_caught
    assert (await process.committer.accept(accept("talk-1"))).replayed


async def test_whatever_the_moment_of_a_cancellation_a_retry_finds_one_row(process: Process) -> None:
    rolls = random.Random(4)

    async def impatient(sent: Accept) -> None:
        with trio.move_on_after(rolls.random() * 0.02):
            await process.committer.accept(sent)

    batch = [accept(f"talk-{n}") for n in range(100)]
    async with trio.open_nursery() as nursery:
        for sent in batch:
            nursery.start_soon(impatient, sent)
            if rolls.random() < 0.2:
                await trio.sleep(0.002)
    assert all(isinstance(outcome, Stored) for outcome in await submit_all(process, batch))
    for table in ("conversation", "conversation_log", "job"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 100


# --- rows that the database refuses


async def test_a_row_that_the_database_refuses_is_split_off_and_the_others_are_stored(
    process: Process, transactions: Transactions
) -> None:
    await ask(process.postgres, "ALTER TABLE conversation ADD CHECK (conversation_id NOT LIKE '%bad%')")
    batch = [accept(name) for name in ("a-0", "a-1", "a-2", "bad-3", "c-4", "d-5", "bad-6", "e-7")]
    with told() as events:
        outcomes = await submit_behind(process, transactions, batch)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "BadRow" if sent.ended.conversation_id.startswith("bad") else "Stored" for sent in batch
    ]
    refused = outcomes[3]
    assert isinstance(refused, BadRow)
    assert refused.sqlstate == "23514"
    assert len(await stored_ids(process)) == 7
    assert "batch_split" in events


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
async def test_a_text_that_postgresql_cannot_hold_fails_alone(
    process: Process, transactions: Transactions, text: str
) -> None:
    bad = accept("bad")
    bad = msgspec.structs.replace(bad, ended=msgspec.structs.replace(bad.ended, bot_name=text))
    refused, other = await submit_behind(process, transactions, [bad, accept("other")])
    assert isinstance(refused, BadRow)
    assert isinstance(other, Stored)


# --- transactions that are lost


@pytest.mark.parametrize("fault", [ending, raising("40001"), raising("40P01"), raising("57P01")])
async def test_a_lost_transaction_is_repeated_once(
    process: Process, transactions: Transactions, fault: Callable[[Connection], Any]
) -> None:
    transactions.before = [fault]
    stored = await process.committer.accept(accept("talk-1"))
    assert not stored.replayed
    assert len(transactions.statements) == 2
    assert await stored_ids(process) == ["talk-1"]


async def test_one_that_is_lost_behind_its_commit_is_found_stored_when_it_is_repeated(
    process: Process, transactions: Transactions
) -> None:
    transactions.after = [ending]
    stored = await process.committer.accept(accept("talk-1"))
    assert stored.replayed
    assert len(transactions.statements) == 2
    assert await stored_ids(process) == ["talk-1"]
    assert await ask(process.postgres, "SELECT count(*) FROM job") == 1


async def test_one_that_is_lost_twice_fails_its_waiters_and_the_committer_goes_on(
    process: Process, transactions: Transactions
) -> None:
    transactions.before = [ending, ending]
    with pytest.raises(TransactionLost):
        await process.committer.accept(accept("talk-1"))
    assert await stored_ids(process) == []
    assert not (await process.committer.accept(accept("talk-1"))).replayed


async def test_it_is_not_repeated_when_the_waiter_cannot_afford_it(
    process: Process, transactions: Transactions
) -> None:
    transactions.after = [ending]
    with pytest.raises(TransactionLost), deadline("web.request", process.postgres.unit_seconds - 0.1):
        await process.committer.accept(accept("talk-1"))
    assert len(transactions.statements) == 1


@pytest.mark.parametrize("sqlstate", ["53300", "57014", "XX000"])
async def test_all_else_fails_its_waiters_at_once(process: Process, transactions: Transactions, sqlstate: str) -> None:
    transactions.before = [raising(sqlstate)]
    with told() as events, pytest.raises(DatabaseUnavailable) as caught:
        await process.committer.accept(accept("talk-1"))
    assert caught.value.status == 503
    assert len(transactions.statements) == 1
    assert events == ["batch_failed"]


async def test_a_committer_that_is_killed_in_the_middle_by_the_server_loses_nothing(
    process: Process, transactions: Transactions
) -> None:
    transactions.before = [sleeping(20)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.committer.accept, accept("talk-1"))
        await under_way(process)
        await ask(
            process.postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'PgSleep' AND datname = current_database()",
        )
    assert await stored_ids(process) == ["talk-1"]
    assert len(transactions.statements) == 2


# --- the database away


async def test_a_database_that_is_away_fails_the_waiters_and_is_found_again_when_it_is_back(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = process.postgres
    monkeypatch.setattr(postgres.sessions, "_hosts", ["postgresql:///convo?host=/nonexistent&user=convo"])
    outcomes = await submit_all(process, [accept(f"talk-{n}") for n in range(5)])
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 5
    monkeypatch.undo()
    assert all(isinstance(outcome, Stored) for outcome in await submit_all(process, [accept("talk-0")]))


async def test_a_database_that_does_not_answer_costs_a_waiter_its_deadline_and_no_more(database: str) -> None:
    quick = msgspec.structs.replace(Settings().database, acquire_seconds=0.1, statement_seconds=0.2)
    async with open_process(database, Settings(database=quick)) as process:
        watching = Transactions(process)
        process.committer._dedicated.run = watching.run  # type: ignore[method-assign]
        watching.before = [sleeping(30)]
        with pytest.raises(Unavailable, match=r"db\.accept took longer than its 0\.3 s"):
            await process.committer.accept(accept("talk-1"))
        assert not (await process.committer.accept(accept("talk-1"))).replayed


async def test_at_the_stop_whoever_waits_is_told_to_send_it_again(database: str) -> None:
    outcomes: list[Outcome] = []
    async with trio.open_nursery() as clients, open_process(database) as process:
        watching = Transactions(process)
        process.committer._dedicated.run = watching.run  # type: ignore[method-assign]
        watching.before = [sleeping(30)]
        clients.start_soon(submit, process, accept("talk-1"), outcomes)
        await under_way(process)
        clients.start_soon(submit, process, accept("talk-2"), outcomes)
        await wait_all_tasks_blocked(0.01)
    assert [type(outcome) for outcome in outcomes] == [Draining, Draining]
    async with open_process(database) as process:
        assert await stored_ids(process) == []


# --- two processes


async def test_two_pools_posting_the_same_ids_in_opposite_order_agree(process: Process, database: str) -> None:
    ids = [f"talk-{n:04}" for n in range(300)]
    settings = Settings(intake=IntakeSettings(batch_rows=64))
    async with open_process(database, settings, "here/two") as one, open_process(database, settings) as other:
        found: list[list[Outcome]] = [[], []]

        async def post(which: int, poster: Process, order: Sequence[str]) -> None:
            found[which] = await submit_all(poster, [accept(name) for name in order])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, 0, one, ids)
            nursery.start_soon(post, 1, other, ids[::-1])
    for forward, backward in zip(found[0], reversed(found[1]), strict=True):
        assert isinstance(forward, Stored)
        assert isinstance(backward, Stored)
        assert forward.replayed != backward.replayed
        assert forward.received_at == backward.received_at
    assert await ask(process.postgres, "SELECT count(*) FROM job") == 300


async def test_two_processes_posting_the_same_1000_ids_in_opposite_order_at_once_agree(
    process: Process, database: str
) -> None:
    def post(order: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.posting", database, order]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
        )

    def both() -> list[dict[str, Any]]:
        posters = [post("forward"), post("backward")]
        for poster in posters:
            assert poster.stdout is not None
            assert poster.stdout.readline() == "ready\n"
        for poster in posters:
            assert poster.stdin is not None
            poster.stdin.write("go\n")
            poster.stdin.flush()
        return [json.loads(poster.communicate(timeout=60)[0]) for poster in posters]

    one, other = await trio.to_thread.run_sync(both)
    assert one["errors"] == other["errors"] == []
    assert one["stored"].keys() == other["stored"].keys()
    assert len(one["stored"]) == 1000
    for name, (received_at, replayed) in one["stored"].items():
        assert other["stored"][name] == [received_at, not replayed]
    for table in ("conversation", "conversation_log", "job"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 1000


async def test_what_was_acknowledged_is_noted_but_for_canaries_which_are_erased(process: Process) -> None:
    await process.committer.accept(accept("talk-1"))
    await process.committer.accept(accept("talk-1"))
    await process.committer.accept(accept("canary-1", user_id=CANARY_USER))
    await process.committer.accept(accept("talk-2"))
    await ask(process.postgres, "WITH gone AS (DELETE FROM receipt WHERE id_hash <> $1) SELECT 1", id_hash("talk-2"))
    assert await process.receipts.missing(process.postgres) == (2, ["talk-1"])


# --- a receipt outlives its conversation


async def retire(process: Process, conversation_id: str) -> None:
    """Delete a conversation as a retention does: all that is stored of it and its place in the books, in one go."""

    async def body(connection: Connection) -> None:
        seq = await connection.fetchval("SELECT seq FROM receipt WHERE id_hash = $1", id_hash(conversation_id))
        for table, statements in ERASURES.items():
            for statement in statements if table != "receipt" else ():
                await connection.execute(statement, [seq])
        await connection.execute("UPDATE receipt SET state = 'x' WHERE seq = $1", seq)

    await process.postgres.run("test.retire", body)


async def test_a_retired_conversation_that_comes_again_is_a_replay_of_its_receipt_which_says_so(
    process: Process, transactions: Transactions
) -> None:
    first = await process.committer.accept(accept("talk-1", odd=1))
    assert first.notes is not None
    await process.accepted("talk-2")
    await settled(process, 2)
    await retire(process, "talk-1")
    again = await process.committer.accept(accept("talk-1", odd=1))
    assert again == msgspec.structs.replace(first, replayed=True, state="expired")
    with pytest.raises(Conflict, match="is taken by other content"):
        await process.committer.accept(accept("talk-1", said=("Something else.",)))
    assert await stored_ids(process) == ["talk-2"]
    assert await process.receipts.missing(process.postgres) == (2, [])
    async with open_dedicated(process.postgres) as dedicated:
        assert await ledger.gaps(dedicated) == []
        assert await audit.anomalies(dedicated) == []


async def test_an_expired_conversation_is_not_read_but_known(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await settled(process, 2)
    await retire(process, "talk-1")
    reader = Reader(process.postgres, process.log_store)
    asked: Sequence[Callable[..., Any]] = (
        *(reader.one, reader.log_sizes, process.jobs.retry, process.jobs.acknowledge),
        partial(read_explanation, process.postgres),
    )
    for one in asked:
        with pytest.raises(Expired, match=r"conversation 'talk-1', received at 20.+Z, has expired"):
            await one(WHOLE_DEFAULT, "talk-1")
        with pytest.raises(NotFound, match="there is no conversation 'talk-3'"):
            await one(WHOLE_DEFAULT, "talk-3")
    # What was lost is not said to have expired.
    await ask(process.postgres, "WITH gone AS (DELETE FROM outcome WHERE seq = 2) SELECT 1")
    for one in (process.jobs.retry, reader.one):
        with pytest.raises(NotFound):
            await one(WHOLE_DEFAULT, "talk-2")


async def test_the_receipt_alone_decides_what_is_new_while_the_conversation_still_has_its_own_index(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the contract step: what older programs read of a conversation is there, and none is stored twice."""
    expands = [one for one in migrations() if one.kind == "expand"]
    monkeypatch.setattr(migrate, "migrations", lambda: expands)
    async with open_process(empty_database) as process:
        async with open_dedicated(process.postgres) as dedicated:
            await migrate.migrate(dedicated)
        outcomes = [await process.committer.accept(accept("talk-1", odd=1)) for _ in range(2)]
        assert [one.replayed for one in outcomes] == [False, True]
        assert await rows(process.postgres, "SELECT seq, digest, notes FROM conversation") == [
            (outcomes[0].seq, outcomes[0].digest, outcomes[0].notes)
        ]
        await settled(process, 1)
        async with open_dedicated(process.postgres) as dedicated:
            assert await audit.anomalies(dedicated) == []


# --- traces


async def test_the_wait_for_a_batch_and_its_transaction_are_recorded_of_each_that_was_sent_in_a_trace(
    process: Process, transactions: Transactions
) -> None:
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        request = tracing.begin_span("request", "server")
        assert request is not None
        batch = [traced(accept("talk-1"), request), accept("talk-2")]
        await submit_behind(process, transactions, batch, span=request)
    waited, stored = recorder.take(100)
    assert (waited.name, stored.name) == ("wait for batch", "db.accept")
    assert {waited.parent_id, stored.parent_id} == {request.span_id}
    # The transaction before sleeps for 0.3 s, and was under way when they came.
    assert 0.1 < (waited.ended_ns - waited.began_ns) / 1e9 < 5
    assert abs(stored.began_ns - waited.ended_ns) < 10_000_000
    assert (stored.attributes["convo.batch_rows"], stored.error) == (2, "")


async def test_a_transaction_that_failed_is_recorded_with_its_error_and_so_is_the_next_try(
    process: Process, transactions: Transactions
) -> None:
    recorder = Recorder(sample=1.0, spans_max=100)
    transactions.before = [ending]
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        request = tracing.begin_span("request", "server")
        assert request is not None
        with tracing.resumed_span(request):
            await process.committer.accept(traced(accept("talk-1"), request))
    spans = recorder.take(100)
    assert [span.name for span in spans] == ["wait for batch", "db.accept"] * 2
    failed, stored = spans[1], spans[3]
    assert failed.attributes["error.type"] == "transaction_lost"
    assert stored.error == ""
    # The wait for the second one counts from the end of the first.
    assert spans[2].began_ns >= failed.ended_ns - 10_000_000
